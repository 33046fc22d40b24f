"""Fast paths against plain float32: the losses of all stages under bf16 autocast, and compiled.

Tolerances: 2e-2 of the loss in bf16, whose numbers have 8 bits; 1e-5 compiled in float32. Gradients are compared as a whole,
||g - g0|| / ||g0||, since single ones may be noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cadiff.attend.stage import AttendConfig
from cadiff.blocks import compiled_blocks
from cadiff.contrast.mae import FmriMaeConfig, initialise
from cadiff.contrast.stage import ContrastConfig
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.plan.workloads import WORKLOADS, Models, Workload

MAE = FmriMaeConfig(
    num_voxels=256,
    embed_dim=64,
    depth=3,
    num_heads=4,
    decoder_embed_dim=32,
    decoder_depth=2,
    decoder_num_heads=4,
)
CONFIGS: dict[str, Any] = {
    "contrast": ContrastConfig(masked_error_weight=0.5),
    "attend": AttendConfig(decoder_depth=2, image_decoder_depth=2, cross_depth=1),
    "diffuse": DiffuseConfig(context_length=4, unet_blocks="up"),
}


@pytest.fixture(params=CONFIGS)
def workload(request: pytest.FixtureRequest) -> Workload:
    """A stage at small size, with the shipped prior."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = WORKLOADS[request.param](CONFIGS[request.param], Models(MAE))
        generator = torch.Generator().manual_seed(1)
        for module in made.modules.values():
            for part in module.modules():
                if isinstance(part, nn.Linear) and part.weight.abs().sum() == 0:
                    initialise(part, generator)  # what has no weights yet would compare zeros
    return made


def measure(workload: Workload, *, bf16: bool = False) -> tuple[float, torch.Tensor]:
    """Loss and all gradients of one step as one vector."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        batch = workload.batch(8)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = workload.loss(batch, torch.Generator().manual_seed(3))["loss"]
    loss.backward()
    gradients = []
    for module in workload.modules.values():
        for parameter in module.parameters():
            if parameter.grad is not None:
                gradients.append(parameter.grad.flatten().clone())
                parameter.grad = None
    return loss.item(), torch.cat(gradients)


def compare(workload: Workload, fast: Callable[[], tuple[float, torch.Tensor]], tolerance: float) -> None:
    loss, gradient = measure(workload)
    found, slope = fast()
    assert found == pytest.approx(loss, rel=tolerance)
    assert slope.shape == gradient.shape
    assert not torch.equal(slope, gradient)  # the other path was taken
    assert float((slope - gradient).norm() / gradient.norm()) < 5 * tolerance


def test_bf16_has_the_loss_and_the_gradient_of_float32(workload: Workload) -> None:
    compare(workload, lambda: measure(workload, bf16=True), 2e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
def test_compiled_blocks_have_the_loss_and_the_gradient_of_plain_ones(workload: Workload) -> None:
    def compiled() -> tuple[float, torch.Tensor]:
        with compiled_blocks(workload.modules.values()) as number:
            assert number
            return measure(workload)

    compare(workload, compiled, 1e-5)

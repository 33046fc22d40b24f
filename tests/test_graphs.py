"""CUDA graphs of a step: the same gradients as without, step after step; and the tree walk that feeds them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cadiff.draws import drawn
from cadiff.graphs import WARM_UP, Graphed, each

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_each_pairs_tensors_of_nested_batches() -> None:
    tree = {"a": torch.zeros(2), "b": (torch.ones(1), [torch.full((3,), 2.0)])}
    doubled = each(torch.add, tree, tree)
    assert doubled["b"][1][0].tolist() == [4.0] * 3
    assert isinstance(doubled["b"], tuple)


@needs_gpu
def test_replayed_steps_have_the_gradients_of_plain_ones() -> None:
    device = torch.device("cuda")
    plain, graphed = nn.Linear(4, 3).to(device), nn.Linear(4, 3).to(device)
    graphed.load_state_dict(plain.state_dict())

    def work(model: nn.Linear):
        def run(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            rows = len(batch["x"])
            noise = drawn(lambda g: torch.randn(rows, 4, generator=g), generator, device)
            loss = model(batch["x"] + noise).square().mean()
            loss.backward()
            return {"loss": loss}

        return run

    replay = Graphed(work(graphed))
    for step in range(WARM_UP + 4):
        batch = {"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).to(device)}
        want = work(plain)(batch, torch.Generator().manual_seed(100 + step))
        got = replay(batch, torch.Generator().manual_seed(100 + step))
        torch.testing.assert_close(got["loss"], want["loss"])
        torch.testing.assert_close(graphed.weight.grad, plain.weight.grad)
        plain.zero_grad(set_to_none=True)
        if not replay.captured:
            graphed.zero_grad(set_to_none=True)
    assert replay.captured

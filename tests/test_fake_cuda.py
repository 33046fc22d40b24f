"""What only a GPU refuses, on every machine: tensors left behind on the CPU, captures that draw or wait, steps that wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from cadiff.attend import AttendConfig, attend
from cadiff.baselines.ssae.stage import SsAe
from cadiff.contrast.stage import ContrastConfig, contrast
from cadiff.data.dataset import BrainDataset
from cadiff.data.splits import average_repeats
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.pipeline import FmriToImagePipeline, open_pipeline
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct
from cadiff.diffuse.sampling import SCHEDULERS, denoise, make_scheduler
from cadiff.diffuse.stage import DiffuseConfig, diffuse
from cadiff.draws import drawn
from cadiff.encoding.features import Spaces
from cadiff.runs import RunFolder
from cadiff.training import FitConfig, fit
from cadiff.vision import load_classifier
from fake_cuda import Gpu, Refused, fake_cuda
from layouts.starts import SIZES, make_start
from tiny_networks import schedule, seeded, unet

FIT = {"epochs": None, "warmup_epochs": None, "steps": 5, "batch_size": 4, "checkpoint_every": 4, "log_every": 1}  # fmt: skip
"""Three steps of warm-up, the capture, and one after it."""


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with fake_cuda() as found:
        yield found


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="session")
def tuned(linear_brain: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A pipeline tuned with everything that a step may draw, and how many graphs were captured."""
    about: dict[str, Any] = {"context_length": 4, "num_crops": 1, "label_start": True, "latent_start": 3}
    about |= {"min_snr_gamma": 5, "condition_dropout": 0.1, "gradient_checkpointing": True, "fit": FIT}
    with fake_cuda() as gpu:
        config = DiffuseConfig.model_validate(about)
        out = tmp_path_factory.mktemp("tuned") / "run"
        return diffuse(config, linear_brain, start / "phase1", out, prior=start / "prior"), gpu.captured


def test_what_a_gpu_refuses_is_refused(gpu: Gpu) -> None:
    layer, x = nn.Linear(4, 3).to("cuda"), torch.randn(2, 4)
    on_gpu = x.to("cuda")
    layer(on_gpu).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.device.type == "cuda"
    index = torch.zeros(2, dtype=torch.long)
    assert on_gpu[index].device.type == "cuda"
    on_cpu: tuple[Callable[[], Any], ...] = (
        lambda: layer(x),
        on_gpu.numpy,
        lambda: x[index.to("cuda")],
        lambda: torch.rand(2, generator=torch.Generator(), device="cuda"),
    )
    for wrong in on_cpu:
        with pytest.raises(Refused):
            wrong()
    for wrong in (on_gpu.sum().item, on_gpu.cpu, lambda: torch.rand(2), lambda: on_gpu[on_gpu > 0]):
        with pytest.raises(Refused, match="captured"), torch.cuda.graph(None):  # pyright: ignore[reportArgumentType]
            wrong()


Plant = Callable[[Tensor, torch.Generator], Any]
PLANTED: dict[str, tuple[Plant, str | None]] = {
    "nothing": (lambda x, g: 0, None),
    "a draw on the tape": (lambda x, g: drawn(lambda source: torch.randn(3, generator=source), g, x.device).sum(), None),
    "a draw past the tape": (lambda x, g: torch.randn(3, generator=g).to(x.device, non_blocking=True).sum(), "a random draw"),
    "dropout": (lambda x, g: nn.functional.dropout(x).sum(), "a random draw"),
    "a number read": (lambda x, g: float(x.detach().sum()), "_local_scalar_dense while a graph is captured"),
    "weights on the CPU": (lambda x, g: (x.detach() * torch.ones(3)).sum(), r"mul of \[\('cuda', .*'cpu'"),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_a_captured_step_neither_waits_nor_draws_nor_leaves_tensors_behind(
    gpu: Gpu, tmp_path: Path, planted: str
) -> None:
    layer, config = nn.Linear(2, 3), FitConfig(steps=5)
    more, why = PLANTED[planted]

    def loss(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x = layer(batch)
        return {"loss": x.square().mean() + more(x, generator)}

    def train() -> None:
        run = RunFolder.open(tmp_path / "run", stage="toy", config=config)
        fit(loss, {"layer": layer}, lambda step: torch.ones(4, 2), config, run=run, capturable=True)

    if why is None:
        train()
        assert gpu.captured == 1
        assert all(p.grad is None for p in layer.parameters())  # which would hold the graph's memory
    else:
        with pytest.raises(Refused, match=why):
            train()


def test_a_step_of_phase_1_is_captured(gpu: Gpu, linear_brain: Path, tmp_path: Path) -> None:
    settings = {"mae": SIZES, "masked_error_weight": 0.5, "gradient_checkpointing": True, "fit": FIT}
    contrast(ContrastConfig.model_validate(settings), [linear_brain], tmp_path / "run")
    assert gpu.captured == 1


@pytest.mark.parametrize("trainable", ["code", pytest.param("paper", marks=pytest.mark.slow)])
def test_a_step_of_phase_2_is_captured(
    gpu: Gpu, linear_brain: Path, start: Path, tmp_path: Path, trainable: str
) -> None:
    settings = {"cross_depth": 1, "trainable": trainable, "fit": {**FIT, "ema_decay": 0.9}}
    config = AttendConfig.model_validate(settings)
    attend(config, linear_brain, start / "phase1", tmp_path / "run", image_mae=start / "image_mae")
    assert gpu.captured == 1


def test_a_step_of_tuning_is_captured(tuned: tuple[Path, int]) -> None:
    assert tuned[1] == 1


DRAWN = [
    {"scheduler": "ddim", "likelihood": 1.0, "guidance_scale": 2, "controls": ["prior_only", "label_oracle"]},
    {"scheduler": "pndm", "guidance_scale": 2, "controls": ["shuffled", "autoencoded"], "importance": True},
    {"scheduler": "dpm++", "strength": 0.5, "repeats": [2], "only_rois": ["V1"]},
    {"scheduler": "euler", "class_start": True, "class_pictures": 2},
    {"scheduler": "unipc", "rerank": "encoding", "rerank_rounds": 2, "rerank_strength": 0.5},
]  # fmt: skip
"""The first is quick, the others are marked slow."""


@pytest.mark.parametrize("more", [DRAWN[0], *(pytest.param(d, marks=pytest.mark.slow) for d in DRAWN[1:])])
def test_pictures_are_drawn(
    gpu: Gpu, linear_brain: Path, tuned: tuple[Path, int], tmp_path: Path, more: dict[str, Any]
) -> None:
    settings = {
        "num_images_per_trial": 2,
        "num_inference_steps": 4,
        "importance": False,
        "controls": [],
        "rerank_features": ["pixels"],
        **more,
    }
    config = ReconstructConfig.model_validate(settings)
    out = reconstruct(config, tuned[0], linear_brain, tmp_path / "run")
    table = pd.read_csv(out / "samples.tsv", sep="\t")
    assert {"brain", *config.controls} <= set(table["condition"])
    assert all((out / file).is_file() for file in table["file"])
    assert gpu.waits  # pictures came back from the GPU, so they were drawn there


def test_a_condition_and_a_guess_may_lie_on_the_cpu(gpu: Gpu, tuned: tuple[Path, int]) -> None:
    pipeline: FmriToImagePipeline = open_pipeline(tuned[0])
    given = Condition(torch.randn(2, 4, 12), torch.randn(2, 32))
    options: dict[str, Any] = {"num_inference_steps": 2, "num_images_per_trial": 1, "scheduler": "dpm++"}
    guess = torch.randn(2, *pipeline.latent_shape)
    found = pipeline(condition=given, guess=guess, strength=0.5, on_step=lambda: None, **options)
    assert found.shape == (2, 1, 16, 16, 3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_sampler_waits_for_the_gpu_around_its_steps_and_not_in_them(name: str) -> None:
    """And gives the latents of the CPU, to the bit. UniPC solves small systems in Python."""
    with seeded(0):
        network = unet(class_embed_type="identity").eval()
        noise, context, time = (torch.randn(2, *shape) for shape in ((3, 8, 8), (4, 12), (32,)))

    def draw(steps: int, x: Tensor, *condition: Tensor) -> Tensor:
        sampler = make_scheduler(name, schedule().config)
        return denoise(
            network, sampler, x, Condition(*condition), num_inference_steps=steps, precision="fp32"
        )

    on_cpu, waits = draw(6, noise, context, time), []
    with fake_cuda() as gpu:
        nn.Module.to(network, "cuda")
        given = [x.to("cuda") for x in (noise, context, time)]
        for steps in (4, 6):
            gpu.waits.clear()
            found = draw(steps, *given)
            waits.append(gpu.waits.total())
        assert torch.equal(found.cpu(), on_cpu)
    assert name == "unipc" or waits[0] == waits[1]


def test_the_judge_and_feature_spaces(gpu: Gpu, start: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    judge = load_classifier()
    assert next(judge._network.parameters()).device.type == "cuda"
    assert judge.logits(images).shape == (2, 1000)
    spaces = Spaces(["pixels", "gabor", "vq", "efficientnet-lite0"], start / "prior")
    assert all(len(table) == 2 and np.isfinite(table).all() for table in spaces(images))


def test_ssae(gpu: Gpu, linear_brain: Path) -> None:
    data = BrainDataset.open(linear_brain)
    sizes: dict[str, Any] = {
        "encoder_channels": 4,
        "decoder_channels": 4,
        "encoder_batch": 4,
        "pairs_batch": 4,
        "fmri_batch": 2,
    }
    fitted = SsAe.fit(data, data.rows("train"), images="none", encoder_steps=2, decoder_steps=2, **sizes)
    betas, names, repeats = average_repeats(data, "test")
    pictures = fitted.reconstruct(betas, stimulus_ids=names, repeats=repeats)
    again = SsAe.from_state(fitted.state(), data)
    assert next(again.decoder.parameters()).device.type == "cuda"
    assert np.array_equal(again.reconstruct(betas, stimulus_ids=names, repeats=repeats), pictures)

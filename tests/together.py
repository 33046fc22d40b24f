"""What several processes do together in the tests: losses with their gradients, and trainings. Another process can import it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, VQModel
from torch import Tensor, nn

import killable
import tiny_networks
from cadiff import processes
from cadiff.attend.image_mae import ImageMae
from cadiff.attend.model import ImageCross, phase_2_loss
from cadiff.cli import run
from cadiff.contrast.cross import CrossConfig, FmriCross
from cadiff.contrast.losses import masked_error
from cadiff.contrast.mae import FmriMae, FmriMaeConfig, initialise
from cadiff.contrast.stage import ContrastConfig, phase_1_loss
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.diffuse.stage import EpsilonLoss
from cadiff.diffuse.trainable import mark_trainable
from cadiff.errors import UserError
from cadiff.priors.load import ImagePrior
from cadiff.priors.train_ldm import DiffusionConfig, LabelTable, build_unet, diffusion_loss
from cadiff.priors.train_mae import ImageMaeConfig, build_image_mae, image_mae_loss
from cadiff.priors.train_vq import AutoencoderConfig, autoencoder_loss, build_autoencoder
from cadiff.runs import RunFolder
from cadiff.sharing import average_gradients, own, shared_batches, total
from cadiff.training import FitConfig, epoch_batches, fit

SIZE = tiny_networks.fmri_mae_config(decoder_depth=1)
IMAGE_MAE = ImageMaeConfig(
    patch_size=4,
    embed_dim=16,
    depth=1,
    num_heads=2,
    decoder_embed_dim=8,
    decoder_depth=1,
    decoder_num_heads=2,
)
AUTOENCODER = AutoencoderConfig(
    channels=(8, 8),
    norm_groups=4,
    num_codes=12,
    perceptual_weight=0,
    codebook_start=1,
    revive_every=3,
    fit=FitConfig(checkpoint_every=3),
)
NEGATIVES = [
    f"contrast {cross} {own_negatives} {views}"
    for cross, own_negatives, views in itertools.product(
        ("cross_view", "same_view"), ("inputs", "predictions"), ("first", "both")
    )
]
Loss = tuple[Callable[..., Any], dict[str, Any], nn.Module]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)


def contrast_loss(cross: str, own_negatives: str, views: str) -> Loss:
    """In double precision: what is exact must be so to its last digits."""
    config = ContrastConfig.model_validate(
        {
            "mae": SIZE.model_dump(exclude={"num_voxels"}),
            "cross_negatives": cross,
            "self_negatives": own_negatives,
            "self_views": views,
            "masked_error_weight": 0.3,
        }
    )
    model = FmriMae(SIZE)
    initialise(model, torch.Generator().manual_seed(0))
    batch = {"betas": randn(6, 32).double()}
    return lambda b, g: phase_1_loss(model, b["betas"], g, config), batch, model.double()


def attend_loss() -> Loss:
    cross = CrossConfig(width=16, depth=1, num_heads=2, mlp_dim=16)
    fmri = FmriCross(SIZE, cross)
    mae = ImageMae(build_image_mae(IMAGE_MAE, 16), (0.5,) * 3, (0.25,) * 3, Path())
    image = ImageCross(mae, SIZE.embed_dim, cross)
    both = nn.ModuleDict({"fmri": fmri, "image": image})
    image.set_trainable("code")
    weights: dict[str, Any] = {"mask_ratio": 0.75, "image_mask_ratio": 0.5, "gamma_f": 0.25, "gamma_i": 1.5}

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> Any:
        pixels = image.normalise(batch["images"]).double()
        return phase_2_loss(fmri, image, batch["betas"], batch["betas"], pixels, generator, **weights)

    return loss, {"betas": randn(8, 32).double(), "images": pictures()}, both.double()


def diffuse_loss() -> Loss:
    unet = tiny_networks.unet(sample_size=4, class_embed_type="identity")
    prior = ImagePrior(VQModel(block_out_channels=(8,), norm_num_groups=4), unet, DDIMScheduler(), 1.0)
    conditioner = FmriConditioner(SIZE.model_dump(), {}, context_dim=12, time_dim=32, context_length=4)
    mark_trainable(unet, conditioner, train_null=True)
    config = DiffuseConfig(condition_dropout=0.4, min_snr_gamma=5.0, crop_probability=0.5)
    both = nn.ModuleDict({"unet": unet, "conditioner": conditioner})
    batch = {"betas": randn(6, 32), "latents": randn(6, 3, 3, 4, 4, seed=1)}
    return EpsilonLoss(config, prior, conditioner), batch, both


def image_mae() -> Loss:
    model = build_image_mae(IMAGE_MAE, 16)
    loss = image_mae_loss(IMAGE_MAE, model)
    return lambda b, g: loss(b["images"], g), {"images": pictures()}, model


def denoiser() -> Loss:
    config = DiffusionConfig(
        channels=(8, 16),
        cross_attention=(True, True),
        norm_groups=4,
        head_dim=8,
        context_dim=8,
        context_tokens=2,
    )
    unet, table = build_unet(config, (3, 4, 4)), LabelTable(2, 8)
    nn.init.normal_(unet.conv_out.weight, std=0.1)
    batch = {"latents": randn(8, 2, 3, 4, 4), "labels": torch.arange(8) % 2}
    return diffusion_loss(config, unet, table), batch, nn.ModuleDict({"unet": unet, "table": table})


def autoencoder(kind: str) -> Loss:
    config = AUTOENCODER.model_copy(update={"kind": kind})
    model = build_autoencoder(config, 16)
    loss, numbers = autoencoder_loss(config, model), itertools.count()

    def numbered(batch: dict[str, Tensor], generator: torch.Generator) -> Any:
        return loss({**batch, "index": next(numbers)}, generator)

    return numbered, {"images": pictures()}, model


LOSSES: dict[str, Callable[..., Loss]] = {
    "contrast": contrast_loss,
    "attend": attend_loss,
    "diffuse": diffuse_loss,
    "image_mae": image_mae,
    "denoiser": denoiser,
    "autoencoder": autoencoder,
}


def all_gradients(names: list[str]) -> dict[str, dict[str, Tensor]]:
    """Losses by name and arguments -> the loss of a batch and its gradients, of all processes together."""
    return {name: gradients(*made(name)) for name in names}


def made(name: str) -> Loss:
    kind, *options = name.split()
    torch.manual_seed(0)  # diffusers and transformers draw weights from the global generator
    return LOSSES[kind](*options)


def gradients(loss: Callable[..., Any], batch: dict[str, Any], modules: nn.Module) -> dict[str, Tensor]:
    """Of four batches in a row, since an autoencoder does something else in each."""
    found: dict[str, Tensor] = {}
    parameters = dict(modules.named_parameters())
    for number in range(4):
        modules.zero_grad()
        with shared_batches():
            part = {key: own(rows) for key, rows in batch.items()}
            value = loss(part, torch.Generator().manual_seed(number))["loss"]
            value.backward()
            average_gradients(parameters.values())
            found[f"{number} loss"] = total(value.detach()) / processes.world()
        found |= {f"{number} {n}": p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    return found


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def train(out: Path, kill_at: int | None = None, **settings: Any) -> dict[str, Tensor]:
    """The phase-1 auto-encoder learns to predict its input without masks; gives its weights, begun or gone on with."""
    torch.manual_seed(0)
    model = FmriMae(SIZE)
    initialise(model, torch.Generator().manual_seed(0))
    model.double()
    values = {"steps": 10, "batch_size": 4, "checkpoint_every": 3, "log_every": 2, "learning_rate": 1e-3}
    config = FitConfig.model_validate({**values, **settings})
    folder = RunFolder.open(out, stage="toy", config=config, resume=True)
    order, data = epoch_batches(37, config.batch_size, 0), randn(37, 32).double()

    def batches(number: int) -> Tensor:
        if number == kill_at:
            raise Killed
        return data[order(number)]

    def loss(betas: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(processes.world() * len(betas), 32, generator=generator).double()
        predicted, _ = model(betas + 0.1 * own(noise), 0.0, generator)
        return {"loss": (predicted - betas).square().mean()}

    fit(loss, {"model": model}, batches, config, run=folder)
    assert not model.training and type(model.blocks[0]).__name__ == "Block"
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def train_until(out: Path, kill_at: int, settings: dict[str, Any]) -> bool:
    """A training that ends in the middle, as by a kill; whether it did."""
    try:
        train(out, kill_at, **settings)
    except Killed:
        return True
    return False


def trainings(folder: Path, cut: Path) -> dict[str, Any]:
    """Everything that two processes train in the tests, in one launch."""
    found: dict[str, Any] = {
        "two": train(folder / "two"),
        "sharded": train(folder / "sharded", shard=True, ema_decay=0.9),
        "resumed": train(cut),
        "killed": train_until(folder / "cut", 7, {}),
        "killed sharded": train_until(folder / "cut-sharded", 7, {"shard": True, "ema_decay": 0.9}),
        "uneven": refused(lambda: train(folder / "uneven", batch_size=5)),
        "diverged": refused(lambda: train(folder / "diverged", learning_rate=1e300)),
        "taken": refused(lambda: train(folder / "two", steps=9)),
    }
    with shared_batches():
        found["masked"] = (total(masked_error(*(own(x) for x in unequal_masks()))) / processes.world()).item()
    return found


def unequal_masks() -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, targets, and masks that hide 0 to 5 of 8 patches of six samples."""
    return randn(6, 8, 4), randn(6, 8, 4, seed=1), torch.arange(8)[None] < torch.arange(6)[:, None]


def refused(work: Callable[[], Any]) -> str:
    """What a user would read."""
    try:
        work()
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def full_size(out: Path, shard: bool) -> float:
    """The loss after one step of phase 1 at its published width and depth (of a short vector)."""
    config = ContrastConfig(mask_ratio=0.5)
    model = FmriMae(FmriMaeConfig(num_voxels=256, **config.mae.model_dump()))
    initialise(model, torch.Generator().manual_seed(0))
    schedule = FitConfig(steps=2, batch_size=4, shard=shard, learning_rate=1e-5)
    result = fit(
        lambda betas, generator: phase_1_loss(model, betas, generator, config),
        {"fmri": model},
        lambda number: randn(4, 256, seed=number),
        schedule,
        run=RunFolder.open(out, stage="toy", config=schedule),
    )
    return result.history[-1]["loss"]


def stages(world: Path, out: Path) -> dict[str, str]:
    """Every stage at a small size -> its log."""
    for name, stage in killable.STAGES.items():
        stage(world, out / name)
    return {str(path.relative_to(out)): path.read_text() for path in sorted(out.rglob("log.jsonl"))}


def command(arguments: list[str]) -> int:
    """The exit code of a command line."""
    sys.argv = ["cadiff", *arguments]
    try:
        run()
    except SystemExit as left:
        return int(left.code or 0)
    return 0

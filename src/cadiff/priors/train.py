"""Trains an image prior on labelled pictures: autoencoder, label-to-image diffusion, image MAE.

    out/run.json                 settings, digest of the pictures, status
    out/vqvae/                   run folder of the autoencoder: log, checkpoint, then the model
    out/diffusion/               run folder of the denoiser
    out/image_mae/               run folder of the image MAE
    out/prior/                   the prior itself, complete or absent; what `load_prior` opens
    out/reconstructions.png      held-out pictures above what the autoencoder makes of them
    out/samples.png              drawn from labels alone, one row a class

Of the kind icgan it is one network, an instance-conditioned GAN: `cadiff.priors.icgan.train` says what lies in its folder.

Each part goes through `cadiff.training.fit` in its own run folder. A resumed run skips the parts that are finished and takes
up the one that was interrupted at its last checkpoint.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, VQModel
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from cadiff.artifacts import atomic_path, folder_digest, provenance, read_json, write_json
from cadiff.config import Config
from cadiff.errors import DataError
from cadiff.priors.icgan.train import ICGanConfig, check_icgan, train_icgan
from cadiff.priors.images import Fit, LabelledImages, load_images
from cadiff.priors.load import Autoencoder, save_prior
from cadiff.priors.sheets import save_sheet
from cadiff.priors.train_ldm import DiffusionConfig, build_scheduler, draw_latents, train_diffusion
from cadiff.priors.train_mae import ImageMaeConfig, train_image_mae
from cadiff.priors.train_vq import AutoencoderConfig, decode, encode, reconstruct, train_autoencoder
from cadiff.processes import is_main, on_main
from cadiff.runs import RunFolder
from cadiff.training import refuse_several, refuse_uneven


class PriorConfig(Config):
    """Settings of `cadiff prior train`; the defaults made the shipped prior's size."""

    kind: Literal["diffusion", "icgan"] = "diffusion"
    """diffusion: autoencoder, label-to-image diffusion and image MAE; icgan: an instance-conditioned GAN."""
    image_size: int = Field(default=64, ge=8, multiple_of=8)
    """Pixels of a picture's side."""
    image_fit: Fit = "resize"
    """resize: crop the centre square and scale it; pad: set it unscaled on black (MNIST's 28 -> 32)."""
    num_heldout: int = Field(default=256, ge=1)
    """Pictures that no part trains on; the autoencoder's PSNR and the MAE's loss are measured on them."""
    seed: int = Field(default=0, ge=0)
    """Seeds the choice of held-out pictures and the weights that training starts from."""
    vqvae: AutoencoderConfig = AutoencoderConfig()
    """Pictures to latents and back."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Labels to latents."""
    image_mae: ImageMaeConfig = ImageMaeConfig()
    """What phase 2 guides the fMRI encoder with."""
    icgan: ICGanConfig = ICGanConfig()
    """The instance-conditioned GAN; with kind icgan it alone is trained."""
    dtype: Literal["float16", "float32"] = "float16"
    """How weights are stored."""

    @model_validator(mode="after")
    def _check(self) -> "PriorConfig":
        if self.kind == "icgan":
            check_icgan(self.icgan, self.image_size)
            return self
        cell = self.vqvae.downsampling * 2 ** (len(self.diffusion.channels) - 1)
        wanted = {"vqvae and diffusion channels": cell, "image_mae.patch_size": self.image_mae.patch_size}
        for part, divisor in wanted.items():
            if self.image_size % divisor:
                raise ValueError(
                    f"image_size {self.image_size} must be a multiple of {divisor}, because of {part}"
                )
        return self


def train_prior(config: PriorConfig, images: Path, out: Path, *, resume: bool = False) -> Path:
    """Trains a prior on the labelled pictures `images` (see `cadiff.priors.images`).

    Returns:
        The folder `out/prior`, or `out/generator` of an instance-conditioned GAN.

    Raises:
        DataError: pictures that cannot be read, or too few of them.
        ArtifactError: `out` is in use, or is resumed with other settings or other pictures.
    """
    if config.kind == "icgan":
        refuse_several("An instance-conditioned GAN")
    else:
        for part in (config.vqvae, config.diffusion, config.image_mae):
            refuse_uneven(part.fit)
    pictures = load_images(images, config.image_size, fit=config.image_fit)
    train, heldout = _split(pictures, config)
    run = RunFolder.open(out, stage="prior", config=config, resume=resume, inputs={"images": pictures.digest})
    prior = out / ("generator" if config.kind == "icgan" else "prior")
    if prior.is_dir():  # written in one rename, so it is whole
        run.finish()
        return prior

    shown, seen = pictures.images[heldout], pictures.images[train]
    if config.kind == "icgan":
        about: dict[str, Any] = {"seed": config.seed, "digest": pictures.digest, "dtype": config.dtype}
        train_icgan(config.icgan, seen, shown, run=run, **about)
        run.finish()
        return prior

    def train_denoiser(run: RunFolder) -> dict[str, Any]:
        cache = run.path / "latents.safetensors"
        latents = _latents(cache, model, seen, mirrored=config.diffusion.horizontal_flip)
        found = train_diffusion(
            config.diffusion, latents, pictures.labels[train], len(pictures.classes), run=run
        )
        if is_main():
            cache.unlink()
        return found

    part = partial(_part, resume=resume, seed=config.seed)
    inputs, facts = {"images": pictures.digest}, {}
    facts["vqvae"] = part(
        out / "vqvae", config.vqvae, partial(train_autoencoder, config.vqvae, seen, shown), inputs
    )
    model = _load_autoencoder(out / "vqvae" / "vqvae")
    latent_inputs = {**inputs, "vqvae": folder_digest(out / "vqvae" / "vqvae")}
    facts["diffusion"] = part(out / "diffusion", config.diffusion, train_denoiser, latent_inputs)
    train_mae = partial(train_image_mae, config.image_mae, seen, shown)
    facts["image_mae"] = part(out / "image_mae", config.image_mae, train_mae, inputs)
    about = _about(pictures, train, heldout, facts)
    both = _above(shown[:32], reconstruct(model, shown[:32]), columns=16)
    on_main(lambda: save_sheet(out / "reconstructions.png", both, columns=16))
    on_main(lambda: _assemble(out, config, model, about))
    run.finish()
    return prior


def _split(pictures: LabelledImages, config: PriorConfig) -> tuple[np.ndarray, np.ndarray]:
    if len(pictures) <= config.num_heldout:
        raise DataError(
            f"{len(pictures)} pictures leave none to train on after {config.num_heldout} are held out: "
            "give more pictures or lower num_heldout."
        )
    train, heldout = pictures.split(config.num_heldout, seed=config.seed)
    counts = np.bincount(pictures.labels[train], minlength=len(pictures.classes))
    if not counts.all():
        name = pictures.classes[int(counts.argmin())]
        raise DataError(
            f"Class {name!r} has no picture left to train on: give it more pictures or lower num_heldout."
        )
    return train, heldout


def _part(
    folder: Path,
    settings: Config,
    train_it: Callable[..., dict[str, Any]],
    inputs: dict[str, str],
    *,
    resume: bool,
    seed: int,
) -> dict[str, Any]:
    """Trains one part in its own run folder, or skips it when it is complete; returns what was measured."""
    run = RunFolder.open(folder, stage=f"prior-{folder.name}", config=settings, resume=resume, inputs=inputs)
    if not run.complete:
        # diffusers and transformers initialise weights from the global generator; its state is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            facts = train_it(run=run)
        on_main(lambda: write_json(folder / "facts.json", facts))
        run.finish()
    return read_json(folder / "facts.json")


def _load_autoencoder(folder: Path) -> Autoencoder:
    classes = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}
    model = classes[read_json(folder / "config.json")["_class_name"]].from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def _latents(cache: Path, model: Autoencoder, images: np.ndarray, *, mirrored: bool) -> Tensor:
    """Scaled latents float16 (V, N, C, h, w) of the pictures and of their mirror images; `cache` keeps them for resuming."""

    def make() -> None:
        views = [images, images[:, :, ::-1]] if mirrored else [images]
        encoded = [encode(model, np.ascontiguousarray(view), progress=True) for view in views]
        scaled = torch.stack(encoded) * model.config["scaling_factor"]
        with atomic_path(cache) as temporary:
            save_file({"latents": scaled.half().contiguous()}, temporary)

    on_main(lambda: None if cache.is_file() else make())
    return load_file(cache)["latents"]


def _about(
    pictures: LabelledImages, train: np.ndarray, heldout: np.ndarray, facts: dict[str, Any]
) -> dict[str, Any]:
    """prior.json: what the prior knows and what it was made from."""
    per_class = np.bincount(pictures.labels[train], minlength=len(pictures.classes))
    return {
        "null_label": len(pictures.classes),
        "classes": pictures.classes,
        "names": pictures.names,
        "imagenet_index": pictures.imagenet_index,
        "training": {
            "num_images": len(train),
            "num_heldout": len(heldout),
            "images_per_class": dict(zip(pictures.classes, per_class.tolist(), strict=True)),
            "images_digest": pictures.digest,
            **facts,
        },
        "provenance": provenance(),
    }


@torch.no_grad()
def _assemble(out: Path, config: PriorConfig, model: Autoencoder, about: dict[str, Any]) -> None:
    """Draws samples of the first classes, then writes the prior in one rename."""
    diffusion = out / "diffusion"
    unet: Any = UNet2DConditionModel.from_pretrained(diffusion / "unet")
    unet.eval().to(model.device)
    table = load_file(diffusion / "label_embedding.safetensors")["weight"]
    num_classes = min(len(table) - 1, 10)
    labels = torch.arange(num_classes).repeat_interleave(8)
    generator = torch.Generator().manual_seed(config.seed)
    latents = draw_latents(unet, table, labels, generator=generator)
    drawn = decode(model, latents / model.config["scaling_factor"])
    save_sheet(out / "samples.png", drawn, columns=8)
    about = {"scaling_factor": model.config["scaling_factor"], "context_dim": table.shape[1], **about}
    save_prior(
        out / "prior",
        vqvae=model,
        unet=unet,
        scheduler=build_scheduler(),
        label_embedding=table,
        about=about,
        image_mae=out / "image_mae" / "image_mae",
        dtype=getattr(torch, config.dtype),
    )


def _above(images: np.ndarray, others: np.ndarray, *, columns: int) -> np.ndarray:
    """Rows of `images` and of `others` in turn, for a sheet of that many columns; both (N, S, S, 3)."""
    starts = range(0, len(images), columns)
    return np.concatenate([part[start : start + columns] for start in starts for part in (images, others)])

"""Trains an instance-conditioned GAN on pictures, without their labels (Casanova et al. 2021).

    out/run.json, out/log.jsonl, out/trainer    settings, log, last checkpoint
    out/generator                               the generator, complete or absent; what `load_generator` opens
    out/samples.png                             a row each: a held-out picture, then what is drawn from its features

The instance whose features condition a picture is one training picture; the real picture shown to the discriminator is one of
its nearest neighbours in the space of features. What is kept is the averaged generator; its spectral norms are then taken anew
and its stored statistics are standing ones (Brock et al. 2019, appendix B): means over batches drawn with these weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from cadiff.artifacts import atomic_path, provenance
from cadiff.config import Config
from cadiff.priors.icgan.features import (
    FeatureConfig,
    check_eye,
    instance_features,
    nearest_neighbours,
    open_eye,
)
from cadiff.priors.icgan.folder import InstanceGan, save_generator
from cadiff.priors.icgan.layers import StoredNorm, initialise, spectral_layers
from cadiff.priors.icgan.loop import Batch, GanFitConfig, fit_gan
from cadiff.priors.icgan.networks import DISCRIMINATOR, GENERATOR, Discriminator, Generator, GeneratorConfig
from cadiff.priors.sheets import save_sheet
from cadiff.priors.train_vq import to_range
from cadiff.runs import RunFolder
from cadiff.sharing import to_device
from cadiff.training import epoch_batches


class ICGanConfig(Config):
    """The instance-conditioned GAN and how it is trained; the defaults are the released ones for 64 pixels, but for the eye."""

    eye: str = "efficientnet-lite0"
    """The network whose features pictures are conditioned on; never the judge."""
    eye_layer: str = "pooled"
    """Its layer; avgpool of swav."""
    eye_weights: str | None = None
    """Its file, for an eye that does not come with a package (swav: the published one)."""
    num_neighbours: int = Field(default=50, ge=2)
    """k: an instance's neighbourhood, itself included as in the released code; real pictures are drawn from the others."""
    channels: int = Field(default=64, ge=1)
    """Width multiplier of the generator."""
    discriminator_channels: int = Field(default=64, ge=1)
    """Width multiplier of the discriminator."""
    noise_dim: int = Field(default=120, ge=1)
    """Numbers of the noise; cut down to a multiple of the chunks (one a block, and one)."""
    embed_dim: int = Field(default=512, ge=1)
    """Width that features are mapped to."""
    attention: tuple[int, ...] = (32,)
    """Resolutions with an attention layer, in both networks."""
    horizontal_flip: bool = True
    """Show the discriminator mirrored pictures too; not for digits or letters."""
    standing_batches: int = Field(default=32, ge=1)
    """Batches that the stored statistics are means over."""
    fit: GanFitConfig = GanFitConfig()
    """Optimisers and schedule."""


def check_icgan(config: ICGanConfig, image_size: int) -> None:
    """Raises `ValueError` for a picture size that BigGAN has no widths for, too little noise, or the judge as eye."""
    check_eye(config.eye)
    if image_size not in DISCRIMINATOR:
        sizes = ", ".join(map(str, DISCRIMINATOR))
        raise ValueError(f"an instance-conditioned GAN draws {sizes} pixels; image_size is {image_size}")
    if config.noise_dim < len(GENERATOR[image_size]):
        raise ValueError(
            f"icgan.noise_dim {config.noise_dim} is less than the {len(GENERATOR[image_size])} chunks that it is cut into"
        )


def train_icgan(
    config: ICGanConfig,
    images: np.ndarray,
    heldout: np.ndarray,
    *,
    run: RunFolder,
    seed: int,
    digest: str,
    dtype: str,
) -> Path:
    """Trains on uint8 (N, S, S, 3), writes `run.path/"generator"` and returns that folder.

    Args:
        config: see `ICGanConfig`.
        images: what is trained on. heldout: what is only drawn from, uint8 (n, S, S, 3).
        run: where the log and the checkpoints go.
        seed: of the first weights. digest: of the pictures, for the folder. dtype: of the stored weights.
    """
    eye = open_eye(FeatureConfig(eye=config.eye, layer=config.eye_layer), config.eye_weights)
    features = _cached_features(run.path / "features.safetensors", eye, config.eye_layer, images)
    sizes = generator_config(config, images.shape[1], features.shape[1])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = Generator(sizes)
    adversary = Discriminator(
        images.shape[1], config.discriminator_channels, features.shape[1], config.attention
    )
    for place, network in enumerate((generator, adversary)):
        initialise(network, 2 * seed + place)
        network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    pictures = Instances(images, features, config, device)
    result = fit_gan(generator, adversary, pictures.batch, config.fit, run=run)
    settle(generator, pictures, config)
    about = {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "num_images": len(images),
        "images_digest": digest,
        "num_neighbours": config.num_neighbours,
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
    }
    named = FeatureConfig(
        eye=config.eye, layer=config.eye_layer, sha256=next(iter(eye.digest().values()), None)
    )
    drawn_from = instance_features(eye, config.eye_layer, heldout[:256])
    finished = InstanceGan(generator.eval(), named, about)
    about |= judge_instances(finished, eye, drawn_from, seed=seed)
    _save_samples(run.path / "samples.png", finished, heldout, drawn_from, seed=seed)
    (run.path / "features.safetensors").unlink()
    stored = getattr(torch, dtype)  # of matrices and kernels: variances may leave the range of half precision
    weights = {k: v.to(stored) if v.ndim > 1 else v for k, v in generator.state_dict().items()}
    origin = provenance(seed=seed)
    return save_generator(
        run.path / "generator", sizes, weights, features=named, about=about, provenance=origin
    )


def generator_config(config: ICGanConfig, image_size: Any, feature_dim: int) -> GeneratorConfig:
    """Sizes of the generator that these settings make."""
    chunks = len(GENERATOR[image_size])
    return GeneratorConfig(
        image_size=image_size,
        channels=config.channels,
        noise_dim=config.noise_dim // chunks * chunks,
        feature_dim=feature_dim,
        embed_dim=config.embed_dim,
        attention=config.attention,
    )


class Instances:
    """Pictures with features and neighbours, on the device; a batch is a function of its number and a seeded generator."""

    def __init__(
        self, images: np.ndarray, features: Tensor, config: ICGanConfig, device: torch.device
    ) -> None:
        self.images = torch.from_numpy(images).to(device)
        self.features = features.to(device)
        self.neighbours = nearest_neighbours(features, config.num_neighbours)
        self.flip, self.size = config.horizontal_flip, config.fit.batch_size
        self.order = epoch_batches(len(images), self.size, config.fit.seed)

    def batch(self, index: int, chance: torch.Generator) -> Batch:
        """One batch, see `cadiff.priors.icgan.loop.Batch`."""
        instances = torch.from_numpy(self.order(index))
        column = torch.randint(self.neighbours.shape[1], (self.size,), generator=chance)
        shown, others = self.neighbours[instances, column], self.conditions(chance)
        mirrored = torch.rand(self.size, generator=chance) < (0.5 if self.flip else 0.0)
        device = self.images.device
        images = to_range(self.images[to_device(shown, device)])  # (B, 3, S, S)
        images = torch.where(to_device(mirrored, device).view(-1, 1, 1, 1), images.flip(3), images)
        return {"images": images, "features": self.features[to_device(instances, device)], "others": others}

    def conditions(self, chance: torch.Generator) -> Tensor:
        """Features (B, F) of instances drawn at random."""
        rows = torch.randint(len(self.features), (self.size,), generator=chance)
        return self.features[to_device(rows, self.features.device)]


@torch.no_grad()
def settle(generator: Generator, pictures: Instances, config: ICGanConfig, iterations: int = 30) -> None:
    """Spectral norms of the averaged weights, taken by many power iterations, and standing statistics with them."""
    for layer in spectral_layers(generator):
        layer.fold(iterations)
    generator.train()
    norms = [module for module in generator.modules() if isinstance(module, StoredNorm)]
    chance = torch.Generator().manual_seed(config.fit.seed)
    for done in range(config.standing_batches):
        for norm in norms:
            norm.momentum = 1 / (done + 1)  # the mean over batches, and nothing of what was stored before
        noise = torch.randn(pictures.size, generator.config.noise_dim, generator=chance)
        generator(to_device(noise, pictures.images.device), pictures.conditions(chance))
    generator.eval()


def judge_instances(gan: InstanceGan, eye: Any, features: Tensor, *, seed: int) -> dict[str, float]:
    """Cosine of what the eye sees in a drawing with the features it was drawn from, and with those of another instance.

    The eye is the one that the generator was trained with: this says whether features are heeded, not how good pictures are.
    """
    chance = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(features), gan.generator.config.noise_dim, generator=chance)
    seen = instance_features(eye, gan.features.layer, gan.draw(noise, features))
    other = features.roll(1, dims=0)
    return {
        "cosine_own_instance": round((seen * features).sum(1).mean().item(), 4),
        "cosine_other_instance": round((seen * other).sum(1).mean().item(), 4),
    }


def _cached_features(cache: Path, eye: Any, layer: str, images: np.ndarray) -> Tensor:
    """Features (N, F) of the training pictures; `cache` keeps them for resuming."""
    if not cache.is_file():
        features = instance_features(eye, layer, images, progress=True)
        with atomic_path(cache) as temporary:
            save_file({"features": features}, temporary)
    return load_file(cache)["features"]


def _save_samples(
    path: Path, gan: InstanceGan, heldout: np.ndarray, features: Tensor, *, seed: int, columns: int = 8
) -> None:
    count = min(16, len(features))
    chance = torch.Generator().manual_seed(seed)
    noise = torch.randn(count * (columns - 1), gan.generator.config.noise_dim, generator=chance)
    drawn = gan.draw(noise, features[:count].repeat_interleave(columns - 1, dim=0))
    drawn = drawn.reshape(count, columns - 1, *drawn.shape[1:])
    sheet = np.concatenate([heldout[:count, None], drawn], axis=1)
    save_sheet(path, sheet.reshape(-1, *sheet.shape[2:]), columns=columns)

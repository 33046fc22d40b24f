"""Image priors: what the brain model starts from, opened from a folder in the diffusers layout.

    vqvae/ or vae/                diffusers.VQModel or AutoencoderKL: image <-> latents
    unet/                         diffusers.UNet2DConditionModel: denoises latents, cross-attends to a context
    scheduler/                    the noise schedule it was trained with
    label_embedding.safetensors   optional: weight (classes [+ 1], context_dim), one context token a class
    prior.json                    optional: scaling_factor, classes, names, imagenet_index, null_label
    image_mae/                    optional: transformers.ViTMAE for phase 2

An adapted prior names the one that it was made of, and holds what is new (`cadiff.priors.adapted`).

A folder saved by a diffusers pipeline (`StableDiffusionPipeline.save_pretrained`) has this layout already; it only lacks
the label table, and what needs one says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Union

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cadiff.artifacts import folder_digest, new_folder, read_json, write_json
from cadiff.errors import ArtifactError, ConfigError
from cadiff.priors.adapted import find_base, lay_over
from cadiff.priors.image_context import ImageContext
from cadiff.priors.parts import WEIGHTS, load_part, stored

Autoencoder = Union[VQModel, AutoencoderKL]  # noqa: UP007  diffusers before 0.36 knows no other spelling
AUTOENCODERS = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}


@dataclass(frozen=True)
class ImagePrior:
    """An auto-encoder, a label-to-image denoiser in its latent space, and the labels it knows.

    `unet` has an identity class embedding: `class_labels` takes the time condition (B, time_dim), and a zero vector
    leaves the network exactly as it was trained.
    """

    vqvae: Autoencoder
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    scaling_factor: float
    """Latents are the auto-encoder's output times this number."""
    label_embedding: Tensor | None = None
    """(classes [+ 1 for "no label"], context_dim), or None when the prior is not conditioned on labels."""
    classes: list[str] = field(default_factory=list)
    """Label of each row of `label_embedding`; WordNet ids in the shipped prior."""
    names: list[str] = field(default_factory=list)
    imagenet_index: list[int] | None = None
    """Index into ImageNet-1k of each class, where known."""
    null_label: int | None = None
    """Row of `label_embedding` that means "no label"."""
    image_mae: Path | None = None
    image_context: ImageContext | None = None
    """Makes a condition of a picture's features, where the prior was adapted to them."""
    folder: Path | None = None

    @property
    def digest(self) -> str:
        """Identifies weights and settings; a changed model card or picture beside them is the same prior."""
        return folder_digest(self.folder, (".safetensors", ".json")) if self.folder else "given"

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.latent_shape[1] * 2 ** (len(self.vqvae.config["block_out_channels"]) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        size = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config["in_channels"], height, width

    @property
    def context_dim(self) -> int:
        """Width of the context that the denoiser attends to."""
        return self.unet.config["cross_attention_dim"]

    @property
    def time_dim(self) -> int:
        """Width of the vector that is added to the time embedding."""
        return self.unet.config["block_out_channels"][0] * 4

    @torch.no_grad()
    def encode(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w).

        VQ: the latents before quantisation, as latent diffusion uses them; KL: the mean of the posterior.
        """
        return encode(self.vqvae, images, self.scaling_factor, batch_size=batch_size)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, batch_size: int = 16) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W), about [-1, 1]; a VQ model quantises first."""
        return decode(self.vqvae, latents, self.scaling_factor, batch_size=batch_size)

    def label_rows(
        self, labels: Sequence[Any], imagenet_index: Sequence[Any] | None = None
    ) -> list[int | None]:
        """The row of `label_embedding` for each stimulus, or None where the prior does not know its class.

        Args:
            labels: one label a stimulus, as in `classes` or `names`.
            imagenet_index: one ImageNet-1k index a stimulus; wins over the label where both are known.
        """
        return label_rows(self.classes, self.names, self.imagenet_index, labels, imagenet_index)


@torch.no_grad()
def encode(vqvae: Autoencoder, images: Tensor, scaling_factor: float, *, batch_size: int = 64) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w); see `ImagePrior.encode`."""
    pieces = []
    for part in images.split(batch_size):
        encoded = vqvae.encode(part.to(vqvae.device))
        latents = encoded.latents if isinstance(vqvae, VQModel) else encoded.latent_dist.mean  # pyright: ignore
        pieces.append(latents * scaling_factor)
    return torch.cat(pieces)


def decode(vqvae: Autoencoder, latents: Tensor, scaling_factor: float, *, batch_size: int = 16) -> Tensor:
    """Scaled latents (B, C, h, w) -> images (B, 3, H, W), about [-1, 1]."""
    model: Any = vqvae
    parts = latents.to(vqvae.device).split(batch_size)
    return torch.cat([model.decode(part / scaling_factor).sample for part in parts])


def label_rows(
    classes: Sequence[str],
    names: Sequence[str],
    index: Sequence[int] | None,
    labels: Sequence[Any],
    imagenet_index: Sequence[Any] | None = None,
) -> list[int | None]:
    """See `ImagePrior.label_rows`; labels and indices that are None or NaN are unknown."""
    by_name = {name: row for row, name in reversed(list(enumerate(names)))} | {
        c: r for r, c in enumerate(classes)
    }
    by_index = {number: row for row, number in enumerate(index or [])}
    rows: list[int | None] = []
    for i, label in enumerate(labels):
        number = None if imagenet_index is None else imagenet_index[i]
        known = isinstance(number, int) or (hasattr(number, "__index__"))
        row = by_index.get(int(number)) if known and number is not None else None
        rows.append(row if row is not None else by_name.get(label) if isinstance(label, str) else None)
    return rows


def load_prior(source: str | Path = "shipped") -> ImagePrior:
    """Opens a prior, float32 on the CPU.

    Args:
        source: "shipped" for the small one that comes with the package, or a folder.

    Raises:
        ArtifactError: no such folder, a part missing or damaged.
        ConfigError: parts that do not fit together.
    """
    folder = _find(source)
    about = read_json(folder / "prior.json") if (folder / "prior.json").is_file() else {}
    if "base" in about:
        return lay_over(load_prior(find_base(folder, about)), folder, about)
    vqvae = _load_autoencoder(folder)
    unet = load_part(UNet2DConditionModel, folder / "unet", class_embed_type="identity")
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise ArtifactError(
            f"{folder} lacks scheduler/scheduler_config.json: a prior has vqvae/, unet/, scheduler/."
        )
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    # of any diffusers scheduler, only the noise schedule is taken
    scheduler: Any = DDIMScheduler.from_config(schedule)
    mae = folder / "image_mae"
    prior = ImagePrior(
        vqvae=vqvae,
        unet=unet,
        scheduler=scheduler,
        scaling_factor=float(about.get("scaling_factor", vqvae.config["scaling_factor"])),
        label_embedding=_load_labels(folder),
        classes=[str(c) for c in about.get("classes", [])],
        names=[str(n) for n in about.get("names", [])],
        imagenet_index=about.get("imagenet_index"),
        null_label=about.get("null_label"),
        image_mae=mae if mae.is_dir() else None,
        folder=folder,
    )
    _check_fit(prior, folder)
    return prior


def prior_without_weights(source: str | Path = "shipped") -> ImagePrior:
    """The networks of a prior in their sizes, weights as they begin: for counting parameters and memory.

    Under `torch.device("meta")` or fake tensors it costs nothing. Raises ArtifactError without the parts' config.json.
    """
    folder = _find(source)
    if (folder / "prior.json").is_file() and "base" in (about := read_json(folder / "prior.json")):
        return prior_without_weights(find_base(folder, about))
    part = _autoencoder_folder(folder)
    kind: Any = AUTOENCODERS[read_json(part / "config.json")["_class_name"]]
    unet: Any = UNet2DConditionModel
    scheduler: Any = DDIMScheduler.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))
    return ImagePrior(
        vqvae=kind.from_config(read_json(part / "config.json")),
        unet=unet.from_config({**read_json(folder / "unet" / "config.json"), "class_embed_type": "identity"}),
        scheduler=scheduler,
        scaling_factor=1.0,
    )


def shipped_prior() -> Path:
    """Folder of the prior that comes with the package."""
    return Path(str(resources.files("cadiff"))) / "assets" / "prior"


def _find(source: str | Path) -> Path:
    folder = shipped_prior() if str(source) == "shipped" else Path(source)
    if not folder.is_dir():
        raise ArtifactError(
            f"No prior at {folder}: give a folder with vqvae/, unet/ and scheduler/, or 'shipped'."
        )
    return folder


def save_prior(
    out: Path,
    *,
    vqvae: Autoencoder,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    label_embedding: Tensor | None = None,
    about: Mapping[str, Any] | None = None,
    image_mae: Path | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Writes a prior folder that `load_prior` opens, atomically; the networks are left as they are.

    Args:
        out: the folder to make; it must not exist.
        label_embedding: (classes [+ 1], context_dim), or None.
        about: for prior.json: scaling_factor (default: the auto-encoder's), classes, names, imagenet_index, null_label,
            and any training facts.
        image_mae: a folder of a transformers ViTMAE to copy along.
        dtype: how weights are stored; float16 halves the folder.
    """
    with new_folder(out) as folder:
        parts: dict[str, Any] = {"vqvae": vqvae, "unet": unet}
        for name, part in parts.items():
            part.save_config(folder / name)
            weights = {key: stored(value, dtype) for key, value in part.state_dict().items()}
            save_file(weights, folder / name / WEIGHTS, metadata={"format": "pt"})
        scheduler.save_pretrained(folder / "scheduler")
        if label_embedding is not None:
            save_file({"weight": stored(label_embedding, dtype)}, folder / "label_embedding.safetensors")
        if image_mae is not None:
            shutil.copytree(image_mae, folder / "image_mae")
        write_json(folder / "prior.json", {"scaling_factor": vqvae.config["scaling_factor"], **(about or {})})
    return out


def _load_autoencoder(folder: Path) -> Autoencoder:
    part = _autoencoder_folder(folder)
    return load_part(AUTOENCODERS[read_json(part / "config.json")["_class_name"]], part)


def _autoencoder_folder(folder: Path) -> Path:
    """The auto-encoder's folder within a prior's, of a class that is known."""
    part = next((folder / name for name in ("vqvae", "vae") if (folder / name).is_dir()), None)
    if part is None:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ArtifactError(
            f"{folder} is not an image prior (found: {there}): expected vqvae/, unet/ and scheduler/."
        )
    name = read_json(part / "config.json").get("_class_name")
    if name not in AUTOENCODERS:
        raise ConfigError(f"{part} holds a {name}; a prior's auto-encoder is {' or '.join(AUTOENCODERS)}.")
    return part


def _load_labels(folder: Path) -> Tensor | None:
    path = folder / "label_embedding.safetensors"
    if not path.is_file():
        return None
    try:
        return load_file(path)["weight"].float()
    except (SafetensorError, KeyError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): copy the prior again.") from None


def _check_fit(prior: ImagePrior, folder: Path) -> None:
    sizes = prior.vqvae.config
    latent_channels = sizes.get("vq_embed_dim") or sizes["latent_channels"]
    if latent_channels != prior.latent_shape[0]:
        raise ConfigError(
            f"{folder}: the auto-encoder makes {latent_channels} latent channels, the U-Net reads "
            f"{prior.latent_shape[0]}: they belong to different priors."
        )
    predicted = prior.scheduler.config["prediction_type"]
    if predicted != "epsilon":
        raise ConfigError(
            f"{folder}: the denoiser predicts {predicted!r}; expected epsilon, which tuning trains it to predict."
        )
    table = prior.label_embedding
    if table is None:
        return
    if table.shape[1] != prior.context_dim:
        raise ConfigError(
            f"{folder}: labels have width {table.shape[1]}, the U-Net attends to {prior.context_dim}."
        )
    expected = len(prior.classes) + (prior.null_label is not None)
    if len(table) != expected:
        raise ConfigError(f"{folder}: {len(table)} label embeddings, but prior.json lists {expected} labels.")
    if prior.null_label not in (None, len(prior.classes)):
        raise ConfigError(
            f"{folder}: null_label is {prior.null_label}; expected the last row, {len(prior.classes)}, after the classes."
        )

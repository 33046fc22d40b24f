"""What a file of weights is: told by the names and shapes in it, never by what it is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cadiff.convert.tensor_refs import TensorRef
from cadiff.convert.weight_file import WeightFile
from cadiff.errors import ArtifactError
from cadiff.safe_pickle import StandIn

WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Under which checkpoints keep their weights."""
UNET, FIRST_STAGE, CONDITION = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


PATCHES = re.compile(r"(vit\.)?embeddings\.patch_embeddings\.projection\.weight")


class System(NamedTuple):
    """One line of the table of layouts."""

    title: str
    fits: Callable[[Mapping[str, TensorRef]], bool]
    refusal: str = ""
    """Why it cannot be imported and what to do instead; empty for what can."""


def _has(*names: str) -> Callable[[Mapping[str, TensorRef]], bool]:
    return lambda weights: all(name in weights for name in names)


def _begins(*prefixes: str) -> Callable[[Mapping[str, TensorRef]], bool]:
    return lambda weights: all(any(name.startswith(prefix) for name in weights) for prefix in prefixes)


def _patches(dimensions: int) -> Callable[[Mapping[str, TensorRef]], bool]:
    """A transformer over patches of a signal of one dimension (fMRI) or two (pictures)."""

    def fits(weights: Mapping[str, TensorRef]) -> bool:
        patches = weights.get("patch_embed.proj.weight")
        return patches is not None and len(patches.shape) == dimensions + 2 and "pos_embed" in weights

    return fits


def _both(*tests: Callable[[Mapping[str, TensorRef]], bool]) -> Callable[[Mapping[str, TensorRef]], bool]:
    return lambda weights: all(test(weights) for test in tests)


# In this order: the first that fits is it.
SYSTEMS: dict[str, System] = {
    "icgan": System(
        "instance-conditioned generator (facebookresearch/ic_gan, Casanova et al. 2021)",
        _both(_has("shared_feat.weight", "linear.u0"), _begins("blocks.", "output_layer.")),
    ),
    "icgan-discriminator": System(
        "the discriminator of an instance-conditioned GAN",
        _has("linear_feat.weight", "linear.u0"),
        "pictures are drawn by the generator: take G_ema_best0.pth beside it",
    ),
    "brain-ldm": System(
        "latent diffusion tuned on fMRI (MinD-Vis finetuned.pth, CAD checkpoint_best.pth)",
        _begins(UNET, FIRST_STAGE, CONDITION + "mae."),
    ),
    "label-ldm": System(
        "label-to-image latent diffusion (CompVis, Rombach et al. 2022)",
        _both(_begins(UNET, FIRST_STAGE), _has(CONDITION + "embedding.weight")),
    ),
    "text-ldm": System(
        "text-to-image latent diffusion in one file (Stable Diffusion)",
        _begins(UNET, CONDITION),
        "a single file holds no settings: open it with diffusers (StableDiffusionPipeline.from_single_file), save it with "
        "save_pretrained, and import that folder",
    ),
    "other-ldm": System(
        "latent diffusion without a label table",
        _begins(UNET),
        "a prior is conditioned on labels or text: take the label-to-image model (cin256-v2)",
    ),
    "first-stage": System(
        "an auto-encoder of latent diffusion alone",
        _has("encoder.conv_in.weight", "decoder.conv_in.weight"),
        "a prior also needs the denoiser: take the whole model.ckpt",
    ),
    "fmri-cross": System(
        "fMRI auto-encoder with cross attention (CAD phase 2)", _both(_patches(1), _begins("cross_blocks."))
    ),
    "fmri-mae": System("fMRI auto-encoder (MinD-Vis, CAD phase 1)", _patches(1)),
    "vit-classifier": System(
        "a ViT classifier",
        _both(_patches(2), _has("head.weight")),
        "phase 2 needs a masked auto-encoder (facebookresearch/mae, with decoder)",
    ),
    "facebook-mae": System("image auto-encoder (facebookresearch/mae, He et al. 2022)", _patches(2)),
    "vit-mae": System(
        "image auto-encoder (transformers ViTMAE, He et al. 2022)",
        lambda weights: any(PATCHES.fullmatch(name) for name in weights),
    ),
}


@dataclass(frozen=True, eq=False)
class Found:
    """A recognised file."""

    file: WeightFile
    system: str
    """Key of `SYSTEMS`."""
    weights: dict[str, TensorRef]
    """By the names of the layout, without wrappers and the prefix of parallel training."""
    about: dict[str, Any]
    """What the checkpoint keeps beside them: epoch, optimiser, settings as `StandIn`s."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one weight.

        Raises:
            ArtifactError: it is missing.
        """
        if name not in self.weights:
            raise ArtifactError(
                f"{self.file.path} looks like {SYSTEMS[self.system].title}, but lacks the weight {name}: it is incomplete."
            )
        return self.weights[name].shape

    def size(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of one weight that must have so many dimensions, none of them 0.

        Raises:
            ArtifactError: it is missing or of another kind.
        """
        shape = self.shape(name)
        if len(shape) != dimensions or 0 in shape:
            raise ArtifactError(
                f"{self.file.path}: the weight {name} has the shape {shape}, expected {dimensions} dimensions."
            )
        return shape

    def under(self, prefix: str) -> dict[str, TensorRef]:
        """The weights whose names begin so, without that beginning."""
        return {
            name.removeprefix(prefix): ref for name, ref in self.weights.items() if name.startswith(prefix)
        }

    def meta(self, refs: Mapping[str, TensorRef]) -> dict[str, Tensor]:
        """Tensors of these shapes without values, to try whether they fit a network."""
        return {name: torch.empty(ref.shape, device="meta") for name, ref in refs.items()}

    def setting(self, name: str, default: Any) -> Any:
        """A setting of the checkpoint's own config of the type of `default`, or `default`."""
        for key in ("config", "config_merge", "args"):
            value = attributes(self.about.get(key)).get(name)
            if type(value) is type(default):
                return value
        return default


def recognise(path: Path) -> Found:
    """Opens a file of weights and tells what it is; nothing in it is executed.

    Raises:
        ArtifactError: it cannot be read, or no known layout fits.
    """
    file = WeightFile.open(path)
    value = file.contents.value
    if isinstance(value, StandIn):
        raise ArtifactError(
            f"{path} is a pickled object of class {class_name(value)}, whose code this never runs: expected weights by name, "
            "as torch.save(model.state_dict(), ...) writes."
        )
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds a {type(value).__name__}, expected weights by name.")
    wrapper = next((key for key in WRAPPERS if isinstance(value.get(key), dict)), None)
    inner = value[wrapper] if wrapper else value
    weights = {
        name: ref
        for name, ref in inner.items()
        if isinstance(name, str) and isinstance(ref, TensorRef) and name.isprintable() and name.isascii()
    }
    about = {key: rest for key, rest in value.items() if wrapper and key != wrapper and isinstance(key, str)}
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): ref for name, ref in weights.items()}
    system = next((key for key, entry in SYSTEMS.items() if entry.fits(weights)), None)
    if system is None:
        known = "; ".join(entry.title for entry in SYSTEMS.values() if not entry.refusal)
        raise ArtifactError(
            f"{path} is no checkpoint that this knows: it holds {len(weights)} weights by name "
            f"({_first(weights or value)}); expected one of: {known}."
        )
    return Found(file, system, weights, about)


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of a pickled object or the items of a dict, by name; {} for anything else."""
    if isinstance(value, StandIn):
        return value.attributes
    return (
        {key: rest for key, rest in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}
    )


def class_name(value: StandIn) -> str:
    """Of the class that a stand-in stands for, fit for a terminal."""
    kind = (
        value.args[0] if type(value).__name__ == "_reconstructor" and value.args else type(value)
    )  # of protocol 0
    said = f"{getattr(kind, '__module__', '?')}.{getattr(kind, '__name__', '?')}"
    return "".join(char if char.isprintable() else "?" for char in said)[:100]


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many numbered parts `prefix`0, `prefix`1, ... there are."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    return len({match[1] for name in names if (match := pattern.match(name))})


def _first(names: Iterable[Any]) -> str:
    shown = [name[:60] for name in list(names)[:3] if isinstance(name, str) and name.isprintable()]
    return ("first: " + ", ".join(shown)) if shown else "none"

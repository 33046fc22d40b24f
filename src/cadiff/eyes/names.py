"""Names of judges, and the eyes there are: plain tables, read without loading a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TIMM = "timm:"


def judge_name(judge: str) -> str:
    """The short name of a judge for protocol strings: itself, or that of its folder or file, without slashes.

    A folder of a hub's cache, models--OWNER--NAME/snapshots/HASH, is called NAME.
    """
    if not is_local(judge):
        return judge
    path = Path(judge.removeprefix(TIMM)).resolve()
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rpartition("--")[2]
    return path.stem if path.suffix in (".pth", ".pt", ".safetensors") else path.name


def is_local(judge: str) -> bool:
    """Whether a judge is named by a folder or a file rather than by a name of ours."""
    return judge.startswith(TIMM) or "/" in judge or "\\" in judge or Path(judge).exists()


@dataclass(frozen=True)
class EyeEntry:
    """One eye that has a name of its own."""

    load: str
    """The function that loads it, "package.module:function", from a path."""
    layers: tuple[str, ...]
    weights: str
    """What the path is, in words."""


EYES: dict[str, EyeEntry] = {
    "alexnet": EyeEntry(
        "cadiff.eyes.alexnet:load_alexnet",
        ("relu2", "relu5"),
        "a file of torchvision's alexnet, or the one of recipes/alexnet_weights.py",
    ),
    "inception": EyeEntry(
        "cadiff.eyes.inception:load_inception", ("avgpool",), "a file of torchvision's inception_v3"
    ),
    "clip": EyeEntry(
        "cadiff.eyes.transformers_folder:load_clip",
        ("image_embeds",),
        "a transformers folder of a CLIP model",
    ),
    "efficientnet-b1": EyeEntry(
        "cadiff.eyes.efficientnet:load_efficientnet_b1",
        ("avgpool",),
        "a file of torchvision's efficientnet_b1",
    ),
    "swav": EyeEntry(
        "cadiff.eyes.resnet:load_swav", ("avgpool",), "SwAV's ResNet-50, swav_800ep_pretrain.pth.tar"
    ),
}
"""Eyes of the MindEye set. Any other name but `LPIPS` is a local classifier, read at the layer `pooled`."""
LPIPS = "lpips"
"""Among the eyes of an evaluation: the perceptual distance, a file for `cadiff.eyes.load_lpips`."""


@dataclass(frozen=True)
class Row:
    """One row of the table that MindEye (Scotti et al. 2023, Table 1) made usual."""

    label: str
    eye: str
    layer: str
    kind: Literal["two_way", "correlation_distance"]
    higher_is_better: bool
    chance: float | None
    """None: measured by mispairing."""


MINDEYE = (
    Row("AlexNet(2)", "alexnet", "relu2", "two_way", True, 0.5),
    Row("AlexNet(5)", "alexnet", "relu5", "two_way", True, 0.5),
    Row("Inception", "inception", "avgpool", "two_way", True, 0.5),
    Row("CLIP", "clip", "image_embeds", "two_way", True, 0.5),
    Row("EffNet-B", "efficientnet-b1", "avgpool", "correlation_distance", False, None),
    Row("SwAV", "swav", "avgpool", "correlation_distance", False, None),
)
"""Its rows beside PixCorr and SSIM."""

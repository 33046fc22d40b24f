"""From pictures to what a network was trained on: resize, crop, scale. Torch alone, so that torchvision is never needed.

The steps are those of torchvision's and transformers' evaluation transforms: the shortest edge (or both edges) to a length,
antialiased; the central rectangle, zeros outside; (x - mean) / std of RGB in 0..1. Pictures are not rounded to 8 bits in
between, as libraries that resize with PIL do: values differ from theirs by up to about one grey level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.errors import ArtifactError, DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Fit = Literal["shortest", "stretch"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
RESAMPLING: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers."""


@dataclass(frozen=True)
class Preprocessing:
    """uint8 pictures `(n, H, W, 3)` -> what the network takes, float32 `(n, 3, h, w)`."""

    size: tuple[int, int] | None
    """Height and width to resize to; for `fit="shortest"` the shortest edge, given twice. None: left as they are."""
    crop: tuple[int, int] | None = None
    """Height and width of the central part that is kept."""
    fit: Fit = "shortest"
    """`shortest` keeps the shape, `stretch` does not."""
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Raises `DataError` for anything but uint8 `(n, H, W, 3)`."""
        check_pictures(images)
        x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
        if self.size is not None:
            x = self._resize(x)
        if self.crop is not None:
            x = _centre(x, self.crop)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x / 255.0 - mean) / std

    def __str__(self) -> str:
        steps = []
        if self.size is not None:
            what = {
                "shortest": f"shortest edge to {self.size[0]}",
                "stretch": f"stretched to {self.size[0]} x {self.size[1]}",
            }[self.fit]
            antialiased = "" if self.interpolation == "nearest" else ", antialiased"
            steps.append(f"{what}, {self.interpolation}{antialiased}")
        if self.crop is not None:
            steps.append(f"central {self.crop[0]} x {self.crop[1]}")
        numbers = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        steps.append("(x - [{}]) / [{}] on 0..1".format(*numbers))
        return "; ".join(steps)

    def _resize(self, x: Tensor) -> Tensor:
        assert self.size is not None
        size = self.size
        if self.fit == "shortest":
            short, long = sorted(x.shape[2:])
            other = int(size[0] * long / short)
            size = (size[0], other) if x.shape[2] == short else (other, size[0])
        if tuple(x.shape[2:]) == tuple(size):
            return x
        if self.interpolation == "nearest":
            return F.interpolate(x, size=size, mode="nearest-exact")
        x = F.interpolate(x, size=size, mode=self.interpolation, antialias=True, align_corners=False)
        return x.clamp(0.0, 255.0)  # bicubic overshoots at edges


def check_pictures(images: np.ndarray) -> None:
    """Raises `DataError` for anything but uint8 `(n, H, W, 3)`."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise DataError(
            "A network takes pictures as uint8 RGB of shape (n, height, width, 3); "
            f"it was given {images.dtype} {tuple(images.shape)}."
        )


def square(side: int) -> tuple[int, int]:
    """Height and width."""
    return side, side


def from_transformers(config: Mapping[str, Any], where: str) -> Preprocessing:
    """What a `preprocessor_config.json` of transformers asks for.

    Raises `ArtifactError` for a kind of processor that is not known here, or a setting that is missing.
    """
    named = str(
        config.get("image_processor_type") or config.get("feature_extractor_type") or "ViTImageProcessor"
    )
    kind = named
    for ending in ("Fast", "Pil", "FeatureExtractor", "ImageProcessor"):
        kind = kind.removesuffix(ending)
    if kind not in PROCESSORS:
        raise ArtifactError(
            f"{where} asks for a {named}; known are those of {', '.join(PROCESSORS)}: take another network, or write the same "
            "steps as one of these."
        )
    resample, crops, squares = PROCESSORS[kind]
    mean, std, size, crop, fit = (0.0,) * 3, (1.0,) * 3, None, None, "stretch"
    if config.get("do_resize", True):
        size, fit = _sides(_needed(config, "size", where), squares, where)
    if config.get("do_center_crop", crops):
        crop, _ = _sides(_needed(config, "crop_size", where), True, where)
    if kind == "ConvNext" and size is not None:  # its own rule: cut below 384 pixels, stretch from there
        side, fit = size[0], "stretch"
        if side < 384:
            size, crop, fit = square(int(side / config.get("crop_pct", 224 / 256))), square(side), "shortest"
    if config.get("do_normalize", True):
        mean, std = tuple(_needed(config, "image_mean", where)), tuple(_needed(config, "image_std", where))
    if kind == "EfficientNet":
        if config.get("rescale_offset", False):
            mean = tuple(m + 1.0 for m in mean)
        if config.get("include_top", True):
            std = tuple(s * s for s in std)
    scale = 255.0 * float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 255.0
    interpolation = RESAMPLING.get(config.get("resample", resample))
    if interpolation is None:
        raise ArtifactError(
            f"{where} asks for resampling {config.get('resample')}; known are 0 (nearest), 2 (bilinear) and 3 (bicubic)."
        )
    return Preprocessing(
        size, crop, fit, interpolation, tuple(m / scale for m in mean), tuple(s / scale for s in std)
    )


PROCESSORS: dict[str, tuple[int, bool, bool]] = {
    "ViT": (2, False, True),
    "DeiT": (3, True, True),
    "Beit": (3, False, True),
    "Siglip": (3, False, True),
    "CLIP": (3, True, False),
    "Bit": (3, True, False),
    "ConvNext": (3, False, False),
    "EfficientNet": (0, False, True),
    "MobileNetV1": (2, True, False),
    "MobileNetV2": (2, True, False),
}
"""Kinds of image processor: resampling, whether they crop, whether a mere number as size means a square."""


def from_timm(config: Mapping[str, Any], where: str) -> Preprocessing:
    """What timm's `pretrained_cfg` asks for: input_size, crop_pct, crop_mode, interpolation, mean, std."""
    _, height, width = _needed(config, "input_size", where)
    mode, interpolation = config.get("crop_mode", "center"), config.get("interpolation", "bicubic")
    oblong = mode == "center" and height != width
    if mode not in ("center", "squash") or interpolation not in ("bilinear", "bicubic") or oblong:
        raise ArtifactError(
            f"{where} asks for {height} x {width} pixels, crop mode {mode!r} and {interpolation!r} interpolation; known are "
            "squares with crop mode center, anything with squash, bilinear and bicubic."
        )
    share = float(config.get("crop_pct") or 0.875)
    size = (int(np.floor(height / share)), int(np.floor(width / share)))
    fit = "shortest" if mode == "center" else "stretch"
    mean, std = tuple(_needed(config, "mean", where)), tuple(_needed(config, "std", where))
    return Preprocessing(size, (height, width), fit, interpolation, mean, std)


def _needed(config: Mapping[str, Any], key: str, where: str) -> Any:
    if config.get(key) is None:
        raise ArtifactError(f"{where} does not state {key!r}, which says how pictures are prepared.")
    return config[key]


def _sides(value: Any, squares: bool, where: str) -> tuple[tuple[int, int], Fit]:
    if isinstance(value, int):
        return square(value), "stretch" if squares else "shortest"
    if isinstance(value, Mapping) and {"height", "width"} <= value.keys() and value["height"]:
        return (int(value["height"]), int(value["width"])), "stretch"
    if isinstance(value, Mapping) and value.get("shortest_edge"):
        return square(int(value["shortest_edge"])), "shortest"
    raise ArtifactError(f"{where} states the size {value!r}; expected height and width, or shortest_edge.")


def _centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The central part of x (n, 3, H, W); zeros where it is larger than x."""
    lack = [max(0, want - have) for want, have in zip(size, x.shape[2:], strict=True)]
    if any(lack):
        x = F.pad(x, (lack[1] // 2, (lack[1] + 1) // 2, lack[0] // 2, (lack[0] + 1) // 2))
    top, left = ((have - want) // 2 for want, have in zip(size, x.shape[2:], strict=True))
    return x[:, :, top : top + size[0], left : left + size[1]]

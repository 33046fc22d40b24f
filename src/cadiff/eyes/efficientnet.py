"""EfficientNet-B1 (Tan & Le 2019) in torchvision's names, up to the average pooling."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadiff.eyes.eye import Eye
from cadiff.eyes.pixels import Preprocessing, square
from cadiff.eyes.weights import fill, read_weights

# Table 1 of the paper with B1's depth factor 1.1: expansion, kernel, stride, channels in, channels out, blocks.
STAGES = (
    (1, 3, 1, 32, 16, 2),
    (6, 3, 2, 16, 24, 3),
    (6, 5, 2, 24, 40, 3),
    (6, 3, 2, 40, 80, 4),
    (6, 5, 1, 80, 112, 4),
    (6, 5, 2, 112, 192, 5),
    (6, 3, 1, 192, 320, 2),
)


def _conv(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    steps = [
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*steps, *([nn.SiLU()] if act else []))


class SqueezeExcite(nn.Module):
    """Scales channels by what the whole map shows."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w), the same."""
        scale = self.fc2(F.silu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return torch.sigmoid(scale) * x


class Block(nn.Module):
    """Inverted bottleneck: widen, depthwise convolution, squeeze and excite, narrow."""

    def __init__(self, expansion: int, kernel: int, stride: int, channels: int, out: int):
        super().__init__()
        wide = channels * expansion
        steps: list[nn.Module] = [_conv(channels, wide, 1)] if expansion != 1 else []
        steps.append(_conv(wide, wide, kernel, stride, groups=wide))
        steps.append(SqueezeExcite(wide, max(1, channels // 4)))
        steps.append(_conv(wide, out, 1, act=False))
        self.block = nn.Sequential(*steps)
        self._shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, out, h / stride, w / stride)."""
        y = self.block(x)
        return x + y if self._shortcut else y


class EfficientNetB1(nn.Module):
    """Gives `avgpool` (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = [_conv(3, 32, 3, 2)]
        for expansion, kernel, stride, channels, out, blocks in STAGES:
            first = Block(expansion, kernel, stride, channels, out)
            stages.append(
                nn.Sequential(first, *(Block(expansion, kernel, 1, out, out) for _ in range(blocks - 1)))
            )
        stages.append(_conv(320, 1280, 1))
        self.features = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised pictures (B, 3, h, w)."""
        return {"avgpool": self.features(x).mean(dim=(2, 3))}


def load_efficientnet_b1(path: Path, device: str | torch.device | None = None) -> Eye:
    """EfficientNet-B1 with the layer `avgpool`, for pictures of 255 pixels as in MindEye."""
    with torch.device("meta"):
        network = EfficientNetB1()
    layout = "torchvision's efficientnet_b1"
    fill(network, read_weights(path), source=path, layout=layout, unused=("classifier.",))
    prepare = Preprocessing(square(255), square(255))
    return Eye("efficientnet-b1", network, prepare, ("avgpool",), weights=(Path(path),), device=device)

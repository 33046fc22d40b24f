"""Inception v3 (Szegedy et al. 2016) in torchvision's names, up to the average pooling.

torchvision's weights (`inception_v3_google-0cc3c7bd.pth`) are Google's of TensorFlow Slim. They are not those of the network in
which the FID of Heusel et al. 2017 is measured: a Fréchet distance with them is not that FID.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadiff.eyes.eye import Eye
from cadiff.eyes.pixels import Preprocessing, square
from cadiff.eyes.weights import fill, read_weights


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = False
    ):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, out, h', w')."""
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Chains of convolutions side by side, concatenated over channels; the names are torchvision's.

    chains: every branch as names of convolutions. A name that ends in "a" and the next one in "b" both read the same input
    (an asymmetric pair), and both count. pool: "avg" with a convolution `branch_pool` behind it, or "max" with stride 2.
    """

    def __init__(self, convs: dict[str, Conv], chains: tuple[tuple[str, ...], ...], pool: str):
        super().__init__()
        for name, conv in convs.items():
            self.add_module(name, conv)
        self._chains, self._pool = chains, pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, sum of branches, h', w')."""
        found = []
        for chain in self._chains:
            y = x
            for name in chain:
                pair = name + "a"
                if hasattr(self, pair):
                    y = torch.cat([getattr(self, pair)(y), getattr(self, name + "b")(y)], dim=1)
                else:
                    y = getattr(self, name)(y)
            found.append(y)
        if self._pool == "max":
            found.append(F.max_pool2d(x, 3, 2))
        else:
            found.append(self.get_submodule("branch_pool")(F.avg_pool2d(x, 3, 1, 1)))
        return torch.cat(found, dim=1)


def _block_a(channels: int, pooled: int) -> Branches:
    convs = {
        "branch1x1": Conv(channels, 64, 1),
        "branch5x5_1": Conv(channels, 48, 1),
        "branch5x5_2": Conv(48, 64, 5, pad=True),
        "branch3x3dbl_1": Conv(channels, 64, 1),
        "branch3x3dbl_2": Conv(64, 96, 3, pad=True),
        "branch3x3dbl_3": Conv(96, 96, 3, pad=True),
        "branch_pool": Conv(channels, pooled, 1),
    }
    chains = (
        ("branch1x1",),
        ("branch5x5_1", "branch5x5_2"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    )
    return Branches(convs, chains, "avg")


def _block_b(channels: int) -> Branches:
    convs = {
        "branch3x3": Conv(channels, 384, 3, 2),
        "branch3x3dbl_1": Conv(channels, 64, 1),
        "branch3x3dbl_2": Conv(64, 96, 3, pad=True),
        "branch3x3dbl_3": Conv(96, 96, 3, 2),
    }
    return Branches(convs, (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")), "max")


def _block_c(channels: int, width: int) -> Branches:
    row, column = (1, 7), (7, 1)
    convs = {
        "branch1x1": Conv(channels, 192, 1),
        "branch7x7_1": Conv(channels, width, 1),
        "branch7x7_2": Conv(width, width, row, pad=True),
        "branch7x7_3": Conv(width, 192, column, pad=True),
        "branch7x7dbl_1": Conv(channels, width, 1),
        "branch7x7dbl_2": Conv(width, width, column, pad=True),
        "branch7x7dbl_3": Conv(width, width, row, pad=True),
        "branch7x7dbl_4": Conv(width, width, column, pad=True),
        "branch7x7dbl_5": Conv(width, 192, row, pad=True),
        "branch_pool": Conv(channels, 192, 1),
    }
    chains = (
        ("branch1x1",),
        tuple(f"branch7x7_{i}" for i in (1, 2, 3)),
        tuple(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)),
    )
    return Branches(convs, chains, "avg")


def _block_d(channels: int) -> Branches:
    convs = {
        "branch3x3_1": Conv(channels, 192, 1),
        "branch3x3_2": Conv(192, 320, 3, 2),
        "branch7x7x3_1": Conv(channels, 192, 1),
        "branch7x7x3_2": Conv(192, 192, (1, 7), pad=True),
        "branch7x7x3_3": Conv(192, 192, (7, 1), pad=True),
        "branch7x7x3_4": Conv(192, 192, 3, 2),
    }
    return Branches(
        convs, (("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{i}" for i in (1, 2, 3, 4))), "max"
    )


def _block_e(channels: int) -> Branches:
    convs = {
        "branch1x1": Conv(channels, 320, 1),
        "branch3x3_1": Conv(channels, 384, 1),
        "branch3x3_2a": Conv(384, 384, (1, 3), pad=True),
        "branch3x3_2b": Conv(384, 384, (3, 1), pad=True),
        "branch3x3dbl_1": Conv(channels, 448, 1),
        "branch3x3dbl_2": Conv(448, 384, 3, pad=True),
        "branch3x3dbl_3a": Conv(384, 384, (1, 3), pad=True),
        "branch3x3dbl_3b": Conv(384, 384, (3, 1), pad=True),
        "branch_pool": Conv(channels, 192, 1),
    }
    chains = (
        ("branch1x1",),
        ("branch3x3_1", "branch3x3_2"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    )
    return Branches(convs, chains, "avg")


class InceptionV3(nn.Module):
    """Gives `avgpool` (B, 2048) of pictures scaled to [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, pad=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280), _block_e(2048)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, h, w), h and w at least 75."""
        for name, block in self.named_children():
            x = block(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return {"avgpool": x.mean(dim=(2, 3))}


def load_inception(path: Path, device: str | torch.device | None = None) -> Eye:
    """Inception v3 with the layer `avgpool`, for pictures of 342 pixels as in MindEye.

    MindEye normalises by ImageNet's statistics and torchvision's network turns that back into (x - 0.5) / 0.5 on 0..1, which is
    what is done here at once.
    """
    with torch.device("meta"):
        network = InceptionV3()
    layout = "torchvision's inception_v3"
    fill(network, read_weights(path), source=path, layout=layout, unused=("fc.", "AuxLogits."))
    prepare = Preprocessing(square(342), square(342), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Eye("inception-v3", network, prepare, ("avgpool",), weights=(Path(path),), device=device)

"""D: responses of voxels -> picture (Gaziv et al. 2022).

A linear layer to C x s x s, then three blocks that enlarge, convolve, normalise groups of channels and apply SiLU, then a
convolution and a sigmoid: at the published 112 pixels s = 14, C = 64, kernels of 5 x 5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_BLOCKS = 3


class Decoder(nn.Module):
    """Normalised responses (B, V) -> pictures (B, 3, S, S) in [0, 1].

    Args:
        num_voxels: V. size: S. channels: of every block, even. kernel_size: of every convolution, odd.
    """

    def __init__(self, num_voxels: int, size: int, *, channels: int, kernel_size: int):
        super().__init__()
        self.channels = channels
        self.start = max(2, size // 2**NUM_BLOCKS)
        self.sides = [-(-size // 2**k) for k in reversed(range(NUM_BLOCKS))]
        self.input = nn.Linear(num_voxels, channels * self.start**2)
        self.convs = nn.ModuleList([_conv(channels, channels, kernel_size) for _ in self.sides])
        self.norms = nn.ModuleList([nn.GroupNorm(channels // 2, channels) for _ in self.sides])
        self.top = _conv(channels, 3, kernel_size)

    def forward(self, betas: Tensor) -> Tensor:
        """See the class."""
        x = self.input(betas).unflatten(1, (self.channels, self.start, self.start))
        for side, conv, norm in zip(self.sides, self.convs, self.norms, strict=True):
            x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
            x = F.silu(norm(conv(x)))
        return torch.sigmoid(self.top(x).float())

    def places(self) -> Tensor:
        """Weights of the linear layer (V, C, s, s)."""
        return self.input.weight.T.unflatten(1, (self.channels, self.start, self.start))


def _conv(channels: int, out: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel_size, padding=kernel_size // 2, padding_mode="reflect")

"""E: maps of a frozen eye -> responses of voxels, with a separable readout (Gaziv et al. 2022; Klindt et al. 2017).

    y_v = b_v + sum_l sum_c w_vlc sum_p s_vp phi_lcp         phi_l = ReLU(conv(standardised map l))

Every voxel has one map of places s_v for each grid size, shared by the maps on that grid, and one weight for each channel.
Published beside this: batch norm around the convolutions (here maps are standardised once, by the training pictures), patches of
3 x 3 places, and a further weight for each map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_MAPS = 4
"""The finest four of the eye's five, as published."""


class Encoder(nn.Module):
    """Maps (B, C_l, h_l, h_l) -> normalised responses (B, V).

    Args:
        shapes: of the eye's maps, fine to coarse; places are averaged to at most a quarter of `size`, the pictures' side.
        num_voxels: V. channels: that each map is brought to. dropout: of the channels' values, in training only.
    """

    def __init__(
        self, shapes: Sequence[torch.Size], size: int, num_voxels: int, *, channels: int, dropout: float
    ):
        super().__init__()
        shapes = list(shapes)[:NUM_MAPS]
        self.dropout = dropout
        self.grids = [min(shape[-1], max(1, size // 4)) for shape in shapes]
        self.convs = nn.ModuleList([nn.Conv2d(shape[1], channels, 3, padding=1) for shape in shapes])
        self.space = nn.ParameterDict(
            {
                str(grid): nn.Parameter(torch.zeros(num_voxels, grid * grid))
                for grid in sorted(set(self.grids))
            }
        )
        self.mixes = nn.ParameterList([nn.Parameter(torch.zeros(num_voxels, channels)) for _ in shapes])
        self.bias = nn.Parameter(torch.zeros(num_voxels))
        for number, shape in enumerate(shapes):
            self.register_buffer(f"mean_{number}", torch.zeros(shape[1], 1, 1))
            self.register_buffer(f"scale_{number}", torch.ones(shape[1], 1, 1))

    @torch.no_grad()
    def standardise(self, batches: Sequence[Sequence[Tensor]]) -> None:
        """Sets what maps are standardised by, from the maps of some batches of pictures."""
        for number in range(len(self.grids)):
            maps = torch.cat([batch[number].float() for batch in batches])
            std, mean = torch.std_mean(maps, dim=(0, 2, 3), correction=0)
            self.get_buffer(f"mean_{number}").copy_(mean[:, None, None])
            self.get_buffer(f"scale_{number}").copy_(1.0 / std.clamp(min=1e-3)[:, None, None])

    def forward(self, maps: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """See the class; `generator` (of the maps' device) draws the dropout, and none means none."""
        total = self.bias
        for number, (grid, conv, mix) in enumerate(zip(self.grids, self.convs, self.mixes, strict=True)):
            mean, scale = (self.get_buffer(f"{name}_{number}") for name in ("mean", "scale"))
            x = F.adaptive_avg_pool2d((maps[number] - mean) * scale, grid)
            x = F.relu(conv(x)).flatten(2)  # (B, C, P)
            if generator is not None and self.dropout:
                kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
                x = x * kept / (1.0 - self.dropout)
            total = total + ((x @ self.space[str(grid)].T) * mix.T).sum(dim=1)
        return total.float()


def initialise_encoder(encoder: Encoder, generator: torch.Generator) -> None:
    """Convolutions as `initialise_layers`; every place alike but for a little noise; channels normal."""
    initialise_layers(encoder, generator)
    for space in encoder.space.values():
        places = space.shape[1]
        nn.init.normal_(space, mean=1.0 / places, std=0.1 / places, generator=generator)
    for mix in encoder.mixes:
        nn.init.normal_(mix, std=(mix.shape[1] * len(encoder.mixes)) ** -0.5, generator=generator)


def initialise_layers(module: nn.Module, generator: torch.Generator) -> None:
    """Linear layers and convolutions as PyTorch starts them, uniform within 1 / sqrt(fan in), by a generator."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

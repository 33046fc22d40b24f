"""Generator and discriminator of the instance-conditioned GAN (Casanova et al. 2021) on BigGAN's backbone (Brock et al. 2019).

The generator draws from p(x | h): noise z and the features h of an instance, which only enter through a linear map `shared_feat`.
With hierarchical noise z is cut into one chunk for the first dense layer, `linear`, and one for each block, whose condition
is [shared_feat(h), chunk]. The discriminator scores a picture x with features h by projection (Miyato & Koyama 2018):
    D(x, h) = linear(f(x)) + <linear_feat(h), f(x)>,   f the sum over places of the last map.

Widths are those of the released code; parameter names too, but for its table `shared` of class labels, which an unlabelled
generator never reads. B pictures of S pixels, Z noise numbers, F features, W numbers of the first dense layer.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadiff.config import Config
from cadiff.priors.icgan.layers import (
    Attention,
    DiscriminatorBlock,
    GeneratorBlock,
    PlainNorm,
    SpectralConv2d,
    SpectralLinear,
)

ImageSize = Literal[32, 64, 128, 256, 512]
BOTTOM = 4
"""Pixels of the first map's side."""
GENERATOR: dict[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
"""Picture size -> width before and after each block, in `channels`."""
DISCRIMINATOR: dict[int, tuple[tuple[int, ...], int]] = {
    32: ((4, 4, 4, 4), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
    256: ((1, 2, 4, 8, 8, 16, 16), 6),
}
"""Picture size -> width after each block, in `channels`, and how many blocks halve the map."""


class GeneratorConfig(Config):
    """Sizes of a generator; the defaults are those of the released ImageNet model at 256 pixels."""

    image_size: ImageSize = 256
    """Pixels of a picture's side."""
    channels: int = Field(default=96, ge=1)
    """Width multiplier."""
    noise_dim: int = Field(default=119, ge=1)
    """Z: numbers of a noise vector; with hierarchical noise a multiple of the number of chunks."""
    hierarchical: bool = True
    """One chunk of the noise for the first layer and one for each block, or all of it for the first layer."""
    feature_dim: int = Field(default=2048, ge=1)
    """F: numbers of an instance's features."""
    embed_dim: int = Field(default=512, ge=1)
    """Width that features are mapped to."""
    attention: tuple[int, ...] = (64,)
    """Resolutions with an attention layer."""

    @model_validator(mode="after")
    def _check(self) -> GeneratorConfig:
        if self.noise_dim % self.num_chunks:
            raise ValueError(
                f"noise_dim {self.noise_dim} cannot be cut into {self.num_chunks} chunks: take a multiple of that"
            )
        return self

    @property
    def num_chunks(self) -> int:
        """Pieces that the noise is cut into."""
        return len(GENERATOR[self.image_size]) if self.hierarchical else 1

    @property
    def chunk_dim(self) -> int:
        """Numbers of one piece."""
        return self.noise_dim // self.num_chunks

    @property
    def condition_dim(self) -> int:
        """Width of what a block is conditioned on."""
        return self.embed_dim + (self.chunk_dim if self.hierarchical else 0)

    @property
    def dense_dim(self) -> int:
        """W: numbers that the first dense layer gives."""
        return GENERATOR[self.image_size][0] * self.channels * BOTTOM**2


class Generator(nn.Module):
    """Noise and features to pictures."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.shared_feat = SpectralLinear(config.feature_dim, config.embed_dim)
        self.linear = SpectralLinear(config.chunk_dim, config.dense_dim)
        widths = [multiple * config.channels for multiple in GENERATOR[config.image_size]]
        blocks: list[nn.ModuleList] = []
        for place, (channels, out) in enumerate(itertools.pairwise(widths)):
            level: list[nn.Module] = [GeneratorBlock(channels, out, config.condition_dim)]
            if BOTTOM * 2 ** (place + 1) in config.attention:
                level.append(Attention(out))
            blocks.append(nn.ModuleList(level))
        self.blocks = nn.ModuleList(blocks)
        self.output_layer = nn.Sequential(PlainNorm(widths[-1]), nn.ReLU(), SpectralConv2d(widths[-1], 3))

    def forward(self, noise: Tensor, features: Tensor, dense: Tensor | None = None) -> Tensor:
        """Noise (B, Z) and features (B, F) -> pictures (B, 3, S, S) in [-1, 1].

        Args:
            noise: standard normal.
            features: of unit length.
            dense: (B, W) in the place of what the first dense layer gives; the first chunk of the noise is then unused.
        """
        embedded = self.shared_feat(features)
        chunks = noise.split(self.config.chunk_dim, dim=1)
        h = self.linear(chunks[0]) if dense is None else dense
        h = h.view(len(h), -1, BOTTOM, BOTTOM)
        for place, level in enumerate(self.blocks):
            condition = (
                torch.cat([embedded, chunks[place + 1]], dim=1) if self.config.hierarchical else embedded
            )
            for layer in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = layer(h, condition)
        return torch.tanh(self.output_layer(h))

    def dense(self, noise: Tensor) -> Tensor:
        """What the first dense layer gives for noise (B, Z): (B, W)."""
        return self.linear(noise[:, : self.config.chunk_dim])


class Discriminator(nn.Module):
    """Pictures and features to scores: high for pictures that lie near the instance with these features."""

    def __init__(self, image_size: int, channels: int, feature_dim: int, attention: tuple[int, ...]) -> None:
        super().__init__()
        multiples, halvings = DISCRIMINATOR[image_size]
        widths = [3, *(multiple * channels for multiple in multiples)]
        blocks: list[nn.Module] = []
        side = image_size
        for place, (into, out) in enumerate(itertools.pairwise(widths)):
            halve = place < halvings
            side = side // 2 if halve else side
            blocks.append(DiscriminatorBlock(into, out, first=place == 0, halve=halve))
            if halve and side in attention:
                blocks.append(Attention(out))
        self.blocks = nn.ModuleList(blocks)
        self.linear = SpectralLinear(widths[-1], 1)
        self.linear_feat = SpectralLinear(feature_dim, widths[-1])

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [-1, 1] and features (B, F) -> scores (B,)."""
        h = images
        for block in self.blocks:
            h = block(h)
        found = F.relu(h).float().sum(dim=(2, 3))  # (B, C)
        return (self.linear(found).squeeze(1) + (self.linear_feat(features) * found).sum(dim=1)).float()

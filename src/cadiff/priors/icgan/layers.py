"""Layers of BigGAN (Brock et al. 2019), named as in the checkpoints of Casanova et al. 2021 (facebookresearch/ic_gan).

Spectral normalisation (Miyato et al. 2018): a weight W, seen as a matrix with one row an output, is used as W / sigma, where
    v = u W / |u W|,   u' = v W^T / |v W^T|,   sigma = v W^T u'^T
is one power iteration from the stored vector `u0`, which training moves on. Instance-conditional batch normalisation gives
x the gain 1 + A c and the bias B c of a condition c, both spectrally normalised and linear. Attention is SAGAN's (Zhang et al.
2019) as released: queries at every place, keys and values max-pooled 2 x 2.

B pictures, C channels, D width of the condition; maps are (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPECTRAL_EPS = 1e-6
NORM_EPS = 1e-5


class Spectral(nn.Module):
    """What spectrally normalised layers share: buffers `u0` (1, outputs) and `sv0` (1,), the last sigma of training."""

    weight: Tensor
    u0: Tensor
    sv0: Tensor
    folded: Tensor | None

    def _begin(self) -> None:
        self.register_buffer("u0", torch.randn(1, len(self.weight)))
        self.register_buffer("sv0", torch.ones(1))
        self.register_buffer("folded", None, persistent=False)

    def normalised(self) -> Tensor:
        """W / sigma; in training mode `u0` moves on by one power iteration."""
        if self.folded is not None:
            return self.folded
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(self.u0 @ matrix, eps=SPECTRAL_EPS)
                u = F.normalize(v @ matrix.T, eps=SPECTRAL_EPS)
            sigma = (v @ matrix.T @ u.T).squeeze()
            if self.training:
                with torch.no_grad():
                    self.u0.copy_(u)
                    self.sv0.fill_(sigma)
            return self.weight / sigma

    @torch.no_grad()
    def fold(self, iterations: int = 1) -> None:
        """Fixes W / sigma for good, from `u0` after so many power iterations; 1 is what the released code does in use."""
        self.folded = None
        training = self.training
        self.train()
        for _ in range(iterations - 1):
            self.normalised()
        self.train(training)
        self.folded = self.normalised()


class SpectralConv2d(Spectral, nn.Conv2d):
    """Convolution of odd kernel that keeps the size of the map."""

    def __init__(self, channels: int, out: int, kernel: int = 3, bias: bool = True) -> None:
        nn.Conv2d.__init__(self, channels, out, kernel, padding=kernel // 2, bias=bias)
        self._begin()

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, out, h, w)."""
        return F.conv2d(input, self.normalised(), self.bias, padding=self.padding)


class SpectralLinear(Spectral, nn.Linear):
    """Linear map."""

    def __init__(self, features: int, out: int, bias: bool = True) -> None:
        nn.Linear.__init__(self, features, out, bias)
        self._begin()

    def forward(self, input: Tensor) -> Tensor:
        """(B, features) -> (B, out)."""
        return F.linear(input, self.normalised(), self.bias)


class StoredNorm(nn.Module):
    """Batch statistics in training, stored ones in use; `momentum` is the weight of a batch in the stored ones."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.momentum = 0.1
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def standardise(self, x: Tensor) -> Tensor:
        """(B, C, h, w), zero mean and unit variance a channel."""
        stored = self.stored_mean, self.stored_var
        return F.batch_norm(x, *stored, None, None, self.training, self.momentum, NORM_EPS)


class ConditionalNorm(StoredNorm):
    """standardise(x) * (1 + gain(c)) + bias(c)."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__(channels)
        self.gain = SpectralLinear(condition_dim, channels, bias=False)
        self.bias = SpectralLinear(condition_dim, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, h, w) and (B, D)."""
        return (
            self.standardise(x) * (1 + self.gain(condition))[..., None, None]
            + self.bias(condition)[..., None, None]
        )


class PlainNorm(StoredNorm):
    """standardise(x) * gain + bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w)."""
        return self.standardise(x) * self.gain[:, None, None] + self.bias[:, None, None]


class Attention(nn.Module):
    """x + gamma o(softmax(theta(x)^T phi(x)) g(x)); gamma starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, wide = max(1, channels // 8), max(1, channels // 2)
        self.theta = SpectralConv2d(channels, narrow, 1, bias=False)
        self.phi = SpectralConv2d(channels, narrow, 1, bias=False)
        self.g = SpectralConv2d(channels, wide, 1, bias=False)
        self.o = SpectralConv2d(wide, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, C, h, w); the condition that blocks get is not looked at."""
        query = self.theta(x).flatten(2)  # (B, C / 8, h w)
        key = F.max_pool2d(self.phi(x), 2).flatten(2)  # (B, C / 8, h w / 4)
        value = F.max_pool2d(self.g(x), 2).flatten(2)  # (B, C / 2, h w / 4)
        weights = (query.mT @ key).softmax(-1)  # (B, h w, h w / 4)
        found = (value @ weights.mT).unflatten(2, x.shape[2:])
        return x + self.gamma * self.o(found)


class GeneratorBlock(nn.Module):
    """Norm, ReLU, twice the size, convolution, norm, ReLU, convolution; beside it twice the size and a 1 x 1 convolution."""

    def __init__(self, channels: int, out: int, condition_dim: int) -> None:
        super().__init__()
        self.conv1 = SpectralConv2d(channels, out)
        self.conv2 = SpectralConv2d(out, out)
        self.conv_sc = SpectralConv2d(channels, out, 1)
        self.bn1 = ConditionalNorm(channels, condition_dim)
        self.bn2 = ConditionalNorm(out, condition_dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, h, w) and (B, D) -> (B, out, 2 h, 2 w)."""
        h = F.interpolate(F.relu(self.bn1(x, condition)), scale_factor=2)
        h = self.conv2(F.relu(self.bn2(self.conv1(h), condition)))
        return h + self.conv_sc(F.interpolate(x, scale_factor=2))


class DiscriminatorBlock(nn.Module):
    """Convolution, ReLU, convolution, half the size, beside a shortcut; all but the first begin with a ReLU."""

    def __init__(self, channels: int, out: int, *, first: bool, halve: bool) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = SpectralConv2d(channels, out)
        self.conv2 = SpectralConv2d(out, out)
        self.conv_sc = SpectralConv2d(channels, out, 1) if halve or channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, out, h / 2, w / 2), or of the same size."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halve:  # the shortcut is halved before its convolution: both are linear, and so it is cheaper
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.conv_sc is None else self.conv_sc(x))


def spectral_layers(network: nn.Module) -> Iterator[Spectral]:
    """Every spectrally normalised layer of a network."""
    return (module for module in network.modules() if isinstance(module, Spectral))


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """Orthogonal weights, biases uniform in +-1 / sqrt(inputs) as PyTorch's, `u0` from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    for layer in spectral_layers(network):
        nn.init.orthogonal_(layer.weight, generator=generator)
        layer.u0.normal_(generator=generator)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            bound = layer.weight[0].numel() ** -0.5
            bias.uniform_(-bound, bound, generator=generator)

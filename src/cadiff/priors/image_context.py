"""What makes a context out of a picture's features, known as well as they are: the second door into an image prior.

A prior that was trained with labels can be told a class and nothing else. A brain knows more of the one picture than its class
(docs/trace.md), and less than all of it. So the features of a picture come with their uncertainty in them, as ridge regression
gives them: each is shrunk towards the mean picture by how badly it is known,

    y_k = rho_k (rho_k z_k + sqrt(1 - rho_k^2) e_k)          z, e ~ coordinates of two pictures, rho_k in [0, 1]

which is E[z_k | a measurement that correlates rho_k with z_k]. At rho = 0 nothing is known, at rho = 1 all. Features stand for
an embedding of the picture as in Ramesh et al. 2022 (unCLIP) and Ozcelik & VanRullen 2023; the noise that grows is unCLIP's too.

Shapes: n or B pictures, E features of the eye, D numbers of a latent, F coordinates, K tokens, C context width, T time width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from cadiff.draws import drawn
from cadiff.errors import DataError

FLOOR = 1e-6
"""Variance of a component over the largest, below which it is rounding: whitened, it would be noise of any size."""
STEEPEST = 5.0
"""How much faster than the first coordinate the last one may be forgotten, as an exponent."""


class ImageContext(ModelMixin, ConfigMixin):
    """Coordinates of a picture -> context tokens and time vector, saved and loaded as one diffusers model.

    Coordinates are whitened principal components, first those of the eye's features, then those of the prior's latents.

    Args:
        eye, layer, eye_size: the network that sees, which of its layers, pixels a side that it is shown.
        num_features, num_latents: E and D.
        sizes: components kept of features and of latents; F is their sum.
        num_tokens, context_dim, time_dim: K, C, T.
        width: of the hidden layer.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        num_features: int,
        num_latents: int,
        context_dim: int,
        time_dim: int,
        sizes: Sequence[int] = (128, 64),
        num_tokens: int = 8,
        width: int = 512,
        eye: str = "efficientnet-lite0",
        layer: str = "pooled",
        eye_size: int = 160,
    ) -> None:
        super().__init__()
        self.sizes, self.num_tokens = tuple(sizes), num_tokens
        self.base = nn.Linear(sum(sizes), context_dim)
        self.hidden = nn.Linear(sum(sizes), width)
        self.tokens = nn.Linear(width, num_tokens * context_dim)
        self.time = nn.Linear(width, time_dim)
        for layer_ in (
            self.tokens,
            self.time,
        ):  # at first every token is what `base` makes of the coordinates
            nn.init.zeros_(layer_.weight)
            nn.init.zeros_(layer_.bias)
        self.register_buffer("norm", torch.ones(()))
        for name, size, kept in (("feature", num_features, sizes[0]), ("latent", num_latents, sizes[1])):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_axes", torch.zeros(size, kept))

    def forward(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (B, F) -> context (B, K, C) and time vector (B, T)."""
        base = self.base(coordinates)
        base = base * (self.norm / base.norm(dim=1, keepdim=True).clamp_min(1e-6))
        hidden = functional.gelu(self.hidden(coordinates))
        return base[:, None] + self.tokens(hidden).unflatten(1, (self.num_tokens, -1)), self.time(hidden)

    def coordinates(self, features: Tensor, latents: Tensor) -> Tensor:
        """What the eye sees in pictures (n, E) and their scaled latents (n, ...) -> (n, F), about unit variance each."""
        pairs = (
            (features, self.feature_mean, self.feature_axes),
            (latents, self.latent_mean, self.latent_axes),
        )
        return torch.cat([(x.flatten(1) - mean) @ axes for x, mean, axes in pairs], dim=1)

    @torch.no_grad()
    def fit_coordinates(self, features: Tensor, latents: Tensor) -> None:
        """Takes the principal components of training pictures: features (n, E), latents (n, ...).

        Raises:
            DataError: they vary along fewer directions than components are asked for; nothing is changed then.
        """
        found = {}
        for name, x, kept in zip(("feature", "latent"), (features, latents), self.sizes, strict=True):
            x = x.flatten(1).double()
            mean = x.mean(0)
            values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
            alive = int((values > FLOOR * values[-1].clamp_min(1e-12)).sum())
            if alive < kept:
                raise DataError(
                    f"The {name}s of these {len(x)} pictures vary along {alive} directions (beyond rounding), fewer than "
                    f"{name}_components={kept}: give more pictures, more different ones, or set {name}_components={alive or 1}."
                )
            found[f"{name}_mean"] = mean
            found[f"{name}_axes"] = vectors[:, -kept:].flip(1) / values[-kept:].flip(0).sqrt()
        for name, value in found.items():
            getattr(self, name).copy_(value)

    @torch.no_grad()
    def fit_base(self, coordinates: Tensor, labels: Tensor, penalty: float = 1.0) -> None:
        """Starts at what uncertain coordinates (n, F) say of label embeddings (n, C), at the length of these."""
        mean = labels.double().mean(0)
        x, y = coordinates.double(), labels.double() - mean
        centre = x.mean(0)
        gram = (x - centre).T @ (x - centre) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(gram, (x - centre).T @ y)
        self.base.weight.copy_(weight.T)
        self.base.bias.copy_(mean - centre @ weight)
        self.norm.copy_(labels.norm(dim=1).mean())


def uncertain(
    coordinates: Tensor,
    others: Tensor,
    sizes: Sequence[int],
    generator: torch.Generator,
    count: int | None = None,
) -> Tensor:
    """Coordinates (B, F) as well known as a draw decides: see the formula above.

    Features and latents of a picture have a reliability each, uniform, which falls exponentially along their components by
    another draw, as components that vary less are harder to read from a brain.

    Args:
        others: (B, F), coordinates of pictures that have nothing to do with these: the error.
        sizes: components of each kind. count: draws made, for the whole batch where it is shared.
    """
    count = count or len(coordinates)
    device, kinds = coordinates.device, []
    for size in sizes:
        top = drawn(lambda g: torch.rand(count, 1, generator=g), generator, device)
        fall = drawn(lambda g: torch.rand(count, 1, generator=g), generator, device)
        kinds.append(top * torch.exp(-STEEPEST * fall * torch.arange(size, device=device) / size))
    rho = torch.cat(kinds, dim=1)
    return rho * (rho * coordinates + (1 - rho**2).sqrt() * others)

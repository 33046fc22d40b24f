"""Samples of one trial over several generations: each is drawn around the likeliest so far, and only those survive.

After Kneeland et al. 2023 (Second Sight, arXiv 2306.00927), who draw samples around the one whose predicted betas fit best, with
less and less noise. Here several parents are kept, and a parent stays until it is beaten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.diffuse.settings import ReconstructConfig, RerankMode

SHARE = 4
"""One in so many samples of a generation is a parent of the next."""


def generation_strengths(config: ReconstructConfig) -> list[float]:
    """Share of the denoising steps of each generation, in equal strides from `strength` to `rerank_strength`."""
    rounds, first = config.rerank_rounds, config.strength
    stride = (config.rerank_strength - first) / max(1, rounds - 1)
    return [first + stride * i for i in range(rounds)]


class Samples:
    """Pictures uint8 (s, H, W, 3), latents (s, c, h, w) and log likelihoods (s,) of those that are alive; the likeliest first."""

    def __init__(self) -> None:
        self.pictures: np.ndarray = np.empty(0)
        self.latents: Tensor = torch.empty(0)
        self.likelihood: np.ndarray | None = None
        self.drawn: np.ndarray = np.empty(0)
        """Log likelihood of everything that was drawn, in that order."""

    def add(self, pictures: np.ndarray, latents: Tensor, likelihood: np.ndarray | None) -> None:
        """A generation as large as those before; without a likelihood there is no order, and no second one."""
        if likelihood is None:
            self.pictures, self.latents = pictures, latents
            return
        self.drawn, count = np.concatenate([self.drawn, likelihood]), len(pictures)
        if self.likelihood is not None:
            pictures = np.concatenate([self.pictures, pictures])
            latents = torch.cat([self.latents, latents])
            likelihood = np.concatenate([self.likelihood, likelihood])
        alive = np.argsort(-likelihood, kind="stable")[:count]
        self.pictures, self.latents, self.likelihood = pictures[alive], latents[alive], likelihood[alive]

    def parents(self, count: int) -> Tensor:
        """Latents (count, c, h, w) that the next generation begins from: the likeliest, in turn."""
        return self.latents[torch.arange(count) % max(1, count // SHARE)]

    def kept(self, mode: RerankMode, count: int, model: Any) -> np.ndarray:
        """What becomes of them, uint8 (k, H, W, 3): the likeliest, all, or their mean weighed by the posterior."""
        if mode != "mean":
            return self.pictures[:count]
        shares = np.full(len(self.pictures), 1 / len(self.pictures))
        if self.likelihood is not None:
            shares = model.weights(self.likelihood[None], of_mean=True)[0]
        return np.rint(np.tensordot(shares, self.pictures.astype(float), axes=1)).astype(np.uint8)[None]

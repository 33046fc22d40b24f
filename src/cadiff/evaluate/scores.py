"""Scores of pictures as reconstructions of stimuli: for every pair, for the right pairs, and for the wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from cadiff.evaluate import pixel, semantic
from cadiff.evaluate.categories import n_way_table
from cadiff.evaluate.features import backward_retrieval_table, correlation_table, retrieval_table
from cadiff.evaluate.metrics import BACKWARD, PSNR_CEILING, TWO_WAY

Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Pictures uint8 (m, H, W, 3) and stimuli (n, H, W, 3) -> (m, n)."""
SSIM_SHIFTS = 4
"""SSIM is slow; for wrong pairs it is taken of so many other stimuli."""
SSIM_VALUES = 2_000_000
"""Of pictures at a time: it needs some ten copies in double precision, 160 MB."""


@dataclass(frozen=True)
class Seen:
    """Pictures and what the judge makes of them; logits and features are None without a judge."""

    images: np.ndarray
    """uint8 (n, H, W, 3)."""
    logits: np.ndarray | None = None
    """(n, C)."""
    features: np.ndarray | None = None
    """(n, D)."""
    eyes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name of a metric of `eye_metrics` -> features (n, D) of its eye and layer."""

    def __getitem__(self, rows: np.ndarray) -> Seen:
        """Some of the pictures, or one several times."""
        return Seen(
            self.images[rows],
            None if self.logits is None else self.logits[rows],
            None if self.features is None else self.features[rows],
            {name: values[rows] for name, values in self.eyes.items()},
        )


@dataclass(frozen=True)
class Protocol:
    """What the n-way metrics mean."""

    n_way: int
    top_k: tuple[int, ...]
    classes: np.ndarray | None = None
    """Only these classes take part; None: all that the judge knows."""
    pools: tuple[int, ...] = ()
    """Sizes of the pools that retrieval picks from."""
    distances: Mapping[str, Distances] = field(default_factory=dict)
    """Name of a metric -> function of two stacks of pictures that gives it for all pairs."""


class PairScores:
    """All metrics of m pictures against n stimuli; what is costly is computed once for all pairs.

    Args:
        num_samples: the pictures are so many reconstructions of each stimulus in turn, m = n * num_samples, which backward
            retrieval needs to know. None: they belong to no stimulus.
    """

    def __init__(
        self, seen: Seen, stimuli: Seen, protocol: Protocol, *, num_samples: int | None = None
    ) -> None:
        self._seen, self._stimuli = seen, stimuli
        tables: dict[str, Callable[[], np.ndarray]] = {}
        if seen.logits is not None and stimuli.logits is not None:
            truth = semantic.truth_classes(stimuli.logits, protocol.classes)
            options = {"n": protocol.n_way, "classes": protocol.classes}
            for k in protocol.top_k:
                tables[f"n_way_top{k}"] = partial(n_way_table, seen.logits, truth, k=k, **options)
        if seen.features is not None and stimuli.features is not None:
            alike = pixel.correlations(seen.features, stimuli.features)
            tables["two_way_features"] = partial(pixel.two_way_table, alike)
            for pool in protocol.pools:
                tables[f"retrieval_{pool}"] = partial(retrieval_table, alike, pool=pool)
                if num_samples is not None:
                    tables[f"{BACKWARD}{pool}"] = partial(
                        backward_retrieval_table, alike, num_samples=num_samples, pool=pool
                    )
        for name, features in seen.eyes.items():
            alike = correlation_table(features, stimuli.eyes[name])
            is_two_way = name.startswith(TWO_WAY)
            tables[name] = partial(pixel.two_way_table if is_two_way else _distance, alike)
        for name, distances in protocol.distances.items():
            tables[name] = partial(distances, seen.images, stimuli.images)
        pixels, error = pixel.pair_tables(seen.images, stimuli.images)
        tables["two_way_pixels"] = partial(pixel.two_way_table, pixels)
        tables |= {"pcc": lambda: pixels, "mse": lambda: error, "psnr": partial(_psnr, error)}
        self._tables = tables

    def tables(self) -> dict[str, np.ndarray]:
        """By metric the score `(m, n)` of every picture as a reconstruction of every stimulus, without SSIM, which is slow."""
        return {name: make() for name, make in self._tables.items()}

    def scored(self, own: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Scores by metric of the right pairs, and what wrong pairs are expected to score.

        The first, `(m,)`, takes reconstruction i as a picture of stimulus `own[i]`. The second, `(n,)`, gives each stimulus a
        reconstruction of another one, drawn at random: the chance level of these very pictures, an exact mean over all wrong
        pairs. SSIM, which is slow, is averaged over `SSIM_SHIFTS` other stimuli and the first sample of each.
        Every stimulus needs a reconstruction.
        """
        right: dict[str, np.ndarray] = {}
        wrong: dict[str, np.ndarray] = {}
        rows, n = np.arange(len(own)), len(self._stimuli.images)
        num_wrong = len(own) - np.bincount(own, minlength=n)
        for name, make in self._tables.items():  # one at a time: tables of thousands of pictures are large
            table = make()
            right[name] = table[rows, own]
            wrong[name] = (table.sum(axis=0) - np.bincount(own, right[name], minlength=n)) / num_wrong
        right["ssim"] = self.ssim(rows, own)
        first = np.unique(own, return_index=True)[1]
        shifts = np.unique(np.linspace(1, n - 1, SSIM_SHIFTS).round().astype(int))
        wrong["ssim"] = np.mean(
            [self.ssim(first[np.arange(n) - shift], np.arange(n)) for shift in shifts], axis=0
        )
        return right, wrong

    def ssim(self, rows: np.ndarray, own: np.ndarray) -> np.ndarray:
        """SSIM of the pictures `rows (r,)` with the stimuli `own (r,)`."""
        images, targets = self._seen.images, self._stimuli.images
        count = -(-len(rows) * targets[0].size // SSIM_VALUES)
        parts = np.array_split(np.arange(len(rows)), max(count, 1))
        return np.concatenate([pixel.ssim(images[rows[part]], targets[own[part]]) for part in parts])


def _distance(alike: np.ndarray) -> np.ndarray:
    return 1.0 - alike


def _psnr(error: np.ndarray) -> np.ndarray:
    return -10.0 * np.log10(np.maximum(error, 10 ** (-PSNR_CEILING / 10)))

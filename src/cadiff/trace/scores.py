"""How well predicted components tell the stimulus from the others, station by station, and what the paired tests say.

Identification is among the stimuli that are traced: two-way (chance 50 %), and the Pearson correlation with the own stimulus,
both over the components of a target. One score a stimulus; samples of a picture are averaged first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cadiff.evaluate.features import correlation_distance, correlation_table, retrieval
from cadiff.evaluate.statistics import bootstrap_interval, compare, holm

METRICS: dict[str, dict[str, Any]] = {
    "two_way": {"label": "Two-way identification", "percent": True, "chance": 0.5},
    "correlation": {"label": "Correlation", "percent": False, "chance": None},
}
"""Metric -> how it is shown."""

Values = dict[str, np.ndarray]
"""Metric -> one score a stimulus (n,)."""


@dataclass(frozen=True)
class Difference:
    """A paired difference over the same stimuli, first minus second."""

    first: str
    second: str
    difference: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    """Corrected over the differences of one question."""

    @property
    def shown(self) -> int:
        """1 where the first is shown to be above the second, -1 below, 0 where neither is."""
        low, high = self.ci95
        if self.p_holm >= 0.05 or low <= 0 <= high:
            return 0
        return 1 if self.difference > 0 else -1

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "ci95": list(self.ci95)}


def score(predicted: np.ndarray, truth: np.ndarray) -> Values:
    """Scores of components (n samples, C), the samples of each stimulus in turn, against those of the stimuli (n, C)."""
    table = correlation_table(predicted, truth)
    own = np.repeat(np.arange(len(truth)), len(predicted) // len(truth))
    found = {"two_way": retrieval(table, own, pool=2), "correlation": 1 - correlation_distance(table, own)}
    return {metric: values.reshape(len(truth), -1).mean(axis=1) for metric, values in found.items()}


def means(values: np.ndarray, *, num_draws: int, seed: int) -> dict[str, Any]:
    """Mean over stimuli with its 95 % interval."""
    low, high = bootstrap_interval(values, num_draws=num_draws, seed=seed)
    return {"mean": float(values.mean()), "ci95": [low, high], "n": len(values)}


def differences(
    values: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], *, num_draws: int, seed: int
) -> list[Difference]:
    """Paired differences of stations, one question: Holm's correction over the pairs.

    Args:
        values: station -> one score a stimulus (n,). pairs: first and second station.
    """
    found = [compare(values[a], values[b], num_draws=num_draws, seed=seed) for a, b in pairs]
    adjusted = holm(np.array([one.p for one in found]))
    return [
        Difference(a, b, one.difference, (one.low, one.high), one.p, float(p))
        for (a, b), one, p in zip(pairs, found, adjusted, strict=True)
    ]

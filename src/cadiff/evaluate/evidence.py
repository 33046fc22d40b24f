"""What stands beside the scores: category bias, variance by seed, images needed, diversity; as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cadiff.evaluate.categories import category_bias, per_category
from cadiff.evaluate.features import diversity
from cadiff.evaluate.hierarchy import ScoreTable
from cadiff.evaluate.scores import Seen
from cadiff.evaluate.statistics import detectable_difference, required_images
from cadiff.evaluate.summary import Draws
from cadiff.evaluate.variance import variance_components


def categories(seen: Seen, targets: Seen, headline: np.ndarray, draws: Draws) -> dict[str, Any] | None:
    """Which classes the judge sees in the pictures, and the headline by coarse category; None without ImageNet's classes.

    Args:
        seen: pictures (n k), stimulus by stimulus. targets: stimuli (n). headline: (n,) mean over samples.
    """
    if seen.logits is None or targets.logits is None or targets.logits.shape[1] != 1000:
        return None
    truth = targets.logits.argmax(axis=1)
    predicted = seen.logits.argmax(axis=1).reshape(len(truth), -1)
    rows = per_category(headline, truth, num_draws=draws.num, seed=draws.seed)
    return {
        "bias": plain(asdict(category_bias(predicted, truth))),
        "scores": [plain(asdict(row)) for row in rows],
    }


def variance(samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variance components of every metric; `samples` are (n, k). Empty for one sample, where nothing can be told apart."""
    found = {}
    for name, scores in samples.items():
        n, k = scores.shape
        if k > 1 and n > 1:
            images, runs = np.repeat(np.arange(n), k), np.tile(np.arange(k), n)
            table = ScoreTable(scores.reshape(-1), np.zeros(n * k, dtype=int), images, runs)
            found[name] = plain(asdict(variance_components(table)))
    return found


def images_needed(rows: Sequence[Mapping[str, Any]], headline: str) -> dict[str, Any]:
    """Per comparison of the headline: the images it would take to find the difference seen here, and what these could find.

    `rows` are those of `cadiff.evaluate.summary.comparisons`. A difference estimated from few images is itself uncertain,
    so this plans the next experiment; it does not judge this one.
    """
    found = {}
    for row in rows:
        size, n = row["effect_size"], row["n"]
        if row["metric"] != headline or not size or n < 2:
            continue
        sd = abs(row["difference"] / size)
        found[row["control"]] = {
            "power": 0.8,
            "alpha": 0.05,
            "for_this_difference": required_images(row["difference"], sd) if abs(size) > 0.01 else None,
            "detectable_with_these": detectable_difference(n, sd),
        }
    return found


def spread(seen: Seen, num_samples: int) -> dict[str, float] | None:
    """How different the samples of one stimulus are, mean over stimuli: 1 - correlation, of pixels and of features."""
    if num_samples < 2:
        return None

    def mean(values: np.ndarray) -> float:
        return float(diversity(values.reshape(-1, num_samples, values[0].size)).mean())

    found = {"pixels": mean(seen.images)}
    if seen.features is not None:
        found["features"] = mean(seen.features)
    return found


def plain(value: Any) -> Any:
    """`value` with numbers that JSON lacks (NaN, infinities) as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Distances between sets: all pictures of a condition against all stimuli, and how far samples spread. JSON values.

One number a condition, not one an image: they say whether the pictures look like the stimuli as a crowd, not whether each shows
its own stimulus. A prior that draws good pictures of nothing in particular does well here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from cadiff.evaluate.evidence import plain
from cadiff.evaluate.features import (
    VERSION,
    frechet_distance,
    kernel_distance,
    kernel_interval,
    relative_diversity,
)
from cadiff.evaluate.scores import Seen
from cadiff.evaluate.summary import Draws

INCEPTION = "two_way_inception_avgpool"
"""The metric whose features are Inception's."""
REFERENCE = "prior_only"
"""The condition that diversity is read against."""


def spaces(seen: Seen) -> dict[str, np.ndarray]:
    """The features `(m, D)` that sets are compared in: the judge's pooled ones, and Inception's where that eye was given."""
    found = {"judge": seen.features, "inception": seen.eyes.get(INCEPTION)}
    return {name: values for name, values in found.items() if values is not None}


def distances(seen: Seen, targets: Seen, own: np.ndarray, draws: Draws) -> dict[str, Any]:
    """By space the Fréchet distance and the kernel distance (KID) of pictures to stimuli.

    Args:
        seen: pictures (m), equally many of every stimulus. targets: stimuli (n). own: (m,), the stimulus of each picture.
    """
    found, stimuli = {}, spaces(targets)
    for name, pictures in spaces(seen).items():
        frechet = frechet_distance(pictures, stimuli[name])
        interval = kernel_interval(pictures, stimuli[name], own, seed=draws.seed)
        found[name] = {
            "frechet": {**plain(asdict(frechet)), "rank_deficient": frechet.rank_deficient},
            "kernel": {"distance": kernel_distance(pictures, stimuli[name], own), "ci95": list(interval)},
        }
    return found


def record(
    distances_of: Mapping[str, dict[str, Any]], conditions: Mapping[str, Any], labels: Mapping[str, str]
) -> dict[str, Any] | None:
    """`sets` of evaluation.json; None where no network looked at the pictures.

    Args:
        distances_of: condition -> of `distances`. conditions: those of evaluation.json, with their diversity.
        labels: space -> network and layer.
    """
    if not any(distances_of.values()):
        return None
    reference = conditions.get(REFERENCE, {}).get("diversity") or {}
    found = {}
    for name, values in distances_of.items():
        spread = conditions[name].get("diversity") or {}
        shares = {
            key: relative_diversity(np.array(spread[key]), np.array(reference[key]))
            for key in spread.keys() & reference.keys()
        }
        found[name] = {**values, "relative_diversity": plain(dict(sorted(shares.items()))) or None}
    return {
        "version": VERSION,
        "spaces": dict(labels),
        "kernel": "squared MMD, kernel (x'y / D + 1)^3, unbiased: 0 is expected for one distribution, and it may fall below",
        "frechet": "biased upwards, the more the fewer the pictures: compares only equal numbers of pictures; rank_deficient: "
        "fewer pictures than features, so that it mostly tells how few they are",
        "relative_diversity": f"mean 1 - correlation of the samples of a stimulus, as a share of that of {REFERENCE}",
        "conditions": found,
    }

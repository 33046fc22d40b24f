"""Distances between sets in an evaluation: the numbers are those of the pure functions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cadiff.evaluate import features, sets
from cadiff.evaluate.scores import Seen
from cadiff.evaluate.summary import Draws

OWN = np.repeat(np.arange(12), 2)


def looks(rng, count, shift=0.0):
    images = rng.integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)
    return Seen(
        images,
        features=rng.normal(shift, 1, size=(count, 6)),
        eyes={sets.INCEPTION: rng.normal(size=(count, 40))},
    )


def test_every_space_has_both_distances(rng):
    seen, targets = looks(rng, 24, 1.0), looks(rng, 12)
    found = sets.distances(seen, targets, OWN, Draws(100, 3))
    assert set(found) == {"judge", "inception"}
    judge = found["judge"]
    assert judge["frechet"]["distance"] == features.frechet_distance(seen.features, targets.features).distance
    assert judge["kernel"]["distance"] == features.kernel_distance(seen.features, targets.features, OWN)
    low, high = judge["kernel"]["ci95"]
    assert low < judge["kernel"]["distance"] < high
    assert not judge["frechet"]["rank_deficient"] and found["inception"]["frechet"]["rank_deficient"]
    assert sets.distances(Seen(seen.images), Seen(targets.images), OWN, Draws(100, 0)) == {}


def test_diversity_is_read_against_the_prior(rng):
    conditions = {
        "brain": {"diversity": {"pixels": 0.2, "features": 0.3}},
        "prior_only": {"diversity": {"pixels": 0.4, "features": 0.0}},
        "single": {"diversity": None},
    }
    found = sets.record({name: {"judge": {}} for name in conditions}, conditions, {"judge": "lite2, pooled"})
    assert found is not None
    shares = {name: about["relative_diversity"] for name, about in found["conditions"].items()}
    # a prior that always draws one picture has no share to give
    assert shares == {
        "brain": {"pixels": 0.5, "features": None},
        "prior_only": {"pixels": 1.0, "features": 1.0},
        "single": None,
    }
    json.dumps(found, allow_nan=False)
    without = sets.record({"brain": {"judge": {}}}, {"brain": conditions["brain"]}, {})
    assert without is not None and without["conditions"]["brain"]["relative_diversity"] is None
    assert sets.record({"brain": {}}, conditions, {}) is None


def test_a_crowd_like_the_stimuli_is_nearer_than_a_shifted_one(rng):
    targets = looks(rng, 12)
    near, far = (sets.distances(looks(rng, 24, s), targets, OWN, Draws(100, 0))["judge"] for s in (0.0, 3.0))
    assert near["kernel"]["distance"] < far["kernel"]["distance"]
    assert near["frechet"]["distance"] < far["frechet"]["distance"]
    assert near["frechet"]["means"] == pytest.approx(
        near["frechet"]["distance"] - near["frechet"]["covariances"]
    )

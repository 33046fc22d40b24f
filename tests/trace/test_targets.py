"""Components of the stimuli: an independent decomposition finds the same, and equal pictures are looked at once."""

from __future__ import annotations

import numpy as np
import pytest

from cadiff.errors import DataError
from cadiff.trace.targets import NUM_COMPONENTS, Target, judge_target, pixel_target


def extract(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(float)


@pytest.mark.parametrize(("count", "side"), [(20, 8), (200, 6)])  # fewer pictures than features, and more
def test_components_are_those_of_a_singular_value_decomposition(rng, count, side):
    pictures = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    target, found = Target.fit("t", "T", {}, extract, pictures)
    features = extract(pictures) - extract(pictures).mean(0)
    left, sizes, _ = np.linalg.svd(features, full_matrices=False)
    kept = min(NUM_COMPONENTS, count - 1)
    assert found.shape == (count, kept)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :kept]) * np.sqrt(count), atol=1e-6)
    assert target.explained == pytest.approx((sizes[:kept] ** 2).sum() / (sizes**2).sum())
    np.testing.assert_allclose(target(pictures[[3, 1, 3]]), found[[3, 1, 3]], atol=1e-8)


def test_equal_pictures_are_looked_at_once(rng, judge, monkeypatch):
    pictures = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    target, _ = judge_target("efficientnet-lite2", pictures)
    looks, features = [], judge.features
    monkeypatch.setattr(
        judge, "features", lambda images, *a, **b: looks.append(len(images)) or features(images, *a, **b)
    )
    seen = target(pictures[[0, 0, 1, 0]])
    assert looks == [2]
    np.testing.assert_array_equal(seen[0], seen[3])
    assert target.about["layer"] == "pooled" and target.label == "Features of efficientnet-lite2"


def test_pictures_that_are_all_the_same_have_no_components():
    with pytest.raises(DataError, match="nearly all the same"):
        pixel_target(np.full((9, 8, 8, 3), 7, dtype=np.uint8))

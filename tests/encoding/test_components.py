"""Components from Gram matrices of distinct stimuli against a singular value decomposition of all trials."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from cadiff.diffuse.start import LatentStart
from cadiff.encoding import components
from cadiff.encoding.components import fit_components
from cadiff.encoding.ridge import fit_ridge
from cadiff.errors import DataError


def trials(rng, stimuli, voxels=12, most=3):
    """Betas, the stimulus of each trial, and its name; stimuli are shown once to `most` times."""
    which = rng.permutation(np.repeat(np.arange(stimuli), rng.integers(1, most + 1, stimuli)))
    betas = torch.from_numpy(rng.normal(size=(len(which), voxels)).astype(np.float32))
    return betas, torch.from_numpy(which), [f"s{i}" for i in which]


def by_trial(betas, targets, ids, count, **options):
    """Prediction of `betas`, components, mean and fit, from a decomposition of the targets (n, D) of all trials."""
    y = targets.flatten(1).double()
    mean = y.mean(0)
    right = torch.linalg.svd(y - mean, full_matrices=False)[2][:count]
    ridge = fit_ridge(betas, (y - mean) @ right.T, ids, score="r2", **options)
    return (betas @ ridge.weight + ridge.bias).double() @ right + mean, right, mean, ridge


@pytest.mark.parametrize("shape", [(15, 6, 5, 3), (40, 2, 3, 3)], ids=["few stimuli", "few pixels"])
@pytest.mark.parametrize("count", [None, 5])
@pytest.mark.parametrize("per_target", [False, True])
def test_they_are_those_of_all_trials(shape, count, per_target, rng, monkeypatch):
    monkeypatch.setattr(components, "SLICE", 150)  # so that several slices are summed
    pictures = rng.integers(0, 256, shape, dtype=np.uint8)
    betas, which, ids = trials(rng, len(pictures))
    options = {"per_target": per_target, "seed": 3}
    found, ridge = fit_components(betas, pictures, ids, which, scale=1 / 255, num_components=count, **options)
    k = len(found.components)
    assert k == (count or min(shape[0] - 1, 18))
    expected, right, mean, fit = by_trial(betas, torch.from_numpy(pictures / 255.0)[which], ids, k, **options)
    signs = (found.components * right).sum(1).sign()[:, None]
    np.testing.assert_allclose(signs * found.components, right, atol=1e-6)
    np.testing.assert_allclose(found.mean, mean, atol=1e-7)
    assert ridge.penalty == fit.penalty
    assert ridge.score == pytest.approx(fit.score, abs=1e-9)
    np.testing.assert_allclose(betas @ found.weight @ found.components + found.bias, expected, atol=2e-6)


@pytest.mark.parametrize("most", [1, 4], ids=["equal repeats", "unequal repeats"])
def test_the_latent_start_is_the_same_by_stimulus_and_by_trial(most, rng):
    """A stimulus counts as often as it was shown, so it does not matter whether its latents come once or for every trial."""
    latents = torch.from_numpy(rng.normal(size=(14, 3, 4, 4)).astype(np.float32))
    betas, which, ids = trials(rng, len(latents), most=most)
    once, ridge = LatentStart.fit(betas, latents, ids, which, num_components=6, seed=1)
    each, again = LatentStart.fit(betas, latents[which], ids, num_components=6, seed=1)
    expected, _, mean, fit = by_trial(betas, latents[which], ids, 6, seed=1)
    for start, found in ((once, ridge), (each, again)):
        np.testing.assert_allclose(start(betas), expected, atol=2e-6)
        np.testing.assert_allclose(start.mean, mean, atol=1e-7)
        assert (found.penalty, found.score) == (fit.penalty, pytest.approx(fit.score, abs=1e-9))


def test_nothing_is_copied_for_every_trial(rng):
    pictures = rng.integers(0, 256, (20, 60, 60, 3), dtype=np.uint8)
    which = torch.arange(20).repeat(10)
    betas, ids = torch.from_numpy(rng.normal(size=(200, 5))), [str(int(i)) for i in which]
    tracemalloc.start()
    fit_components(betas, pictures, ids, which, scale=1 / 255)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.7 * 200 * 10800 * 8  # pixels of all trials in float64


def test_targets_without_any_variance_are_one_sentence():
    alike, betas = np.full((4, 8, 8, 3), 7, np.uint8), torch.eye(4)
    for which in (None, torch.arange(4)):
        with pytest.raises(DataError, match="All training pictures are the same"):
            fit_components(betas, alike, list("abcd"), which)
        with pytest.raises(DataError, match=r"one training stimulus or class \(a\)"):
            fit_components(betas, alike, list("aaaa"), which)

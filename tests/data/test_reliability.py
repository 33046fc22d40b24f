"""Known variance components come back; perfect and absent signals give 1 and 0."""

import numpy as np
import pytest

from cadiff.data.reliability import ceiling_of_average, noise_ceiling, split_half
from cadiff.errors import DataError


def repeated(ceiling, stimuli=400, repeats=6, seed=0):
    rng = np.random.default_rng(seed)
    ceiling = np.asarray(ceiling)
    signal = np.repeat(rng.normal(size=(stimuli, len(ceiling))), repeats, axis=0)
    betas = 4 + np.sqrt(ceiling) * signal + np.sqrt(1 - ceiling) * rng.normal(size=signal.shape)
    return betas, np.repeat([f"s{i}" for i in range(stimuli)], repeats)


def test_noise_ceiling_is_recovered():
    true = np.array([0.0, 0.05, 0.2, 0.5, 0.9])
    estimates = [noise_ceiling(*repeated(true, seed=seed)) for seed in range(12)]
    error = np.std(estimates, axis=0) / np.sqrt(12)
    assert (np.abs(np.mean(estimates, axis=0) - true) < 4 * error + 0.003).all()


def test_unequal_repeats_agree_with_the_anova_formula():
    betas, names = repeated([0.3], stimuli=5, repeats=4)
    keep = np.array([0, 1, 2, 3, 4, 5, 8, 9, 10, 12, 16, 17])
    betas, names = betas[keep], names[keep]
    groups = [betas[names == name, 0] for name in np.unique(names)]
    count, total = len(groups), len(betas)
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (total - count)
    between = sum(len(g) * (g.mean() - betas.mean()) ** 2 for g in groups) / (count - 1)
    r0 = (total - sum(len(g) ** 2 for g in groups) / total) / (count - 1)
    signal = max((between - within) / r0, 0)
    assert noise_ceiling(betas, names)[0] == pytest.approx(signal / (signal + within))


def test_extremes():
    betas, names = repeated([0.5, 0.5], stimuli=10, repeats=3)
    betas[:, 0] = np.repeat(np.arange(10), 3)  # exactly repeating
    betas[:, 1] = 1.0  # constant
    assert noise_ceiling(betas, names).tolist() == [1.0, 0.0]
    half, whole = split_half(betas, names)
    np.testing.assert_allclose([half, whole], [[1, 0], [1, 0]], atol=1e-12)


def test_split_half_predicts_the_reliability_of_the_whole():
    true = np.array([0.1, 0.4])
    betas, names = repeated(true, stimuli=3000, repeats=8)
    half, whole = split_half(betas, names, num_splits=4)
    np.testing.assert_allclose(half, ceiling_of_average(true, 4), atol=0.03)
    np.testing.assert_allclose(whole, ceiling_of_average(true, 8), atol=0.03)


def test_ceiling_of_average_limits():
    assert ceiling_of_average(np.array([0.2]), 1)[0] == pytest.approx(0.2)
    assert ceiling_of_average(np.array([0.2]), 10**9)[0] == pytest.approx(1)
    assert ceiling_of_average(np.array([0.0]), 35)[0] == 0


def test_unrepeated_data_are_refused():
    with pytest.raises(DataError, match="each at most 1 times"):
        noise_ceiling(np.zeros((3, 2)), ["a", "b", "c"])
    with pytest.raises(DataError, match="at least 3"):
        split_half(np.zeros((5, 2)), ["a", "a", "b", "b", "c"])
    with pytest.raises(DataError, match="for 2 trials"):
        noise_ceiling(np.zeros((3, 2)), ["a", "b"])

"""Shrunk covariance against scikit-learn and dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf_shrinkage

from cadiff.encoding.noise import NoiseCovariance


def draw(n, v, rng):
    return rng.normal(size=(n, v)) @ rng.normal(size=(v, v)) * rng.uniform(0.1, 5, v)


def dense(noise):
    inside = noise.vectors * noise.values @ noise.vectors.T + noise.shrinkage * np.eye(len(noise.scale))
    return noise.scale[:, None] * inside * noise.scale


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (7, 7)])
def test_the_shrinkage_is_that_of_scikit_learn(shape, rng):
    x = draw(*shape, rng)
    expected = ledoit_wolf_shrinkage(x / np.sqrt((x**2).mean(axis=0)), assume_centered=True)
    assert NoiseCovariance.fit(x).shrinkage == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(12, 40), (60, 12)])
def test_distances_and_volume_are_those_of_the_dense_covariance(shape, rng):
    noise = NoiseCovariance.fit(draw(*shape, rng))
    x, y = rng.normal(size=(3, shape[1])), rng.normal(size=(4, shape[1]))
    sigma = dense(noise)
    found = noise.squared_distances(x, y)
    for i in range(3):
        for k in range(4):
            expected = (x[i] - y[k]) @ np.linalg.solve(sigma, x[i] - y[k])
            assert found[i, k] == pytest.approx(expected, rel=1e-8)
            logpdf = -0.5 * (found[i, k] + noise.log_determinant() + shape[1] * np.log(2 * np.pi))
            assert logpdf == pytest.approx(multivariate_normal(y[k], sigma).logpdf(x[i]), rel=1e-8)


def test_the_variances_are_those_of_the_residuals_however_few_they_are(rng):
    x = draw(10, 30, rng)
    np.testing.assert_allclose(np.diag(dense(NoiseCovariance.fit(x))), (x**2).mean(axis=0), rtol=1e-9)


def test_many_trials_of_correlated_noise_leave_nothing_to_shrink_and_white_noise_everything(rng):
    mix = rng.normal(size=(5, 5))
    assert NoiseCovariance.fit(rng.normal(size=(20_000, 5)) @ mix).shrinkage < 0.01
    assert NoiseCovariance.fit(rng.normal(size=(30, 200))).shrinkage > 0.9


def test_a_voxel_without_residuals_does_no_harm(rng):
    x = draw(10, 6, rng)
    x[:, 2] = 0.0
    assert np.isfinite(NoiseCovariance.fit(x).squared_distances(x, x)).all()

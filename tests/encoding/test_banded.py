"""Kernel ridge against scikit-learn, and mixtures of feature spaces in a world where the right one is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from cadiff.data.splits import k_folds
from cadiff.encoding.banded import (
    PENALTIES,
    Choice,
    KernelRidge,
    choose,
    final_dual,
    fold_errors,
    held_out,
    mixtures,
)


@pytest.mark.parametrize("shape", [(30, 8), (15, 40)])
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_predictions_are_those_of_scikit_learn(shape, penalty, rng):
    x, y = rng.normal(size=shape) + 2.0, rng.normal(size=(shape[0], 3))
    inside, outside = np.arange(shape[0] - 5), np.arange(shape[0] - 5, shape[0])
    ridge = KernelRidge(x @ x.T, inside)
    mean = y[inside].mean(axis=0)
    found = ridge.predict(ridge.across(outside), ridge.scores(y[inside] - mean), penalty) + mean
    centred = x[inside] - x[inside].mean(axis=0)
    alpha = penalty * (centred**2).sum() / len(inside)
    np.testing.assert_allclose(
        found, Ridge(alpha=alpha).fit(x[inside], y[inside]).predict(x[outside]), atol=1e-8
    )


def test_the_final_coefficients_predict_the_same(rng):
    x, y = rng.normal(size=(20, 6)), rng.normal(size=(20, 4))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    choice = Choice(np.zeros(4, int), np.array([0, 3, 3, 7]))
    dual = final_dual([x @ x.T], y, choice)
    for v in range(4):
        alpha = PENALTIES[choice.penalty[v]] * (x**2).sum() / 20
        expected = Ridge(alpha=alpha).fit(x, y[:, v]).predict(x)
        np.testing.assert_allclose(x @ x.T @ dual[:, v], expected, atol=1e-8)


def test_each_voxel_finds_the_space_that_drives_it_and_noise_is_shrunk_to_the_mean(rng):
    a, b = rng.normal(size=(2, 120, 6))
    drive = np.concatenate([a @ rng.normal(size=(6, 5)), b @ rng.normal(size=(6, 5))], axis=1)
    y = np.concatenate([drive + 0.1 * rng.normal(size=drive.shape), rng.normal(size=(120, 5))], axis=1)
    folds = k_folds([str(i) for i in range(120)], 5, 0)
    chosen = choose(fold_errors([a @ a.T, b @ b.T], y, folds))
    share = mixtures(2)[chosen.mixture][:, 0]
    assert (share[:5] >= 0.75).all() and (share[5:10] <= 0.25).all()
    assert np.median(PENALTIES[chosen.penalty[10:]]) > 10 * PENALTIES[chosen.penalty[:10]].max()


def test_held_out_predictions_do_not_read_the_responses_they_predict(rng):
    x, y = rng.normal(size=(30, 10)), rng.normal(size=(30, 3))
    choice = Choice(np.zeros(3, int), np.array([2, 5, 7]))
    inside, outside = k_folds([str(i) for i in range(30)], 5, 0)[1]
    before = held_out([x @ x.T], y, inside, outside, choice)
    y[outside] += 100.0
    np.testing.assert_array_equal(held_out([x @ x.T], y, inside, outside, choice), before)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_mixtures_lie_on_the_simplex_and_hold_every_space_alone(count):
    found = mixtures(count)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found >= 0).all() and len(np.unique(found, axis=0)) == len(found)
    np.testing.assert_array_equal(found[:count], np.eye(count))

import numpy as np
import pytest
from scipy.stats import kstest

from cadiff.data.doctor import encoding


@pytest.fixture
def world(rng):
    """Features (30, 6), and responses (30, 20) that follow them with noise."""
    features = rng.normal(size=(30, 6))
    responses = features @ rng.normal(size=(6, 20)) + 2.0 * rng.normal(size=(30, 20))
    return features, (responses - responses.mean(axis=0)) / responses.std(axis=0)


def test_hat_gives_the_predictions_of_kernel_ridge_fitted_without_the_held_out(world, rng):
    sklearn = pytest.importorskip("sklearn.kernel_ridge")
    features, responses = world
    matrix = encoding.kernel(features).astype(np.float64)
    held_out = encoding.folds(30, rng)
    (model,) = encoding.predictors({"x": matrix}, held_out, (1.0,))
    predicted = model.hat @ responses
    for part in held_out:
        rest = np.setdiff1d(np.arange(30), part)
        within = matrix[np.ix_(rest, rest)]
        ridge = sklearn.KernelRidge(alpha=np.trace(within) / len(rest), kernel="precomputed")
        ridge.fit(within, responses[rest] - responses[rest].mean(axis=0))
        np.testing.assert_allclose(predicted[part], ridge.predict(matrix[np.ix_(part, rest)]), atol=1e-6)
        assert not model.hat[np.ix_(part, part)].any()  # nothing of the held-out takes part in its prediction


def test_correlation_by_the_gram_matrix_is_the_pooled_correlation(world, rng):
    features, responses = world
    for model in encoding.predictors({"x": encoding.kernel(features)}, encoding.folds(30, rng)):
        predicted = model.hat @ responses
        direct = (predicted * responses).sum() / np.sqrt((predicted**2).sum() * (responses**2).sum())
        assert model.correlation(responses @ responses.T) == pytest.approx(direct, rel=1e-4)


def test_permuting_the_gram_matrix_is_permuting_responses(world, rng):
    features, responses = world
    model = encoding.predictors({"x": encoding.kernel(features)}, encoding.folds(30, rng), (1.0,))[0]
    order = rng.permutation(30)
    gram = responses @ responses.T
    moved = responses[order]
    assert model.correlation(gram[np.ix_(order, order)]) == pytest.approx(
        model.correlation(moved @ moved.T), rel=1e-6
    )


def test_right_order_is_told_from_shuffled(world, rng):
    features, responses = world
    models = encoding.predictors({"x": encoding.kernel(features)}, encoding.folds(30, rng))
    assert encoding.order_outcome(models, responses, rng, 99).p == 0.01
    assert encoding.order_outcome(models, responses[rng.permutation(30)], rng, 99).p > 0.02


def test_p_is_uniform_when_nothing_follows_anything(rng):
    found = []
    for _ in range(60):
        kernels = {
            name: encoding.kernel(rng.normal(size=(24, width))) for name, width in (("a", 3), ("b", 20))
        }
        shared = rng.normal(size=(24, 3)) @ rng.normal(
            size=(3, 15)
        )  # voxels that go together, as they do in brains
        models = encoding.predictors(kernels, encoding.folds(24, rng), (1.0,))
        found.append(encoding.order_outcome(models, shared + rng.normal(size=(24, 15)), rng, 39).p)
    assert kstest(found, "uniform").pvalue > 0.01


def test_expected_z_meets_what_such_responses_reach(rng):
    features = rng.normal(size=(60, 8))
    matrix = encoding.kernel(features)
    models = encoding.predictors({"x": matrix}, encoding.folds(60, rng), (1.0,))
    reached, expected = [], []
    for _ in range(6):
        signal = features @ rng.normal(size=(8, 40))
        responses = 0.5 * signal / signal.std(axis=0) + np.sqrt(0.75) * rng.normal(size=(60, 40))
        responses = (responses - responses.mean(axis=0)) / responses.std(axis=0)
        outcome = encoding.order_outcome(models, responses, rng, 99)
        reached.append(outcome.z)
        null = float(outcome.null_mean[0]), float(outcome.null_sd[0])
        expected.append(encoding.expected_z(models[0], matrix, np.full(40, 0.25), *null, rng))
    assert np.mean(expected) == pytest.approx(np.mean(reached), rel=0.25)


def test_transfer_tells_matching_rows(rng):
    responses = rng.normal(size=(15, 30))
    predicted = responses + 3.0 * rng.normal(size=(15, 30))
    assert encoding.transfer_outcome(predicted, responses, rng, 99).p == 0.01
    assert encoding.transfer_outcome(predicted, responses[::-1], rng, 99).p > 0.05


def test_kernel_of_features_that_do_not_vary_is_empty():
    assert not encoding.kernel(np.ones((5, 4))).any()
    assert not encoding.kernel(np.ones((5, 0))).any()

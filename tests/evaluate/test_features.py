from itertools import combinations, pairwise, product

import numpy as np
import pytest
from scipy import stats

from cadiff.errors import ConfigError, DataError
from cadiff.evaluate import features, pixel


def test_the_table_holds_pearson_correlations_in_one_piece_or_in_batches(rng):
    x, y = rng.normal(size=(7, 3, 5)).astype(np.float32), rng.normal(size=(4, 3, 5))
    x[2] = 3.0  # constant
    expected = [
        [0 if i == 2 else stats.pearsonr(x[i].ravel(), row.ravel()).statistic for row in y] for i in range(7)
    ]
    np.testing.assert_allclose(features.correlation_table(x, y), expected, atol=1e-6)
    np.testing.assert_array_equal(
        features.correlation_table(iter([x[:3], x[3:]]), y), features.correlation_table(x, y)
    )
    with pytest.raises(DataError, match="15 features, targets 14"):
        features.correlation_table(x, y.reshape(4, -1)[:, :14])
    with pytest.raises(DataError, match="picture 1 are not finite"):
        features.correlation_table(np.array([[0.0, 1.0], [np.nan, 1.0]]), np.eye(2))


def test_correlation_distance_is_one_minus_the_own_correlation(rng):
    x = rng.normal(size=(5, 40))
    own = np.array([4, 3, 2, 1, 0])
    table = features.correlation_table(3 * x[own] + 1, x)
    np.testing.assert_allclose(features.correlation_distance(table, own), 0, atol=1e-6)
    np.testing.assert_allclose(
        features.correlation_distance(features.correlation_table(-x, x), np.arange(5)), 2, atol=1e-6
    )


@pytest.mark.parametrize("pool, k", [(2, 1), (3, 1), (4, 2), (6, 1), (6, 5)])
def test_retrieval_equals_all_possible_pools(rng, pool, k):
    table = rng.integers(0, 4, (5, 6)).astype(float)  # ties
    own = rng.integers(0, 6, 5)
    expected = []
    for row, mine in zip(table, own, strict=True):
        found = []
        for drawn in combinations(np.delete(row, mine), pool - 1):
            above, equal = sum(v > row[mine] for v in drawn), sum(v == row[mine] for v in drawn)
            found.append(np.mean([above + j < k for j in range(equal + 1)]))
        expected.append(np.mean(found))
    np.testing.assert_allclose(features.retrieval(table, own, pool=pool, k=k), expected, atol=1e-12)


@pytest.mark.parametrize("pool, k", [(2, 1), (3, 1), (4, 2), (5, 1)])
def test_backward_retrieval_equals_all_possible_pools(rng, pool, k):
    n, samples = 5, 3
    table = rng.integers(0, 4, (n * samples, n)).astype(float)  # ties
    found = features.backward_retrieval_table(table, num_samples=samples, pool=pool, k=k)
    runs = table.reshape(n, samples, n)
    for picture, sample, stimulus in product(range(n), range(samples), range(n)):
        column = runs[:, sample, stimulus]  # one picture of every stimulus
        expected = []
        for drawn in combinations(np.delete(column, picture), pool - 1):
            above, equal = (
                sum(v > column[picture] for v in drawn),
                sum(v == column[picture] for v in drawn),
            )
            expected.append(np.mean([above + j < k for j in range(equal + 1)]))
        assert found[picture * samples + sample, stimulus] == pytest.approx(np.mean(expected))
    np.testing.assert_allclose(found.reshape(n, samples, n).mean(axis=0), k / pool)  # somebody is nearest
    with pytest.raises(DataError, match="2 pictures of each of 5 stimuli"):
        features.backward_retrieval_table(table, num_samples=2, pool=pool)


def test_tables_of_all_pairs_are_the_single_ones(rng):
    table = rng.integers(0, 6, (7, 9)).astype(float)
    for stimulus in range(9):
        own = np.full(7, stimulus)
        np.testing.assert_allclose(
            features.retrieval_table(table, pool=4, k=2)[:, stimulus],
            features.retrieval(table, own, pool=4, k=2),
            atol=1e-12,
        )
        np.testing.assert_allclose(
            pixel.two_way_table(table)[:, stimulus], pixel.two_way_identification(table, own), atol=1e-12
        )
    with pytest.raises(DataError, match="NaN"):
        features.retrieval_table(np.full((2, 3), np.nan), pool=2)


def test_retrieval_has_its_chance_level_and_two_is_two_way(rng):
    table, own = rng.normal(size=(4000, 60)), rng.integers(0, 60, 4000)
    for pool in features.pool_sizes(60):
        found = features.retrieval(table, own, pool=pool)
        assert found.mean() == pytest.approx(1 / pool, abs=4.5 * found.std() / np.sqrt(len(found)))
    np.testing.assert_allclose(
        features.retrieval(table, own, pool=2), pixel.two_way_identification(table, own), atol=1e-12
    )
    np.testing.assert_allclose(features.retrieval(np.zeros((3, 60)), own[:3], pool=50), 1 / 50)
    np.testing.assert_array_equal(features.retrieval(np.eye(60), np.arange(60), pool=60), 1.0)


def test_pools_that_cannot_be_are_refused_and_never_proposed():
    assert features.pool_sizes(982) == (10, 50, 300, 982)
    assert features.pool_sizes(50) == (10, 50)
    assert features.pool_sizes(6) == (6,)
    for pool, k in ((7, 1), (3, 3), (1, 1)):
        with pytest.raises(ConfigError, match="<= 6"):
            features.retrieval(np.eye(6), np.arange(6), pool=pool, k=k)


@pytest.mark.parametrize("m, n, d", [(80, 60, 5), (40, 7, 20), (6, 9, 30), (31, 31, 30)])
def test_frechet_distance_is_the_formula_with_a_matrix_root(rng, m, n, d):
    x, y = rng.normal(size=(m, d)), rng.normal(1, 2, size=(n, d)) @ rng.normal(size=(d, d))
    first, second = np.cov(x.T), np.cov(y.T)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ second @ root)  # same eigenvalues as S1 S2
    covariances = np.trace(first + second) - 2 * np.sqrt(np.maximum(inner, 0)).sum()
    found = features.frechet_distance(x, y)
    assert found.means == pytest.approx(np.sum((x.mean(0) - y.mean(0)) ** 2))
    assert found.covariances == pytest.approx(covariances, rel=1e-5)
    assert found.distance == found.means + found.covariances
    assert found.rank_deficient == (min(m, n) <= d)


def test_frechet_distance_of_shifted_and_scaled_copies_is_known(rng):
    x = rng.normal(size=(20, 50))
    assert features.frechet_distance(x, x).distance == pytest.approx(0, abs=1e-9)
    assert features.frechet_distance(x + 2, x).distance == pytest.approx(4 * 50)
    scaled = features.frechet_distance(3 * x, x)
    assert scaled.covariances == pytest.approx((3 - 1) ** 2 * np.trace(np.cov(x.T)))


def test_frechet_distance_is_biased_and_the_kernel_distance_is_not(rng):
    def mean_and_error(n):
        pairs = [(rng.normal(size=(n, 20)), rng.normal(size=(n, 20))) for _ in range(120)]
        frechet = [features.frechet_distance(x, y).distance for x, y in pairs]
        kernel = np.array([features.kernel_distance(x, y, np.arange(n)) for x, y in pairs])
        return np.mean(frechet), kernel.mean(), kernel.std() / np.sqrt(len(kernel))

    few, many = mean_and_error(10), mean_and_error(60)
    assert few[0] > 2 * many[0] > 1  # the same distribution, yet far from 0
    for _, mean, error in (few, many):
        assert abs(mean) < 4.5 * error


def exact_kernel_distance(law, target_law):
    """MMD^2 of two laws on the line, [(value, probability)]."""

    def expect(a, b):
        return sum(p * q * (x * y + 1) ** 3 for (x, p), (y, q) in product(a, b))

    return expect(law, law) + expect(target_law, target_law) - 2 * expect(law, target_law)


def test_kernel_distance_is_unbiased_when_pictures_depend_on_their_stimulus(rng):
    # A stimulus is 0 or 1; a picture copies it, or else shows 2: samples of one stimulus depend on it and on each other.
    copied = 0.6
    law = [(0, copied / 2), (1, copied / 2), (2, 1 - copied)]
    truth = exact_kernel_distance(law, [(0, 0.5), (1, 0.5)])
    own = np.repeat(np.arange(6), 3)
    found = []
    for _ in range(3000):
        y = rng.integers(0, 2, 6).astype(float)
        x = np.where(np.repeat(rng.random(6) < copied, 3), y[own], 2.0)  # three equal samples
        found.append(features.kernel_distance(x[:, None], y[:, None], own))
    assert np.mean(found) == pytest.approx(truth, abs=4.5 * np.std(found) / np.sqrt(len(found)))


def test_kernel_distance_equals_the_double_sum(rng):
    x, y, n = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), 5

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    total = sum(
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
        for i in range(n)
        for j in range(n)
        if i != j
    )
    assert features.kernel_distance(x, y, np.arange(n)) == pytest.approx(total / (n * (n - 1)))
    shuffled = rng.permutation(n)  # the order of pictures means nothing
    assert features.kernel_distance(x[shuffled], y, shuffled) == pytest.approx(total / (n * (n - 1)))
    with pytest.raises(DataError, match="each of 5 stimuli"):
        features.kernel_distance(x, y, np.zeros(5, int))


def test_kernel_interval_covers(rng):
    law, target_law = [(0.0, 0.3), (1.0, 0.2), (2.0, 0.5)], [(0.0, 0.5), (1.0, 0.5)]
    truth = exact_kernel_distance(law, target_law)
    hits, rounds, n = 0, 300, 60
    for seed in range(rounds):
        x = rng.choice([v for v, _ in law], size=(n, 1), p=[p for _, p in law])
        y = rng.choice([v for v, _ in target_law], size=(n, 1), p=[p for _, p in target_law])
        low, high = features.kernel_interval(x, y, np.arange(n), num_draws=400, seed=seed)
        hits += low <= truth <= high
    assert 0.89 < hits / rounds < 0.99


def test_the_interval_of_two_stimuli_is_finite(rng):
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(2, 3))
    own = np.array([0, 0, 1, 1])
    found = features.kernel_distance(x, y, own)
    # one pair of stimuli is all there is
    assert features.kernel_interval(x, y, own) == pytest.approx((found, found))


def test_diversity_is_the_mean_over_pairs(rng):
    samples = rng.normal(size=(3, 4, 2, 5))
    samples[1, 2] = 0.5  # a constant sample correlates with nothing
    found = features.diversity(samples)
    for i in range(3):
        flat = samples[i].reshape(4, -1)
        pairs = [
            0.0 if 2 in (a, b) and i == 1 else stats.pearsonr(flat[a], flat[b]).statistic
            for a, b in combinations(range(4), 2)
        ]
        assert found[i] == pytest.approx(1 - np.mean(pairs))
    same = np.repeat(samples[:, :1], 3, axis=1)
    np.testing.assert_allclose(features.diversity(same)[[0, 2]], 0, atol=1e-12)
    with pytest.raises(DataError, match="at least 2 samples"):
        features.diversity(samples[:, :1])


def test_diversity_grows_with_noise_and_is_read_against_the_prior(rng):
    base = rng.normal(size=(20, 1, 200))
    levels = [features.diversity(base + s * rng.normal(size=(20, 3, 200))) for s in (0.1, 0.5, 2.0)]
    assert all(a.mean() < b.mean() for a, b in pairwise(levels))
    # correlation of two noisy copies: 1 / (1 + s^2)
    np.testing.assert_allclose([level.mean() for level in levels], [0.01 / 1.01, 0.2, 0.8], atol=0.03)
    assert features.relative_diversity(levels[2], levels[2]) == 1
    assert features.relative_diversity(levels[0], levels[2]) < 0.05
    assert features.relative_diversity(np.zeros(2), np.zeros(2)) == 1


def test_wrong_shapes_are_one_sentence(rng):
    with pytest.raises(DataError, match=r"expected \(m, D\)"):
        features.frechet_distance(rng.normal(size=(4, 3)), rng.normal(size=(4, 2)))
    with pytest.raises(DataError, match="at least two"):
        features.frechet_distance(rng.normal(size=(1, 3)), rng.normal(size=(4, 3)))
    with pytest.raises(DataError, match="own stimuli"):
        features.correlation_distance(np.eye(3), np.arange(2))
    with pytest.raises(DataError, match="picture 1 hold NaN"):
        features.retrieval(np.diag([1.0, np.nan, 1.0]), np.arange(3), pool=2)

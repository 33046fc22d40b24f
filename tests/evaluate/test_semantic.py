from itertools import combinations

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.semantic import n_way_top_k, n_way_top_k_monte_carlo, truth_classes


def brute_force(scores, truth, n, k, ties):
    """Every set of distractors, every order of ties."""
    others = np.delete(scores, truth)
    found = []
    for drawn in combinations(others, n - 1):
        above = sum(value > scores[truth] for value in drawn)
        equal = sum(value == scores[truth] for value in drawn) if ties == "random" else 0
        found.append(np.mean([above + j < k for j in range(equal + 1)]))
    return np.mean(found)


@pytest.mark.parametrize("n, k", [(2, 1), (4, 1), (4, 3), (7, 2), (8, 7)])
@pytest.mark.parametrize("ties", ["random", "truth"])
def test_equals_all_possible_draws(rng, n, k, ties):
    scores = rng.integers(0, 5, (6, 8)).astype(float)  # few values, so many ties
    truth = rng.integers(0, 8, 6)
    expected = [brute_force(row, t, n, k, ties) for row, t in zip(scores, truth, strict=True)]
    np.testing.assert_allclose(n_way_top_k(scores, truth, n=n, k=k, ties=ties), expected, atol=1e-12)


@pytest.mark.parametrize("ties", ["random", "truth"])
def test_monte_carlo_agrees(rng, ties):
    scores = rng.integers(0, 12, (5, 40)).astype(float)
    truth = rng.integers(0, 40, 5)
    exact = n_way_top_k(scores, truth, n=10, k=2, ties=ties)
    drawn = n_way_top_k_monte_carlo(scores, truth, rng, n=10, k=2, num_trials=4000, ties=ties)
    np.testing.assert_allclose(drawn, exact, atol=4.5 * 0.5 / np.sqrt(4000))


def test_random_scores_give_chance(rng):
    scores, truth = rng.random((20_000, 100)), rng.integers(0, 100, 20_000)
    for n, k in ((50, 1), (50, 5), (2, 1)):
        found = n_way_top_k(scores, truth, n=n, k=k)
        assert found.mean() == pytest.approx(k / n, abs=4.5 * found.std() / np.sqrt(len(found)))


@pytest.mark.parametrize("n, k", [(50, 1), (50, 5), (1000, 1)])
def test_scores_that_know_nothing_give_exactly_chance_unless_truth_wins_ties(n, k):
    constant, truth = np.zeros((2, 1000)), np.array([3, 999])
    np.testing.assert_allclose(n_way_top_k(constant, truth, n=n, k=k), k / n)
    np.testing.assert_allclose(n_way_top_k(constant, truth, n=n, k=k, ties="truth"), 1.0)


def test_perfect_scores_give_one_and_the_worst_give_zero(rng):
    scores = rng.random((9, 1000))
    truth = truth_classes(scores)
    np.testing.assert_array_equal(n_way_top_k(scores, truth), 1.0)
    np.testing.assert_array_equal(n_way_top_k(-scores, truth), 0.0)


def test_only_the_order_of_scores_matters(rng):
    logits, truth = rng.normal(size=(5, 60)), rng.integers(0, 60, 5)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(n_way_top_k(logits, truth), n_way_top_k(softmax, truth))


def test_easier_tasks_are_not_harder(rng):
    scores, truth = rng.normal(size=(20, 200)), rng.integers(0, 200, 20)
    assert np.all(n_way_top_k(scores, truth, n=50, k=5) >= n_way_top_k(scores, truth, n=50, k=1))
    assert np.all(n_way_top_k(scores, truth, n=10) >= n_way_top_k(scores, truth, n=50))


def test_a_restriction_is_the_same_as_dropping_the_other_columns(rng):
    scores, classes = rng.normal(size=(6, 30)), np.array([2, 3, 5, 11, 13, 17, 29])
    truth = truth_classes(rng.normal(size=(6, 30)), classes)
    assert set(truth) <= set(classes)
    dropped = n_way_top_k(scores[:, classes], np.searchsorted(classes, truth), n=4)
    np.testing.assert_array_equal(n_way_top_k(scores, truth, n=4, classes=classes), dropped)


def test_impossible_questions_are_refused(rng):
    scores, truth = rng.random((2, 20)), np.array([0, 1])
    with pytest.raises(ConfigError, match="50-way"):
        n_way_top_k(scores, truth, n=50)
    with pytest.raises(ConfigError, match="top-5"):
        n_way_top_k(scores, truth, n=5, k=5)
    with pytest.raises(ConfigError, match="0 to 19"):
        n_way_top_k(scores, truth, n=3, classes=np.array([4, 20, 5]))
    with pytest.raises(DataError, match="true class 0"):
        n_way_top_k(scores, truth, n=3, classes=np.array([1, 4, 5]))
    scores[1, 7] = np.nan
    with pytest.raises(DataError, match="picture 1 hold NaN"):
        n_way_top_k(scores, truth, n=3)

from itertools import product

import numpy as np
import pytest
from scipy import stats

from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.statistics import (
    bootstrap_interval,
    compare,
    detectable_difference,
    effect_size_interval,
    holm,
    paired_power,
    permutation_p,
    required_images,
)


@pytest.mark.parametrize("draw, mean", [("normal", 0.0), ("exponential", 1.0)])
def test_the_interval_covers_the_mean_as_often_as_it_says(rng, draw, mean):
    repeats, hits = 400, 0
    for seed in range(repeats):
        low, high = bootstrap_interval(getattr(rng, draw)(size=50), num_draws=400, seed=seed)
        hits += low <= mean <= high
    # A bootstrap of 50 is a little short; 1.96 binomial deviations either side of 93 %.
    assert 0.93 - 0.035 <= hits / repeats <= 0.97


def test_the_interval_is_scipys_bca(rng):
    x = rng.exponential(size=40)
    expected = stats.bootstrap((x,), np.mean, method="BCa", n_resamples=20_000, rng=rng).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(x, num_draws=20_000), expected, atol=0.02)


@pytest.mark.parametrize(
    "values",
    [
        [1e-300, 0, 0],
        [0.1 + 1e-17 * k for k in range(6)],
        [0.1, 0.1, 0.1, 0.3 - 0.2],
        [1 / 3] * 7 + [1 / 3 + 1e-16],
    ],
)
def test_scores_that_are_tiny_or_equal_but_for_rounding_have_an_interval(values):
    low, high = bootstrap_interval(np.array(values), num_draws=200)
    assert min(values) * (1 - 1e-12) <= low <= high <= max(values) * (1 + 1e-12)


def test_the_interval_moves_with_its_data_and_repeats_itself(rng):
    x = rng.normal(size=30)
    low, high = bootstrap_interval(x, seed=5)
    assert (low, high) == bootstrap_interval(x, seed=5) != bootstrap_interval(x, seed=6)
    np.testing.assert_allclose(bootstrap_interval(3 * x + 1, seed=5), (3 * low + 1, 3 * high + 1))
    np.testing.assert_allclose(bootstrap_interval(-x, seed=5), (-high, -low), atol=0.02)


def test_no_spread_is_a_point():
    assert bootstrap_interval(np.zeros(10)) == (0.0, 0.0)


def test_small_samples_enumerate_every_sign(rng):
    d = rng.normal(size=7) + 0.5
    sums = [abs(np.dot(signs, d)) for signs in product((1, -1), repeat=7)]
    expected = np.mean(np.array(sums) >= abs(d.sum()) - 1e-12)
    assert permutation_p(d) == (pytest.approx(expected), True)


def test_the_smallest_exact_p_is_two_over_two_to_the_n():
    assert permutation_p(np.arange(1.0, 9.0)) == (2 / 2**8, True)
    assert permutation_p(np.zeros(5)) == (1.0, True)


def test_drawn_signs_agree_with_all_signs(rng):
    d = rng.normal(size=13) + 0.4
    exact, _ = permutation_p(d, num_draws=10_000)
    drawn, is_exact = permutation_p(d, num_draws=8_000)
    assert not is_exact
    assert drawn == pytest.approx(exact, abs=4.5 * np.sqrt(exact * (1 - exact) / 8_000) + 2e-4)


def test_p_is_uniform_when_nothing_differs(rng):
    found = [permutation_p(rng.normal(size=20), num_draws=400, seed=seed)[0] for seed in range(400)]
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_p_is_never_zero():
    p, exact = permutation_p(np.ones(40), num_draws=999)
    assert p == 1 / 1000 and not exact


def test_holm_in_closed_form():
    # Smallest times 3, next times 2 (kept monotone), largest times 1.
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])


def test_comparison_is_antisymmetric_and_its_t_test_is_scipys(rng):
    a, b = rng.random(25), rng.random(25)
    forth, back = compare(a, b), compare(b, a)
    expected = stats.ttest_rel(a, b)
    assert (forth.t, forth.p_t) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert forth.difference == pytest.approx(-back.difference) == pytest.approx(a.mean() - b.mean())
    assert forth.p == back.p
    assert forth.low < forth.difference < forth.high
    assert forth.effect_size == pytest.approx(forth.t / 5)


def test_equal_systems_do_not_differ():
    same = compare(np.arange(6.0), np.arange(6.0))
    assert (same.difference, same.p, same.p_t, same.effect_size) == (0.0, 1.0, 1.0, 0.0)


def test_broken_scores_are_refused():
    with pytest.raises(DataError, match="finite"):
        bootstrap_interval(np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="same images"):
        compare(np.ones(3), np.ones(4))


@pytest.mark.parametrize("effect, images", [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_number_of_images_is_the_published_one(effect, images):
    # Paired t-test, two-sided 5 %, power 80 %: G*Power's values (Faul et al. 2007).
    assert required_images(effect, 1.0) == required_images(-3 * effect, 3.0) == images


@pytest.mark.parametrize("effect, power, alpha", [(0.5, 0.8, 0.05), (0.9, 0.9, 0.01), (1.6, 0.8, 0.05)])
def test_the_power_is_what_a_simulation_finds(rng, effect, power, alpha):
    n, repeats = required_images(effect, 1.0, power=power, alpha=alpha), 20_000

    def rejected(images):
        d = effect + rng.normal(size=(repeats, images))
        return (stats.ttest_1samp(d, 0, axis=1).pvalue < alpha).mean()

    error = 4.5 * np.sqrt(power * (1 - power) / repeats)
    assert rejected(n) == pytest.approx(paired_power(effect, 1.0, n, alpha=alpha), abs=error)
    assert rejected(n) > power - error
    assert rejected(n - 1) < power + error


def test_power_grows_from_the_level_to_one():
    assert paired_power(0.0, 1.0, 30, alpha=0.03) == pytest.approx(0.03)
    powers = [paired_power(d, 1.0, 30) for d in np.linspace(0, 3, 40)]
    assert np.all(np.diff(powers) >= 0) and powers[-1] == pytest.approx(1)
    assert paired_power(-0.4, 1.0, 30) == paired_power(0.4, 1.0, 30)
    assert paired_power(5.0, 1.0, 100_000) == 1.0  # where SciPy's tail underflows


@pytest.mark.parametrize("n", [2, 5, 50, 1000])
def test_the_detectable_difference_inverts_the_number_of_images(n):
    d = detectable_difference(n, 0.3, power=0.9)
    assert paired_power(d, 0.3, n) == pytest.approx(0.9)
    assert required_images(d * 1.0001, 0.3, power=0.9) == n


def test_the_effect_sizes_interval_covers_it(rng):
    effect, n, repeats, hits = 0.6, 20, 400, 0
    for _ in range(repeats):
        d = effect + rng.normal(size=n)
        low, high = effect_size_interval(d.mean() / d.std(ddof=1), n)
        hits += low <= effect <= high
    assert hits / repeats == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / repeats))


def test_the_effect_sizes_interval_in_known_cases():
    low, high = effect_size_interval(0.0, 25)
    assert (low, high) == pytest.approx((-1.96 / 5, 1.96 / 5), abs=1e-4)  # a central t: sd of its shift is 1
    # It excludes 0 exactly where the t-test is significant.
    edge = stats.t.ppf(0.975, 11) / np.sqrt(12)
    assert effect_size_interval(edge, 12)[0] == pytest.approx(0, abs=1e-9)
    assert effect_size_interval(-0.5, 9) == pytest.approx(
        tuple(-x for x in effect_size_interval(0.5, 9)[::-1])
    )
    assert effect_size_interval(np.inf, 9) == (np.inf, np.inf)
    assert all(np.isfinite(effect_size_interval(e, n)).all() for e in (0.01, 1, 20) for n in (2, 10, 2000))


def test_impossible_plans_are_refused():
    with pytest.raises(ConfigError, match="No number of images"):
        required_images(0.0, 1.0)
    with pytest.raises(ConfigError, match="above 0"):
        required_images(0.1, 0.0)
    with pytest.raises(ConfigError, match="alpha < power"):
        required_images(0.1, 1.0, power=0.04)
    with pytest.raises(ConfigError, match="two images"):
        detectable_difference(1, 1.0)
    with pytest.raises(ConfigError, match="two pairs"):
        effect_size_interval(0.5, 1)


def test_thousands_of_images_are_not_too_many_for_a_permutation_test():
    differences = np.where(np.arange(1200) % 2, 1.0, -1.0)  # 2^1200 flips are more than a float can count
    assert permutation_p(differences, num_draws=100) == (1.0, False)

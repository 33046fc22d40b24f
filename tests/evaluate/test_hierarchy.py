from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from cadiff.errors import DataError
from cadiff.evaluate.hierarchy import (
    ScoreTable,
    hierarchical_bootstrap,
    hierarchical_comparison,
    stratified_permutation_p,
)
from cadiff.evaluate.statistics import bootstrap_interval, permutation_p


def table(grid, *, own_images=False):
    """Rows of scores (subjects, images[, samples]), in a shuffled order."""
    grid = grid if grid.ndim == 3 else grid[:, :, None]
    s, i, r = (x.ravel() for x in np.indices(grid.shape))
    images = [f"{a}-{b}" if own_images else f"{b}" for a, b in zip(s, i, strict=True)]
    order = np.random.default_rng(1).permutation(grid.size)
    return ScoreTable(grid.ravel()[order], s[order], np.array(images)[order], r[order])


def simulate(rng, subjects, images, *, person=0.0, image=0.0, both=1.0):
    return (
        person * rng.normal(size=(subjects, 1))
        + image * rng.normal(size=(1, images))
        + both * rng.normal(size=(subjects, images))
    )


def assert_same(first, second):
    """Equal up to rounding."""
    a, b = asdict(first), asdict(second)
    assert a.pop("subject_means") == pytest.approx(b.pop("subject_means"))
    assert (a.pop("note"), a) == (b.pop("note"), pytest.approx(b))


def coverage(rng, repeats, make, own_images, num_draws=300):
    """How often the bootstrap's and the t interval hold the true mean, 0."""
    hits = np.zeros(2)
    for seed in range(repeats):
        found = hierarchical_bootstrap(
            table(make(rng), own_images=own_images), num_draws=num_draws, seed=seed
        )
        hits += found.low <= 0 <= found.high, found.low_t <= 0 <= found.high_t
    return hits / repeats


def seen_by(rng, num_subjects, num_images, sharing):
    """Numbers of the images that every subject saw."""
    everything, own = np.arange(num_images), num_images + np.arange(num_subjects)
    if sharing == "one own":
        return [np.append(everything, image) for image in own]
    if sharing == "lacks one":
        return [np.delete(everything, k) for k in range(num_subjects)]
    if sharing == "half":
        half = num_images // 2
        return [np.r_[:half, num_images * (k + 1) : num_images * (k + 1) + half] for k in range(num_subjects)]
    return [np.flatnonzero(rng.random(num_images) < 0.7) for _ in range(num_subjects)]  # "at random"


def sharing_world(rng, num_subjects, sharing, person=0.0, num_images=30):
    """Scores of mean 0 that images carry, in whoever saw them."""
    seen = seen_by(rng, num_subjects, num_images, sharing)
    easy = rng.normal(size=num_images * (num_subjects + 2))
    values = [person * rng.normal() + easy[images] + 0.3 * rng.normal(size=len(images)) for images in seen]
    subjects = np.repeat(np.arange(num_subjects), [len(images) for images in seen])
    return ScoreTable(np.concatenate(values), subjects, np.concatenate(seen))


@pytest.mark.parametrize("sharing", ["one own", "lacks one", "half", "at random"])
def test_sharing_some_images_changes_no_level_and_no_coverage(rng, sharing):
    """What an image adds is common to all who saw it, however many others have images of their own."""
    repeats, rejected, held, held_by_bootstrap = 120, 0, 0, 0
    for seed in range(repeats):
        scores = sharing_world(rng, 4, sharing)
        p, _ = stratified_permutation_p(
            scores.values, scores.subjects, scores.images, num_draws=99, seed=seed
        )
        rejected += p <= 0.05
        found = hierarchical_bootstrap(sharing_world(rng, 4, sharing, person=0.1), num_draws=99, seed=seed)
        held += found.low_t <= 0 <= found.high_t
        held_by_bootstrap += found.low <= 0 <= found.high
    error = 3.5 * np.sqrt(0.05 * 0.95 / repeats)
    assert rejected / repeats == pytest.approx(0.05, abs=error)
    assert held / repeats == pytest.approx(0.95, abs=error)
    assert held_by_bootstrap / repeats > 0.85


def test_the_t_interval_is_the_textbooks_for_shared_and_for_own_images(rng):
    """Anova of a crossed table with Satterthwaite's degrees of freedom; the plain t interval of means when nested."""
    grid = simulate(rng, 5, 12, person=0.5, image=0.8)
    (s, i), rows, columns = grid.shape, grid.mean(axis=1), grid.mean(axis=0)
    subject, image = i * rows.var(ddof=1), s * columns.var(ddof=1)
    rest = ((grid - rows[:, None] - columns + grid.mean()) ** 2).sum() / ((s - 1) * (i - 1))
    total = subject + image - rest
    df = total**2 / (subject**2 / (s - 1) + image**2 / (i - 1) + rest**2 / ((s - 1) * (i - 1)))
    expected = stats.t.interval(0.95, df, grid.mean(), np.sqrt(total / (s * i)))
    found = hierarchical_bootstrap(table(grid), num_draws=50)
    assert (found.low_t, found.high_t) == pytest.approx(expected)
    nested = hierarchical_bootstrap(table(grid, own_images=True), num_draws=50)
    assert (nested.low_t, nested.high_t) == pytest.approx(
        stats.t.interval(0.95, s - 1, rows.mean(), stats.sem(rows))
    )


def test_one_image_that_is_lacking_hardly_moves_an_interval(rng):
    grid = simulate(rng, 6, 60, person=0.2, image=1.0)
    whole = table(grid)
    kept = ~((whole.subjects == 2) & (whole.images == "7"))
    some = ScoreTable(whole.values[kept], whole.subjects[kept], whole.images[kept])
    ours, theirs = hierarchical_bootstrap(some), hierarchical_bootstrap(whole)
    assert not ours.shared_images and theirs.shared_images
    for a, b in (("low", "high"), ("low_t", "high_t")):
        width = getattr(theirs, b) - getattr(theirs, a)
        assert getattr(ours, b) - getattr(ours, a) == pytest.approx(width, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("own_images", [True, False])
@pytest.mark.parametrize("subjects", [3, 8])
@pytest.mark.parametrize("person", [0.0, 0.3])
def test_the_t_interval_covers_new_subjects_and_images(rng, own_images, subjects, person):
    image = 0.0 if own_images else 0.7

    def make(rng):
        return simulate(rng, subjects, 30, person=person, image=image)

    repeats = 1500
    _, found = coverage(rng, repeats, make, own_images, num_draws=100)
    assert abs(found - 0.95) < 4 * np.sqrt(0.95 * 0.05 / repeats) + 0.01


def test_the_bootstrap_covers_many_subjects_and_falls_short_of_three(rng):
    many, _ = coverage(rng, 250, lambda rng: simulate(rng, 15, 10, person=0.5), own_images=True)
    assert 0.90 <= many <= 0.99
    few, t = coverage(rng, 250, lambda rng: simulate(rng, 3, 10, person=1.0), own_images=True)
    assert few < 0.88 < 0.90 < t


def test_it_is_wider_than_the_naive_interval_when_subjects_differ(rng):
    grid = simulate(rng, 6, 40, person=1.0)
    found = hierarchical_bootstrap(table(grid, own_images=True))
    low, high = bootstrap_interval(grid.ravel())
    assert found.high - found.low > 2 * (high - low)
    assert found.mean == pytest.approx(grid.mean())
    assert found.low_t < found.low < found.mean < found.high < found.high_t


def test_shared_images_widen_it_when_images_differ(rng):
    grid = simulate(rng, 10, 30, image=1.0, both=0.2)
    shared = hierarchical_bootstrap(table(grid))
    apart = hierarchical_bootstrap(table(grid, own_images=True))
    assert shared.shared_images and not apart.shared_images
    assert shared.high - shared.low > 2 * (apart.high - apart.low)
    assert (shared.num_images, shared.subject_means["3"]) == (30, pytest.approx(grid[3].mean()))


def test_the_nested_deviation_is_the_one_of_theory(rng):
    # Drawing subjects, then images: variance of (drawn subject means + noise of redrawn images) / S.
    grid = simulate(rng, 12, 25, person=0.4)
    found = hierarchical_bootstrap(table(grid, own_images=True), num_draws=40_000)
    expected = np.sqrt((grid.mean(axis=1).var() + grid.var(axis=1).mean() / 25) / 12)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(expected, rel=0.04)


def test_the_crossed_deviation_is_the_one_of_theory(rng):
    grid = simulate(rng, 12, 25, person=0.4, image=0.5)
    found = hierarchical_bootstrap(table(grid), num_draws=40_000)
    # Exact variance of the mean over multinomial rows and columns of a centred table (Owen 2007).
    rest = grid - grid.mean(axis=1, keepdims=True) - grid.mean(axis=0, keepdims=True) + grid.mean()
    s, i = grid.shape
    expected = grid.mean(axis=1).var() / s + grid.mean(axis=0).var() / i + rest.var() / (s * i)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.sqrt(expected), rel=0.04)


def test_one_subject_is_the_bootstrap_of_its_images_and_says_so(rng):
    grid = simulate(rng, 1, 40)
    found = hierarchical_bootstrap(table(grid), seed=3)
    assert (found.low, found.high) == pytest.approx(bootstrap_interval(grid[0], seed=3), abs=0.02)
    t = stats.t.interval(0.95, 39, grid.mean(), stats.sem(grid[0]))
    assert (found.low_t, found.high_t) == pytest.approx(t)
    assert "nothing about other people" in found.note
    assert "read the t interval" in hierarchical_bootstrap(table(simulate(rng, 3, 5)), num_draws=100).note
    assert hierarchical_bootstrap(table(simulate(rng, 8, 5)), num_draws=100).note == ""


def test_samples_are_averaged_and_subjects_weigh_the_same(rng):
    grid = rng.normal(size=(3, 6, 4))
    assert_same(
        hierarchical_bootstrap(table(grid), seed=2), hierarchical_bootstrap(table(grid.mean(axis=2)), seed=2)
    )
    uneven = ScoreTable(np.array([1.0, 1.0, 1.0, 4.0]), np.array([*"aaab"]), np.array([*"wxyz"]))
    assert hierarchical_bootstrap(uneven, num_draws=100).mean == 2.5


def test_a_seed_repeats_it_and_nothing_else_does(rng):
    scores = table(simulate(rng, 5, 9))
    first, again, other = (hierarchical_bootstrap(scores, num_draws=200, seed=seed) for seed in (1, 1, 2))
    assert first == again and first.low != other.low


def test_constant_scores_are_a_point():
    found = hierarchical_bootstrap(table(np.full((4, 5), 0.3)), num_draws=100)
    assert (found.low, found.high, found.low_t, found.high_t) == pytest.approx((0.3,) * 4)
    single = hierarchical_bootstrap(table(np.full((1, 1), 0.3)), num_draws=100)
    assert (single.low, single.high_t) == (0.3, 0.3)


def test_a_comparison_is_the_interval_of_the_differences(rng):
    a, b = rng.random((4, 8, 2)), rng.random((4, 8, 2))
    found, back = hierarchical_comparison(table(a), table(b)), hierarchical_comparison(table(b), table(a))
    d = (a - b).mean(axis=2)
    assert_same(found.interval, hierarchical_bootstrap(table(d)))
    assert found.interval.mean == pytest.approx(-back.interval.mean)
    # Shared images flip together: the test of the differences averaged over subjects.
    assert (found.p, found.exact) == permutation_p(d.mean(axis=0)) and found.exact
    assert found.p == back.p


def test_the_stratified_test_with_one_subject_is_the_plain_one(rng):
    d = rng.normal(size=12) + 0.5
    assert stratified_permutation_p(d, np.zeros(12), np.arange(12)) == permutation_p(d)


def test_the_stratified_test_gives_subjects_equal_weights():
    # One subject with many images against, one with few in favour: equal weights keep them balanced.
    d, subjects = np.r_[-np.ones(6), np.ones(3)], np.r_[np.zeros(6), np.ones(3)]
    assert stratified_permutation_p(d, subjects, np.arange(9)) == (1.0, True)
    assert permutation_p(d)[0] < 1.0


@pytest.mark.parametrize("shared", [False, True])
def test_the_stratified_p_is_uniform_when_nothing_differs(rng, shared):
    # Shared images bring a difference of their own, the same in all subjects: only joint flips keep the level.
    subjects, images = np.repeat(np.arange(3), 12), np.tile(np.arange(12), 3)
    own = np.arange(36)
    found = []
    for seed in range(300):
        d = simulate(rng, 3, 12, image=2.0 * shared).ravel()
        flips = images if shared else own
        found.append(stratified_permutation_p(d, subjects, flips, num_draws=199, seed=seed)[0])
    assert stats.kstest(found, "uniform").pvalue > 0.001
    if shared:
        d = simulate(rng, 3, 12, image=2.0)
        apart = [
            stratified_permutation_p(
                simulate(rng, 3, 12, image=2.0).ravel(), subjects, own, num_draws=199, seed=seed
            )
            for seed in range(200)
        ]
        assert np.mean([p < 0.05 for p, _ in apart]) > 0.1


def test_what_does_not_fit_is_refused(rng):
    partly = ScoreTable(np.ones(4), np.array([*"aabb"]), np.array([*"wxxy"]))
    with pytest.raises(DataError, match="not finite"):
        ScoreTable(np.array([1.0, np.nan]), np.zeros(2), np.zeros(2))
    with pytest.raises(DataError, match="columns"):
        ScoreTable(np.ones(2), np.zeros(2), np.zeros(3))
    with pytest.raises(DataError, match="same subjects and images: 2 of them"):
        hierarchical_comparison(partly, ScoreTable(np.ones(4), np.array([*"aabb"]), np.array([*"wxxz"])))
    with pytest.raises(DataError, match="every difference"):
        stratified_permutation_p(np.ones(3), np.zeros(3), np.zeros(2))

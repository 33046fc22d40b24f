import numpy as np
import pytest
from scipy import stats

from cadiff.errors import DataError
from cadiff.evaluate.hierarchy import ScoreTable
from cadiff.evaluate.variance import variance_components

SHARED = ("subject", "image", "seed", "subject x image", "subject x seed", "image x seed", "residual")
NESTED = ("subject", "image", "seed", "subject x seed", "residual")
AXES = {"subject": 0, "image": 1, "seed": 2, "residual": (0, 1, 2)}


def table(grid, *, own_images=False, named=True):
    s, i, r = (x.ravel() for x in np.indices(grid.shape))
    images = np.array([f"{a}-{b}" if own_images else f"{b}" for a, b in zip(s, i, strict=True)])
    return ScoreTable(grid.ravel(), s, images, r if named else None)


def simulate(rng, shape, sds, own_images=False):
    """A table (subjects, images, seeds) with the given deviation of each effect."""
    total = np.zeros(shape)
    for name, sd in sds.items():
        axes = range(3) if name == "residual" else [AXES[part] for part in name.split(" x ")]
        if own_images and name == "image":
            axes = (0, 1)
        size = [length if axis in axes else 1 for axis, length in enumerate(shape)]
        total = total + sd * rng.normal(size=size)
    return total


@pytest.mark.parametrize("names, own_images", [(SHARED, False), (NESTED, True)])
def test_the_estimates_are_unbiased(rng, names, own_images):
    sds = dict(zip(names, (0.8, 1.0, 0.3, 0.5, 0.4, 0.6, 0.7), strict=False))
    found = [
        variance_components(table(simulate(rng, (4, 6, 3), sds, own_images), own_images=own_images)).variances
        for _ in range(500)
    ]
    for name in names:
        values = np.array([one[name] for one in found])
        assert values.mean() == pytest.approx(sds[name] ** 2, abs=4.5 * stats.sem(values)), name
    assert set(found[0]) == set(names)


def test_two_factors_in_closed_form(rng):
    y = rng.normal(size=(7, 4)) + rng.normal(size=(7, 1))
    found = variance_components(table(y[None])).variances
    image, seed = 4 * y.mean(axis=1).var(ddof=1), 7 * y.mean(axis=0).var(ddof=1)
    rest = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0, keepdims=True) + y.mean()
    residual = (rest**2).sum() / (6 * 3)
    expected = {"image": (image - residual) / 4, "seed": (seed - residual) / 7, "residual": residual}
    assert found == pytest.approx(expected)


def test_images_within_subjects_are_the_one_way_analysis(rng):
    y = rng.normal(size=(5, 9))
    f = stats.f_oneway(*y).statistic
    found = variance_components(table(y[..., None], own_images=True)).variances
    within = y.var(axis=1, ddof=1).mean()
    assert found == pytest.approx({"image": within, "subject": within * (f - 1) / 9})


def test_nested_seeds_are_pooled_by_subject(rng):
    y = rng.normal(size=(3, 5, 4))
    found = variance_components(table(y, own_images=True)).variances
    alone = [variance_components(table(part[None])).variances for part in y]
    for name in ("image", "residual"):
        assert found[name] == pytest.approx(np.mean([one[name] for one in alone]))


def test_the_parts_of_the_mean_add_up_to_its_variance(rng):
    sds, shape = {"subject": 0.6, "image": 1.0, "seed": 0.5, "residual": 0.7}, (8, 10, 6)
    tables = [simulate(rng, shape, sds) for _ in range(600)]
    found = [variance_components(table(y)) for y in tables]
    predicted = np.mean([sum(one.of_the_mean.values()) for one in found])
    assert predicted == pytest.approx(np.var([y.mean() for y in tables]), rel=4.5 * np.sqrt(2 / 600))
    assert found[0].of_the_mean["seed"] == pytest.approx(max(found[0].variances["seed"], 0) / 6)
    assert sum(found[0].shares.values()) == pytest.approx(1)


def test_another_seed_moves_the_score_by_what_it_says(rng):
    sds = {"image": 1.0, "seed": 0.2, "residual": 0.6}
    # 30 images, one subject: a seed's score moves by its own effect and by the mean of its residuals.
    expected = np.sqrt(0.2**2 + 0.6**2 / 30)
    found = [variance_components(table(simulate(rng, (1, 30, 4), sds))).another_seed for _ in range(400)]
    assert np.mean([one.sd**2 for one in found]) == pytest.approx(expected**2, rel=0.2)
    assert np.mean([one.low <= expected <= one.high for one in found]) == pytest.approx(0.95, abs=0.045)
    y = simulate(rng, (2, 5, 3), sds)
    assert variance_components(table(y)).another_seed.sd == pytest.approx(y.mean(axis=(0, 1)).std(ddof=1))


def test_unrelated_samples_put_their_noise_in_the_residual(rng):
    y = simulate(rng, (1, 300, 5), {"image": 1.0, "residual": 0.5})
    found = variance_components(table(y, named=False))
    assert found.variances["seed"] == pytest.approx(0, abs=0.005)
    assert found.variances["residual"] == pytest.approx(0.25, rel=0.1)
    assert found.variances == pytest.approx(variance_components(table(y)).variances)


def test_factors_with_one_level_are_left_out(rng):
    assert set(variance_components(table(rng.normal(size=(1, 6, 1)))).variances) == {"image"}
    assert variance_components(table(rng.normal(size=(1, 6, 1)))).another_seed is None
    shared = variance_components(table(rng.normal(size=(3, 6, 1))))
    assert set(shared.variances) == {"subject", "image", "residual"}
    assert shared.levels == {"subject": 3, "image": 6, "seed": 1}
    apart = variance_components(table(rng.normal(size=(3, 6, 1))), shared_images=False)
    assert set(apart.variances) == {"subject", "image"}


def test_constant_scores_have_no_shares():
    found = variance_components(table(np.ones((2, 3, 2))))
    assert set(found.shares.values()) == {0.0} and found.another_seed.sd == 0


def test_tables_with_holes_are_refused():
    with pytest.raises(DataError, match="2 subjects x 2 images x 1 samples are 4 scores; there are 3"):
        variance_components(ScoreTable(np.ones(3), np.array([*"aab"]), np.array([*"xyx"])))
    twice = ScoreTable(np.ones(4), np.array([*"aaaa"]), np.array([*"xxyy"]), np.zeros(4))
    with pytest.raises(DataError, match="there are 4, for 2 of them"):
        variance_components(twice)
    with pytest.raises(DataError, match="do not all have the same"):
        variance_components(ScoreTable(np.ones(2), np.array([*"ab"]), np.array([*"xy"])), shared_images=True)
    with pytest.raises(DataError, match="One score"):
        variance_components(ScoreTable(np.ones(1), np.zeros(1), np.zeros(1)))

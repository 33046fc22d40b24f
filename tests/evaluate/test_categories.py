import json
from importlib import resources

import numpy as np
import pytest
from scipy import stats

from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.categories import (
    COARSE_CATEGORIES,
    category_bias,
    category_oracle,
    coarse_category,
    is_animal,
    n_way_table,
    outputs,
    per_category,
    random_picture,
)
from cadiff.evaluate.semantic import n_way_top_k, truth_classes
from cadiff.evaluate.statistics import bootstrap_interval

NAMES = list(COARSE_CATEGORIES)


def test_the_ranges_hold_every_class_once():
    held = [
        i for ranges in COARSE_CATEGORIES.values() for first, last in ranges for i in range(first, last + 1)
    ]
    assert sorted(held) == list(range(1000)) and len(NAMES) == 9


@pytest.mark.parametrize(
    "word, name",
    [
        ("goldfish", "fish"),
        ("goose", "birds"),
        ("king penguin", "birds"),
        ("salamander", "amphibians and reptiles"),
        ("boa", "amphibians and reptiles"),
        ("trilobite", "invertebrates"),
        ("jellyfish", "invertebrates"),
        ("monarch", "invertebrates"),
        ("Chihuahua", "dogs"),
        ("standard poodle", "dogs"),
        ("koala", "other mammals"),
        ("dugong", "other mammals"),
        ("tabby", "other mammals"),
        ("guinea pig", "other mammals"),
        ("lesser panda", "other mammals"),
        ("abacus", "objects"),
        ("wooden spoon", "objects"),
        ("pizza", "food"),
        ("guacamole", "food"),
        ("alp", "scenes, people, plants"),
        ("acorn", "scenes, people, plants"),
    ],
)
def test_names_of_the_shipped_prior_fall_where_they_belong(word, name):
    about = json.loads((resources.files("cadiff") / "assets" / "prior" / "prior.json").read_text())
    classes = [
        i for i, names in zip(about["imagenet_index"], about["names"], strict=True) if names.startswith(word)
    ]
    classes += [
        i
        for i, names in zip(about["imagenet_index"], about["names"], strict=True)
        if f" {word}," in f" {names},"
    ]
    assert classes and {NAMES[c] for c in coarse_category(np.array(classes))} == {name}


def test_animals_are_the_six_first_categories():
    classes = np.arange(1000)
    np.testing.assert_array_equal(is_animal(classes), coarse_category(classes) < NAMES.index("food"))
    with pytest.raises(DataError, match="0 to 999"):
        coarse_category(np.array([3, 1000]))


def test_entropy_in_closed_form():
    even = outputs(np.repeat(np.arange(8), 5))
    assert (even.entropy_bits, even.distinct, even.commonest, even.commonest_share) == (3.0, 8, 0, 1 / 8)
    constant = outputs(np.full((6, 4), 17))
    assert (constant.entropy_bits, constant.distinct, constant.commonest_share) == (0.0, 1, 1.0)
    skewed = outputs(np.array([1, 1, 2, 3]))
    assert (skewed.entropy_bits, skewed.commonest) == (1.5, 1)


def test_more_samples_are_not_more_classes(rng):
    # A run counts one picture a stimulus, so k samples of the same kind change nothing but the noise.
    one = np.mean([outputs(rng.integers(0, 200, 50)).entropy_bits for _ in range(300)])
    many = outputs(rng.integers(0, 200, (50, 300))).entropy_bits
    assert many == pytest.approx(one, abs=0.03)
    assert outputs(rng.integers(0, 200, 15_000)).entropy_bits > one + 1


def test_bias_of_known_outputs():
    truth = np.array([0, 1, 2, 400])
    predicted = np.array([[0, 1], [0, 0], [0, 151], [400, 0]])  # 5 of 8 are class 0
    found = category_bias(predicted, truth)
    assert (found.stimuli.entropy_bits, found.stimuli.distinct) == (2.0, 4)
    assert (found.reconstructions.commonest, found.reconstructions.commonest_share) == (0, 5 / 8)
    assert found.commonest_right == 1 / 5
    assert found.same_class == 2 / 8
    assert found.same_coarse == 6 / 8
    assert category_bias(predicted + 2000, truth).same_coarse is None
    with pytest.raises(DataError, match="with n stimuli"):
        category_bias(predicted, truth[:3])


def test_scores_by_category_add_up(rng):
    truth, values = rng.integers(0, 1000, 60), rng.random(60)
    rows = per_category(values, truth, num_draws=500)
    assert sum(row.num_images for row in rows) == 60
    assert sum(row.num_images * row.mean for row in rows) / 60 == pytest.approx(values.mean())
    for row in rows:
        own = values[coarse_category(truth) == NAMES.index(row.category)]
        expected = bootstrap_interval(own, num_draws=500) if len(own) >= 5 else (None, None)
        assert (row.low, row.high) == expected


@pytest.mark.parametrize("n, k, classes", [(50, 1, None), (5, 3, None), (4, 2, np.arange(0, 120, 7))])
def test_the_table_is_the_single_scores(rng, n, k, classes):
    logits = rng.integers(0, 30, (12, 120)).astype(np.float32)  # many ties
    truth = truth_classes(rng.normal(size=(9, 120)), classes)
    table = n_way_table(logits, truth, n=n, k=k, classes=classes)
    for column, own in enumerate(truth):
        expected = n_way_top_k(logits, np.full(12, own), n=n, k=k, classes=classes)
        np.testing.assert_array_equal(table[:, column], expected)


def test_the_oracle_is_the_mean_over_draws(rng):
    logits, category = rng.normal(size=(30, 60)), rng.integers(0, 4, 30)
    truth = truth_classes(logits)
    table, own = n_way_table(logits, truth, n=10), np.arange(30)
    exact = category_oracle(table, category, category, own)
    for stimulus in (0, 7, 29):
        others = [j for j in range(30) if category[j] == category[stimulus] and j != stimulus]
        drawn = rng.choice(others, 4000)
        scores = n_way_top_k(logits[drawn], np.full(4000, truth[stimulus]), n=10)
        error = 4.5 * scores.std() / np.sqrt(4000) + 1e-12
        assert exact[stimulus] == pytest.approx(scores.mean(), abs=error)
    np.testing.assert_allclose(random_picture(table, own), (table.sum(axis=0) - 1) / 29)


def test_pictures_that_know_nothing_leave_the_oracle_at_chance(rng):
    logits, truth = rng.normal(size=(400, 300)), rng.integers(0, 300, 400)
    category = rng.integers(0, 9, 400)
    found = category_oracle(n_way_table(logits, truth, n=20), category, category)
    assert found.mean() == pytest.approx(1 / 20, abs=0.005)


def test_knowing_the_category_helps_as_theory_says(rng):
    # Pictures light up all 20 classes of their category, so that of the h distractors drawn from there any may win:
    # the oracle scores the mean of 1 / (h + 1).
    category = np.repeat(np.arange(5), 40)
    logits = 20.0 * (np.arange(100) // 20 == category[:, None]) + rng.normal(size=(200, 100))
    own = np.arange(200)
    table = n_way_table(logits, truth_classes(logits), n=10)
    h = np.arange(10)
    expected = (stats.hypergeom.pmf(h, 99, 19, 9) / (h + 1)).sum()
    oracle = category_oracle(table, category, category, own)
    assert oracle.mean() == pytest.approx(expected, abs=4.5 * oracle.std() / np.sqrt(200))
    assert random_picture(table, own).mean() < 0.5 * oracle.mean()


def test_a_stimulus_without_another_picture_has_no_oracle():
    table = np.array([[1.0, 0.2], [0.4, 1.0]])
    found = category_oracle(table, np.array([0, 1]), np.array([0, 0]), np.array([0, -1]))
    np.testing.assert_array_equal(found, [np.nan, 0.2])


def test_what_does_not_fit_is_refused(rng):
    logits = rng.normal(size=(3, 20))
    with pytest.raises(DataError, match="true class"):
        n_way_table(logits, np.array([20]), n=5)
    with pytest.raises(ConfigError, match="50-way"):
        n_way_table(logits, np.array([2]))
    with pytest.raises(DataError, match="as many categories"):
        category_oracle(np.ones((3, 2)), np.zeros(3), np.zeros(3))
    with pytest.raises(DataError, match="no predicted"):
        outputs(np.zeros((0, 2)))
    logits[1, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        n_way_table(logits, np.array([2]), n=5)

"""Tables of all pairs against the single-pair definitions, and wrong pairs against brute force over permutations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from cadiff.evaluate import features, pixel, semantic
from cadiff.evaluate.metrics import metric_table
from cadiff.evaluate.scores import PairScores, Protocol, Seen

PROTOCOL = Protocol(5, (1, 2), pools=(3, 4))
NUM, SAMPLES = 4, 2


def looks(rng, count):
    images = rng.integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)
    return Seen(images, rng.integers(0, 9, (count, 20)).astype(float), rng.normal(size=(count, 7)))


@pytest.fixture
def world(rng):
    return looks(rng, NUM * SAMPLES), looks(rng, NUM), np.repeat(np.arange(NUM), SAMPLES)


def test_tables_hold_what_each_pair_scores_by_itself(world):
    seen, stimuli, _ = world
    tables = PairScores(seen, stimuli, PROTOCOL).tables()
    truth = semantic.truth_classes(stimuli.logits)
    alike = pixel.correlations(seen.features, stimuli.features)
    for stimulus in range(NUM):
        own = np.full(len(alike), stimulus)
        expected = {
            "n_way_top2": semantic.n_way_top_k(seen.logits, truth[own], n=5, k=2),
            "two_way_features": pixel.two_way_identification(alike, own),
            "retrieval_3": features.retrieval(alike, own, pool=3),
            "pcc": pixel.pcc(seen.images, stimuli.images[own]),
            "mse": pixel.mse(seen.images, stimuli.images[own]),
            "psnr": pixel.psnr(seen.images, stimuli.images[own]),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(tables[name][:, stimulus], values, atol=1e-12)
    assert not any(name.startswith("retrieval_back") for name in tables)  # the pictures belong to no stimulus


def test_wrong_pairs_are_the_mean_over_all_of_them(world):
    seen, stimuli, own = world
    pairs = PairScores(seen, stimuli, PROTOCOL, num_samples=SAMPLES)
    right, wrong = pairs.scored(own)
    tables = pairs.tables()
    assert set(right) == set(wrong) == {*tables, "ssim"}
    rows = np.arange(len(own))
    for name, table in tables.items():
        np.testing.assert_array_equal(right[name], table[rows, own])
        given = [
            table[rows[other != stimulus], stimulus].mean()
            for stimulus, other in ((j, own) for j in range(NUM))
        ]
        np.testing.assert_allclose(wrong[name], given, atol=1e-12)
    # with one sample a stimulus it is the mean over the re-assignments that leave nothing in its place
    first = Seen(seen.images[::2], seen.logits[::2], seen.features[::2])
    pairs = PairScores(first, stimuli, PROTOCOL, num_samples=1)
    table, (_, wrong) = pairs.tables()["pcc"], pairs.scored(np.arange(NUM))
    moved = [p for p in permutations(range(NUM)) if all(i != j for i, j in enumerate(p))]
    scores = [table[p, range(NUM)].mean() for p in moved]
    assert wrong["pcc"].mean() == pytest.approx(np.mean(scores))


def test_ssim_of_wrong_pairs_never_meets_its_own_stimulus(rng):
    stimuli = looks(rng, 6)
    same = Seen(np.repeat(stimuli.images, 2, axis=0))
    right, wrong = PairScores(same, Seen(stimuli.images), Protocol(5, (1,))).scored(
        np.repeat(np.arange(6), 2)
    )
    np.testing.assert_allclose(right["ssim"], 1.0)
    assert wrong["ssim"].shape == (6,) and (wrong["ssim"] < 0.5).all()


def test_distances_of_pictures_are_a_metric_like_any_other(world):
    seen, stimuli, own = world

    def apart(pictures, targets):
        return np.abs(pictures.mean(axis=(1, 2, 3))[:, None] - targets.mean(axis=(1, 2, 3))[None])

    found, _ = PairScores(seen, stimuli, Protocol(5, (1,), distances={"lpips": apart})).scored(own)
    expected = np.abs(seen.images.mean(axis=(1, 2, 3)) - stimuli.images.mean(axis=(1, 2, 3))[own])
    np.testing.assert_allclose(found["lpips"], expected)


def test_a_restriction_of_classes_is_in_the_protocol_and_in_the_meaning():
    every, some, same, other = (
        metric_table(5, (1,), "lite2", classes=classes)["n_way_top1"]
        for classes in (None, (7, 3, 9, 11, 20, 31), (3, 7, 9, 11, 20, 31, 31), (3, 7, 9, 11, 20, 32))
    )
    assert every.protocol == "5-way/top-1/exact/lite2" and "5 random classes" in every.meaning
    assert some.protocol == same.protocol and len({every.protocol, some.protocol, other.protocol}) == 3
    assert some.protocol.startswith("5-way/top-1/of-6-classes-")
    assert "out of 6 that take part" in some.meaning and "5 random ones of these" in some.meaning
    pooled = metric_table(5, (1,), "lite2", classes=(1, 2, 3, 4, 5))["two_way_features"]
    assert pooled == metric_table(5, (1,), "lite2")["two_way_features"]  # classes have no say in features


@pytest.mark.parametrize("judge", [None, "lite2"])
def test_every_metric_says_what_it_means(judge):
    for name, metric in metric_table(50, (1, 5), judge, pools=(10, 50)).items():
        better = "higher is better" if metric.higher_is_better else "lower is better"
        assert better in metric.meaning and metric.meaning.endswith(".") and "{" not in metric.meaning, name
        assert ("chance is what the same pictures score" in metric.meaning) == (metric.chance is None)
    if judge:
        meanings = {name: m.meaning for name, m in metric_table(50, (1, 5), judge, pools=(10,)).items()}
        assert (
            meanings["n_way_top5"].endswith("chance is 10 %.") and "first 5 of 50" in meanings["n_way_top5"]
        )
        assert meanings["retrieval_back_10"].endswith("chance is 10 %.")

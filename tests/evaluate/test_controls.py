"""Picture controls against brute force: every expectation is the mean over what could have been drawn."""

from __future__ import annotations

import numpy as np
import pytest

from cadiff.evaluate.controls import PictureControls, mean_picture, same_category, score_picture
from cadiff.evaluate.scores import PairScores, Protocol, Seen

PROTOCOL = Protocol(5, (1, 2))
NUM, M = 6, 9


def looks(rng, count, classes=20):
    images = rng.integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)
    return Seen(images, rng.normal(size=(count, classes)), rng.normal(size=(count, 7)))


def row(seen, i):
    return Seen(seen.images[i : i + 1], seen.logits[i : i + 1], seen.features[i : i + 1])


@pytest.fixture
def world(rng):
    stimuli, candidates = looks(rng, NUM), looks(rng, M)
    return stimuli, candidates, PictureControls(candidates, stimuli, PROTOCOL)


def test_the_expected_score_is_the_mean_over_all_draws(world):
    stimuli, candidates, controls = world
    each = [score_picture(row(candidates, i), stimuli, PROTOCOL) for i in range(M)]
    for name, values in controls.expected().items():
        if name != "ssim":  # an expectation over fewer candidates
            np.testing.assert_allclose(values, np.mean([scores[name] for scores in each], axis=0), atol=1e-12)


def test_expected_ssim_is_that_of_all_candidates_whatever_their_order(rng):
    """Training lists come sorted by class: the first few pictures are those of one class."""
    flat = np.full((8, 12, 12, 3), 128, dtype=np.uint8)
    noise = rng.integers(0, 256, (72, 12, 12, 3)).astype(np.uint8)
    candidates = Seen(np.concatenate([flat, noise]))
    stimuli = Seen((128 + rng.integers(-5, 6, (30, 12, 12, 3))).astype(np.uint8))
    each = np.array([score_picture(Seen(one[None]), stimuli, PROTOCOL)["ssim"] for one in candidates.images])
    draw = each.std(axis=0).mean() / np.sqrt(8 * 30)
    for order in (slice(None), slice(None, None, -1)):
        controls = PictureControls(Seen(candidates.images[order]), stimuli, PROTOCOL)
        assert controls.expected()["ssim"].mean() == pytest.approx(each.mean(), abs=4 * draw)
    again, other = (PictureControls(candidates, stimuli, PROTOCOL, seed=s).expected()["ssim"] for s in (0, 1))
    np.testing.assert_array_equal(again, PictureControls(candidates, stimuli, PROTOCOL).expected()["ssim"])
    assert (again != other).any()
    weight = np.zeros((80, 30))
    weight[[3, 50]] = 1.0
    found = PictureControls(candidates, stimuli, PROTOCOL).expected(weight)["ssim"]
    np.testing.assert_allclose(found, each[[3, 50]].mean(axis=0))


def test_weights_restrict_the_draw_and_nothing_to_draw_means_anyone(world):
    stimuli, candidates, controls = world
    weight = np.zeros((M, NUM))
    weight[2, :3] = 1
    weight[[4, 5], 3] = 1
    found, anyone = controls.expected(weight), controls.expected()
    each = [score_picture(row(candidates, i), stimuli, PROTOCOL) for i in range(M)]
    for name in ("pcc", "n_way_top1", "two_way_features"):
        np.testing.assert_allclose(found[name][:3], each[2][name][:3], atol=1e-12)
        assert found[name][3] == pytest.approx((each[4][name][3] + each[5][name][3]) / 2)
        np.testing.assert_allclose(found[name][4:], anyone[name][4:], atol=1e-12)


@pytest.mark.parametrize("headline", ["n_way_top1", "pcc", "mse"])
def test_the_best_constant_on_test_is_the_best_there_is(world, headline):
    stimuli, candidates, controls = world
    means = [score_picture(row(candidates, i), stimuli, PROTOCOL)[headline].mean() for i in range(M)]
    best = min(means) if headline == "mse" else max(means)
    assert controls.constant(headline, on="test", lowest=headline == "mse")[headline].mean() == pytest.approx(
        best
    )


def test_the_constant_chosen_on_training_never_sees_the_test_stimuli(rng, world):
    stimuli, candidates, controls = world
    chosen = controls.constant("pcc", on="train")
    other = PictureControls(candidates, looks(rng, NUM), PROTOCOL)
    place = [
        i
        for i in range(M)
        if np.allclose(score_picture(row(candidates, i), stimuli, PROTOCOL)["pcc"], chosen["pcc"])
    ]
    assert len(place) == 1
    again = score_picture(row(candidates, place[0]), other._stimuli, PROTOCOL)["pcc"]
    np.testing.assert_allclose(other.constant("pcc", on="train")["pcc"], again)


def test_a_copy_of_a_training_picture_is_its_own_nearest(world):
    stimuli, candidates, controls = world
    chosen, own = np.array([3, 3, 7]), np.array([0, 1, 5])
    copies = Seen(candidates.images[chosen], candidates.logits[chosen], candidates.features[chosen])
    pairs = PairScores(copies, stimuli, PROTOCOL)
    expected = {name: table[np.arange(3), own] for name, table in pairs.tables().items()}
    expected["ssim"] = pairs.ssim(np.arange(3), own)
    for found in (
        controls.nearest(copies, own),
        controls.nearest(Seen(copies.images), own),  # by pixels
    ):
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-12)


def test_same_category_marks_pairs_of_one_category(world):
    stimuli, candidates, _ = world
    weight = same_category(candidates, stimuli, lambda index: index // 5)
    for i in range(M):
        for j in range(NUM):
            same = candidates.logits[i].argmax() // 5 == stimuli.logits[j].argmax() // 5
            assert weight[i, j] == same
    assert same_category(Seen(candidates.images), stimuli, lambda index: index) is None


def test_the_mean_picture_is_the_mean(world):
    _, candidates, _ = world
    found = mean_picture(candidates.images)
    assert found.shape == (1, 12, 12, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found[0], candidates.images.mean(axis=0), atol=0.5)

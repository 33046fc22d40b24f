"""Further eyes: named metrics in the table, features looked at once, MindEye's definitions where they apply."""

from __future__ import annotations

import numpy as np
import pytest

from cadiff.artifacts import read_json
from cadiff.evaluate import EvaluateConfig, evaluate, pixel
from cadiff.evaluate.judging import eye_metrics
from cadiff.evaluate.scores import PairScores, Protocol, Seen
from cadiff.evaluate.sets import INCEPTION


def test_mindeyes_rows_keep_their_definitions():
    found = eye_metrics({"alexnet": "a", "swav": "b", "my-judge": "c"})
    assert set(found) == {
        "two_way_alexnet_relu2", "two_way_alexnet_relu5", "distance_swav_avgpool", "two_way_my_judge_pooled",
    }  # fmt: skip
    assert not found["distance_swav_avgpool"][2].higher_is_better
    assert found["two_way_my_judge_pooled"][:2] == ("my-judge", "pooled")
    assert set(eye_metrics({"inception": "d", "lpips": "e"})) == {INCEPTION}


def test_scores_of_eyes_follow_from_their_features(rng):
    features, targets = rng.normal(size=(6, 9)), rng.normal(size=(4, 9))
    names = ("two_way_x", "distance_x")
    seen = Seen(rng.integers(0, 256, (6, 12, 12, 3)).astype(np.uint8), eyes=dict.fromkeys(names, features))
    stimuli = Seen(rng.integers(0, 256, (4, 12, 12, 3)).astype(np.uint8), eyes=dict.fromkeys(names, targets))
    own = np.array([0, 0, 1, 2, 3, 3])
    found, _ = PairScores(seen, stimuli, Protocol(5, (1,))).scored(own)
    table = pixel.correlations(features, targets)
    np.testing.assert_allclose(found["two_way_x"], pixel.two_way_identification(table, own))
    np.testing.assert_allclose(found["distance_x"], 1 - table[np.arange(6), own])


@pytest.fixture
def alexnet(tmp_path, monkeypatch):
    """An eye that sees the mean colour, in place of a network."""

    class Eye:
        preprocessing = "none"

        def features(self, images, **_):
            colour = images.astype(np.float32).reshape(len(images), -1)
            return {"relu2": colour, "relu5": colour**2}

        def digest(self):
            return {"file": "0" * 64}

    monkeypatch.setattr("cadiff.eyes.load_eye", lambda name, path: Eye())
    return tmp_path / "weights"


def test_an_evaluation_with_an_eye_says_so(alexnet, write_reconstructions, linear_brain, tmp_path):
    config = EvaluateConfig(judge=None, num_bootstrap=100, eyes={"alexnet": str(alexnet)})
    folder = write_reconstructions(brain=0.0, prior_only=1.0)
    found = read_json(evaluate(config, folder, linear_brain, tmp_path / "e") / "evaluation.json")
    score = found["conditions"]["brain"]["metrics"]["two_way_alexnet_relu2"]
    assert score["mean"] == 1.0 and "2-way/alexnet-relu2/pcc" in score["protocol"]
    assert found["eyes"]["alexnet"]["weights_sha256"] == {"file": "0" * 64}
    assert "two_way_alexnet_relu5" in found["conditions"]["constant_train"]["metrics"]


def test_lpips_is_a_metric_where_its_weights_are_given(
    write_reconstructions, linear_brain, tmp_path, monkeypatch
):
    class Lpips:
        name, preprocessing = "lpips0.1-alexnet", "none"

        def table(self, pictures, targets):
            first, second = (x.reshape(len(x), -1).astype(float) for x in (pictures, targets))
            return np.abs(first[:, None] - second[None]).mean(axis=2) / 255

        def digest(self):
            return {"file": "0" * 64}

    monkeypatch.setattr("cadiff.eyes.load_lpips", lambda path: Lpips())
    config = EvaluateConfig(judge=None, num_bootstrap=100, eyes={"lpips": "weights"}, headline="lpips")
    folder = write_reconstructions(brain=0.2, prior_only=1.0)
    found = read_json(evaluate(config, folder, linear_brain, tmp_path / "e") / "evaluation.json")
    about, means = found["metrics"]["lpips"], {}
    assert about["direction"] == "lower" and "LPIPS 0.1 on AlexNet" in about["meaning"]
    assert found["eyes"] == {"lpips": {"preprocessing": "none", "weights_sha256": {"file": "0" * 64}}}
    for name, condition in found["conditions"].items():
        means[name] = condition["metrics"]["lpips"]["mean"]
    assert means["brain"] < min(means["prior_only"], means["permutation"], means["constant_train"])
    assert means["constant_test"] <= means["constant_train"]
    assert "/lpips0.1-alexnet/" in found["conditions"]["brain"]["metrics"]["lpips"]["protocol"]

"""The encoding model in worlds whose code is known: likelihood, calibration, leaks, folder."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cadiff.baselines.ridge import RidgeRetrieval
from cadiff.data.splits import average_repeats
from cadiff.encoding import EncodingModel
from cadiff.encoding.calibrate import Responses, fit_temperature, misfit_share, spread
from cadiff.encoding.features import Spaces, default_features
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.evaluate import EvaluateConfig
from cadiff.evaluate.circular import choosers, refuse_circular


def fit(data, **options):
    return EncodingModel.fit(data, data.rows("train"), features=["pixels"], **options)


def identify(model, data, **options):
    betas, ids, repeats = average_repeats(data)
    likelihood = model.log_likelihood(betas, data.images(ids), repeats)
    return (likelihood.argmax(axis=1) == np.arange(len(ids))).mean(), likelihood


def test_the_likelihood_is_scipys_multivariate_normal(make_world):
    data = make_world(voxels=30, stimuli=60)
    model = fit(data)
    betas, images = data.betas[data.rows("test")][:3], data.images(data.stimulus_ids("test")[:4])
    inside = model.noise.vectors * model.noise.values @ model.noise.vectors.T
    sigma = model.noise.scale[:, None] * (inside + model.noise.shrinkage * np.eye(30)) * model.noise.scale
    predicted, measured = model.predict(images), model.preprocessor(betas)
    assert model.misfit == 0.0  # one trial a stimulus: nothing tells misfit from noise
    for repeats in (1, 5):
        found = model.log_likelihood(betas, images, repeats)
        for i in range(3):
            for k in range(4):
                expected = multivariate_normal(predicted[k], sigma / repeats).logpdf(measured[i])
                assert found[i, k] == pytest.approx(expected, rel=1e-6)


def test_voxels_are_predicted_and_stimuli_identified_where_the_code_is_linear(make_world):
    data = make_world(noise=0.3, stimuli=150)
    model = fit(data)
    share, _ = identify(model, data)
    assert model.facts["held_out_r2"]["median"] > 0.7
    assert share > 0.9
    assert model.facts["held_out_identification"]["two_way"] > 0.95


def test_without_signal_everything_says_so_and_a_leak_would_show(make_world, monkeypatch):
    """More voxels than trials, all noise. Calibrated in fold, the same model would be sure of every stimulus."""
    from cadiff.encoding import calibrate

    data = make_world(signal=0.0, voxels=300, stimuli=60)
    model = fit(data)
    assert model.facts["held_out_identification"]["two_way"] == pytest.approx(0.5, abs=0.2)
    share, likelihood = identify(model, data)
    assert share < 0.3
    assert model.weights(likelihood).max() < 0.2

    def leaky(kernels, responses, inside, outside, choice):
        return 0.5 * responses[outside]  # what a ridge with a small penalty makes of its own trials

    monkeypatch.setattr(calibrate, "held_out", leaky)
    found = fit(data).facts
    assert found["held_out_identification"]["two_way"] == 1.0
    assert found["temperature"] > 0.9


def test_the_temperature_undoes_a_likelihood_that_is_too_sure(rng):
    """Scores of a world in which the posterior is exact, times 4: the temperature must be a quarter."""
    k, n = 10, 4000
    truth = rng.normal(size=(k, 3))
    own = rng.integers(k, size=n)
    seen = truth[own] + rng.normal(size=(n, 3))
    scores = -0.5 * ((seen[:, None] - truth) ** 2).sum(axis=2)
    exact = fit_temperature([(scores[np.arange(n), own][:, None], scores)])
    tempered = fit_temperature([(4 * scores[np.arange(n), own][:, None], 4 * scores)])
    assert exact == pytest.approx(1.0, abs=0.05)
    assert tempered == pytest.approx(0.25, abs=0.02)


def test_the_posterior_is_as_sure_as_it_is_right(make_world):
    """Over held-out test stimuli the mean probability of the likeliest picture is how often it is the right one."""
    data = make_world(noise=5.0, stimuli=200, voxels=80, num_test=200)
    model = fit(data)
    betas, ids, repeats = average_repeats(data)
    groups = np.arange(len(ids)).reshape(-1, 10)
    sure, right = [], []
    for group in groups:
        images = data.images([ids[i] for i in group])
        weights = model.weights(model.log_likelihood(betas[group], images, repeats[group]))
        sure += list(weights.max(axis=1))
        right += list(weights.argmax(axis=1) == np.arange(10))
    assert 0.25 < np.mean(right) < 0.95  # neither chance nor certain, or the test would say nothing
    assert np.mean(sure) == pytest.approx(np.mean(right), abs=0.12)


def test_repeats_lower_the_noise_and_not_the_misfit(make_world):
    assert fit(make_world(noise=1.0, repeats=4, unseen=0.0, stimuli=150)).misfit < 0.25
    assert fit(make_world(noise=0.2, repeats=4, unseen=2.0, stimuli=150)).misfit > 0.8
    np.testing.assert_allclose(spread(np.array([1, 4]), 0.0), [1.0, 0.25])
    np.testing.assert_allclose(spread(np.array([1, 4]), 1.0), [1.0, 1.0])


def test_the_misfit_is_what_noise_ceilings_leave_over(rng):
    residuals = rng.normal(size=(500, 10))  # variance 1, of which .4 is noise
    single = Responses.of(residuals, np.arange(500))
    found = misfit_share(residuals, single, np.full(10, 0.4))
    assert found == pytest.approx(0.6, abs=0.03)


def test_selected_voxels_are_those_that_can_be_predicted(make_world):
    data = make_world(noise=0.5, stimuli=150, voxels=40)
    betas = np.array(data.betas)
    betas[:, 20:] = np.random.default_rng(1).normal(size=betas[:, 20:].shape)
    data.betas = betas
    model = fit(data, min_r2=0.1)
    np.testing.assert_array_equal(np.flatnonzero(model.voxels), np.arange(20))


def test_distractors_are_told_from_the_own_picture(make_world, rng):
    data = make_world(noise=0.5, stimuli=100)
    further = rng.integers(1, 255, (50, 4, 4, 3)).astype(np.uint8)
    model = fit(data, distractors=further)
    assert model.facts["held_out_identification"]["mean_candidates"] == 70  # 20 of the fold, 50 others
    assert model.facts["held_out_identification"]["two_way"] > 0.9


def test_a_saved_model_is_the_same_model(make_world, tmp_path):
    data = make_world(voxels=20, stimuli=30)
    model = fit(data, min_r2=0.0)
    folder = model.save(tmp_path / "encoding", seed=0)
    again = EncodingModel.load(folder)
    betas, images = data.betas[data.rows("test")], data.images(data.stimulus_ids("test"))
    before, after = (m.log_likelihood(betas, images) for m in (model, again))
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(model.weights(before), again.weights(after))
    about = json.loads((folder / "config.json").read_text())
    assert about["kind"] == "encoding-model"
    assert set(about["config"]["facts"]["held_out_identification"]) == {
        "two_way",
        "top_1",
        "mean_candidates",
        "stimuli",
    }
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="checksum"):
        EncodingModel.load(folder)


def test_the_judge_and_unknown_features_are_refused(make_world):
    data = make_world(stimuli=10)
    for features, message in (
        (["efficientnet-lite2"], "what scores must not choose"),
        (["mine=efficientnet-lite2"], "what scores must not choose"),
        (["gabors"], "No feature space 'gabors'"),
        (["pixels", "pixels"], "each once"),
    ):
        with pytest.raises(ConfigError, match=message):
            EncodingModel.fit(data, data.rows("train"), features=features)
    with pytest.raises(DataError, match="at least 3"):
        EncodingModel.fit(data, data.rows("train")[:2], features=["pixels"])


def test_the_simulators_own_network_is_pointed_out(make_world, monkeypatch):
    data = make_world(stimuli=10)
    data.description |= {"simulated": True, "classifier": "pixels"}
    with pytest.warns(UserWarning, match="is the truth itself"):
        fit(data)


def test_the_weights_of_a_network_are_recorded_as_they_were(make_world, tmp_path, monkeypatch):
    """So that it can be told from a judge when its file has moved and is called otherwise."""
    file = tmp_path / "network.pth"
    file.write_bytes(b"weights")

    def pixels(name, path):
        return lambda images: images.reshape(len(images), -1) / 255

    monkeypatch.setattr("cadiff.encoding.features._eye", pixels)
    data = make_world()
    for fit, part in ((EncodingModel.fit, "encoding"), (RidgeRetrieval.fit, "fitted")):
        fitted: Any = fit(data, data.rows("train"), features=["gabor", f"mine={file}"])
        facts = fitted.facts if part == "encoding" else fitted.facts()
        moved = file.rename(tmp_path / f"{part}.pth")
        judged = EvaluateConfig(judge=None, eyes={"yours": str(moved)})
        with pytest.raises(ConfigError, match="circular"):
            refuse_circular(judged, choosers({"provenance": {part: facts}}), "here")
        moved.rename(file)
    assert "feature_weights" not in Spaces(["pixels", "gabor"]).facts()


def test_pictures_of_another_size_are_brought_to_the_models(make_world):
    data = make_world(stimuli=20)
    model = fit(data)
    images = data.images(data.stimulus_ids("test"))
    larger = images.repeat(4, axis=1).repeat(4, axis=2)
    assert np.corrcoef(model.predict(larger).ravel(), model.predict(images).ravel())[0, 1] > 0.9


def test_betas_of_other_stimuli_identify_nothing(make_world):
    data = make_world(noise=1.0, stimuli=100, num_test=60)
    model = fit(data)
    betas, ids, repeats = average_repeats(data)
    likelihood = model.log_likelihood(np.roll(betas, 1, axis=0), data.images(ids), repeats)
    own = np.diag(likelihood)[:, None]
    assert (likelihood < own).sum(axis=1).mean() / 59 == pytest.approx(0.5, abs=0.12)
    assert (
        likelihood.argmax(axis=1) == np.roll(np.arange(60), 1)
    ).mean() > 0.8  # they identify whom they belong to


@pytest.mark.slow
def test_feature_spaces_that_come_without_further_packages(rng):
    images = rng.integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)
    assert default_features(images) == ("gabor",)
    assert default_features(np.where(images > 99, 255, 0).astype(np.uint8)) == ("pixels",)
    assert default_features(images.repeat(2, axis=1).repeat(2, axis=2)) == ("gabor", "efficientnet-lite0")
    for part in Spaces(["pixels", "gabor", "vq"])(images):
        assert part.dtype == np.float32 and len(part) == 3
        assert part.std(axis=0).max() > 0

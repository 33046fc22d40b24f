"""Bayesian decoding: exact posteriors in a small world, where pictures come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from scipy.stats import multivariate_normal

from cadiff.baselines.bayes import Bayes
from cadiff.data.dataset import BrainDataset
from cadiff.data.splits import average_repeats
from cadiff.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def data(linear_brain):
    return BrainDataset.open(linear_brain)


def fit(data, **options):
    return Bayes.fit(data, data.rows("train"), **{"features": "pixels", **options})


@pytest.fixture
def others(data, rng):
    """Pictures of the same world that were never shown: 2 x 2 blocks."""
    levels = rng.integers(20, 230, (40, 2, 2)).astype(np.uint8)
    grey = levels.repeat(8, axis=1).repeat(8, axis=2)
    return np.repeat(grey[..., None], 3, axis=3)


@pytest.fixture
def archive(others, tmp_path):
    np.savez(tmp_path / "prior.npz", images=others[..., 0])
    return tmp_path / "prior.npz"


def test_a_word_is_a_word_and_a_path_a_folder_of_that_name(data, others, tmp_path, monkeypatch):
    (tmp_path / "training").mkdir()
    Image.fromarray(others[0]).save(tmp_path / "training" / "one.png")
    monkeypatch.chdir(tmp_path)
    assert len(fit(data).images) == len(data.stimulus_ids("train"))
    for folder in ("./training", Path("training")):
        np.testing.assert_array_equal(fit(data, images=folder).images, others[:1])


def test_the_posterior_is_the_tempered_likelihood_of_the_betas(data, archive, others):
    fitted = fit(data, images=archive)
    betas, _, repeats = average_repeats(data)
    model = fitted.model
    inside = model.noise.vectors * model.noise.values @ model.noise.vectors.T
    sigma = inside + model.noise.shrinkage * np.eye(len(model.mean))
    sigma = model.noise.scale[:, None] * sigma * model.noise.scale
    share = model.misfit + (1 - model.misfit) / repeats
    scores = np.array(
        [
            [multivariate_normal(p, sigma * s).logpdf(b) for p in model.predict(others)]
            for b, s in zip(model.preprocessor(betas), share, strict=True)
        ]
    )
    expected = softmax(model.mean_temperature * scores, axis=1)
    np.testing.assert_allclose(fitted.posterior(betas, repeats), expected, atol=1e-5)
    mean = np.tensordot(expected, others.astype(float), axes=1)
    drawn = fitted.reconstruct(betas, stimulus_ids=[], repeats=repeats)
    assert np.abs(drawn[:, 0] - mean).max() <= 0.51


def test_the_nearest_of_the_pictures_is_found_and_shuffled_betas_find_another(data, archive, others):
    fitted = fit(data, images=archive, output="map")
    betas, ids, repeats = average_repeats(data)
    drawn = fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)[:, 0].astype(int)
    truth = data.images(ids).astype(int)
    shuffled = np.abs(np.roll(drawn, 1, axis=0) - truth).mean()
    assert np.abs(drawn - truth).mean() < 0.6 * shuffled


def test_samples_come_with_their_probability(data, archive):
    fitted = fit(data, images=archive, output="samples", num_images=400)
    betas, ids, repeats = average_repeats(data)
    drawn = fitted.reconstruct(betas[:2], stimulus_ids=ids[:2], repeats=repeats[:2])
    assert drawn.shape == (2, 400, 16, 16, 3)
    weights = fitted.posterior(betas[:2], repeats[:2])
    for row, samples in zip(weights, drawn, strict=True):
        best = fitted.images[row.argmax()]
        share = np.mean([(sample == best).all() for sample in samples])
        assert share == pytest.approx(row.max(), abs=0.1)
    np.testing.assert_array_equal(fitted.reconstruct(betas[:2], stimulus_ids=[], repeats=repeats[:2]), drawn)


def test_pictures_come_from_folders_archives_and_the_training_trials(data, archive, others, tmp_path):
    for i, picture in enumerate(others):
        (tmp_path / "folder" / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "folder" / "deep" / f"{i:02d}.png")
    read = fit(data, images=tmp_path / "folder")
    np.testing.assert_array_equal(read.images, others)
    np.testing.assert_array_equal(fit(data, images=archive).images, others)
    training = fit(data)
    np.testing.assert_array_equal(training.images, data.images(data.stimulus_ids("train")))
    assert training.model.mean_temperature is None
    few = fit(data, images=archive, num_pictures=7)
    assert len(few.images) == 7 and few.facts()["pictures"] == 7


def test_small_pictures_are_padded_where_that_is_asked(data, tmp_path, rng):
    small = rng.integers(0, 256, (12, 10, 10)).astype(np.uint8)
    np.savez(tmp_path / "small.npz", images=small)
    padded = fit(data, images=tmp_path / "small.npz", fit="pad").images
    np.testing.assert_array_equal(padded[:, 3:13, 3:13, 1], small)
    assert padded.sum() == 3 * small.astype(int).sum()


def test_a_test_stimulus_among_the_pictures_is_refused(data, others, tmp_path):
    leaky = np.concatenate([others, data.images(["test-2"])])
    np.savez(tmp_path / "leaky.npz", images=leaky)
    with pytest.raises(DataError, match=r"Picture 41 .* test stimulus 'test-2'"):
        fit(data, images=tmp_path / "leaky.npz")


def test_other_mistakes_are_one_sentence(data, tmp_path):
    np.savez(tmp_path / "wrong.npz", images=np.zeros((3, 4, 4)))
    np.savez(tmp_path / "none.npz", pictures=np.zeros(3))
    (tmp_path / "empty").mkdir()
    for options, error, message in (
        ({"output": "mode"}, ConfigError, "one of mean, map, samples"),
        ({"images": "nowhere"}, DataError, "neither a folder of pictures nor an .npz"),
        ({"images": tmp_path / "wrong.npz"}, DataError, "float64"),
        ({"images": tmp_path / "none.npz"}, DataError, "an array `images`"),
        ({"images": tmp_path / "empty"}, DataError, "holds no picture"),
    ):
        with pytest.raises(error, match=message):
            fit(data, **options)

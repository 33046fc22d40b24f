"""Retrieval and means: what they must show on a brain that we know."""

from __future__ import annotations

import numpy as np
import pytest

from cadiff.baselines.retrieval import ClassMean, MeanImage, Retrieval
from cadiff.data.dataset import BrainDataset
from cadiff.errors import DataError


@pytest.fixture(scope="module")
def data(linear_brain):
    return BrainDataset.open(linear_brain)


def ask(baseline, data, rows):
    ids = [str(s) for s in data.trials["stimulus_id"].to_numpy()[rows]]
    return ids, baseline.reconstruct(
        data.betas[rows], stimulus_ids=ids, repeats=np.ones(len(rows), dtype=int)
    )


def test_retrieval_finds_each_training_stimulus_from_its_own_betas(data):
    rows = data.rows("train")
    ids, pictures = ask(Retrieval.fit(data, rows), data, rows)
    np.testing.assert_array_equal(pictures[:, 0], data.images(ids))


def test_retrieval_ignores_gain_and_offset_of_a_trial(data):
    rows = data.rows("train")
    fitted = Retrieval.fit(data, rows)
    betas, ones = data.betas[rows], np.ones(len(rows), dtype=int)
    normalised_gain = fitted.preprocessor.mean + 3.0 * (betas - fitted.preprocessor.mean)
    ids = [""] * len(rows)
    plain = fitted.reconstruct(betas, stimulus_ids=ids, repeats=ones)
    np.testing.assert_array_equal(fitted.reconstruct(normalised_gain, stimulus_ids=ids, repeats=ones), plain)


def test_the_mean_image_minimises_the_squared_error_among_constant_answers(data, rng):
    rows = data.rows("train")
    fitted = MeanImage.fit(data, rows)
    images = data.images(data.stimulus_ids("train")).astype(float)
    best = ((images - fitted.image) ** 2).sum()
    for _ in range(5):
        other = fitted.image + rng.integers(-3, 4, fitted.image.shape)
        assert ((images - other) ** 2).sum() >= best


def test_the_oracle_shows_the_mean_of_the_true_class_whatever_the_betas(data):
    fitted = ClassMean.fit(data, data.rows("train"))
    ids, pictures = ask(fitted, data, data.rows("test"))
    train = data.stimulus_ids("train")
    for name, picture in zip(ids, pictures[:, 0], strict=True):
        same = [s for s in train if data.stimuli.at[s, "label"] == data.stimuli.at[name, "label"]]
        np.testing.assert_allclose(picture, data.images(same).mean(axis=0), atol=0.51)


def test_the_oracle_refuses_a_class_that_was_never_trained_on(data):
    rows = data.rows("train")
    bright = [r for r in rows if data.stimuli.at[data.trials["stimulus_id"].iloc[r], "label"] == "bright"]
    fitted = ClassMean.fit(data, np.array(bright))
    with pytest.raises(DataError, match="'dark', which no training"):
        ask(fitted, data, data.rows("test"))

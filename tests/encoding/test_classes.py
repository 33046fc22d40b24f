"""Classes told apart by betas: the densities of the formula, classes never trained on, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cadiff.encoding import EncodingModel
from cadiff.encoding.calibrate import spread
from cadiff.encoding.classes import ClassPosterior
from cadiff.encoding.noise import NoiseCovariance
from cadiff.errors import DataError


def pictures_of_classes(
    num_classes: int, each: int, seed: int, side: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures that vary a little around a template, and their classes: 10, 11, ..."""
    rng = np.random.default_rng(seed)
    templates = rng.integers(40, 215, (num_classes, 1, side, side, 3))
    images = templates + rng.integers(-25, 26, (num_classes, each, side, side, 3))
    return images.reshape(-1, side, side, 3).astype(np.uint8), np.repeat(np.arange(num_classes) + 10, each)


@pytest.fixture
def model(make_world) -> EncodingModel:
    world = make_world(stimuli=120, noise=0.5)
    return EncodingModel.fit(world, world.rows("train"), features=["pixels"])


def test_whitened_noise_is_white() -> None:
    rng = np.random.default_rng(0)
    noise = NoiseCovariance.fit(rng.normal(size=(12, 30)) @ rng.normal(size=(30, 30)))
    root = noise.whitened(np.eye(30))  # rows: images of the unit vectors, so root = Sigma^-1/2 transposed
    u = noise.vectors
    sigma = (noise.shrinkage * np.eye(30) + (u * noise.values) @ u.T) * np.outer(noise.scale, noise.scale)
    np.testing.assert_allclose(root.T @ sigma @ root, np.eye(30), atol=1e-9)


def test_likelihoods_are_those_of_normal_distributions_in_the_voxels(model: EncodingModel) -> None:
    images, labels = pictures_of_classes(5, 12, seed=1)
    posterior = ClassPosterior.fit(model, images, labels)
    rng = np.random.default_rng(2)
    betas = rng.normal(size=(7, 60))
    repeats = np.array([1, 1, 1, 3, 3, 3, 9])

    predicted = model.predict(images)[:, model.voxels]
    means = np.stack([predicted[labels == c].mean(axis=0) for c in posterior.classes])
    rest = predicted - means[labels - 10]
    within = rest.T @ rest / (len(images) - 5)
    noise = model.noise
    u = noise.vectors
    sigma = noise.shrinkage * np.eye(len(noise.scale)) + (u * noise.values) @ u.T
    sigma = sigma * np.outer(noise.scale, noise.scale)
    measured = model.preprocessor(betas)[:, model.voxels]
    expected = np.stack(
        [
            [multivariate_normal(m, within + share * sigma).logpdf(row) for m in means]
            for row, share in zip(measured, spread(repeats, model.misfit), strict=True)
        ]
    )
    got = posterior.log_likelihood(betas, repeats)
    # outside the directions of the predictions all classes are equally likely: a constant for each row
    np.testing.assert_allclose(
        got - got[:, :1], expected - expected[:, :1], rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def test_a_class_that_no_trial_showed_is_named_from_pictures_of_it(make_world) -> None:
    world = make_world(stimuli=150, noise=1.0)
    model = EncodingModel.fit(world, world.rows("train"), features=["pixels"])
    images, labels = pictures_of_classes(8, 20, seed=3)
    posterior = ClassPosterior.fit(model, images, labels)
    fresh, truth = pictures_of_classes(8, 25, seed=3)
    # the same world again: betas of pictures of the classes, none of which was trained on
    rng = np.random.default_rng(0)
    rng.integers(1, 255, (170, 4, 4, 3))
    weights = rng.normal(size=(48, 60))
    noise = np.random.default_rng(9).normal(size=(len(fresh), 60))
    betas = (fresh.reshape(len(fresh), -1) / 255.0 - 0.5) @ weights + noise
    assert (posterior.most_likely(betas) == truth).mean() > 0.9
    assert (posterior.most_likely(betas) == np.roll(truth, 25)).mean() < 0.1


def test_what_cannot_be_told_apart_is_refused(model: EncodingModel) -> None:
    images, labels = pictures_of_classes(3, 4, seed=1)
    with pytest.raises(DataError, match="1 classes with 12 to 12 pictures"):
        ClassPosterior.fit(model, images, np.zeros(12, dtype=int))
    with pytest.raises(DataError, match="two or more pictures of each"):
        ClassPosterior.fit(model, images[:9], labels[:9])

"""Fits in parts: the same as in one piece, and no table of trials is copied or made in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from cadiff.encoding import EncodingModel, gram
from cadiff.encoding.banded import final_dual
from cadiff.encoding.calibrate import Responses, measure
from cadiff.encoding.noise import NoiseCovariance
from cadiff.encoding.responses import Residuals, normalised
from cadiff.encoding.ridge import fit_ridge
from largest_tensor import LargestTensor

RING = {"within": None, "min_r2": None, "num_folds": 3, "seed": 0}


@pytest.fixture(params=[None, 200], ids=["whole", "parts"])
def numbers(request, monkeypatch):
    """Numbers in float64 at a time."""
    if request.param:
        monkeypatch.setattr(gram, "NUMBERS", request.param)
    return request.param


def in_parts(monkeypatch, work):
    """What `work` gives in one piece, and in many."""
    whole = work()
    monkeypatch.setattr(gram, "NUMBERS", 150)
    return whole, work()


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_a_gram_matrix_in_parts_is_decomposed_as_numpy_does(shape, rng, numbers):
    x = rng.normal(size=shape)
    found = gram.zeros(shape[1])
    for part in gram.parts(*shape):
        gram.add(found, x[part])
        assert found.flags.f_contiguous
    np.testing.assert_allclose(np.tril(found), np.tril(x.T @ x), atol=1e-12)
    values, vectors = gram.decompose(found, 1e-9)
    assert len(values) == min(shape)
    np.testing.assert_allclose((vectors * values) @ vectors.T, x.T @ x, atol=1e-10)


@pytest.mark.parametrize("driver", ["evd", "evr"])
def test_the_largest_eigenvalues_are_those_kept(driver, rng, monkeypatch):
    monkeypatch.setattr(gram, "LARGE", 4096 if driver == "evd" else 0)
    x = rng.normal(size=(40, 9)) * np.logspace(0, -3, 9)
    expected = np.linalg.eigvalsh(x.T @ x)
    for threshold, most, count in ((1e-12, None, 9), (1e-12, 4, 4), (1e-12, 20, 9), (0.5, None, 1)):
        found = gram.zeros(9)
        gram.add(found, x)
        values, vectors = gram.decompose(found, threshold, most)
        np.testing.assert_allclose(values, expected[-count:], rtol=1e-6)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_noise_in_parts_is_that_of_the_table(shape, rng, monkeypatch):
    x = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1]))

    def work():
        noise = NoiseCovariance.fit(x)
        return noise.shrinkage, noise.whitened(np.eye(shape[1])), noise.log_determinant()

    for before, after in zip(*in_parts(monkeypatch, work), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)


def test_residuals_are_trials_minus_the_prediction_of_their_stimulus(rng):
    of_trial = rng.permutation(np.repeat(np.arange(6), 3))
    every = Responses.of(rng.normal(size=(18, 7)), of_trial)
    part = every.only(np.array([4, 1, 2]))
    predicted = rng.normal(size=(3, 7))
    kept = np.flatnonzero(np.isin(of_trial, [4, 1, 2]))
    shown = np.array([[4, 1, 2].index(stimulus) for stimulus in of_trial[kept]])
    for voxels in (np.arange(7), np.array([1, 2, 5]), np.array([6])):
        expected = every.table[kept][:, voxels] - predicted[shown][:, voxels]
        found = Residuals(part, predicted, voxels)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found[:, :], expected)
        np.testing.assert_array_equal(found[2:5, 0:2], expected[2:5, 0:2])


@pytest.mark.parametrize("min_r2", [None, 0.0])
def test_a_measurement_in_parts_is_the_same(min_r2, rng, monkeypatch):
    a, b = rng.normal(size=(2, 30, 6))
    shown = rng.permutation(np.repeat(np.arange(30), 2))
    trials = (a @ rng.normal(size=(6, 17)))[shown] + rng.normal(size=(60, 17))
    kernels = [a @ a.T, b @ b.T]

    def work():
        responses = Responses.of(trials, shown)
        found = measure(kernels, responses, **(RING | {"min_r2": min_r2}))
        dual = final_dual(kernels, responses.means, found.choice)
        return *found.choice, found.r2, found.misfit, found.noise.scale, found.noise.shrinkage, dual

    for before, after in zip(*in_parts(monkeypatch, work), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_a_measurement_is_the_same_for_trials_in_float32(rng):
    a = rng.normal(size=(30, 6))
    shown = rng.permutation(np.repeat(np.arange(30), 2))
    trials = ((a @ rng.normal(size=(6, 17)))[shown] + rng.normal(size=(60, 17))).astype(np.float32)
    single, double = (
        measure([a @ a.T], Responses.of(table, shown), **RING) for table in (trials, trials.astype(float))
    )
    np.testing.assert_array_equal(single.choice, double.choice)
    np.testing.assert_allclose(single.r2, double.r2, atol=1e-6)
    assert single.misfit == pytest.approx(double.misfit, abs=1e-6)
    np.testing.assert_allclose(
        single.noise.whitened(np.eye(17)), double.noise.whitened(np.eye(17)), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(30, 12), (15, 40)])
@pytest.mark.parametrize("options", [{"score": "cosine"}, {"score": "r2", "per_target": True}])
def test_a_ridge_in_parts_is_the_same(shape, options, rng, monkeypatch):
    x = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
    y = x.double() @ torch.from_numpy(rng.normal(size=(shape[1], 5))) + torch.from_numpy(
        rng.normal(size=(shape[0], 5))
    )
    groups = [str(i // 2) for i in range(len(x))]
    for before, after in zip(
        *in_parts(monkeypatch, lambda: vars(fit_ridge(x, y, groups, **options)).items()), strict=True
    ):
        if after[1] is not None:
            np.testing.assert_allclose(after[1], before[1], rtol=1e-6, atol=1e-6, err_msg=after[0])


def traced(work):
    """Bytes that numpy and Python held at the most beyond what they held before."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    ("repeats", "stimuli", "voxels", "most"),
    [(20, 200, 150, 1), (1, 120, 4000, 6)],
    ids=["more trials", "more voxels"],
)
def test_measuring_holds_no_second_table_of_trials(repeats, stimuli, voxels, most, rng, monkeypatch):
    """With more trials than voxels nothing is as large as their table in float32. With fewer, where singular vectors are as
    large as two, six times that. Residuals in float64, and scaled ones beside them, made it 6 and 12."""
    monkeypatch.setattr(gram, "NUMBERS", 1 << 15)
    features = rng.normal(size=(stimuli, 5))
    shown = np.repeat(np.arange(stimuli), repeats)
    trials = rng.normal(size=(len(shown), voxels)).astype(np.float32)
    responses = Responses.of(trials, shown)
    peak = traced(lambda: measure([features @ features.T], responses.only(np.arange(stimuli)), **RING))
    assert peak < most * trials.nbytes


def test_normalising_copies_no_table(rng, monkeypatch):
    monkeypatch.setattr(gram, "NUMBERS", 1 << 15)
    betas = rng.normal(5, 3, size=(20_000, 100)).astype(np.float32)
    expected = (betas - betas.mean(axis=0, dtype=float)) / betas.std(axis=0, dtype=float)
    found = []
    peak = traced(lambda: found.extend(normalised(betas)))
    assert found[1] is betas
    np.testing.assert_allclose(betas, expected, atol=1e-5)
    assert peak < betas.nbytes


def test_ridge_never_holds_the_betas_in_float64(monkeypatch):
    monkeypatch.setattr(gram, "NUMBERS", 1 << 10)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(900, 60, generator=draw), torch.randn(900, 2, generator=draw)
    with LargestTensor() as peak:
        fit_ridge(x, y, [str(i) for i in range(900)], score="r2")
    assert peak.largest < x.untyped_storage().nbytes()


def test_pictures_are_let_go_before_anything_is_fitted(make_world, monkeypatch):
    import weakref

    from cadiff.encoding import model

    data = make_world(stimuli=20)
    alive = []
    shown, calibrate = model.shown_pictures, model.calibrate

    def watched(*args):
        images = shown(*args)
        alive.append(weakref.ref(images))
        return images

    def fitting(*args, **options):
        assert alive[0]() is None
        return calibrate(*args, **options)

    monkeypatch.setattr(model, "shown_pictures", watched)
    monkeypatch.setattr(model, "calibrate", fitting)
    EncodingModel.fit(data, data.rows("train"), features=["pixels"])
    assert len(alive) == 1

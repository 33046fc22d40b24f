"""Errors of posterior means from products of pictures, and what calibration keeps in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
from scipy.special import softmax

from cadiff.encoding import calibrate as module
from cadiff.encoding.calibrate import TRIED, Responses, calibrate, mean_errors

RING = {"within": None, "min_r2": None, "num_folds": 3, "seed": 0}


def test_errors_of_means_are_those_of_the_pictures(rng, monkeypatch):
    monkeypatch.setattr(module, "SLICE", 100)
    scores = 30 * rng.normal(size=(6, 9))
    candidates, own = (rng.integers(0, 256, (n, 5, 4, 3), dtype=np.uint8) for n in (9, 6))
    expected = []
    for t in TRIED:
        means = np.einsum("mk,khwc->mhwc", softmax(t * scores, axis=1), candidates / 255.0)
        expected.append(((means - own / 255.0) ** 2).sum())
    np.testing.assert_allclose(mean_errors(scores, candidates, own), expected, rtol=1e-10)


def test_pictures_are_not_converted_where_nothing_reads_them(rng):
    features = rng.normal(size=(12, 6))
    pictures = rng.integers(0, 256, (12, 200, 200, 3), dtype=np.uint8)
    responses = Responses.of(rng.normal(size=(12, 5)), np.arange(12))
    tracemalloc.start()
    calibrate([features @ features.T], responses, pictures.__getitem__, **RING)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pictures.nbytes


def test_with_distractors_no_picture_is_in_memory_as_floats(rng, monkeypatch):
    monkeypatch.setattr(module, "SLICE", 1 << 12)
    features = rng.normal(size=(20, 6))
    pictures = rng.integers(0, 256, (20, 200, 200, 3), dtype=np.uint8)
    responses = Responses.of(rng.normal(size=(12, 5)), np.arange(12))
    tracemalloc.start()
    found = calibrate(
        [features @ features[:12].T], responses, pictures[:12].__getitem__, pictures[12:], **RING
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.mean_temperature in TRIED
    assert peak < pictures.nbytes

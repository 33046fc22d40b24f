import hashlib

import numpy as np
import pytest

from cadiff.data.doctor import scan as scanning
from cadiff.data.doctor.folder import open_folder
from cadiff.data.doctor.scan import odd_weights, scan_betas


@pytest.fixture
def sick(ward):
    betas = ward.betas
    betas[5, 3] = np.nan
    betas[:, 10] = np.inf
    betas[:, 20] = 4.0
    betas[:, 30] = betas[:, 40]
    betas[:, 50] = np.arange(len(betas)) % 2
    betas[9] = 1.5
    betas[12] = betas[13]
    ward.betas = betas
    return ward


def test_finds_what_numpy_finds_in_memory(sick):
    found, betas = scan_betas(open_folder(sick.folder), progress=False), sick.betas
    finite = np.isfinite(betas)
    np.testing.assert_array_equal(found.finite, finite.all(axis=0))
    assert found.num_bad == (~finite).sum()
    clean = finite.all(axis=0)
    np.testing.assert_array_equal(found.low[clean], betas[:, clean].min(axis=0))
    np.testing.assert_array_equal(found.high[clean], betas[:, clean].max(axis=0))
    np.testing.assert_array_equal(found.values, betas[:, found.columns])
    np.testing.assert_array_equal(found.binary, np.isin(betas, (0, 1)).all(axis=0))
    kept = np.ma.masked_invalid(betas.astype(np.float64))
    np.testing.assert_allclose(found.row_moments[:, 0], kept.mean(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.row_moments[:, 1], (kept**2).mean(axis=1), rtol=1e-4)


def test_equal_columns_and_rows_share_hashes_and_no_others_do(sick):
    found, betas = scan_betas(open_folder(sick.folder), progress=False), sick.betas
    for hashes, vectors in ((found.column_hashes, betas.T), (found.row_hashes, betas)):
        bytewise = [hashlib.sha256(np.ascontiguousarray(vector).tobytes()).digest() for vector in vectors]
        same = np.array([[a == b for b in bytewise] for a in bytewise])
        np.testing.assert_array_equal(hashes[:, None] == hashes[None], same)


def test_result_does_not_depend_on_the_size_of_pieces(sick, monkeypatch):
    whole = scan_betas(open_folder(sick.folder), progress=False)
    monkeypatch.setattr(scanning, "CHUNK_VALUES", 7 * 180)
    pieces = scan_betas(open_folder(sick.folder), progress=False)
    for name in ("finite", "binary", "row_hashes", "row_parts", "column_hashes", "values", "row_moments"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name), err_msg=name)
    for name in ("low", "high"):
        np.testing.assert_array_equal(getattr(whole, name)[whole.finite], getattr(pieces, name)[whole.finite])
    assert whole.column_starts.keys() == pieces.column_starts.keys() == {32, 64, 128}


def test_hashes_of_first_trials_are_those_of_a_shorter_dataset(ward, healthy):
    whole = scan_betas(open_folder(healthy), progress=False)
    ward.betas = ward.betas[:64]
    ward.put("trials", ward.table("trials").iloc[:64])
    short = scan_betas(open_folder(ward.folder), progress=False)
    np.testing.assert_array_equal(whole.column_starts[64], short.column_hashes)


def test_weights_begin_alike_whatever_their_number():
    np.testing.assert_array_equal(odd_weights(10), odd_weights(1000)[:10])
    assert (odd_weights(1000) % 2 == 1).all()
    assert len(np.unique(odd_weights(1000))) == 1000


def test_betas_beyond_the_limit_are_sampled_and_that_is_said(healthy, monkeypatch):
    monkeypatch.setattr(scanning, "CHUNK_VALUES", 10 * 180)
    monkeypatch.setattr(scanning, "MAX_VALUES", 60 * 180)
    found = scan_betas(open_folder(healthy), progress=False)
    assert 30 <= len(found.rows) <= 60
    assert found.rows[-1] > 150  # from the whole file
    assert f"{len(found.rows)} of 168 trials" in found.sample


def test_sample_of_voxels_shrinks_with_the_number_of_trials(healthy, monkeypatch):
    monkeypatch.setattr(scanning, "SAMPLE_VALUES", 168 * 40)
    found = scan_betas(open_folder(healthy), progress=False)
    assert found.values.shape == (168, 40)
    assert found.sampled == "40 voxels at random"

"""The noise model is what it says: shares of variance, SNR distribution, dimensions, known ceilings."""

import numpy as np
import pytest

from cadiff.data import simulate_voxels as vox
from cadiff.data.reliability import noise_ceiling


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("mean", "spread", "zeros"), [(0.25, 1.0, 0.2), (1.5, 0.5, 0.1), (0.7, 0.8, 0.0)])
def test_snr_has_the_asked_mean_spread_and_zeros(mean, spread, zeros):
    snr = vox.draw_snr(200_000, mean, spread, zeros, rng())
    assert snr.mean() == pytest.approx(mean, rel=0.02)
    assert snr.std() == pytest.approx(spread * mean, rel=0.03)
    assert (snr == 0).mean() == pytest.approx(zeros, abs=0.01)


def test_noise_has_unit_variance_and_slow_parts_where_asked():
    sessions, runs = np.repeat(np.arange(40), 100), np.tile(np.repeat(np.arange(4), 25), 40)
    fast = vox.structured_noise(sessions, runs, 200, 0.0, 0.5, rng())
    slow = vox.structured_noise(sessions, runs, 200, 0.4, 0.0, rng())
    assert fast.var() == pytest.approx(1, rel=0.02) and slow.var() == pytest.approx(1, rel=0.05)
    run_means = slow.reshape(160, 25, 200).mean(axis=1)
    # 3/4 of the slow 40 % are offsets; the mean of 25 trials keeps 1/25 of the fast 60 %
    assert run_means.var() == pytest.approx(0.3 + 0.6 / 25, rel=0.1)
    neighbours = np.mean([np.corrcoef(fast[:, i], fast[:, i + 1])[0, 1] for i in range(0, 199, 10)])
    distant = np.mean([np.corrcoef(fast[:, i], fast[:, i + 100])[0, 1] for i in range(0, 99, 10)])
    assert neighbours > 0.4 and abs(distant) < 0.05


def test_white_noise_stays_of_unit_variance_when_smoothed():
    assert vox.smooth_columns(rng().standard_normal((2000, 50))).var() == pytest.approx(1, rel=0.05)


def test_shared_dimensions_are_as_many_as_asked_with_the_stated_spectrum():
    signals = rng().standard_normal((300, 80)).astype(np.float32) * np.linspace(5, 0.1, 80, dtype=np.float32)
    reference = np.arange(200)
    shared = vox.share_dimensions(signals, 6, reference, rng(1))
    strength = np.linalg.svd(shared[reference] - shared[reference].mean(axis=0), compute_uv=False)
    assert strength[6] < 1e-3 * strength[0]
    np.testing.assert_allclose(strength[:6], np.arange(1, 7) ** -0.5, rtol=0.01)


def test_more_dimensions_than_pictures_do_not_blow_up():
    signals = rng().standard_normal((5, 30)).astype(np.float32)
    out = vox.standardise(vox.share_dimensions(signals, 50, np.arange(5), rng(1)), np.arange(5))
    assert np.isfinite(out).all() and np.abs(out).max() < 3


def test_the_known_ceiling_is_recovered_and_silent_voxels_have_none():
    pictures, repeats = 300, 8
    signals = vox.standardise(rng(1).standard_normal((pictures, 60)).astype(np.float32), np.arange(pictures))
    snr = np.concatenate([np.zeros(20), np.full(20, 0.3), np.full(20, 1.5)])
    order = np.tile(np.arange(pictures), repeats)
    noise = vox.structured_noise(np.repeat([1, 2], len(order) // 2), order * 0, 60, 0.0, 0.3, rng(2))
    betas = vox.signals_to_betas(
        signals[order], snr, noise, baseline=np.full(60, 2.0), amplitude=np.full(60, 0.5)
    )
    estimate = noise_ceiling(betas, [f"s{i}" for i in order]).reshape(3, 20)
    np.testing.assert_allclose(estimate.mean(axis=1), vox.ceiling_of_snr(np.array([0, 0.3, 1.5])), atol=0.02)
    np.testing.assert_allclose(betas.std(axis=0), 0.5, rtol=0.08)
    np.testing.assert_allclose(betas.mean(axis=0), 2.0, atol=0.08)


def test_rest_lives_in_the_space_of_evoked_responses_and_is_slow():
    basis = rng().standard_normal((4, 50)).astype(np.float32)
    rest = vox.rest_signals(3000, basis, rng(1))
    assert np.linalg.matrix_rank(rest, tol=1e-2) == 4
    assert np.corrcoef(rest[:-1, 0], rest[1:, 0])[0, 1] == pytest.approx(0.8, abs=0.05)
    np.testing.assert_allclose(rest.var(axis=0), (basis**2).mean(axis=0), rtol=0.3)


def test_constant_columns_become_zero():
    values = np.ones((10, 2), np.float32)
    values[:, 1] = np.arange(10)
    out = vox.standardise(values, np.arange(10))
    assert (out[:, 0] == 0).all() and out[:, 1].std() == pytest.approx(1)


def test_unions_of_areas():
    assert vox.roi_names("V1") == "V1,LVC,VC"
    assert vox.roi_names("PPA") == "PPA,HVC,VC"
    assert vox.roi_names("V4") == "V4,VC"
    assert vox.roi_names("VC") == "VC"

"""Trial-wise betas: against nilearn's own models, against planted truth, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cadiff.data import glm
from cadiff.errors import DataError

TR, VOLUMES = 2.0, 80
FRAMES = (np.arange(VOLUMES) + 0.5) * TR
ONSETS = np.array([5.0, 14.0, 21.5, 36.0, 44.0, 61.0, 70.0, 95.0, 104.5, 122.0])
DURATIONS = np.full(len(ONSETS), 2.0)


@pytest.fixture
def confounds(rng):
    return np.cumsum(rng.normal(size=(VOLUMES, 4)), axis=0)


@pytest.fixture
def bold(rng):
    noise = np.cumsum(rng.normal(size=(VOLUMES, 7)), axis=0)
    return (800 + 10 * noise + 5 * rng.normal(size=(VOLUMES, 7))).astype(np.float32)


def nilearn_design(kinds, confounds, hrf):
    """nilearn's own design matrix with one set of columns for each kind of event."""
    from nilearn.glm.first_level import make_first_level_design_matrix

    events = pd.DataFrame({"onset": ONSETS, "duration": DURATIONS, "trial_type": kinds})
    design = make_first_level_design_matrix(
        FRAMES, events, hrf_model=hrf, drift_model="cosine", high_pass=1 / 100.0, add_regs=confounds
    )
    return design.rename(columns=str)


def nilearn_betas(bold, design, column):
    from nilearn.glm import compute_contrast
    from nilearn.glm.first_level import run_glm

    labels, results = run_glm(bold.astype(float), design.to_numpy(), noise_model="ols")
    contrast = (design.columns == column).astype(float)
    found = compute_contrast(labels, results, contrast, stat_type="t")
    return found.effect_size(), found.stat()


@pytest.mark.parametrize("hrf", ["spm", "glover + derivative + dispersion"])
@pytest.mark.parametrize("method", ["lss", "lsa"])
def test_betas_and_t_are_those_of_nilearns_models(method, hrf, bold, confounds):
    trials = glm.trial_regressors(ONSETS, DURATIONS, FRAMES, hrf)
    nuisance = np.concatenate([glm.cosine_drift(VOLUMES, TR, 100.0), confounds], axis=1)
    solution = glm.solve(trials, nuisance, method)
    betas, t = (glm.trial_betas(bold, solution, units) for units in ("raw", "t"))
    every = nilearn_design([f"trial{j:02}" for j in range(len(ONSETS))], confounds, hrf)
    for i in (0, 4, 9):
        design = every
        if method == "lss":  # the columns of all other trials are added up
            others = [c for c in every.columns if c.startswith("trial") and not c.startswith(f"trial{i:02}")]
            endings = {c.removeprefix(c[:7]) for c in others}
            sums = {f"others{e}": sum(every[c] for c in others if c[7:] == e) for e in endings}
            design = every.drop(columns=others).assign(**sums)
        expected_betas, expected_t = nilearn_betas(bold, design, f"trial{i:02}")
        np.testing.assert_allclose(
            betas[i], expected_betas, rtol=1e-5, atol=1e-6 * np.abs(expected_betas).max()
        )
        np.testing.assert_allclose(t[i], expected_t, rtol=1e-5, atol=1e-6 * np.abs(expected_t).max())


@pytest.mark.parametrize("method", ["lss", "lsa"])
def test_weights_agree_with_nilearn_to_rounding(method, confounds):
    """Float32 storage hides the last digits of betas; the operator itself is exact."""
    trials = glm.trial_regressors(ONSETS, DURATIONS, FRAMES)
    solution = glm.solve(trials, np.concatenate([glm.cosine_drift(VOLUMES, TR, 100.0), confounds], 1), method)
    for i in (0, 4, 9):
        kinds = [f"trial{j:02}" if method == "lsa" or j == i else "others" for j in range(len(ONSETS))]
        design = nilearn_design(kinds, confounds, "spm")
        expected = np.linalg.pinv(design.to_numpy())[list(design.columns).index(f"trial{i:02}")]
        np.testing.assert_allclose(solution.weights[i], expected, atol=1e-9 * np.abs(expected).max())


def test_the_drift_spans_what_nilearns_does():
    from nilearn.glm.first_level import make_first_level_design_matrix

    for seconds in (40.0, 128.0, 1000.0):
        ours = glm.cosine_drift(VOLUMES, TR, seconds)
        theirs = make_first_level_design_matrix(
            FRAMES, drift_model="cosine", high_pass=1 / seconds
        ).to_numpy()
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours @ np.linalg.lstsq(ours, theirs, rcond=None)[0], theirs, atol=1e-9)
    assert np.array_equal(glm.cosine_drift(VOLUMES, TR, None), np.ones((VOLUMES, 1)))


def test_without_noise_lsa_gives_the_planted_amplitudes(rng, confounds):
    trials = glm.trial_regressors(ONSETS, DURATIONS, FRAMES)
    nuisance = np.concatenate([glm.cosine_drift(VOLUMES, TR, 128.0), confounds], axis=1)
    planted = rng.normal(size=(len(ONSETS), 5))
    percent = trials[:, :, 0] @ planted
    bold = 1000 * (1 + (percent - percent.mean(axis=0)) / 100)
    betas = glm.trial_betas(bold, glm.solve(trials, nuisance, "lsa"))
    np.testing.assert_allclose(betas, planted, atol=1e-4)


def test_without_noise_lss_gives_equal_amplitudes_and_nearly_those_of_distant_trials(rng):
    onsets = 10.0 + 30.0 * np.arange(5)
    trials = glm.trial_regressors(onsets, np.full(5, 2.0), FRAMES)
    solution = glm.solve(trials, np.ones((VOLUMES, 1)), "lss")
    assert np.allclose(
        glm.trial_betas(500 + trials[:, :, 0] @ np.full((5, 1), 3.0), solution, "raw"), 3.0, atol=1e-3
    )
    planted = rng.normal(1, 1, size=(5, 50))
    betas = glm.trial_betas(500 + trials[:, :, 0] @ planted, solution, "raw")
    assert np.corrcoef(betas.ravel(), planted.ravel())[0, 1] > 0.98


def test_lss_is_steadier_than_lsa_where_responses_overlap():
    onsets = 6.0 + 3.0 * np.arange(40)
    trials = glm.trial_regressors(onsets, np.full(40, 1.0), FRAMES)
    spread = {
        m: (glm.solve(trials, glm.cosine_drift(VOLUMES, TR, None), m).weights ** 2).sum(axis=1)
        for m in ("lss", "lsa")
    }
    assert np.median(spread["lss"]) < 0.5 * np.median(spread["lsa"])


def test_estimates_are_unbiased_and_t_has_unit_spread_under_noise(rng):
    trials = glm.trial_regressors(ONSETS, DURATIONS, FRAMES)
    solution = glm.solve(trials, glm.cosine_drift(VOLUMES, TR, 128.0), "lsa")
    noise = rng.normal(size=(VOLUMES, 4000))
    t = glm.trial_betas(100 + noise, solution, "t")
    assert abs(t.mean()) < 0.02 and abs(t.std() - 1) < 0.03
    planted = glm.trial_betas(100 + noise + trials[:, :, 0] @ np.full((len(ONSETS), 1), 5.0), solution, "raw")
    assert np.allclose(planted.mean(axis=1), 5.0, atol=0.2)


def test_a_long_trial_reaches_the_plateau_of_one():
    block = glm.trial_regressors(np.array([10.0]), np.array([60.0]), FRAMES)[:, 0, 0]
    assert block[20:34] == pytest.approx(np.ones(14), abs=0.02)


def test_trials_out_of_reach_have_no_response_and_cut_ones_part_of_it():
    onsets = np.array([-100.0, 20.0, 158.0, 500.0])
    durations = np.full(4, 2.0)
    trials = glm.trial_regressors(onsets, durations, FRAMES)
    assert not trials[:, [0, 3]].any()
    share = glm.share_of_response(trials, durations, FRAMES)
    assert share[1] > 0.9 and share[2] < 0.1 and not share[[0, 3]].any()


def test_confounds_of_any_scale_and_redundant_ones_change_nothing(bold, confounds):
    trials = glm.trial_regressors(ONSETS, DURATIONS, FRAMES)
    drift = glm.cosine_drift(VOLUMES, TR, 128.0)
    first = glm.solve(trials, np.concatenate([drift, confounds], 1))
    scaled = confounds * [1e-9, 1.0, 1e9, 1.0]
    second = glm.solve(trials, np.concatenate([drift, scaled, confounds[:, :2], np.zeros((VOLUMES, 1))], 1))
    assert first.degrees_of_freedom == second.degrees_of_freedom
    np.testing.assert_allclose(glm.trial_betas(bold, first), glm.trial_betas(bold, second), rtol=1e-4)


def test_pieces_of_voxels_are_the_whole(bold, confounds, monkeypatch):
    solution = glm.solve(glm.trial_regressors(ONSETS, DURATIONS, FRAMES), np.ones((VOLUMES, 1)))
    whole = [glm.trial_betas(bold, solution, units) for units in ("percent signal change", "raw", "t")]
    monkeypatch.setattr(glm, "CHUNK_VOXELS", 2)
    parts = [glm.trial_betas(bold, solution, units) for units in ("percent signal change", "raw", "t")]
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(whole[0], 100 * whole[1] / bold.mean(axis=0), rtol=1e-5)


def test_voxels_that_are_constant_or_not_finite_or_below_zero_are_nan(bold):
    bold = np.concatenate([bold, bold[:, :4]], axis=1)
    bold[3, 0], bold[5, 1], bold[:, 2], bold[:, 3] = np.nan, np.inf, 7.0, -bold[:, 3]
    solution = glm.solve(glm.trial_regressors(ONSETS, DURATIONS, FRAMES), np.ones((VOLUMES, 1)))
    percent, raw = (np.isnan(glm.trial_betas(bold, solution, u)) for u in ("percent signal change", "raw"))
    assert (percent.all(axis=0) == ([True] * 4 + [False] * 7)).all() and (
        percent.any(axis=0) == percent.all(axis=0)
    ).all()
    assert (raw.all(axis=0) == ([True] * 3 + [False] * 8)).all()


def test_percent_signal_change_of_a_demeaned_series_is_refused(bold):
    solution = glm.solve(glm.trial_regressors(ONSETS, DURATIONS, FRAMES), np.ones((VOLUMES, 1)))
    with pytest.raises(DataError, match=r"as if it had been taken away.*units="):
        glm.trial_betas(bold - bold.mean(axis=0), solution)
    assert np.isfinite(glm.trial_betas(bold - bold.mean(axis=0), solution, "t")).all()


def test_another_number_of_volumes_is_refused(bold):
    solution = glm.solve(glm.trial_regressors(ONSETS, DURATIONS, FRAMES), np.ones((VOLUMES, 1)))
    with pytest.raises(DataError, match="79 volumes, the model 80"):
        glm.trial_betas(bold[1:], solution)


def test_designs_that_cannot_be_solved_are_refused(rng, confounds):
    trials = glm.trial_regressors(ONSETS, DURATIONS, FRAMES)
    twice = np.concatenate([trials, trials[:, 3:4]], axis=1)
    with pytest.raises(DataError, match=r"most alike are trials 4 and 11 \(correlation 1.000\): use glm=lss"):
        glm.solve(twice, np.ones((VOLUMES, 1)), "lsa")
    with pytest.raises(DataError, match=r"80 volumes are too few for 10 trial regressors.*or glm=lss"):
        glm.solve(trials, rng.normal(size=(VOLUMES, 70)), "lsa")
    assert glm.solve(trials, rng.normal(size=(VOLUMES, 70)), "lss").degrees_of_freedom == 8
    with pytest.raises(DataError, match="response to trial 3 cannot be told from the confounds"):
        glm.solve(trials, np.concatenate([confounds, trials[:, 2]], axis=1))
    with pytest.raises(DataError, match="most alike are trials 1 and 2"):
        glm.solve(twice[:, [3, 10]], np.ones((VOLUMES, 1)), "lss")


def test_a_run_of_one_trial_is_a_model_of_one_regressor(bold):
    trials = glm.trial_regressors(ONSETS[:1], DURATIONS[:1], FRAMES)
    lss, lsa = (glm.solve(trials, np.ones((VOLUMES, 1)), method) for method in ("lss", "lsa"))
    np.testing.assert_allclose(glm.trial_betas(bold, lss), glm.trial_betas(bold, lsa), rtol=1e-6)


def test_other_events_are_modelled_together(bold):
    events = [(ONSETS[:3], DURATIONS[:3]), (ONSETS[3:], DURATIONS[3:])]
    columns = glm.condition_regressors(events, FRAMES, "spm + derivative")
    assert columns.shape == (VOLUMES, 4)
    each = glm.trial_regressors(ONSETS, DURATIONS, FRAMES, "spm + derivative")
    np.testing.assert_allclose(columns[:, :2], each[:, :3].sum(axis=1))
    assert glm.condition_regressors([], FRAMES).shape == (VOLUMES, 0)


def test_without_nilearn_the_extra_is_named(monkeypatch):
    import sys

    from cadiff.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "nilearn.glm.first_level", None)
    with pytest.raises(MissingExtraError, match=r'pip install "cadiff\[neuro\]"'):
        glm.trial_regressors(ONSETS, DURATIONS, FRAMES)

import numpy as np
import pytest

from cadiff.data.doctor import drift
from cadiff.data.doctor.folder import open_folder
from cadiff.data.doctor.scan import scan_betas


def judge(ward):
    folder = open_folder(ward.folder)
    return drift.check_drift(folder, scan_betas(folder, progress=False))


def test_shares_of_variance_are_those_that_went_in(rng):
    blocks = list(np.arange(1200).reshape(30, 40))
    level = np.repeat(rng.normal(size=(30, 50)), 40, axis=0)
    assert drift.levels_share(level + rng.normal(size=(1200, 50)), blocks) == pytest.approx(0.5, abs=0.06)
    assert drift.levels_share(rng.normal(size=(1200, 50)), blocks) == pytest.approx(0.0, abs=0.01)
    line = np.linspace(-1, 1, 40) / np.linspace(-1, 1, 40).std()
    trend = np.tile(line, 30)[:, None] * rng.choice([-1, 1], (1, 50))
    assert drift.trend_share(trend + rng.normal(size=(1200, 50)), blocks) == pytest.approx(0.5, abs=0.03)
    assert drift.trend_share(rng.normal(size=(1200, 50)), blocks) == pytest.approx(0.0, abs=0.01)


def test_large_levels_of_runs_are_a_warning(ward, rng):
    assert judge(ward).verdict == "ok"
    trials = ward.table("trials")
    run = trials.groupby(["session", "run"]).ngroup().to_numpy()
    ward.betas = ward.betas + 2.0 * rng.normal(size=(run.max() + 1, 180))[run]
    assert judge(ward).verdict == "warning"


def test_session_of_another_scale_is_named(ward):
    session = ward.table("trials")["session"].to_numpy()
    betas = ward.betas
    betas[session == 2] *= 10
    ward.betas = betas
    found = judge(ward)
    assert found.verdict == "warning" and "session 2" in found.found
    assert list(found.details["odd_sessions"]) == ["2"]

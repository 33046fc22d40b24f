"""Preparation: statistics of training trials only, per group, and the released code's mistakes only by name."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cadiff.data.dataset import BrainDataset
from cadiff.data.prepare import PrepareConfig, _Scaling, prepare
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.data.writer import dataset_writer
from cadiff.errors import DataError

NUM_VOXELS = 21


@pytest.fixture
def data(tmp_path, rng):
    """2 sessions x 2 runs with training trials and a third session with test trials only; every stimulus twice."""
    rows = [(f"a{i % 12}", "train", 1 + i // 12, 1 + (i % 12) // 6) for i in range(24)]
    rows += [(f"b{i % 4}", "test", 3, 1) for i in range(8)]
    trials = pd.DataFrame(rows, columns=["stimulus_id", "split", "session", "run"])
    trials["repeat"] = trials.groupby("stimulus_id").cumcount() + 1
    signal = {name: rng.normal(size=NUM_VOXELS) for name in sorted(set(trials["stimulus_id"]))}
    noise = np.linspace(0.1, 5, NUM_VOXELS)
    betas = np.stack([signal[s] for s in trials["stimulus_id"]]) + noise * rng.normal(size=(32, NUM_VOXELS))
    betas = (
        betas * np.array([1, 3, 1])[trials["session"] - 1][:, None]
        + 10.0 * trials["session"].to_numpy()[:, None]
    )
    voxels = pd.DataFrame({"rois": ["V1,VC" if i % 3 else "FFA" for i in range(NUM_VOXELS)]})
    with dataset_writer(
        tmp_path / "in", name="n", subject="s", voxels=voxels, description={"units": "psc"}
    ) as writer:
        for name in signal:
            writer.add_stimulus(name, rng.integers(0, 256, (4, 4, 3)).astype(np.uint8), label=name[0])
        writer.add_trials(betas, trials)
    return BrainDataset.open(tmp_path / "in")


def run(data, **settings):
    out = data.folder.parent / "out"
    return BrainDataset.open(prepare(data, out, PrepareConfig(**settings)), verify=True)


def test_nothing_asked_nothing_changed(data):
    made = run(data)
    np.testing.assert_array_equal(made.betas, data.betas)
    pd.testing.assert_frame_equal(made.trials, data.trials)
    pd.testing.assert_frame_equal(made.stimuli, data.stimuli)


def test_rois_keep_their_voxels(data):
    made = run(data, rois=["V1"])
    np.testing.assert_array_equal(made.betas, np.asarray(data.betas)[:, np.arange(NUM_VOXELS) % 3 > 0])
    assert set(made.voxels["rois"]) == {"V1,VC"}


def test_a_share_of_the_training_stimuli_with_all_their_trials(data, tmp_path):
    def stimuli(fraction, seed=0):
        out = tmp_path / f"{fraction}-{seed}"
        made = BrainDataset.open(
            prepare(data, out, PrepareConfig(train_fraction=fraction, seed=seed)), verify=True
        )
        names = set(made.stimulus_ids("train"))
        keep = data.trials["stimulus_id"].isin(names) | (data.trials["split"] == "test")
        np.testing.assert_array_equal(made.betas, np.asarray(data.betas)[keep])
        assert set(made.stimuli.index) == names | set(data.stimulus_ids("test"))
        assert f"{2 * len(names)} of 24 training trials" in made.description["prepared"][-1]["changes"][0]
        return names

    quarter, half, whole = (stimuli(fraction) for fraction in (0.25, 0.5, 1.0))
    assert (len(quarter), len(half), len(whole)) == (3, 6, 12) and quarter < half < whole
    assert len({frozenset(stimuli(0.5, seed)) for seed in range(1, 5)}) > 1
    assert len(stimuli(0.001)) == 1


@pytest.mark.parametrize("within", ["all", "run"])
def test_what_is_left_out_takes_no_part_in_a_fit(data, tmp_path, within):
    """Preparing a share at once is preparing a dataset that never had the rest."""
    options = {"normalise": "voxel", "within": within}
    at_once = run(data, train_fraction=0.5, **options)
    fewer = BrainDataset.open(prepare(data, tmp_path / "fewer", PrepareConfig(train_fraction=0.5)))
    later = BrainDataset.open(prepare(fewer, tmp_path / "later", PrepareConfig(**options)))
    np.testing.assert_array_equal(at_once.betas, later.betas)
    assert at_once.description["prepared"][-1]["changes"][1:] == later.description["prepared"][-1]["changes"]


@pytest.mark.parametrize("within", ["all", "session", "run"])
@pytest.mark.parametrize("normalise", ["voxel", "scalar"])
def test_training_trials_of_each_group_end_with_mean_0_and_std_1(data, within, normalise):
    made = run(data, normalise=normalise, within=within)
    train = made.trials["split"] == "train"
    keys = {"all": [], "session": ["session"], "run": ["session", "run"]}[within]
    groups = [g.index for _, g in made.trials[train].groupby(keys)] if keys else [made.trials[train].index]
    for rows in groups:
        values = np.asarray(made.betas, dtype=np.float64)[rows]
        axis = 0 if normalise == "voxel" else None
        np.testing.assert_allclose(values.mean(axis=axis), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(axis=axis), 1, atol=1e-5)
    assert made.description["units"] == "z"


def test_a_session_without_training_trials_takes_all_training_trials_or_its_own_when_asked(data):
    betas = np.asarray(data.betas, dtype=np.float64)
    made = run(data, normalise="voxel", within="session")
    np.testing.assert_allclose(
        made.betas[24:], (betas[24:] - betas[:24].mean(axis=0)) / betas[:24].std(axis=0), rtol=1e-4, atol=1e-5
    )
    assert "1 sessions without training trials took the statistics of all training" in str(
        made.description["prepared"]
    )
    (made.folder).rename(made.folder.parent / "first")
    own = run(data, normalise="voxel", within="session", without_training="own")
    np.testing.assert_allclose(np.asarray(own.betas[24:]).mean(axis=0), 0, atol=1e-5)


def test_test_trials_never_move_the_statistics(data, tmp_path):
    changed = np.array(data.betas)
    changed[24:] += 100
    with dataset_writer(tmp_path / "moved", name="n", subject="s", voxels=data.voxels) as writer:
        for name in data.stimuli.index:
            writer.add_stimulus(name, data.image(name))
        writer.add_trials(changed, data.trials)
    for i, normalise in enumerate(("voxel", "scalar", "official_god")):
        config = PrepareConfig(normalise=normalise, within="run")
        first = BrainDataset.open(prepare(data, tmp_path / f"a{i}", config))
        second = BrainDataset.open(prepare(BrainDataset.open(tmp_path / "moved"), tmp_path / f"b{i}", config))
        np.testing.assert_array_equal(first.betas[:24], second.betas[:24])


def test_the_official_mistakes_are_reproduced(data):
    betas = np.asarray(data.betas, dtype=np.float64)
    god = run(data, normalise="official_god")
    padded = betas[:24][:, np.arange(32) % NUM_VOXELS]  # 21 voxels wrapped to two patches of 16
    np.testing.assert_allclose(
        god.betas[:24], (betas[:24] - padded.mean()) / padded.std(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(god.betas[24:], data.betas[24:])
    god.folder.rename(god.folder.parent / "god")
    bold = run(data, normalise="official_bold5000")
    padded = betas[:, np.arange(32) % NUM_VOXELS]
    np.testing.assert_allclose(bold.betas, (betas - padded.mean()) / padded.std(), rtol=1e-4, atol=1e-5)
    assert "mistake" in str(BrainDataset.open(god.folder.parent / "god").description["prepared"])


def test_reliable_voxels_are_chosen_on_training_trials(data):
    made = run(data, normalise="voxel", within="session", num_voxels=5, noise_ceiling="train")
    assert len(made.voxels) == 5
    kept = [
        int(np.flatnonzero((scaled(data) == column).all(axis=0))[0])
        for column in np.asarray(made.betas).T[:, :, None]
    ]
    assert np.mean(kept) < NUM_VOXELS / 2  # noise grows with the voxel's number
    assert made.voxels["noise_ceiling"].between(0, 1).all()


def scaled(data):
    other = data.folder.parent / "scaled"
    if not other.exists():
        prepare(data, other, PrepareConfig(normalise="voxel", within="session"))
    return np.asarray(BrainDataset.open(other).betas)


def test_selection_without_repeated_training_trials_is_refused(data, tmp_path):
    once = data.trials.drop_duplicates("stimulus_id")
    with dataset_writer(tmp_path / "once", name="n", subject="s", voxels=data.voxels) as writer:
        for name in data.stimuli.index:
            writer.add_stimulus(name, data.image(name))
        writer.add_trials(np.asarray(data.betas)[once.index], once)
    with pytest.raises(DataError, match="repeats no stimulus in its training trials"):
        prepare(BrainDataset.open(tmp_path / "once"), tmp_path / "out", PrepareConfig(num_voxels=3))
    with pytest.raises(DataError, match=r"No voxel .* reaches a split-half reliability of 1"):
        prepare(data, tmp_path / "out", PrepareConfig(min_reliability=1.0))
    assert not (tmp_path / "out").exists()


STAGE_SETTINGS: dict[str, dict[str, Any]] = {
    "voxel": {"normalise": "voxel"},
    "scalar": {"normalise": "scalar"},
    "official_god": {"normalise": "scalar", "length_policy": "official", "test_normalisation": "raw"},
    "official_bold5000": {"normalise": "scalar", "length_policy": "official", "test_normalisation": "pooled"},
}


@pytest.mark.parametrize("rois", [None, ["V1"], ["FFA"]])
@pytest.mark.parametrize("normalise", STAGE_SETTINGS)
def test_the_values_are_those_that_a_stage_would_make(data, normalise, rois):
    """Statistics come from the voxels kept alone, however far the others lie from them."""
    betas = np.array(data.betas, dtype=np.float64)
    betas[:, ::3] = 50 * betas[:, ::3] + 300  # FFA
    np.save(data.folder / "betas.npy", betas.astype(np.float32))
    data = BrainDataset.open(data.folder)
    made = run(data, normalise=normalise, rois=rois)
    fitted_on = data.betas if normalise == "official_bold5000" else data.betas[:24]
    stage = Preprocessor.fit(
        fitted_on, PreprocessConfig(rois=rois, **STAGE_SETTINGS[normalise]), voxels=data.voxels
    )
    expected = np.concatenate([stage(data.betas[:24]), stage(data.betas[24:], split="test")])
    np.testing.assert_allclose(made.betas, expected[:, : len(made.voxels)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("within", ["all", "run"])
@pytest.mark.parametrize("normalise", STAGE_SETTINGS)
def test_preparing_at_once_is_choosing_voxels_first(data, tmp_path, normalise, within):
    options = {"normalise": normalise, "within": within}
    at_once = run(data, rois=["V1"], **options)
    chosen = BrainDataset.open(prepare(data, tmp_path / "chosen", PrepareConfig(rois=["V1"])))
    later = BrainDataset.open(prepare(chosen, tmp_path / "later", PrepareConfig(**options)))
    np.testing.assert_allclose(at_once.betas, later.betas, rtol=1e-6, atol=1e-6)
    assert at_once.description["prepared"][-1]["changes"][1:] == later.description["prepared"][-1]["changes"]


@pytest.mark.parametrize("normalise", ["scalar", "official_god"])
def test_voxels_dropped_as_unreliable_take_no_part_in_the_statistics(data, tmp_path, normalise):
    """One mean and std for all voxels leaves each voxel's reliability as it is, so both orders keep the same voxels."""
    at_once = run(data, num_voxels=5, normalise=normalise)
    chosen = BrainDataset.open(prepare(data, tmp_path / "chosen", PrepareConfig(num_voxels=5)))
    later = BrainDataset.open(prepare(chosen, tmp_path / "later", PrepareConfig(normalise=normalise)))
    np.testing.assert_allclose(at_once.betas, later.betas, rtol=1e-5, atol=1e-5)


def test_only_the_columns_asked_for_are_scaled(data):
    """What is laid beside every trial are the statistics of these columns, not of all voxels."""
    num_trials, num_voxels, num_columns = 400, 20_000, 100
    statistics = np.ones((1, num_voxels))
    group = np.zeros(num_trials, dtype=int)
    scaling = _Scaling(np.arange(num_voxels), group, statistics, statistics, "voxel")
    betas = np.zeros((num_trials, num_voxels), dtype=np.float32)
    scaling(betas, np.arange(1), np.arange(1))
    tracemalloc.start()
    scaled = scaling(betas, np.arange(num_trials), np.arange(num_columns))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * scaled.nbytes < num_trials * num_voxels
    assert (scaled == -1).all()

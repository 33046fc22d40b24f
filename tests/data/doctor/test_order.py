import numpy as np
import pytest

from cadiff.data.doctor import material
from cadiff.data.doctor.folder import open_folder
from cadiff.data.doctor.order import check_order
from cadiff.data.doctor.repeats import examine_repeats
from cadiff.data.doctor.scan import scan_betas

pytestmark = pytest.mark.usefixtures("no_network")


def ask(ward, seed=0):
    """The findings of order by key."""
    folder = open_folder(ward.folder)
    scan = scan_betas(folder, progress=False)
    names = set(folder.stimuli.index[folder.stimuli["file"].notna()])
    found = check_order(folder, scan, examine_repeats(folder, scan), names, seed=seed, progress=False)
    return {finding.key: finding for finding in found}


def relist(ward, new_ids):
    ward.put("trials", ward.table("trials").assign(stimulus_id=new_ids))


@pytest.mark.parametrize("lag", [-3, -1, 2])
def test_shift_of_all_runs_is_measured(ward, lag):
    trials = ward.table("trials")
    train = trials["split"] == "train"
    moved = trials.groupby(["session", "run"])["stimulus_id"].transform(lambda ids: np.roll(ids, lag))
    relist(ward, trials["stimulus_id"].where(~train, moved))
    found = ask(ward)["order"]
    assert (found.verdict, found.details["shift"]) == ("wrong", lag)


def test_shift_of_one_run_names_the_run(ward):
    trials = ward.table("trials")
    run = (trials["session"] == 2) & (trials["run"] == 1)
    ids = trials["stimulus_id"].to_numpy(dtype=object, copy=True)
    ids[run] = np.roll(ids[run], -1)
    relist(ward, ids)
    found = ask(ward)
    assert found["order"].verdict == "ok"
    assert found["run-order"].verdict == "wrong"
    assert found["run-order"].details["shifted"] == {"2.1": -1}


def test_pictures_of_test_stimuli_that_changed_names_are_found(ward):
    trials = ward.table("trials")
    names = sorted(set(trials.loc[trials["split"] == "test", "stimulus_id"]))
    renamed = dict(zip(names, np.roll(names, 1), strict=True))
    relist(ward, trials["stimulus_id"].map(lambda name: renamed.get(name, name)))  # repeats still agree
    found = ask(ward)
    assert found["order"].verdict == "ok"
    assert found["test-order"].verdict == "wrong"


def test_noise_is_not_blamed_on_the_order(ward, rng):
    ward.betas = rng.normal(size=ward.betas.shape)
    assert {finding.verdict for finding in ask(ward).values()} <= {"note", "not applicable"}


def test_without_repeats_a_wrong_order_is_a_warning(ward):
    trials = ward.table("trials")
    trials = trials[trials["split"] == "train"]
    betas = ward.betas[: len(trials)]
    ward.betas = betas[np.random.default_rng(0).permutation(len(betas))]
    ward.put("trials", trials)
    assert ask(ward)["order"].verdict == "warning"


def test_classes_are_asked_where_there_are_no_pictures(ward, rng):
    centres = rng.normal(size=(24, 180))
    stimuli = ward.table("stimuli")
    trials = ward.table("trials")
    classes = {label: i for i, label in enumerate(dict.fromkeys(stimuli["label"]))}
    label_of = stimuli.set_index("stimulus_id")["label"]
    row = np.array([classes[label_of[name]] % 24 for name in trials["stimulus_id"]])
    ward.betas = centres[row] + 3.0 * rng.normal(size=(len(trials), 180))
    ward.put("stimuli", stimuli.assign(file=None, sha256=None))
    assert ask(ward)["order"].verdict == "ok"
    moved = trials.groupby(["session", "run"])["stimulus_id"].transform(lambda ids: np.roll(ids, 2))
    relist(ward, moved)
    assert ask(ward)["order"].details["shift"] == 2
    train = (trials["split"] == "train").to_numpy()
    ids = trials["stimulus_id"].to_numpy(dtype=object, copy=True)
    ids[train] = rng.permutation(ids[train])
    relist(ward, ids)
    assert ask(ward)["order"].verdict == "warning"


def test_moved_list_stays_inside_runs(healthy):
    folder = open_folder(healthy)
    rows = folder.rows("train", "test")
    ids = folder.trials["stimulus_id"].to_numpy()
    place = folder.trials[["session", "run"]].to_numpy()
    for lag in (-2, 0, 1):
        positions, names = material.moved(folder, rows, lag)
        there = rows[positions] + lag
        np.testing.assert_array_equal(names, ids[there])
        np.testing.assert_array_equal(place[rows[positions]], place[there])
        runs = len(np.unique(place, axis=0))
        assert len(positions) == len(rows) - abs(lag) * runs


def test_large_splits_are_judged_by_whole_runs(healthy, monkeypatch):
    monkeypatch.setattr(material, "MAX_TRIALS", 40)
    folder = open_folder(healthy)
    scan = scan_betas(folder, progress=False)
    found = material.gather(folder, scan, examine_repeats(folder, scan), "train", np.random.default_rng(0))
    assert found is not None and len(found.rows) == 48  # three runs of 16
    assert "48 of 96 trials" in found.sample
    whole = {tuple(run) for run in folder.trials[["session", "run"]].to_numpy()[found.rows]}
    assert len(whole) == 3


def test_blocked_designs_are_not_blamed(ward, rng):
    """Every run shows one class; what tells classes apart lies between runs."""
    trials = ward.table("trials")
    train = np.flatnonzero(trials["split"] == "train")
    label_of = ward.table("stimuli").set_index("stimulus_id")["label"]
    ids = trials["stimulus_id"].to_numpy(dtype=object, copy=True)
    betas = ward.betas
    order = np.argsort(label_of[ids[train]].to_numpy(), kind="stable")
    ids[train], betas[train] = ids[train][order], betas[train][order]
    classes = label_of[ids[train]].to_numpy()
    run = np.unique(classes, return_inverse=True)[1] + 1
    trials.loc[train, "run"], trials.loc[train, "session"] = run, 1
    betas[train] += 0.7 * rng.normal(size=(run.max() + 1, 180))[run]
    ward.betas = betas
    relist(ward, ids)
    ward.put("trials", trials.assign(stimulus_id=ids))
    assert ask(ward)["order"].verdict in ("ok", "note")

"""Every planted fault is found by its check, and by no other; a healthy dataset raises no alarm."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cadiff.artifacts import folder_checksums
from cadiff.data.dataset import BrainDataset
from cadiff.data.doctor import doctor, examine
from cadiff.errors import DataError

ALARMS = ("warning", "wrong")
pytestmark = pytest.mark.usefixtures("no_network")


def test_healthy_dataset_raises_no_alarm_and_is_left_as_it_was(healthy):
    before = folder_checksums(healthy)
    diagnosis = examine(healthy)
    assert diagnosis.keys(*ALARMS) == []
    assert diagnosis.exit_code == 0
    assert folder_checksums(healthy) == before
    asked = {"order", "run-order", "test-order", "reliability", "normalisation", "leaks"}
    assert asked <= set(diagnosis.keys("ok"))


def missing_picture(ward):
    sorted((ward.folder / "stimuli").iterdir())[3].unlink()


def nan_voxel(ward):
    betas = ward.betas
    betas[:, 7] = np.nan
    ward.betas = betas


def constant_voxel(ward):
    betas = ward.betas
    betas[:, 11] = 2.5
    ward.betas = betas


def copied_voxel(ward):
    betas = ward.betas
    betas[:, 20] = betas[:, 100]
    ward.betas = betas


def copied_session(ward):
    ward.append(np.flatnonzero(ward.table("trials")["session"] == 2), session=90)


def zscored_with_test(ward):
    betas = ward.betas.astype(np.float64)
    ward.betas = (betas - betas.mean(axis=0)) / betas.std(axis=0)
    ward.describe(units="z-scored")


def shuffled_order(ward):
    trials = ward.table("trials")
    rows = np.flatnonzero(trials["split"] == "train")
    ids = trials["stimulus_id"].to_numpy(dtype=object, copy=True)
    ids[rows] = np.random.default_rng(1).permutation(ids[rows])
    ward.put("trials", trials.assign(stimulus_id=ids))


def shifted_order(ward):
    trials = ward.table("trials")
    listed = trials.groupby(["session", "run"])["stimulus_id"].transform(lambda ids: np.roll(ids, 1))
    ward.put("trials", trials.assign(stimulus_id=listed))


def near_duplicate(ward):
    stimuli = ward.table("stimuli").set_index("stimulus_id", drop=False)
    trials = ward.table("trials")
    train, test = (trials.loc[trials["split"] == split, "stimulus_id"].iloc[4] for split in ("train", "test"))
    pictures = ward.folder / "stimuli"
    picture = Image.open(pictures / stimuli.at[test, "file"])
    (pictures / stimuli.at[train, "file"]).unlink()
    picture.resize((90, 90)).save(pictures / f"{train}.jpg", quality=50)
    stimuli.loc[train, "file"] = f"{train}.jpg"
    stimuli.loc[train, "sha256"] = hashlib.sha256((pictures / f"{train}.jpg").read_bytes()).hexdigest()
    ward.put("stimuli", stimuli)


def mask_for_betas(ward):
    betas = ward.betas
    ward.betas = betas > np.quantile(betas, 0.8)


def truncated_betas(ward):
    path = ward.folder / "betas.npy"
    path.write_bytes(path.read_bytes()[:-1000])


FAULTS: dict[Callable[..., None], list[str]] = {
    missing_picture: ["pictures"],
    nan_voxel: ["finite"],
    constant_voxel: ["constant"],
    copied_voxel: ["duplicate-voxels"],
    copied_session: ["duplicate-trials"],
    zscored_with_test: ["normalisation"],
    shuffled_order: ["order"],
    shifted_order: ["order"],
    near_duplicate: ["leaks"],
    mask_for_betas: ["values"],
    truncated_betas: ["tables", "checksums"],
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_fault_is_found_and_nothing_else_is(ward, plant):
    plant(ward)
    diagnosis = examine(ward.folder)
    assert sorted(diagnosis.keys(*ALARMS)) == sorted(FAULTS[plant])
    for key in FAULTS[plant]:
        assert diagnosis.finding(key).do  # whoever reads it is told what to do


def test_copied_subject_is_found_also_when_it_was_changed_a_little(ward, healthy, admit):
    assert examine(ward.folder, others=[healthy]).keys(*ALARMS) == ["subjects"]
    other = admit(healthy)
    constant_voxel(other)
    copied_session(other)
    found = examine(ward.folder, others=[other.folder]).finding("subjects")
    assert found.verdict == "wrong"
    assert found.details["shared_trials"] == len(BrainDataset.open(healthy).trials)


def test_all_faults_at_once_are_all_found(ward, healthy, tmp_path):
    together = [plant for plant in FAULTS if plant not in (mask_for_betas, shifted_order)]
    together.sort(
        key=lambda plant: plant is not zscored_with_test
    )  # first, before voxels are spoilt; betas are cut off last
    assert len(together) == 9
    for plant in together:
        plant(ward)
    diagnosis = examine(ward.folder, others=[healthy])
    wanted = {"subjects"}.union(*(FAULTS[plant] for plant in together))
    assert wanted <= set(diagnosis.keys(*ALARMS))
    assert diagnosis.exit_code == 1
    assert diagnosis.worst_first()[0].verdict == "wrong"


def test_shift_says_which_way(ward):
    shifted_order(ward)  # every list starts with what was shown last: betas fit what is listed one later
    found = examine(ward.folder).finding("order")
    assert found.details["shift"] == 1
    assert "1 trial later" in found.found


def test_what_open_refuses_is_examined_all_the_same(ward):
    truncated_betas(ward)
    with pytest.raises(DataError):
        BrainDataset.open(ward.folder)
    diagnosis = examine(ward.folder)
    complete = len(ward.table("trials")) - 2  # 1000 bytes are less than two trials of 180 voxels
    assert diagnosis.about["trials"] == complete
    assert diagnosis.finding("order").verdict == "ok"


def test_result_depends_on_seed_and_data_alone(healthy):
    first, again = examine(healthy, seed=3).as_json(), examine(healthy, seed=3).as_json()
    assert first | {"seconds": 0} == again | {"seconds": 0}


def test_dataset_is_not_compared_with_itself(healthy):
    with pytest.raises(DataError, match="is the dataset itself"):
        examine(healthy, others=[healthy])


def test_doctor_writes_what_was_asked_for(ward, tmp_path):
    missing_picture(ward)
    page, facts = tmp_path / "page.html", tmp_path / "facts.json"
    assert doctor(ward.folder, html=page, json=facts).exit_code == 1
    assert page.is_file() and facts.is_file()
    doctor(ward.folder, html=page, json=facts)  # its own older results are replaced


@pytest.mark.slow
def test_network_features_do_not_excuse_a_shuffled_order(ward, monkeypatch):
    monkeypatch.undo()
    shuffled_order(ward)
    assert Path(ward.folder).is_dir()
    assert examine(ward.folder).finding("order").verdict == "wrong"

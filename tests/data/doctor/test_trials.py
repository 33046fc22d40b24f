import numpy as np
import pytest

from cadiff.data.doctor import subjects, trials
from cadiff.data.doctor.folder import open_folder
from cadiff.data.doctor.scan import scan_betas


def copies(ward):
    folder = open_folder(ward.folder)
    return trials.check_duplicates(folder, scan_betas(folder, progress=False))


def compare(folder, others):
    opened = open_folder(folder)
    return subjects.check_subjects(opened, scan_betas(opened, progress=False), others, progress=False)


def test_single_trials_runs_and_sessions_are_told_apart(ward):
    assert copies(ward).verdict == "ok"
    ward.append([4], session=7)
    found = copies(ward)
    assert found.details["trials"] == [[169, 5]] and "Trial 169 has the betas of trial 5" in found.found
    table = ward.table("trials")
    ward.append(np.flatnonzero((table["session"] == 2) & (table["run"] == 2)), session=3, run=9)
    assert copies(ward).details["runs"] == [("3.9", "2.2")]
    ward.append(np.flatnonzero(table["session"] == 1)[:32], session=11)
    assert copies(ward).details["sessions"] == [(11, 1)]


def test_copies_under_other_stimuli_and_across_splits_are_counted(ward):
    ward.append(np.arange(5), session=7, stimulus_id="other", split="test")
    found = copies(ward)
    assert found.details["under_other_stimuli"] == found.details["across_splits"] == 5
    assert "looked up in the source" in found.do


def test_trials_of_one_value_are_no_responses(ward):
    betas = ward.betas
    betas[[3, 8]] = 0.0
    ward.betas = betas
    found = copies(ward)
    assert found.verdict == "wrong" and "2 trials" in found.found and found.details["copies"] == 0


@pytest.mark.parametrize(
    ("split", "verdict"), [("train", "note"), ("test", "warning"), ("unlabelled", "note")]
)
def test_one_sided_splits(ward, split, verdict):
    ward.put("trials", ward.table("trials").assign(split=split))
    assert trials.check_splits(open_folder(ward.folder)).verdict == verdict


def test_subjects_with_other_brains_are_fine_but_shared_pictures_are_said(ward, admit, rng):
    other = admit(ward.folder)
    other.betas = rng.normal(size=other.betas.shape)
    (found,) = compare(ward.folder, [other.folder])
    assert found.verdict == "ok" and found.key == "subjects"
    table = other.table("trials")
    other.put("trials", table.assign(split=table["split"].map({"train": "test", "test": "train"})))
    (found,) = compare(ward.folder, [other.folder])
    assert found.verdict == "note" and "tested in one" in found.found


@pytest.mark.parametrize(
    "change", ["trials in another order", "some voxels", "voxels in another order", "z-scored"]
)
def test_changed_copies_of_a_subject_are_found(ward, admit, rng, change):
    other = admit(ward.folder)
    betas, voxels = other.betas, other.table("voxels")
    if change == "trials in another order":
        order = rng.permutation(len(betas))
        other.betas = betas[order]
        other.put("trials", other.table("trials").iloc[order])
    elif change == "some voxels":
        other.betas = betas[:, 20:90]
        other.put("voxels", voxels.iloc[20:90])
    elif change == "voxels in another order":
        order = rng.permutation(180)
        other.betas = betas[:, order]
        other.put("voxels", voxels.iloc[order])
    else:
        other.betas = (betas - betas.mean(axis=0)) / betas.std(axis=0)
    (found,) = compare(ward.folder, [other.folder])
    assert found.verdict == "wrong", found.found


def test_several_others_have_a_finding_each_and_broken_ones_are_said(ward, admit, tmp_path):
    copy, broken = admit(ward.folder), tmp_path / "broken"
    broken.mkdir()
    found = compare(ward.folder, [copy.folder, broken])
    assert [(f.key, f.verdict) for f in found] == [
        ("subjects:other", "wrong"),
        ("subjects:broken", "warning"),
    ]

import numpy as np
import pytest

from cadiff.data.doctor.folder import blocks_of, open_folder
from cadiff.data.doctor.normalisation import check_normalisation
from cadiff.data.doctor.scan import scan_betas


def zscore(values, rows=slice(None), ddof=0):
    used = values[rows].astype(np.float64)
    return (values - used.mean(axis=0)) / used.std(axis=0, ddof=ddof)


def verdict(ward, betas):
    ward.betas = betas
    folder = open_folder(ward.folder)
    found = check_normalisation(folder, scan_betas(folder, progress=False))
    return found.details["over"], found.verdict


def rows(ward, split):
    return np.flatnonzero(ward.table("trials")["split"] == split)


def test_raw_betas_are_not_normalised(ward):
    assert verdict(ward, ward.betas) == (None, "ok")


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_statistics_of_all_trials_are_wrong(ward, ddof, dtype):
    assert verdict(ward, zscore(ward.betas, ddof=ddof).astype(dtype)) == ("all", "wrong")


def test_statistics_of_training_trials_are_fine(ward):
    assert verdict(ward, zscore(ward.betas, rows(ward, "train"))) == ("train", "ok")


def test_splits_scored_each_on_its_own_need_a_look(ward):
    betas = ward.betas
    for split in ("train", "test"):
        betas[rows(ward, split)] = zscore(betas[rows(ward, split)])
    assert verdict(ward, betas) == ("each split", "warning")


@pytest.mark.parametrize(("columns", "name"), [(("session", "run"), "runs"), (("session",), "sessions")])
def test_scores_inside_blocks_are_wrong_where_splits_mix(ward, columns, name):
    betas, trials = ward.betas, ward.table("trials")
    for block in blocks_of(trials, *columns).values():
        betas[block] = zscore(betas[block])
    pure = verdict(ward, betas)
    assert pure == (f"pure {name}", "note")
    first = np.concatenate([block[:2] for block in blocks_of(trials, *columns).values()])
    trials.loc[first, "split"] = "test"
    ward.put("trials", trials)
    assert verdict(ward, betas) == (name, "wrong")


def test_one_mean_and_deviation_for_all_voxels(ward):
    betas = ward.betas.astype(np.float64)
    assert verdict(ward, (betas - betas.mean()) / betas.std()) == ("all-scalar", "wrong")
    train = betas[rows(ward, "train")]
    assert verdict(ward, (betas - train.mean()) / train.std()) == ("train-scalar", "ok")


def test_without_test_trials_it_is_a_note(ward):
    ward.put("trials", ward.table("trials").assign(split="train"))
    assert verdict(ward, zscore(ward.betas)) == ("no test", "note")


def test_copies_made_afterwards_do_not_hide_it(ward):
    ward.betas = zscore(ward.betas)
    ward.append(np.arange(20), session=8)
    assert verdict(ward, ward.betas) == ("all", "wrong")

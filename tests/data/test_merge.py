"""Merged subjects are unlabelled, comparable in units and length, and never hold what is tested."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from cadiff.artifacts import sha256_file
from cadiff.contrast.encoder_folder import fit_preprocessor
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.describe import describe
from cadiff.data.merge import merge
from cadiff.data.preprocess import PreprocessConfig
from cadiff.data.writer import CHUNK_ROWS, dataset_writer
from cadiff.errors import ArtifactError, ConfigError, DataError


@pytest.fixture
def subject(tmp_path, rng):
    """Writes a subject with training and test trials mixed; returns its folder."""

    def write(name, voxels=12, train=8, test=4, scale=1.0, rois=None):
        order = rng.permutation(["train"] * train + ["test"] * test)
        ids = [f"{split}-{k}" for k, split in enumerate(order)]
        trials = pd.DataFrame({"stimulus_id": ids, "split": order, "session": 2, "run": 3, "repeat": 1})
        betas = scale * rng.normal(5, rng.uniform(0.5, 2, voxels), (train + test, voxels))
        return write_dataset(
            tmp_path / "in" / name,
            name="GOD",
            subject=name,
            betas=betas,
            trials=trials,
            voxels=pd.DataFrame({"rois": rois or ["V1"] * voxels, "noise_ceiling": 0.2}),
            stimuli=pd.DataFrame({"stimulus_id": ids, "label": "cat"}),
            images={name: rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) for name in ids},
            description={"licence": "CC0", "units": "a.u."},
        )

    return write


@pytest.fixture
def resting(tmp_path, rng):
    """A dataset of unlabelled trials alone, more than a chunk of them."""
    voxels = pd.DataFrame({"rois": ["V1"] * 5})
    trials = pd.DataFrame({"stimulus_id": [None] * (CHUNK_ROWS + 7), "split": "unlabelled"})
    trials = trials.assign(session=1, run=1, repeat=1)
    with dataset_writer(tmp_path / "in" / "rest", name="HCP", subject="sub-1", voxels=voxels) as writer:
        writer.add_trials(rng.normal(1e4, 50, (len(trials), 5)), trials)
    return tmp_path / "in" / "rest"


def z(values, axis):
    return (values - values.mean(axis=axis)) / values.std(axis=axis)


def test_each_subject_is_z_scored_over_its_training_trials_and_wrapped_to_the_longest(
    subject, resting, tmp_path
):
    one = subject("sub-01", voxels=12, scale=1000)
    merged = BrainDataset.open(merge([one, resting], tmp_path / "out"), verify=True)
    source = BrainDataset.open(one)
    expected = z(source.betas[source.rows("train")].astype(np.float64), 0)
    assert merged.betas.shape == (8 + CHUNK_ROWS + 7, 12)
    np.testing.assert_allclose(merged.betas[:8], expected, atol=1e-5)
    rest = z(BrainDataset.open(resting).betas.astype(np.float64), 0)
    np.testing.assert_allclose(merged.betas[8:, :5], rest, atol=1e-4)
    np.testing.assert_array_equal(merged.betas[8:, 5:], np.tile(merged.betas[8:, :5], 2)[:, :7])
    assert list(dict.fromkeys(merged.trials["subject"])) == ["GOD sub-01", "HCP sub-1"]


def test_nothing_is_labelled_and_nothing_tested_is_kept(subject, tmp_path):
    folders = [subject("sub-01"), subject("sub-02", train=5, test=7)]
    merged = BrainDataset.open(merge(folders, tmp_path / "out"))
    assert set(merged.trials["split"]) == {"unlabelled"} and merged.stimuli.empty
    assert merged.trials["stimulus_id"].isna().all() and not list((tmp_path / "out" / "stimuli").iterdir())
    for folder, name in zip(folders, ("GOD sub-01", "GOD sub-02"), strict=True):
        source = BrainDataset.open(folder)
        mine = merged.trials[merged.trials["subject"] == name]
        assert mine["source_trial"].tolist() == (source.rows("train") + 1).tolist()
        assert (mine["session"] == 2).all() and (mine["run"] == 3).all()
    note = merged.description["note"]
    assert "13 trials were merged" in note and "11 test trials were left out" in note
    assert [each["test_trials_left_out"] for each in merged.description["sources"]] == [4, 7]


def test_the_description_says_what_went_in(subject, tmp_path):
    folders = [subject("sub-01"), subject("sub-02")]
    about = BrainDataset.open(merge(folders, tmp_path / "out", normalise="scalar")).description
    assert about["licence"] == "CC0" and about["normalise"] == "scalar"
    hashes = [BrainDataset.open(folder).description["sha256"]["betas.npy"] for folder in folders]
    assert [each["betas_sha256"] for each in about["sources"]] == hashes


def test_scalar_keeps_the_differences_between_voxels(subject, tmp_path):
    folders = [subject("sub-01"), subject("sub-02")]
    merged = BrainDataset.open(merge(folders, tmp_path / "out", normalise="scalar"))
    source = BrainDataset.open(folders[1])
    values = source.betas[source.rows("train")].astype(np.float64)
    np.testing.assert_allclose(merged.betas[8:], (values - values.mean()) / values.std(), atol=1e-5)


@pytest.mark.parametrize(("length", "expected"), [("longest", 12), ("shortest", 7), (9, 9), (30, 30)])
def test_lengths(length, expected, subject, tmp_path):
    folders = [subject("sub-01", voxels=12), subject("sub-02", voxels=7)]
    merged = BrainDataset.open(merge(folders, tmp_path / "out", length=length))
    assert merged.betas.shape[1] == expected == len(merged.voxels)
    np.testing.assert_array_equal(merged.betas[8:, 7:], merged.betas[8:, np.arange(7, expected) % 7])


def test_rois_are_kept_only_where_all_subjects_have_the_same_voxels(subject, tmp_path):
    rois = ["V1"] * 8 + ["V2"] * 4
    same = merge([subject("sub-01", rois=rois), subject("sub-02", rois=rois)], tmp_path / "same", length=14)
    assert BrainDataset.open(same).voxels["rois"].tolist() == [*rois, "V1", "V1"]
    assert BrainDataset.open(same).voxels["noise_ceiling"].isna().all()
    other = merge([subject("sub-03", rois=rois), subject("sub-04")], tmp_path / "other")
    assert set(BrainDataset.open(other).voxels["rois"]) == {""}


def test_a_folder_of_datasets_stands_for_all_of_them(subject, resting, tmp_path):
    subject("sub-01")
    subject("sub-02")
    (tmp_path / "in" / ".half-made").mkdir()
    merged = BrainDataset.open(merge([tmp_path / "in"], tmp_path / "out"))
    assert merged.trials["subject"].nunique() == 3


def test_phase_1_takes_a_merged_dataset(subject, tmp_path):
    merged = BrainDataset.open(merge([subject("sub-01"), subject("sub-02", voxels=7)], tmp_path / "out"))
    fitted = fit_preprocessor(merged, PreprocessConfig(), patch_size=16)
    values = fitted(merged.betas[:])
    assert values.shape == (16, 16) and np.isfinite(values).all()
    describe(merged)  # and it can be looked at


def refused(match, sources, tmp_path, error=DataError, **options):
    with pytest.raises(error, match=match):
        merge(sources, tmp_path / "refused" / "out", **options)
    assert not (tmp_path / "refused").exists() or not list((tmp_path / "refused").iterdir())


def test_refuses_the_same_subject_twice(subject, tmp_path):
    one = subject("sub-01")
    copy = shutil.copytree(one, tmp_path / "in" / "sub-02")
    refused(f"{copy} and {one} hold the same betas, bit for bit", [one, copy], tmp_path)
    refused("bit for bit", [one, one], tmp_path)


def test_refuses_what_cannot_be_merged(subject, tmp_path):
    one, two = subject("sub-01"), subject("sub-02", train=0)
    refused("needs at least two datasets, found .*sub-01", [one], tmp_path)
    refused("has 4 test trials and no other", [one, two], tmp_path)
    refused("is not a cadiff dataset", [one, tmp_path / "nowhere"], tmp_path)
    (tmp_path / "empty").mkdir()
    refused("is not a cadiff dataset", [one, tmp_path / "empty"], tmp_path)
    three = subject("sub-03")
    for option in ({"length": 0}, {"length": True}, {"length": "mean"}, {"normalise": "none"}):
        refused(next(iter(option)), [one, three], tmp_path, error=ConfigError, **option)
    with pytest.raises(ArtifactError, match="already exists"):
        merge([one, three], one)
    content = bytearray((three / "betas.npy").read_bytes())
    content[-1] ^= 1
    (three / "betas.npy").write_bytes(content)
    refused(r"sub-03/betas\.npy is damaged", [one, three], tmp_path)


def test_betas_that_are_not_finite_are_refused_with_the_subject(subject, tmp_path):
    one, two = subject("sub-01"), subject("sub-02")
    betas = np.load(two / "betas.npy")
    betas[BrainDataset.open(two).rows("train")[0], 3] = np.nan
    np.save(two / "betas.npy", betas)
    about = (two / "dataset_description.json").read_text()
    recorded = BrainDataset.open(two).description["sha256"]["betas.npy"]
    (two / "dataset_description.json").write_text(about.replace(recorded, sha256_file(two / "betas.npy")))
    refused("sub-02: 1 beta values are NaN", [one, two], tmp_path)

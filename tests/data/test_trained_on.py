"""What a model was trained on, and whether it may decode the test trials of a dataset."""

import json

import numpy as np
import pandas as pd
import pytest

from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.trained_on import refuse_tested, stages_trained_on
from cadiff.errors import DataError


def dataset(folder, stimuli, *, subject="sub-01", name="lab"):
    """One trial of each stimulus, the last one tested; a stimulus is a name, or (name, brightness of its picture)."""
    pairs = [each if isinstance(each, tuple) else (each, k) for k, each in enumerate(stimuli)]
    names = [stimulus for stimulus, _ in pairs]
    trials = {"stimulus_id": names, "split": ["train"] * (len(names) - 1) + ["test"]}
    return BrainDataset.open(
        write_dataset(
            folder,
            name=name,
            subject=subject,
            betas=np.random.default_rng(0).normal(size=(len(names), 4)),
            trials=pd.DataFrame({**trials, "session": 1, "run": 1, "repeat": 1}),
            voxels=pd.DataFrame({"rois": ["V1"] * 4}),
            stimuli=pd.DataFrame({"stimulus_id": names}),
            images={n: np.full((8, 8, 3), 20 * k, np.uint8) for n, k in pairs},
        )
    )


def entries(stage, *datasets):
    found = stages_trained_on(stage, [], datasets, [data.rows("train") for data in datasets])
    return json.loads(json.dumps(found))  # as it comes out of a folder


def blind(record):
    """The same, of a dataset whose pictures were not there."""
    return [{**entry, "stimuli": dict.fromkeys(entry["stimuli"])} for entry in record]


def refused(record, data):
    try:
        refuse_tested(record, [data], "runs/encoder")
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("stage", ["contrast", "attend", "diffuse"])
def test_the_same_subject_split_anew_is_refused_at_every_stage(tmp_path, stage):
    before = entries(stage, dataset(tmp_path / "a", ["one", "two", "three"]))
    anew = dataset(tmp_path / "b", ["three", "one", ("two", 1)])
    said = refused(before, anew)
    assert said and "'two'" in said and stage in said and str(anew.folder) in said
    assert refused(before, dataset(tmp_path / "c", ["one", "two", ("three", 2)])) is None


def test_a_picture_counts_under_any_name_in_any_dataset_but_phase_1_saw_none(tmp_path):
    other = dataset(tmp_path / "a", [("photo", 9), "two", "three"], subject="sub-02", name="elsewhere")
    here = dataset(tmp_path / "b", ["one", "four", ("twin", 9)])
    assert "'twin'" in (refused(entries("attend", other), here) or "")
    assert refused(entries("contrast", other), here) is None


def test_names_alone_count_only_inside_one_dataset_and_where_checksums_are_unknown(tmp_path):
    here = dataset(tmp_path / "here", ["one", "two", ("seen", 5)])
    colleague = dataset(tmp_path / "a", [("seen", 1), "two", "three"], subject="sub-02")
    assert (
        refused(entries("diffuse", colleague), here) is None
    )  # another picture that happens to have this name
    elsewhere = dataset(tmp_path / "c", [("seen", 1), "two", "three"], subject="sub-02", name="elsewhere")
    assert "'seen'" in (refused(blind(entries("diffuse", colleague)), here) or "")
    assert refused(blind(entries("diffuse", elsewhere)), here) is None
    drawn_anew = dataset(tmp_path / "d", [("seen", 6), "two", "three"])
    assert "'seen'" in (
        refused(entries("diffuse", drawn_anew), here) or ""
    )  # the same subject's own stimulus


def test_a_record_grows_stage_by_stage_and_nothing_is_lost(tmp_path):
    first, second = (dataset(tmp_path / f"{k}", ["one", "two", "three"], subject=f"sub-{k}") for k in (1, 2))
    record = stages_trained_on("attend", entries("contrast", first, second), [first], [first.rows("train")])
    assert [(e["stage"], e["subject"]) for e in record] == [
        ("contrast", "sub-1"),
        ("contrast", "sub-2"),
        ("attend", "sub-1"),
    ]
    assert all(set(e["stimuli"]) == {"one", "two"} for e in record)

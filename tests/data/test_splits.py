"""Leak audit, averages and validation splits on a small dataset on disk."""

import numpy as np
import pandas as pd
import pytest

from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.splits import (
    average_repeats,
    check_disjoint,
    k_folds,
    resplit,
    split_train,
    write_folds,
)
from cadiff.errors import ConfigError, DataError


def make(folder, train, test, same_image=(), labels=True):
    """A dataset of the given stimulus per trial; names in `same_image` share one picture."""
    names = sorted({*train, *test})
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 255, (8, 8, 3)).astype(np.uint8) for name in names}
    for name in same_image:
        images[name] = images[same_image[0]]
    trials = pd.DataFrame(
        {"stimulus_id": [*train, *test], "split": ["train"] * len(train) + ["test"] * len(test)}
    )
    trials = trials.assign(session=1, run=1, repeat=1)
    betas = rng.normal(size=(len(trials), 5)).astype(np.float32)
    stimuli = pd.DataFrame(
        {"stimulus_id": names, "label": [n[0] for n in names] if labels else None, "imagenet_index": None}
    )
    write_dataset(
        folder / "ds",
        name="toy",
        subject="s1",
        betas=betas,
        trials=trials,
        voxels=pd.DataFrame({"rois": ["V1"] * 5, "noise_ceiling": np.nan}),
        stimuli=stimuli,
        images=images,
    )
    return BrainDataset.open(folder / "ds")


def test_disjoint_data_pass(tmp_path):
    check_disjoint(make(tmp_path, ["a1", "a2", "a1"], ["b1", "b1"]))


def test_a_shared_stimulus_is_named(tmp_path):
    with pytest.raises(DataError, match="'a2' is also shown in training trials"):
        check_disjoint(make(tmp_path, ["a1", "a2"], ["b1", "a2"]))


def test_a_shared_picture_under_another_name_is_named(tmp_path):
    with pytest.raises(DataError, match="'b1' is the same image as training stimulus 'a2'"):
        check_disjoint(make(tmp_path, ["a1", "a2"], ["b1", "b2"], same_image=("a2", "b1")))


def test_averages_follow_the_order_of_first_trials(tmp_path):
    ds = make(tmp_path, ["a1"], ["b2", "b1", "b2", "b2"])
    betas, names, counts = average_repeats(ds)
    assert names == ["b2", "b1"] and counts.tolist() == [3, 1] and betas.dtype == np.float32
    np.testing.assert_allclose(betas[0], np.asarray(ds.betas)[[1, 3, 4]].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(betas[1], ds.betas[2])
    assert average_repeats(ds, rows=np.array([1, 2]))[2].tolist() == [1, 1]
    with pytest.raises(DataError, match="no unlabelled trial"):
        average_repeats(ds, "unlabelled")


@pytest.mark.parametrize("by", ["stimulus", "class"])
def test_validation_keeps_groups_together(tmp_path, by):
    train = [f"{c}{i}" for c in "abcde" for i in range(4)] * 2
    ds = make(tmp_path, train, ["z1"])
    fit, held = split_train(ds, 0.25, seed=3, by=by)
    group = ds.trials["stimulus_id"].to_numpy(dtype=str)
    if by == "class":
        group = np.array([name[0] for name in group])
    assert not set(group[fit]) & set(group[held])
    np.testing.assert_array_equal(np.sort(np.concatenate([fit, held])), ds.rows("train"))
    assert len(held) == (10 if by == "stimulus" else 8)
    np.testing.assert_array_equal(held, split_train(ds, 0.25, seed=3, by=by)[1])
    assert not np.array_equal(held, split_train(ds, 0.25, seed=4, by=by)[1])


@pytest.mark.parametrize("by", ["stimulus", "class"])
def test_one_picture_under_two_names_falls_on_one_side(tmp_path, by):
    """By class the classes of both names stay together too."""
    names = [f"{c}{i}" for c in "abcdefgh" for i in range(2)]
    ds = make(tmp_path, names, ["z1"], same_image=("a0", "c1", "e1"))
    group = np.array([name[0] if by == "class" else name for name in names])
    for seed in range(8):
        parts = [split_train(ds, 0.4, seed, by), *k_folds(ds, 3, seed, by)]
        for fit, held in parts:
            assert not set(group[fit]) & set(group[held])
            assert len({"a0", "c1", "e1"} & {names[row] for row in held}) in (0, 3)
        tested = np.concatenate([held for _, held in parts[1:]])
        np.testing.assert_array_equal(np.sort(tested), ds.rows("train"))
    check_disjoint(BrainDataset.open(write_folds(ds, tmp_path / "folds", 2, by=by)[0]))


def test_where_no_picture_has_two_names_groups_are_drawn_by_name_alone(tmp_path):
    """Also where only labels are known, and no picture has a checksum."""
    names = [f"{c}{i}" for c in "abcde" for i in range(4)] * 2
    ds = make(tmp_path, names, ["z1"])
    blind = BrainDataset(ds.folder, ds.description, ds.trials, ds.voxels, ds.stimuli.assign(sha256=np.nan))
    for found in (ds, blind):
        for (fit, held), expected in zip(k_folds(found, 4, 2), k_folds(names, 4, 2), strict=True):
            np.testing.assert_array_equal(fit, expected[0])
            np.testing.assert_array_equal(held, expected[1])
        classes = [name[0] for name in names]
        np.testing.assert_array_equal(split_train(found, 0.3, 5, "class")[1], split_train(classes, 0.3, 5)[1])


def test_folds_hold_out_everything_once():
    names = ["x", "y", "x", "z", "w", "y", "v"]
    folds = k_folds(names, 3, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in folds])), np.arange(7))
    for fit, held in folds:
        assert not {names[i] for i in fit} & {names[i] for i in held}


def test_impossible_splits_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split_train(["a", "b"], 1.5, seed=0)
    with pytest.raises(DataError, match="cannot be split in 5 parts"):
        k_folds(["a", "b"], 5, seed=0)
    with pytest.raises(ConfigError, match="at least 2"):
        k_folds(["a", "b"], 1, seed=0)
    with pytest.raises(DataError, match="'a1' has no class label"):
        split_train(make(tmp_path, ["a1", "a2"], ["b1"], labels=False), 0.5, seed=0, by="class")


def test_resplit_moves_stimuli_and_changes_nothing_else(tmp_path):
    ds = make(tmp_path, ["a1", "a2", "b1", "a1"], ["b2"])
    new = BrainDataset.open(resplit(ds, tmp_path / "new", ["a1"]), verify=True)
    assert new.trials["split"].tolist() == ["test", "train", "train", "test", "train"]
    np.testing.assert_array_equal(new.betas, ds.betas)
    assert all(np.array_equal(new.image(name), ds.image(name)) for name in ds.stimuli.index)
    fewer = BrainDataset.open(resplit(ds, tmp_path / "fewer", ["b1"], rows=np.array([1, 2])))
    assert fewer.trials["stimulus_id"].tolist() == ["a2", "b1"]
    assert set(fewer.stimuli.index) == {"a2", "b1"}
    with pytest.raises(DataError, match="shows no stimulus 'zz'"):
        resplit(ds, tmp_path / "none", ["zz"])


def test_folds_on_disk_test_every_training_stimulus_once_and_never_the_test_trials(tmp_path):
    ds = make(tmp_path, [f"a{i}" for i in range(7)] * 2, ["b1", "b2"])
    folders = write_folds(ds, tmp_path / "folds", 3, seed=1)
    tested = []
    for folder in folders:
        fold = BrainDataset.open(folder, verify=True)
        check_disjoint(fold)
        assert len(fold.trials) == 14 and not set(fold.trials["stimulus_id"]) & {"b1", "b2"}
        tested += fold.stimulus_ids("test")
    assert sorted(tested) == [f"a{i}" for i in range(7)]
    with pytest.raises(DataError, match="cannot be split"):
        write_folds(ds, tmp_path / "more", 9)
    assert not (tmp_path / "more").exists()

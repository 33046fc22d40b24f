"""The dataset writer: pieces add up to the whole, nothing is left after a failure, pictures stay as they were."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.data.dataset import BrainDataset
from cadiff.data.writer import dataset_writer
from cadiff.errors import DataError

VOXELS = pd.DataFrame({"rois": ["V1"] * 7})


def trials(ids, split="train"):
    return pd.DataFrame({"stimulus_id": ids, "split": split, "session": 1, "run": 1, "repeat": 1})


def picture(rng):
    return rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)


def test_pieces_add_up_to_the_whole(tmp_path, rng):
    betas = rng.normal(size=(2500, 7))
    with dataset_writer(tmp_path / "out", name="n", subject="s", voxels=VOXELS) as writer:
        for start in range(0, 2500, 1100):
            rows = betas[start : start + 1100]
            writer.add_trials(rows, trials([None] * len(rows), "unlabelled"))
    data = BrainDataset.open(tmp_path / "out", verify=True)
    np.testing.assert_array_equal(data.betas, betas.astype(np.float32))
    assert list(data.trials["trial"]) == list(range(1, 2501))


def test_a_jpeg_is_copied_byte_for_byte_and_other_pictures_become_png(tmp_path, rng):
    pixels = picture(rng)
    Image.fromarray(pixels).save(tmp_path / "a.JPEG")
    Image.fromarray(pixels).save(tmp_path / "b.bmp")
    with dataset_writer(tmp_path / "out", name="n", subject="s", voxels=VOXELS) as writer:
        writer.add_stimulus("a", tmp_path / "a.JPEG", label="cat")
        writer.add_stimulus("b", tmp_path / "b.bmp", imagenet_index=3)
        writer.add_stimulus("c", pixels)
        writer.add_trials(np.zeros((3, 7)), trials(list("abc")))
    data = BrainDataset.open(tmp_path / "out", verify=True)
    assert list(data.stimuli["file"]) == ["a.jpg", "b.png", "c.png"]
    assert (tmp_path / "out/stimuli/a.jpg").read_bytes() == (tmp_path / "a.JPEG").read_bytes()
    np.testing.assert_array_equal(data.image("b"), pixels)
    np.testing.assert_array_equal(data.image("c"), pixels)
    assert data.stimuli.at["a", "label"] == "cat" and data.stimuli.at["b", "imagenet_index"] == 3


def test_bad_voxels_are_refused_or_dropped(tmp_path, rng):
    betas = rng.normal(size=(5, 7))
    betas[3, 2], betas[0, 6] = np.nan, np.inf
    voxels = VOXELS.assign(x=range(7))
    with (
        pytest.raises(DataError, match=r"2 of 7 voxels.*first: voxel 3.*--set bad_voxels=drop"),
        dataset_writer(tmp_path / "out", name="n", subject="s", voxels=voxels) as writer,
    ):
        writer.add_trials(betas, trials([None] * 5, "unlabelled"))
    assert not list(tmp_path.iterdir())
    with dataset_writer(tmp_path / "out", name="n", subject="s", voxels=voxels, bad_voxels="drop") as writer:
        writer.add_trials(betas, trials([None] * 5, "unlabelled"))
    data = BrainDataset.open(tmp_path / "out", verify=True)
    np.testing.assert_array_equal(data.betas, betas[:, [0, 1, 3, 4, 5]].astype(np.float32))
    assert list(data.voxels["x"]) == [0, 1, 3, 4, 5] and data.description["dropped_voxels"] == 2
    assert list(data.voxels["source_voxel"]) == [1, 2, 4, 5, 6]  # as messages count them


def test_numbers_that_voxels_already_had_are_kept(tmp_path, rng):
    betas = rng.normal(size=(5, 7))
    betas[3, 2] = np.nan
    voxels = VOXELS.assign(source_voxel=range(101, 108))
    with dataset_writer(tmp_path / "out", name="n", subject="s", voxels=voxels, bad_voxels="drop") as writer:
        writer.add_trials(betas, trials([None] * 5, "unlabelled"))
    data = BrainDataset.open(tmp_path / "out")
    assert list(data.voxels["source_voxel"]) == [101, 102, 104, 105, 106, 107]


def test_a_dataset_of_bad_voxels_alone_is_refused(tmp_path):
    with (
        pytest.raises(DataError, match=r"all 7 voxels hold NaN .*none would be left"),
        dataset_writer(tmp_path / "out", name="n", subject="s", voxels=VOXELS, bad_voxels="drop") as writer,
    ):
        writer.add_trials(np.full((5, 7), np.nan), trials([None] * 5, "unlabelled"))


@pytest.mark.parametrize("stimulus_id", ["../out", "a/b", ".hidden", "a\\b", "a\0b"])
def test_an_id_that_leaves_the_folder_is_refused(tmp_path, rng, stimulus_id):
    with (
        pytest.raises(DataError, match="cannot name a file"),
        dataset_writer(tmp_path / "out", name="n", subject="s", voxels=VOXELS) as writer,
    ):
        writer.add_stimulus(stimulus_id, picture(rng))
    assert not list(tmp_path.iterdir())


def test_betas_that_the_disk_changed_are_noticed(tmp_path, rng):
    with (
        pytest.raises(DataError, match="does not hold what was written"),
        dataset_writer(tmp_path / "out", name="n", subject="s", voxels=VOXELS) as writer,
    ):
        writer.add_trials(rng.normal(size=(4, 7)), trials([None] * 4, "unlabelled"))
        writer._file.flush()
        with (writer.folder / "betas.npy").open("rb+") as file:
            file.seek(-1, io.SEEK_END)
            file.write(b"\xff")
    assert not list(tmp_path.iterdir())


def test_a_stimulus_may_be_known_by_its_label_only(tmp_path):
    with dataset_writer(tmp_path / "out", name="n", subject="s", voxels=VOXELS) as writer:
        writer.add_stimulus("cat", None, label="cat")
        writer.add_trials(np.ones((2, 7)), trials(["cat", "cat"]))
    data = BrainDataset.open(tmp_path / "out", verify=True)
    assert data.stimuli.at["cat", "label"] == "cat"
    with pytest.raises(DataError, match="only the label is known"):
        data.image("cat")

"""Pictures from class folders, from a table, from the shipped archive; clear words for what is missing."""

import io
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.data import stimulus_sets
from cadiff.data.stimulus_sets import load_stimuli
from cadiff.errors import DataError


def picture(seed, width=64, height=64):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8))


def test_class_folders_give_labels_and_unique_names(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        picture(0).save(tmp_path / label / "1.png")
        picture(1).save(tmp_path / label / f"{label}_2.jpg")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    stimuli = load_stimuli(tmp_path)
    assert stimuli.table["stimulus_id"].tolist() == ["cat_1", "cat_2", "dog_1", "dog_2"]
    assert stimuli.table["label"].tolist() == ["cat", "cat", "dog", "dog"]
    assert stimuli.table["imagenet_index"].isna().all()
    np.testing.assert_array_equal(stimuli.images(["dog_1"], 64)[0], np.asarray(picture(0)))


def test_a_table_names_the_pictures(tmp_path):
    picture(3, 80, 40).save(tmp_path / "a.png")
    rows = {"file": ["a.png"], "label": ["x"], "imagenet_index": [7], "stimulus_id": ["1518878.010042"]}
    pd.DataFrame(rows).to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    stimuli = load_stimuli(tmp_path)
    assert stimuli.table["stimulus_id"].tolist() == ["1518878.010042"]  # text, not a number
    assert stimuli.table["imagenet_index"].tolist() == [7]
    # the central square at its own size is a crop, not a resampling
    np.testing.assert_array_equal(
        stimuli.images(["1518878.010042"], 40)[0], np.asarray(picture(3, 80, 40))[:, 20:60]
    )


def test_the_shipped_archive_is_read_through_the_package(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    picture(0).save(buffer, "JPEG")
    (tmp_path / "assets").mkdir()
    with zipfile.ZipFile(tmp_path / "assets" / "stimuli.zip", "w") as archive:
        archive.writestr("n01443537_0.jpg", buffer.getvalue())
        archive.writestr(
            "stimuli.tsv",
            "stimulus_id\tfile\tlabel\timagenet_index\nn01443537_0\tn01443537_0.jpg\tn01443537\t1\n",
        )
    monkeypatch.setattr(stimulus_sets.resources, "files", lambda package: tmp_path)
    stimuli = load_stimuli()
    assert "flatter any reconstruction by the same prior" in stimuli.source
    assert stimuli.images(["n01443537_0"], 32).shape == (1, 32, 32, 3)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load_stimuli(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no picture"):
        load_stimuli(tmp_path)
    table = tmp_path / "labels.tsv"
    table.write_text("file\tname\na.png\tx\n")
    with pytest.raises(DataError, match="no column 'label'"):
        load_stimuli(tmp_path)
    table.write_text("file\tlabel\na.png\tx\n")
    with pytest.raises(DataError, match=r"1 pictures that are not there \(first: 'a.png'\)"):
        load_stimuli(tmp_path)
    (tmp_path / "a.png").write_text("damaged")
    with pytest.raises(DataError, match=r"'a'.*cannot be read"):
        load_stimuli(tmp_path).images(["a"], 8)

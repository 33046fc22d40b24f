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


def table_of(folder, content):
    for name in ("a", "b"):
        picture(0, 8, 8).save(folder / f"{name}.png")
    (folder / "labels.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"labels\.tsv cannot be read as a table"),
        (b"\xff\xfe\x00a", r"labels\.tsv cannot be read as a table"),
        ("file\tlabel\na.png\tx\ty\tz\n", r"labels\.tsv cannot be read as a table"),
        ("file\tlabel\na.png\tx\tmore\nb.png\ty\tmore\n", r"labels\.tsv cannot be read as a table"),
        (
            "file,label\na.png,x\n",
            r"no column 'file' \(found: file,label; are there tabs between the columns\?\)",
        ),
        ("file\tlabel\n", "holds no picture"),
        ("file\tlabel\na.png\tx\nn/a\ty\n", r"row 2 names no file"),
        ("file\tlabel\na.png\tx\n\ty\n", r"row 2 names no file"),
        ("file\tlabel\na.png\tx\na.png\ty\n", "stimulus id 'a'"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, content, message):
    table_of(tmp_path, content)
    with pytest.raises(DataError, match=message):
        load_stimuli(tmp_path)


@pytest.mark.parametrize("words", [("NA", "null"), ("None", "nan"), ("NaN", "N/A")])
def test_words_that_pandas_takes_for_gaps_are_labels_and_ids(tmp_path, words):
    first, second = words
    table_of(tmp_path, f"stimulus_id\tfile\tlabel\n{first}\ta.png\t{first}\n{second}\tb.png\t{second}\n")
    stimuli = load_stimuli(tmp_path)
    assert stimuli.table["label"].tolist() == [first, second]
    assert stimuli.table["stimulus_id"].tolist() == [first, second.replace("/", "_")]


@pytest.mark.parametrize("gap", ["n/a", ""])
def test_gaps_are_gaps(tmp_path, gap):
    """An id that is not given comes from the file's name; a label or an index that is not given is not known."""
    table_of(
        tmp_path,
        f"stimulus_id\tfile\tlabel\timagenet_index\tlicence\n{gap}\ta.png\t{gap}\t7\tCC0\n"
        f"{gap}\tb.png\ty\t{gap}\t{gap}\n",
    )
    found = load_stimuli(tmp_path).table
    assert found["stimulus_id"].tolist() == ["a", "b"]
    for column in ("label", "imagenet_index", "licence"):
        assert found[column].isna().tolist() == ([True, False] if column == "label" else [False, True])


def test_tables_of_other_programs(tmp_path):
    """With a byte order mark and Windows line ends, as a spreadsheet writes them."""
    table_of(tmp_path, "\ufefffile\tlabel\r\na.png\tx\r\nb.png\ty\r\n")
    found = load_stimuli(tmp_path).table
    assert found["stimulus_id"].tolist() == ["a", "b"] and found["label"].tolist() == ["x", "y"]

"""The plain-arrays reader: every form of betas gives the same dataset, and wrong folders are refused by name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import READERS, find_reader, parse_options, read
from cadiff.data.readers.arrays import read_arrays
from cadiff.errors import ConfigError, DataError

BETAS = np.arange(20, dtype=np.float64).reshape(5, 4) / 7


@pytest.fixture
def source(tmp_path, rng):
    folder = tmp_path / "scans"
    (folder / "stimuli").mkdir(parents=True)
    for name, suffix in (("cat", "png"), ("dog", "jpg"), ("owl", "bmp")):
        picture = rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "stimuli" / f"{name}.{suffix}")
    np.save(folder / "betas.npy", BETAS)
    trials = [("cat", "train"), ("dog", "train"), ("owl", "test"), ("owl", "test"), (np.nan, "unlabelled")]
    table(trials, ["stimulus_id", "split"]).to_csv(folder / "trials.tsv", sep="\t", index=False, na_rep="n/a")
    return folder


def table(rows, columns):
    return pd.DataFrame(rows, columns=columns)


def write_npz(folder):
    np.savez(folder / "betas.npz", betas=BETAS, other=np.zeros(2))


def write_csv(folder):
    pd.DataFrame(BETAS).to_csv(folder / "betas.csv", index=False, header=False)


def write_csv_with_header(folder):
    pd.DataFrame(BETAS, columns=list("abcd")).to_csv(folder / "betas.csv", index=False)


@pytest.mark.parametrize("write", [None, write_npz, write_csv, write_csv_with_header])
def test_every_form_of_betas_gives_the_same_dataset(source, tmp_path, write):
    if write is not None:
        (source / "betas.npy").unlink()
        write(source)
    data = BrainDataset.open(read_arrays(source, tmp_path / "out"), verify=True)
    np.testing.assert_allclose(data.betas, BETAS.astype(np.float32), rtol=1e-6)
    assert list(data.trials["repeat"]) == [1, 1, 1, 2, 1]
    assert data.stimulus_ids("test") == ["owl"]
    with Image.open(source / "stimuli" / "owl.bmp") as picture:
        np.testing.assert_array_equal(data.image("owl"), np.asarray(picture))


def test_tables_of_stimuli_and_voxels_are_taken_over(source, tmp_path):
    rows = [("cat", "pet"), ("dog", "pet"), ("owl", "bird")]
    table(rows, ["stimulus_id", "label"]).to_csv(source / "stimuli.tsv", sep="\t", index=False)
    voxels = table([("V1,VC", 0.5), ("V2,VC", np.nan), ("LOC", 0.1), ("", 0.2)], ["rois", "noise_ceiling"])
    voxels.to_csv(source / "voxels.tsv", sep="\t", index=False, na_rep="n/a")
    data = BrainDataset.open(read_arrays(source, tmp_path / "out", subject="sub-07"))
    assert data.stimuli.at["owl", "label"] == "bird"
    assert list(data.voxels["rois"]) == ["V1,VC", "V2,VC", "LOC", ""]
    np.testing.assert_allclose(data.voxels["noise_ceiling"], [0.5, np.nan, 0.1, 0.2])
    assert data.description["subject"] == "sub-07"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "betas.npy").unlink(), "expected exactly one of"),
        (lambda f: write_csv(f), "found betas.npy, betas.csv"),
        (lambda f: np.save(f / "betas.npy", BETAS[:3]), "5 rows, but betas has 3 trials"),
        (lambda f: np.save(f / "betas.npy", BETAS[0]), r"expected numbers \(trials, voxels\)"),
        (lambda f: np.save(f / "betas.npy", BETAS * np.nan), "NaN"),
        (lambda f: (f / "betas.npy").write_bytes(b"\x93NUMPY"), "cannot be read"),
        (lambda f: (f / "trials.tsv").unlink(), "There is no .*trials.tsv"),
        (
            lambda f: (f / "trials.tsv").write_text("stimulus_id,split\ncat,train\n"),
            "lacks the column 'stimulus_id'",
        ),
        (
            lambda f: (f / "trials.tsv").write_text("stimulus_id\tsplit\n" + "cat\ttraining\n" * 5),
            "'training' is not one",
        ),
        (
            lambda f: (f / "trials.tsv").write_text("stimulus_id\tsplit\n" + "n/a\ttest\n" * 5),
            "no stimulus_id",
        ),
        (lambda f: (f / "stimuli" / "owl.bmp").unlink(), "no picture of stimulus 'owl'"),
        (lambda f: (f / "stimuli" / "dog.jpg").write_text("no"), "cannot be read"),
        (lambda f: (f / "voxels.tsv").write_text("rois\nV1\n"), "1 rows, but betas has 4 voxels"),
    ],
)
def test_a_wrong_folder_is_refused_and_nothing_is_written(source, tmp_path, change, message):
    change(source)
    with pytest.raises(DataError, match=message):
        read_arrays(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_the_table_exists(name):
    assert callable(find_reader(name))


def test_a_reader_of_someone_elses_is_found_by_module_and_function():
    assert find_reader("cadiff.data.readers.arrays:read_arrays") is read_arrays


@pytest.mark.parametrize(
    "name", ["god2", "no_such_module:read", "cadiff.data.readers.arrays:no_such_function"]
)
def test_an_unknown_reader_is_refused(name):
    with pytest.raises(DataError, match=name.partition(":")[0]):
        find_reader(name)


def test_an_unknown_option_is_refused_with_the_known_ones(source, tmp_path):
    with pytest.raises(ConfigError, match="subject"):
        read("arrays", source, tmp_path / "out", subjekt="sub-02")


def test_options_are_yaml_values():
    assert parse_options(["canvas=32", "subject=sub-01", "a=[1, 2]"]) == {
        "canvas": 32,
        "subject": "sub-01",
        "a": [1, 2],
    }
    with pytest.raises(ConfigError, match="name=value"):
        parse_options(["canvas"])


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00\x80", b"stimulus_id\tsplit\na\ttrain\tmore\n"],
    ids=["empty", "binary", "ragged"],
)
def test_a_table_that_is_none_is_named(tmp_path, content):
    (tmp_path / "betas.npy").write_bytes(b"")
    np.save(tmp_path / "betas.npy", np.ones((1, 3)))
    (tmp_path / "trials.tsv").write_bytes(content)
    with pytest.raises(DataError, match=r"trials\.tsv cannot be read as a table"):
        read_arrays(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no array"], ids=["empty", "text"])
@pytest.mark.parametrize("name", ["betas.npy", "betas.npz", "betas.csv"])
def test_betas_that_are_none_are_named_without_numpys_advice(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "trials.tsv").write_text("stimulus_id\tsplit\n")
    with pytest.raises(DataError, match=name) as caught:
        read_arrays(tmp_path, tmp_path / "out")
    assert "unsafely" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "column"),
    [
        ("voxels.tsv", "noise_ceiling\nhigh\n", "noise_ceiling"),
        ("voxels.tsv", "noise_ceiling\n40\n", "noise_ceiling"),
        ("stimuli.tsv", "stimulus_id\timagenet_index\na\tdog\n", "imagenet_index"),
    ],
    ids=["a word", "per cent", "a class name"],
)
def test_a_number_that_is_none_is_refused_and_not_lost(tmp_path, file, content, column):
    np.save(tmp_path / "betas.npy", np.ones((1, 1)))
    (tmp_path / "trials.tsv").write_text("stimulus_id\tsplit\na\ttrain\n")
    (tmp_path / "stimuli").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "stimuli" / "a.png")
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=f"{column}.*row 1"):
        read_arrays(tmp_path, tmp_path / "out")

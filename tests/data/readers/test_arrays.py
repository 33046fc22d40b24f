"""The plain-arrays reader: every form of betas gives the same dataset, and wrong folders are refused by name."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import READERS, arrays_betas, find_reader, parse_options, read
from cadiff.data.readers.arrays import _load_stimuli, read_arrays
from cadiff.errors import ConfigError, DataError
from layouts.arrays import write_mat73

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


def write_csv_with_numbered_header(folder):
    pd.DataFrame(BETAS).to_csv(folder / "betas.csv", index=False)


def write_semicolons(folder):
    pd.DataFrame(BETAS).to_csv(folder / "betas.csv", index=False, header=False, sep=";", encoding="utf-8-sig")


def write_compressed_npz(folder):
    np.savez_compressed(folder / "betas.npz", responses=BETAS)


def write_big_endian(folder):
    np.save(folder / "betas.npy", BETAS.astype(">f8"))


def write_column_by_column(folder):
    np.save(folder / "betas.npy", np.asfortranarray(BETAS))


def write_mat(folder):
    savemat(folder / "betas.mat", {"betas": BETAS, "TR": 2.0})


def write_only_array_mat(folder):
    savemat(folder / "betas.mat", {"R": BETAS, "note": "z-scored"}, do_compression=True)


def write_new_mat(folder):
    write_mat73(folder / "betas.mat", {"betas": BETAS, "TR": np.full((1, 1), 2.0)})


FORMS = [
    None,
    write_npz,
    write_compressed_npz,
    write_csv,
    write_csv_with_header,
    write_csv_with_numbered_header,
    write_semicolons,
    write_big_endian,
    write_column_by_column,
    write_mat,
    write_only_array_mat,
    write_new_mat,
]


@pytest.mark.parametrize("write", FORMS)
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


def save_stimuli(folder, rows, columns):
    table(rows, columns).to_csv(folder / "stimuli.tsv", sep="\t", index=False, na_rep="n/a")


def remove_pictures(folder):
    for path in (folder / "stimuli").iterdir():
        path.unlink()
    (folder / "stimuli").rmdir()


def claim_ten_gigabytes(path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 12500), }".ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))


def swap(folder, name, content):
    (folder / "betas.npy").unlink()
    (folder / name).write_bytes(content)


def savemat_only(folder, arrays):
    (folder / "betas.npy").unlink()
    savemat(folder / "betas.mat", arrays)


def name_file(folder, file):
    save_stimuli(folder, [("cat", file), ("dog", None), ("owl", None)], ["stimulus_id", "file"])


def set_column(folder, column, value):
    trials = pd.read_csv(folder / "trials.tsv", sep="\t").assign(**{column: value})
    trials.to_csv(folder / "trials.tsv", sep="\t", index=False, na_rep="n/a")


def rename_cat(folder, name):
    (folder / "trials.tsv").write_text((folder / "trials.tsv").read_text().replace("cat", name))


def test_betas_are_read_piece_by_piece(tmp_path, rng, monkeypatch):
    """A source of 32 MB is imported within a fraction of it."""
    monkeypatch.setattr(arrays_betas, "BLOCK_BYTES", 1 << 20)
    count, num_voxels = 2000, 2000
    (tmp_path / "a").mkdir()
    betas = np.lib.format.open_memmap(tmp_path / "a" / "betas.npy", "w+", np.dtype("f8"), (count, num_voxels))
    betas[:] = rng.normal(size=num_voxels)
    betas[:, 1] = np.arange(count)
    betas.flush()
    (tmp_path / "a" / "trials.tsv").write_text("stimulus_id\tsplit\n" + "n/a\tunlabelled\n" * count)
    tracemalloc.start()
    data = BrainDataset.open(read_arrays(tmp_path / "a", tmp_path / "out"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < betas.nbytes / 4
    np.testing.assert_array_equal(data.betas[:, 1], np.arange(count))


def test_many_stimuli_are_looked_up_and_not_searched_for(tmp_path):
    """Searching the table once a stimulus would take minutes."""
    ids = [f"s{number:06d}" for number in range(20_000)]
    table([(name, "x") for name in ids], ["stimulus_id", "label"]).to_csv(
        tmp_path / "stimuli.tsv", sep="\t", index=False
    )
    start = time.process_time()
    assert list(_load_stimuli(tmp_path / "stimuli.tsv", ids[::-1])["stimulus_id"]) == ids
    assert time.process_time() - start < 5


def test_what_the_lab_says_is_kept(source, tmp_path):
    options: dict[str, Any] = {"name": "Night", "units": "z", "licence": "CC0", "citation": "Doe 2024"}
    about = BrainDataset.open(read_arrays(source, tmp_path / "out", **options)).description
    assert {key: about[key] for key in options} == options
    plain = BrainDataset.open(read_arrays(source, tmp_path / "plain")).description
    assert plain["licence"] == plain["citation"] == "not stated" and plain["name"] == "scans"


def test_pictures_are_copied_as_the_files_they_are(source, tmp_path):
    out = read_arrays(source, tmp_path / "out")
    for name in ("cat.png", "dog.jpg"):
        assert (out / "stimuli" / name).read_bytes() == (source / "stimuli" / name).read_bytes()


def test_labels_without_pictures_are_a_dataset(source, tmp_path):
    remove_pictures(source)
    save_stimuli(source, [("cat", "pet"), ("dog", "pet"), ("owl", "bird")], ["stimulus_id", "label"])
    data = BrainDataset.open(read_arrays(source, tmp_path / "out"), verify=True)
    assert data.stimuli.at["owl", "label"] == "bird" and data.stimuli["file"].isna().all()


def test_unlabelled_trials_alone_are_a_dataset(tmp_path):
    np.save(tmp_path / "betas.npy", BETAS)
    (tmp_path / "trials.tsv").write_text("stimulus_id\tsplit\n" + "n/a\tunlabelled\n" * 5)
    data = BrainDataset.open(read_arrays(tmp_path, tmp_path / "out"))
    assert len(data.rows("unlabelled")) == 5 and not len(data.stimuli)


def test_words_that_pandas_takes_for_gaps_are_names(source, tmp_path):
    (source / "stimuli" / "cat.png").rename(source / "stimuli" / "NA.png")
    text = (source / "trials.tsv").read_text().replace("cat", "NA")
    (source / "trials.tsv").write_text(text)
    assert BrainDataset.open(read_arrays(source, tmp_path / "out")).stimulus_ids("train") == ["NA", "dog"]


def test_bad_voxels_are_refused_or_dropped(source, tmp_path):
    betas = BETAS.copy()
    betas[2, 1] = np.inf
    np.save(source / "betas.npy", betas)
    with pytest.raises(DataError, match="1 of 4 voxels hold NaN or infinite"):
        read_arrays(source, tmp_path / "out")
    data = BrainDataset.open(read_arrays(source, tmp_path / "out", bad_voxels="drop"))
    np.testing.assert_array_equal(data.betas, BETAS[:, [0, 2, 3]].astype(np.float32))
    with pytest.raises(DataError, match="give refuse or drop"):
        read_arrays(source, tmp_path / "other", bad_voxels="keep")  # pyright: ignore[reportArgumentType]


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
        (lambda f: np.save(f / "betas.npy", BETAS[:3]), "5 rows, but betas.npy has 3 trials"),
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
        (lambda f: np.save(f / "betas.npy", (BETAS > 1).astype(float)), "only 0 and 1, so it is a mask"),
        (lambda f: np.save(f / "betas.npy", BETAS > 1), "only 0 and 1, so it is a mask"),
        (lambda f: np.save(f / "betas.npy", BETAS + 1j), "complex128"),
        (lambda f: np.save(f / "betas.npy", np.full((4, 5), 0.5)), "but betas.npy has 4 trials"),
        (
            lambda f: np.save(f / "betas.npy", np.full((9, 5), 0.5)),
            r"is it \(voxels, trials\)\? Transpose it",
        ),
        (lambda f: claim_ten_gigabytes(f / "betas.npy"), "cannot be read as a numpy array"),
        (lambda f: swap(f, "betas.mat", b"MATLAB"), "is not a .mat file"),
        (
            lambda f: savemat_only(f, {"a": BETAS, "b": BETAS}),
            r"2 numeric arrays \(a, b\): name the responses",
        ),
        (lambda f: savemat_only(f, {"words": "none"}), r"0 numeric arrays \(none\)"),
        (lambda f: swap(f, "betas.csv", b",a,b\n0,1,2\n"), "row numbers"),
        (lambda f: swap(f, "betas.csv", b"1,2\n3,4,5\n"), "cannot be read as numbers"),
        (
            lambda f: swap(f, "betas.csv", b"a,b\n3,4,5,6\n" + b"1,2,3,4\n" * 4),
            "a row has 4 cells, the first line 2",
        ),
        (lambda f: swap(f, "betas.csv", b"1,2\n" * 4 + b"\xe8,2\n"), "UTF-8"),
        (lambda f: name_file(f, "../../etc/passwd"), "names must not leave the folder"),
        (lambda f: name_file(f, "/etc/passwd"), "names must not leave the folder"),
        (lambda f: name_file(f, "gone.png"), "no picture of stimulus 'cat' .expected 'gone.png'"),
        (lambda f: name_file(f, "x" * 5000), "no picture of stimulus 'cat'"),
        (lambda f: (f / "stimuli" / "dog.png").write_bytes(b""), "2 pictures of stimulus 'dog'"),
        (remove_pictures, "There is no folder .*label for each stimulus"),
        (
            lambda f: save_stimuli(f, [("cat",), ("cat",)], ["stimulus_id"]),
            "row 2 has no stimulus_id, or one that",
        ),
        (lambda f: save_stimuli(f, [("cat",), ("dog",)], ["stimulus_id"]), "does not list 'owl'"),
        (lambda f: save_stimuli(f, [("cat", 1)], ["stimulus_id", "picture"]), "cannot be called 'picture'"),
        (lambda f: set_column(f, "run", "1.5"), "'run' must hold whole numbers.*row 1 holds 1.5"),
        (lambda f: set_column(f, "repeat", "0"), "'repeat' must hold whole numbers from 1"),
        (lambda f: set_column(f, "session", "first"), "'session' must hold whole numbers.*'first'"),
        (lambda f: rename_cat(f, "a/b"), "no picture of stimulus 'a/b'"),
        (lambda f: rename_cat(f, "cat.png"), "'cat.png' is the name of a file.*without ending: write 'cat'"),
        (lambda f: rename_cat(f, "fox"), r"expected 'fox' and one of \.png, \.jpg, .*\.webp"),
        (
            lambda f: (f / "trials.tsv").write_text("stimulus\tsplit\n" + "cat\ttrain\n" * 5),
            r"lacks the column 'stimulus_id' \(it has: stimulus, split\)",
        ),
        (
            lambda f: (f / "trials.tsv").write_text("stimulus_id,split\n" + "cat,train\n" * 5),
            r"are there tabs between the columns\?",
        ),
        (lambda f: rename_cat(f, "x" * 300), "row 1 has 300 bytes"),
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
    assert parse_options(["a=1e-3", "b=-2.5E4", "c=e3", "d='1'"]) == {
        "a": 0.001,
        "b": -25000.0,
        "c": "e3",
        "d": "1",
    }
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
    np.save(tmp_path / "betas.npy", np.full((1, 3), 0.5))
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
    np.save(tmp_path / "betas.npy", np.full((1, 1), 0.5))
    (tmp_path / "trials.tsv").write_text("stimulus_id\tsplit\na\ttrain\n")
    (tmp_path / "stimuli").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "stimuli" / "a.png")
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=f"{column}.*row 1"):
        read_arrays(tmp_path, tmp_path / "out")

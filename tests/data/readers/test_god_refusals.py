"""What the reader of Generic Object Decoding refuses, each by its sentence, and that nothing is left behind."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.god import read_god
from cadiff.errors import ConfigError, DataError, UserError
from layouts.god import (
    EXTRA,
    VC,
    Subject,
    make_subject,
    rewrite_arrays,
    rewrite_column,
    write_h5,
    write_npz,
    write_pictures,
)


@pytest.fixture
def subject(rng) -> Subject:
    return make_subject(rng)


@pytest.fixture
def npz(subject, tmp_path) -> Path:
    return write_npz(tmp_path / "npz", subject)


@pytest.fixture
def h5(subject, tmp_path) -> Path:
    return write_h5(tmp_path / "h5" / "Subject1.h5", subject)


def load(source: Path, out: Path, **options) -> BrainDataset:
    return BrainDataset.open(read_god(source, out, **{"design": "any", **options}), verify=True)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"arr_4": None}, r"sbj_1.npz lacks arr_4 \(it has: "),
        ({"arr_0": np.zeros((4, 9))}, r"arr_1 .* expected numbers \(n, 9\)"),
        ({"arr_3": np.arange(10) + 1}, r"arr_3 holds 10 in row 9; expected positions 0 to 9"),
        ({"arr_3": np.arange(10) + 0.5}, r"arr_3 holds 0.5 in row 0"),
        ({"arr_3": np.full(10, np.nan)}, r"arr_3 holds nan in row 0"),
        ({"arr_4": np.arange(3)}, r"arr_4 is int64 \(3,\), expected numbers \(16\)"),
        ({"V1": np.full(300, 2)}, r"the mask V1 is int64 \(300,\), expected bool \(300,\)"),
        ({"V1": np.ones(299, bool)}, r"the mask V1 is bool \(299,\)"),
        ({"arr_0": np.full((10, 300), "x")}, r"arr_0 .* is <U1 \(10, 300\), expected numbers"),
        ({"arr_0": np.full((10, 300), np.nan)}, r"voxels hold NaN or infinite values"),
        ({"arr_0": np.full((10, 300), 1e300)}, r"voxels hold NaN or infinite values"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(npz, tmp_path, arrays, sentence):
    with pytest.raises(DataError, match=sentence):
        load(rewrite_arrays(npz, **arrays), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_voxels_can_be_dropped(npz, subject, tmp_path):
    train = subject.train.copy()
    bad = np.flatnonzero(subject.masks["VC"])[3]
    train[2, bad] = np.inf
    data = load(rewrite_arrays(npz, arr_0=train), tmp_path / "out", rois="VC", bad_voxels="drop")
    assert data.description["dropped_voxels"] == 1 and len(data.voxels) == VC[1] - 1


def test_code_in_an_array_is_not_run(npz, tmp_path):
    class Code:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    assert pickle.dumps(Code())
    with pytest.raises(DataError, match=r"arr_0.* cannot be read"):
        load(rewrite_arrays(npz, arr_0=np.array([Code()], dtype=object)), tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("imagenet_training_label.csv", b"", r"training_label.csv is empty"),
        ("imagenet_training_label.csv", b"name,file\n", r"line 1: 'name' is not a stimulus id"),
        (
            "imagenet_training_label.csv",
            b"1518878.010042,n01518878_99.JPEG\n",
            r"the id says n01518878_10042, the file",
        ),
        ("imagenet_training_label.csv", b"1518878.010042\n1518878.010042\n", r"'n01518878_10042' twice"),
        ("imagenet_training_label.csv", b"1443537.01902\n", r"for training and for test"),
        ("imagenet_training_label.csv", b"\xff\xfe\x00", r"training_label.csv is not UTF-8 text"),
        (
            "imagenet_testing_label.csv",
            None,
            r"There is no file .*testing_label.csv .*: expected the list of stimuli",
        ),
        ("imagenet_class_index.json", b"{", r"class_index.json cannot be read as JSON"),
        ("images_256.npz", None, r"There is no file .*images_256.npz"),
        ("images_256.npz", b"PK", r"images_256.npz cannot be read as an .npz archive"),
    ],
)
def test_files_beside_that_do_not_fit_are_refused(npz, tmp_path, file, content, sentence):
    if content is None:
        (npz / file).unlink()
    else:
        (npz / file).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        load(npz, tmp_path / "out")


@pytest.mark.parametrize(
    ("change_images", "sentence"),
    [
        (lambda a: a[:-1], r"train_images has 9 pictures, the list of its stimuli 10 rows"),
        (
            lambda a: a.transpose(0, 3, 1, 2),
            r"train_images is uint8 \(10, 3, 24, 24\), expected numbers \(n, n, n, 3\)",
        ),
        (
            lambda a: a.astype(np.float32),
            r"mixes kinds of numbers \(train_images float32, test_images uint8\)",
        ),
        (lambda a: a.astype(np.uint16) * 2, r"holds values from 0 to 510; expected pictures in 0..255"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(npz, subject, tmp_path, change_images, sentence):
    images = change_images(subject.train_images)
    np.savez(npz / "images_256.npz", train_images=images, test_images=subject.test_images)
    with pytest.raises(DataError, match=sentence):
        load(npz, tmp_path / "out")


def test_a_folder_without_all_pictures_or_with_two_of_one_name_is_refused(h5, subject, tmp_path):
    folder = write_pictures(tmp_path / "pictures", subject)
    name = subject.test_ids[1]
    Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    with pytest.raises(DataError, match=f"{name}.* differ, but are one stimulus by name"):
        load(h5, tmp_path / "out", images=folder)
    (folder / f"{name}.png").unlink()
    (folder / "test" / f"{name}.JPEG").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=f"{name}.JPEG cannot be read"):
        load(h5, tmp_path / "out", images=folder)
    (folder / "test" / f"{name}.JPEG").unlink()
    with pytest.raises(DataError, match=rf"lacks 1 of 14 pictures \(first: {name}"):
        load(h5, tmp_path / "out", images=folder)
    with pytest.raises(DataError, match=r"neither a folder nor an .npz file \(found: no such folder\)"):
        load(h5, tmp_path / "out", images=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("DataType", 4, r"DataType holds 4; expected 1, 2 and 3"),
        ("DataType", 1, r"Subject1.h5 has no test trials of perception"),
        ("stimulus_id", np.nan, r"stimulus_id in row 0 is nan; expected a picture's id"),
        ("stimulus_id", 1518878.0, r"stimulus_id in row 0 is 1518878.0; expected a picture's id"),
        ("stimulus_id", 1518878.010042, r"shows 'n01518878_10042' in training and test"),
    ],
)
def test_labels_that_cannot_be_are_refused(h5, tmp_path, key, value, sentence):
    with pytest.raises(DataError, match=sentence):
        load(rewrite_column(h5, key, value), tmp_path / "out")


def replace(file: h5py.File, name: str, make) -> None:
    content = file[name][()]
    del file[name]
    make(file, name, content)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda f, n, d: f.create_dataset(n, data=d.astype("f4")),
            r"/dataSet is float32 .*, expected float64",
        ),
        (
            lambda f, n, d: f.create_dataset(n, data=d[:, :-1]),
            r"/metaData/value is float64 .* expected numbers \(18, 303\)",
        ),
        (
            lambda f, n, d: f.create_dataset(n, (10**6, 10**6), "f8", chunks=(8, 8)),
            r"claims 8000000000000 bytes and stores 0",
        ),
        (
            lambda f, n, d: f.__setitem__(n, h5py.ExternalLink("other.h5", "/data")),
            r"no dataset /dataSet of its own",
        ),
        (
            lambda f, n, d: f.create_dataset(n, d.shape, "f8", external=[("/etc/hostname", 0, 9**6)]),
            r"kept in other files",
        ),
        (lambda f, n, d: f.create_group(n), r"no dataset /dataSet of its own"),
        (lambda f, n, d: None, r"lacks /dataSet and /metaData \(it has: metaData\)"),
    ],
)
def test_files_of_bdpy_that_do_not_fit_are_refused(h5, tmp_path, make, sentence):
    with h5py.File(h5, "r+") as file:
        replace(file, "dataSet", make)
    with pytest.raises(DataError, match=sentence):
        load(h5, tmp_path / "out")


def test_the_later_release_without_data_type_is_refused_by_name(h5, tmp_path):
    with h5py.File(h5, "r+") as file:
        keys = ["Session" if key == "DataType" else key for key in file["metaData/key"].asstr()]
        file["metaData/key"][...] = np.array(keys, dtype="S16")
    with pytest.raises(DataError, match=r"no column DataType \(it has: VoxelData, Session.*after fmriprep"):
        load(h5, tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_file_is_refused(h5, npz, tmp_path, share):
    for source in (h5, npz / "sbj_1.npz"):
        whole = source.read_bytes()
        source.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=f"{re.escape(str(source))} cannot be read"):
            load(source, tmp_path / "out")


def test_the_source_must_say_one_subject(npz, h5, rng, tmp_path):
    write_npz(npz, make_subject(rng, 2))
    for options, sentence in (
        ({}, r"holds several subjects \(sbj_1.npz, sbj_2.npz\): say which, for example subject=1"),
        ({"subject": 4}, r"has no subject 4 \(it has: sbj_1.npz, sbj_2.npz\)"),
    ):
        with pytest.raises(DataError, match=sentence):
            load(npz, tmp_path / "out", **options)
    for number, subject in enumerate((2, "2", "sub-02")):
        assert load(npz, tmp_path / f"out-{number}", subject=subject).description["subject"] == "sub-02"
    shutil.copy(h5, npz)
    with pytest.raises(DataError, match=r"subject 1 in two forms \(Subject1.h5, sbj_1.npz\): give the file"):
        load(npz, tmp_path / "out", subject=1)
    assert len(load(npz / "Subject1.h5", tmp_path / "file").voxels) == VC[1] + EXTRA


def test_single_files_must_be_a_subject(npz, h5, tmp_path):
    with pytest.raises(DataError, match=r"is subject 1, but subject=3 was asked for"):
        load(h5, tmp_path / "out", subject=3)
    with pytest.raises(DataError, match=r"images_256.npz is not a subject's file"):
        load(npz / "images_256.npz", tmp_path / "out")
    h5.rename(h5.with_name("mine.h5"))
    with pytest.raises(DataError, match=r"is not named like Subject3.h5: give subject="):
        load(h5.with_name("mine.h5"), tmp_path / "out")
    assert load(h5.with_name("mine.h5"), tmp_path / "out", subject=7).description["subject"] == "sub-07"
    with pytest.raises(DataError, match=r"holds no imagery trials: they are in the lab's Subject1.h5"):
        load(npz, tmp_path / "imagery", part="imagery")
    with pytest.raises(DataError, match=r"holds neither sbj_1.npz .*\(found: mine.h5\)"):
        load(h5.parent, tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"test": "mean"}, "test='mean': choose single or averaged"),
        ({"part": "dreams"}, "part='dreams': choose perception or imagery"),
        ({"design": True}, "design=True: choose published or any"),
        ({"bad_voxels": "zero"}, "bad_voxels='zero': choose refuse or drop"),
        ({"rois": []}, r"rois=\[\]: give names"),
        ({"rois": [1]}, r"rois=\[1\]: give names"),
        ({"rois": 3}, "rois=3: give names"),
        ({"subject": "all"}, "subject='all': give the subject's number"),
        ({"subject": True}, "subject=True: give the subject's number"),
    ],
)
def test_unknown_values_of_options_are_refused(npz, tmp_path, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load(npz, tmp_path / "out", **options)


def test_an_unknown_roi_is_refused_with_those_there_are(npz, h5, tmp_path):
    for source in (npz, h5):
        with pytest.raises(
            DataError, match=r"has no ROI 'V9'; it has: V1, V2, V3, V4, LOC, FFA, PPA, LVC, HVC, VC\."
        ):
            load(source, tmp_path / "out", rois="V9")


def test_damaged_bytes_are_refused_or_read_but_never_crash(npz, h5, tmp_path):
    rng = np.random.default_rng(0)
    # arrays in .npz files are opened by `Archive`, which has tests of its own
    paths = [h5, *(path for path in sorted(npz.iterdir()) if path.suffix != ".npz")]
    for number in range(60):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        broken = bytearray(whole)
        head = min(len(whole), 4096) if number % 3 else len(whole)  # headers are where the structure is
        for place in rng.integers(0, head, 8):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        try:
            load(h5 if path == h5 else npz, tmp_path / f"out-{number}")
        except UserError as error:
            assert not (tmp_path / f"out-{number}").exists() and str(error)
        path.write_bytes(whole)

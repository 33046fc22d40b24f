"""Both forms of Generic Object Decoding: the right numbers in the right rows (refusals: test_god_refusals)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.data.readers.god import read_god
from cadiff.data.readers.god_stimuli import stimulus_id
from cadiff.errors import DataError
from layouts.god import (
    GOLDFISH,
    HAWKSBILL,
    NO_INDEX,
    OSTRICH,
    REPEATS,
    TEST_CLASSES,
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


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The npz folder with the published numbers of trials, on a few voxels and tiny pictures."""
    classes = [f"n{number:08d}" for number in range(2_000_000, 2_000_200)]
    rng = np.random.default_rng(1)
    whole = make_subject(
        rng,
        train_classes=tuple(classes[:150]),
        test_classes=tuple(classes[150:]),
        per_class=8,
        repeats=35,
        imagery_repeats=10,
        num_voxels=24,
        side=2,
    )
    folder = write_npz(tmp_path_factory.mktemp("published") / "npz", whole)
    write_h5(folder.parent / "Subject1.h5", whole)
    return folder


def load(source: Path, out: Path, **options) -> BrainDataset:
    return BrainDataset.open(read_god(source, out, **{"design": "any", **options}), verify=True)


def notes(data: BrainDataset) -> str:
    return " ".join(data.description["notes"])


def test_trials_of_the_npz_form_carry_the_picture_that_arr_3_and_arr_4_say(npz, subject, tmp_path):
    data = load(npz, tmp_path / "out")
    in_any = np.any(list(subject.masks.values()), axis=0)
    train, test = data.rows("train"), data.rows("test")
    assert list(data.trials["stimulus_id"][train]) == [subject.train_ids[i] for i in subject.shown[::-1]]
    assert list(data.trials["stimulus_id"][test]) == [subject.test_ids[i] for i in subject.tested]
    np.testing.assert_array_equal(data.betas[train], subject.train[::-1][:, in_any])
    np.testing.assert_array_equal(data.betas[test], subject.single[:, in_any])
    np.testing.assert_allclose(data.voxels["noise_ceiling"], subject.noise_ceiling[in_any])
    assert set(data.trials["run"]) == {1} and data.description["subject"] == "sub-01"


def test_pictures_belong_to_their_ids(npz, subject, tmp_path):
    data = load(npz, tmp_path / "out")
    for ids, pictures in ((subject.train_ids, subject.train_images), (subject.test_ids, subject.test_images)):
        for name, picture in zip(ids, pictures, strict=True):
            np.testing.assert_array_equal(data.image(name), picture)


def test_only_classes_of_imagenet_1k_get_an_index(npz, tmp_path):
    stimuli = load(npz, tmp_path / "out").stimuli
    index = stimuli.groupby("label")["imagenet_index"].first()
    assert (index[OSTRICH], index[GOLDFISH]) == (9, 1)
    assert (
        index[[NO_INDEX, HAWKSBILL]].isna().all()
    )  # the hawksbill stands beside the leatherback, which it is not


@pytest.mark.parametrize("lower_case", [False, True])
def test_both_forms_hold_the_same_trials(npz, subject, tmp_path, lower_case):
    path = write_h5(tmp_path / "h5" / "Subject1.h5", subject, lower_case=lower_case)
    one, other = load(npz, tmp_path / "one"), load(path, tmp_path / "other")
    order = [
        d.trials.sort_values(["split", "stimulus_id", "repeat"])[["stimulus_id", "split", "repeat", "task"]]
        for d in (one, other)
    ]
    assert order[0].to_numpy().tolist() == order[1].to_numpy().tolist()
    np.testing.assert_array_equal(one.betas[order[0].index], other.betas[order[1].index])
    assert list(one.voxels["rois"]) == list(other.voxels["rois"])
    assert set(one.stimuli.index) == set(other.stimuli.index)
    assert one.stimuli["label"].sort_index().equals(other.stimuli["label"].sort_index())


def test_the_h5_form_keeps_runs_and_coordinates_and_the_order_of_the_file(h5, subject, tmp_path):
    data = load(h5, tmp_path / "out", rois="VC")
    assert list(data.trials["stimulus_id"][data.rows("train")]) == [
        subject.train_ids[i] for i in subject.shown
    ]
    assert list(data.trials["run"][data.rows("test")]) == [1 + i // 5 for i in range(len(subject.single))]
    np.testing.assert_allclose(
        data.voxels[["x", "y", "z"]].to_numpy().T, subject.places[:, subject.masks["VC"]]
    )
    assert data.voxels["noise_ceiling"].isna().all()


@pytest.mark.parametrize("number", [1, 2])
def test_one_roi_can_be_chosen_and_all_are_listed(rng, tmp_path, number):
    subject = make_subject(rng, number)
    data = load(write_npz(tmp_path / "npz", subject), tmp_path / "out", rois=["VC"])
    assert len(data.voxels) == VC[number]
    where = np.flatnonzero(subject.masks["VC"])
    for name, mask in subject.masks.items():
        listed = np.array([name in rois.split(",") for rois in data.voxels["rois"]])
        np.testing.assert_array_equal(listed, mask[where])
    fitted = Preprocessor.fit(data.betas[data.rows("train")], PreprocessConfig(), patch_size=16)
    assert fitted.num_voxels == {1: 224, 2: 208}[number]
    assert f"VC has {VC[number]} voxels; {(4466, 4404)[number - 1]} are known" in notes(data)


def test_rois_unite(npz, subject, tmp_path):
    data = load(npz, tmp_path / "out", rois="V1, LOC")
    where = subject.masks["V1"] | subject.masks["LOC"]
    np.testing.assert_array_equal(data.betas[data.rows("test")], subject.single[:, where])


def test_averaged_test_trials_are_means_over_repeats_in_both_forms(npz, h5, subject, tmp_path):
    in_any = np.any(list(subject.masks.values()), axis=0)
    for name, source in (("npz", npz), ("h5", h5)):
        data = load(source, tmp_path / f"out-{name}", test="averaged")
        rows = data.rows("test")
        assert list(data.trials["stimulus_id"][rows]) == subject.test_ids
        assert set(data.trials["averaged_trials"][rows]) == {REPEATS}
        assert set(data.trials["repeat"]) == {1} and len(data.rows("train")) == len(subject.train)
        expected = [subject.single[subject.tested == i].mean(axis=0) for i in range(len(subject.test_ids))]
        np.testing.assert_allclose(data.betas[rows], np.stack(expected)[:, in_any], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_only", [False, True])
def test_imagery_trials_become_the_test_trials(subject, tmp_path, class_only):
    path = write_h5(tmp_path / "Subject1.h5", subject, class_only_imagery=class_only)
    data = load(path, tmp_path / "out", part="imagery", rois="VC")
    rows = data.rows("test")
    np.testing.assert_array_equal(data.betas[rows], subject.imagery[:, subject.masks["VC"]])
    assert list(data.trials["stimulus_id"][rows]) == [subject.test_ids[i] for i in subject.imagined]
    assert list(data.trials["run"][rows]) == [1 + i // 3 for i in range(len(subject.imagined))]
    assert set(data.trials["task"][rows]) == {"imagery"}
    assert set(data.trials["task"][data.rows("train")]) == {"perception"}
    assert "it was not in view" in notes(data)


def test_without_pictures_only_labels_are_known(h5, tmp_path):
    data = load(h5, tmp_path / "out")
    assert data.stimuli["file"].isna().all() and data.stimuli["label"].notna().all()
    assert "only the label is known" in notes(data)


def test_pictures_come_from_a_folder_at_any_depth_or_from_the_npz(h5, npz, subject, tmp_path):
    folder = write_pictures(tmp_path / "pictures", subject)
    files = load(h5, tmp_path / "files", images=str(folder))
    name = subject.test_ids[0]
    copied = files.folder / "stimuli" / files.stimuli.at[name, "file"]
    assert copied.read_bytes() == (folder / "test" / f"{name}.JPEG").read_bytes()
    for images in (npz, npz / "images_256.npz"):
        arrays = load(h5, tmp_path / f"arrays-{images.name}", images=images)
        np.testing.assert_array_equal(arrays.image(name), subject.test_images[0])
        assert arrays.stimuli.at[name, "imagenet_index"] == 1  # the class index lies there too


def test_the_lab_names_of_lists_and_one_other_size_of_pictures_do(npz, subject, tmp_path):
    (npz / "imagenet_training_label.csv").rename(npz / "imageID_training.csv")
    (npz / "imagenet_testing_label.csv").rename(npz / "imageID_test.csv")
    (npz / "images_256.npz").rename(npz / "images_112.npz")
    assert load(npz, tmp_path / "out").stimuli["file"].notna().all()


@pytest.mark.parametrize("scale", [255, 1])
def test_pictures_as_floats_of_either_range(npz, subject, tmp_path, scale):
    train, test = (a / scale for a in (subject.train_images.astype("f4"), subject.test_images.astype("f4")))
    np.savez(npz / "images_256.npz", train_images=train, test_images=test)
    data = load(npz, tmp_path / "out")
    np.testing.assert_array_equal(data.image(subject.train_ids[0]), subject.train_images[0])


def test_byte_order_number_types_and_compression_do_not_matter(npz, subject, tmp_path):
    plain = load(npz, tmp_path / "plain")
    with np.load(npz / "sbj_1.npz") as file:
        content = {**file}
    content |= {name: content[name].astype(">f8") for name in ("arr_0", "arr_1", "arr_2", "arr_3")}
    content["arr_4"] = content["arr_4"].astype(np.uint8).reshape(-1, 1)
    content |= {name: content[name].astype(float) for name in ("V1", "VC")}
    np.savez_compressed(npz / "sbj_1.npz", **content)
    other = load(npz, tmp_path / "other")
    for file in ("betas.npy", "trials.tsv", "voxels.tsv", "stimuli.tsv"):
        assert other.description["sha256"][file] == plain.description["sha256"][file]


def test_the_published_design_passes_and_anything_less_is_refused(published, tmp_path):
    data = BrainDataset.open(read_god(published, tmp_path / "npz", subject=1))
    assert (len(data.rows("train")), len(data.rows("test")), len(data.stimuli)) == (1200, 1750, 1250)
    h5 = published.parent / "Subject1.h5"
    for part, count in (("perception", 1750), ("imagery", 500)):
        assert len(BrainDataset.open(read_god(h5, tmp_path / part, part=part)).rows("test")) == count
    averaged = BrainDataset.open(read_god(h5, tmp_path / "averaged", part="imagery", test="averaged"))
    assert set(averaged.trials["averaged_trials"][averaged.rows("test")]) == {10}
    fewer = shutil.copytree(published, tmp_path / "fewer")
    with np.load(fewer / "sbj_1.npz") as file:
        single, tested = file["arr_1"], file["arr_4"]
    rewrite_arrays(fewer, arr_1=single[:-1], arr_4=tested[:-1])
    for test, found in (("single", "1749 test trials of 50 pictures"), ("averaged", "34 to 35 times")):
        with pytest.raises(DataError, match=rf"{found}.* published design .*design=any"):
            read_god(fewer, tmp_path / "out", test=test)


def test_averages_that_do_not_fit_the_labels_are_refused_or_noted(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "npz")
    with np.load(folder / "sbj_1.npz") as file:
        tested, average = file["arr_4"], file["arr_2"]
    rewrite_arrays(folder, arr_2=average * 3 + 1)
    scaled = notes(BrainDataset.open(read_god(folder, tmp_path / "scaled")))
    assert "arr_2 is not the mean of arr_1" in scaled and "100% of the averages" in scaled
    rewrite_arrays(folder, arr_4=np.random.default_rng(0).permutation(tested))
    with pytest.raises(DataError, match=r"resemble the mean of their own trials .* do not fit: .*design=any"):
        read_god(folder, tmp_path / "out")
    assert "arr_2 is not the mean" in notes(load(folder, tmp_path / "any"))


def test_the_notes_say_what_was_compared(npz, subject, tmp_path):
    said = notes(load(npz, tmp_path / "out"))
    assert "arr_2 is the mean of arr_1" in said
    # signal and noise of the synthetic test trials have variance 1 each
    estimate = re.search(r"estimated from the repeats it is (0\.\d\d)", said)
    assert estimate and abs(float(estimate[1]) - 0.5) < 0.15


@pytest.mark.parametrize(
    ("arr_5", "said"),
    [
        (np.full(300, 1.5), "no fraction of variance"),
        (np.full(300, np.nan), "holds no numbers"),
        (np.ones(7), "not a number a voxel"),
        (None, "There is no arr_5"),
    ],
)
def test_noise_ceilings_that_are_none_stay_unknown(npz, tmp_path, arr_5, said):
    data = load(rewrite_arrays(npz, arr_5=arr_5), tmp_path / "out")
    assert data.voxels["noise_ceiling"].isna().all() and said in notes(data)


def test_a_class_index_in_another_order_or_none_leaves_the_shipped_classes(npz, tmp_path):
    path = npz / "imagenet_class_index.json"
    table = json.loads(path.read_text())
    table["9"], table["900"] = table["900"], table["9"]
    path.write_text(json.dumps(table))
    data = load(npz, tmp_path / "moved")
    assert data.stimuli.loc[data.stimuli["label"] == OSTRICH, "imagenet_index"].isna().all()
    assert (data.stimuli.loc[data.stimuli["label"] == GOLDFISH, "imagenet_index"] == 1).all()
    assert "not in the order of ImageNet-1k" in data.description["imagenet_index_from"]
    path.unlink()
    assert "no imagenet_class_index.json" in load(npz, tmp_path / "none").description["imagenet_index_from"]


def test_an_older_file_calls_the_ids_label(h5, subject, tmp_path):
    with h5py.File(h5, "r+") as file:
        keys = list(file["metaData/key"].asstr())
        keys[keys.index("stimulus_id")], keys[keys.index("image_index")] = "Label", "Session"
        file["metaData/key"][...] = np.array(keys, dtype="S16")
    rewrite_column(
        h5, "Session", np.arange(len(subject.train) + len(subject.single) + len(subject.imagery)) + 1
    )
    data = load(h5, tmp_path / "out")
    assert list(data.trials["session"]) == list(range(1, len(data.trials) + 1))
    assert set(data.stimuli["label"]) >= set(TEST_CLASSES)


@given(st.integers(1, 99_999_999), st.integers(1, 999_999))
def test_ids_survive_being_floats(wordnet, picture):
    number = float(f"{wordnet}.{picture:06d}")
    assert stimulus_id(number) == f"n{wordnet:08d}_{picture}"
    assert stimulus_id(float(repr(number))) == stimulus_id(number)  # a table drops trailing zeros


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0, -1518878.010042, 1e9, 1518878.0100425])
def test_other_numbers_are_no_ids(number):
    assert stimulus_id(number) is None

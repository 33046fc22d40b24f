"""The digit69 reader: orientation, counts and labels, on a made-up file and on the real one where it is there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import savemat

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.digit69 import read_digit69
from cadiff.data.splits import check_disjoint
from cadiff.errors import DataError
from layouts.arrays import write_mat73
from layouts.digit69 import make_content


def test_betas_labels_and_upright_pictures_come_through(tmp_path, rng):
    arrays = make_content(rng)
    upright = np.zeros((28, 28), np.uint8)
    upright[3, 20] = 200  # row 3, column 20: near the top, on the right
    arrays["stimTest"][1] = upright.ravel(order="F")  # Matlab writes columns first
    savemat(tmp_path / "digits.mat", arrays)
    data = BrainDataset.open(read_digit69(tmp_path / "digits.mat", tmp_path / "out"), verify=True)
    np.testing.assert_array_equal(data.betas[data.rows("train")], arrays["fmriTrn"].astype(np.float32))
    np.testing.assert_array_equal(data.betas[data.rows("test")], arrays["fmriTest"].astype(np.float32))
    shown = data.stimulus_ids("test")
    assert list(data.stimuli.loc[shown, "label"]) == ["6", "9"]
    np.testing.assert_array_equal(data.image(shown[1]), np.repeat(upright[..., None], 3, axis=2))


def test_a_larger_canvas_centres_the_picture_and_changes_no_pixel(tmp_path, rng):
    arrays = make_content(rng)
    savemat(tmp_path / "digits.mat", arrays)
    plain = BrainDataset.open(read_digit69(tmp_path / "digits.mat", tmp_path / "plain"))
    padded = BrainDataset.open(read_digit69(tmp_path / "digits.mat", tmp_path / "padded", canvas=32))
    for name in plain.stimulus_ids("train"):
        picture = padded.image(name)
        assert picture.shape == (32, 32, 3)
        np.testing.assert_array_equal(picture[2:30, 2:30], plain.image(name))
        assert picture.sum() == plain.image(name).sum()


def test_doubles_and_a_file_of_version_73_give_the_same_dataset(tmp_path, rng):
    arrays = make_content(rng)
    savemat(tmp_path / "digits.mat", arrays)
    write_mat73(tmp_path / "digits73.mat", {name: array.astype(float) for name, array in arrays.items()})
    made = [read_digit69(tmp_path / f"{name}.mat", tmp_path / name) for name in ("digits", "digits73")]
    first, second = (BrainDataset.open(folder).description["sha256"] for folder in made)
    assert first == second


@pytest.mark.parametrize(("train", "test", "selection"), [(90, 10, False), (80, 10, True)])
def test_the_published_counts_and_selections_are_told_apart(tmp_path, rng, train, test, selection):
    savemat(
        tmp_path / "digits.mat", make_content(rng, train=train, test=test, voxels=3092), do_compression=True
    )
    data = BrainDataset.open(read_digit69(tmp_path / "digits.mat", tmp_path / "out"))
    assert data.description["counts"]["found"] == {"train": train, "test": test, "voxels": 3092}
    assert data.description["counts"]["selection"] is selection
    assert dict(data.trials["split"].value_counts()) == {"train": train, "test": test}


@pytest.mark.parametrize("canvas", [27, 0, 2.5, True, "32", 10**6])
def test_a_canvas_that_makes_no_picture_is_refused(tmp_path, rng, canvas):
    savemat(tmp_path / "digits.mat", make_content(rng))
    with pytest.raises(DataError, match="give 28 to"):
        read_digit69(tmp_path / "digits.mat", tmp_path / "out", canvas=canvas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("stimTest"), "lacks stimTest"),
        (lambda a: a.update(fmriTest=a["fmriTest"][:, :5]), "different numbers of voxels"),
        (lambda a: a.update(labelTrn=a["labelTrn"][:4]), "6 trials in fmriTrn"),
        (lambda a: a.update(labelTrn=a["labelTrn"] + 6), "expected 1"),
        (lambda a: a.update(stimTrn=a["stimTrn"] / 255.0), "expected uint8"),
        (lambda a: a["fmriTrn"].__setitem__((0, 0), np.nan), "NaN"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(tmp_path, rng, change, message):
    arrays = make_content(rng)
    change(arrays)
    savemat(tmp_path / "digits.mat", arrays)
    with pytest.raises(DataError, match=message):
        read_digit69(tmp_path / "digits.mat", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["digits.mat"]


def test_a_file_that_is_no_mat_file_is_refused(tmp_path):
    (tmp_path / "digits.mat").write_text("not Matlab")
    with pytest.raises(DataError, match=r"not a \.mat file"):
        read_digit69(tmp_path / "digits.mat", tmp_path / "out")


def test_the_real_file(dev_data, tmp_path):
    source = dev_data / "digit69" / "digit69_28x28.mat"
    data = BrainDataset.open(read_digit69(source, tmp_path / "out"))
    assert data.betas.shape[1] == 3092
    check_disjoint(data)
    labels = data.stimuli["label"]
    pictures = {name: data.image(name)[..., 0].astype(float) for name in labels.index}

    def spread(picture: np.ndarray, axis: int) -> float:
        weights = picture.sum(axis=axis) / picture.sum()
        places = np.arange(len(weights))
        return float(np.sqrt(weights @ places**2 - (weights @ places) ** 2))

    # upright digits are taller than wide, and the loop, with most of the ink, is low in a 6 and high in a 9
    taller = [spread(picture, 1) > spread(picture, 0) for picture in pictures.values()]
    assert np.mean(taller) > 0.9
    lower = {name: picture[14:].sum() / picture.sum() for name, picture in pictures.items()}
    six, nine = (np.mean([lower[name] for name in labels.index[labels == digit]]) for digit in "69")
    assert six > nine + 0.05


def test_a_file_cut_off_in_its_header_is_refused(tmp_path):
    (tmp_path / "cut.mat").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"cut\.mat is not a \.mat file"):
        read_digit69(tmp_path / "cut.mat", tmp_path / "out")

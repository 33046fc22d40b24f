"""One frame for every picture: whoever looks at a stimulus that is no square sees the same part of it, at its proportions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.doctor.features import load_field
from cadiff.data.doctor.folder import open_folder
from cadiff.data.gabor import FIELD
from cadiff.data.stimulus_sets import load_stimuli
from cadiff.encoding.pictures import common_side, first_side, shown_pictures
from cadiff.evaluate.pictures import open_stimuli, stimulus_images
from cadiff.framing import central, framed
from cadiff.priors.images import to_square

HIGH, WIDE = 40, 60
SIDE = 20


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator):
    """A function of the pictures' height and width: a dataset of one training and two test stimuli."""

    def make(high: int, wide: int) -> BrainDataset:
        names = ["a", "b", "c"]
        trials = pd.DataFrame({"stimulus_id": names, "split": ["train", "test", "test"]})
        folder = write_dataset(
            tmp_path / f"{high}x{wide}",
            name="toy",
            subject="sub-01",
            betas=rng.normal(size=(3, 2)),
            trials=trials.assign(session=1, run=1, repeat=1),
            voxels=pd.DataFrame({"rois": ["V1", "V2"]}),
            stimuli=pd.DataFrame({"stimulus_id": names}),
            images={name: rng.integers(0, 256, (high, wide, 3), np.uint8) for name in names},
        )
        return BrainDataset.open(folder)

    return make


def test_the_part_is_the_largest_in_the_middle_that_has_the_proportions():
    picture = np.zeros((HIGH, WIDE, 3), np.uint8)
    assert central(picture, (7, 7)).shape == (40, 40, 3)
    assert central(picture, (10, 30)).shape == (20, 60, 3)
    assert central(picture, (30, 10)).shape == (40, 13, 3)
    assert central(picture, (20, 30)) is picture
    assert central(np.zeros((1, 400, 3), np.uint8), (400, 1)).shape == (1, 1, 3)
    picture[:, 10:50] = (
        255  # a square in the middle fills the frame: nothing is left of what stands beside it
    )
    assert (framed(picture, (SIDE, SIDE)) == 255).all()


def test_everyone_sees_the_same_part_of_a_picture(data, tmp_path):
    found = data(HIGH, WIDE)
    expected = np.asarray(
        Image.fromarray(found.image("b")[:, 10:50]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    )
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(found.image("b")).save(pictures / "b.png")
    (pictures / "stimuli.tsv").write_text("file\tlabel\nb.png\tcat\n")
    seen = {
        "dataset": found.images(["b"], SIDE)[0],
        "truth": stimulus_images(open_stimuli(found.folder), ["b"], (SIDE, SIDE))[0],
        "encoding": shown_pictures(found, ["b"], SIDE)[0],
        "prior": to_square(found.image("b"), SIDE, "resize"),
        "simulation": load_stimuli(pictures).images(["b"], SIDE)[0],
    }
    for who, picture in seen.items():
        np.testing.assert_array_equal(picture, expected, err_msg=who)
    field = load_field(open_folder(found.folder), ["b"])[0]
    np.testing.assert_array_equal(field, found.images(["b"], FIELD)[0])


def test_pictures_of_one_size_that_are_no_squares_are_brought_to_one(data):
    assert common_side(data(HIGH, WIDE), ["a", "b"]) == first_side(data(WIDE, HIGH), ["a"]) == HIGH
    assert common_side(data(HIGH, HIGH), ["a", "b"]) is None


def test_square_pictures_are_as_they_always_were(data):
    found = data(WIDE, WIDE)
    for side in (SIDE, WIDE, 2 * WIDE):
        resized = Image.fromarray(found.image("b")).resize((side, side), Image.Resampling.BICUBIC)
        expected = found.image("b") if side == WIDE else np.asarray(resized)
        np.testing.assert_array_equal(found.images(["b"], side)[0], expected)
        truth = stimulus_images(open_stimuli(found.folder), ["b"], (side, side))
        np.testing.assert_array_equal(truth[0], expected)

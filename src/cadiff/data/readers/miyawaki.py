"""Contrast patterns of 10 x 10 patches seen by one subject: Miyawaki et al. 2008 (Neuron 60:915), figure session, V1.

`V1_mean_figure.mat` as the VBCCA package hands it on (Fujiwara, Miyawaki & Kamitani 2013, Neural Computation 25:979) holds
    I2   0 or 1 (100, 80)      the picture of each trial, column by column: `I2[:, trial].reshape(10, 10).T` is upright
    R2   float (797, 80)       responses of V1, the mean of each block; voxels are the rows
Ten pictures are shown eight times each: five shapes in the first forty trials and five letters in the last forty.

The file names no runs. Noise is correlated within every ten successive trials and not beyond, and each ten shows five
pictures twice, so ten trials are a run here. Two traps follow. Shapes and letters never share a run, so what is common to a
run tells them apart. And ten pictures are too few for one test set: the honest split leaves out one picture after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cadiff.data.files import need_numbers
from cadiff.data.mat import load_mat
from cadiff.data.writer import dataset_writer
from cadiff.errors import DataError

SIDE = 10
NUM_TRIALS, NUM_VOXELS, NUM_PICTURES, REPEATS, TRIALS_PER_RUN = 80, 797, 10, 8, 10
NAMES = ("square", "small frame", "cross", "diagonal cross", "large frame", "n", "e", "u", "r", "o")
MAX_SCALE = 100


def read_miyawaki(
    source: Path,
    out: Path,
    *,
    test: int | Sequence[int] = (),
    scale: int = 8,
    subject: str = "sub-01",
    design: str = "published",
) -> Path:
    """Makes a dataset of the figure session. Pictures are named image-01, ... in the order of first appearance.

    Args:
        source: V1_mean_figure.mat.
        out: the dataset folder to make.
        test: numbers of the pictures (from 1) whose trials become the test split; none by default, because the honest
            split is leave-one-picture-out, which `cadiff data split --folds 10` makes of a dataset without test trials.
        scale: each patch becomes scale x scale pixels, so pictures have a side of 10 * scale.
        subject: name of the subject.
        design: "published" (80 trials, 797 voxels, 10 pictures 8 times each), or "any" for selections of it; labels
            and runs are then not known.

    Raises:
        DataError: not that file, not that design, or an option out of range.
    """
    if type(scale) is not int or not 1 <= scale <= MAX_SCALE:
        raise DataError(f"scale={scale!r}: give a whole number from 1 to {MAX_SCALE}.")
    if design not in ("published", "any"):
        raise DataError(f"design={design!r}: give published or any.")
    responses, pictures = _load(source)
    shown, numbers = _number_pictures(pictures)
    published = design == "published"
    if published:
        _check_design(source, responses, numbers)
    tested = _tested(test, len(shown))
    trials = pd.DataFrame(
        {
            "stimulus_id": [_name(number) for number in numbers],
            "split": np.where(np.isin(numbers, tested), "test", "train"),
            "session": 1,
            "run": np.arange(len(numbers)) // TRIALS_PER_RUN + 1 if published else 1,
        }
    )
    trials["repeat"] = trials.groupby("stimulus_id").cumcount() + 1
    about = {
        "source": source.name,
        "units": "mean response of a block as published, not z-scored; the file does not name the unit",
        "licence": "BSD 3-clause, that of the VBCCA package which hands the file on",
        "citation": "Miyawaki et al. 2008, Neuron 60:915-929; Fujiwara, Miyawaki & Kamitani 2013, Neural Computation 25:979-1005",
        "picture": {"side": SIDE, "scale": scale},
        "design": design,
        "runs": "every ten trials, inferred from the data" if published else "not known",
    }
    voxels = pd.DataFrame({"rois": ["V1"] * responses.shape[1]})
    with dataset_writer(
        out, name="Miyawaki", subject=str(subject), voxels=voxels, description=about
    ) as writer:
        for number, picture in enumerate(shown, start=1):
            enlarged = np.kron(picture * np.uint8(255), np.ones((scale, scale), np.uint8))
            writer.add_stimulus(
                _name(number),
                enlarged,
                label=NAMES[number - 1] if published else None,
                licence="not stated",
            )
        writer.add_trials(responses, trials)
    return out


def _load(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Responses (trials, voxels), and upright pictures of 0 and 1, uint8 (trials, 10, 10)."""
    content = load_mat(source, ("I2", "R2"))
    patches = need_numbers(content["I2"], (SIDE * SIDE, None), f"{source}: I2")
    responses = need_numbers(content["R2"], (None, patches.shape[1]), f"{source}: R2")
    if not np.isin(patches, (0, 1)).all():
        raise DataError(f"{source}: I2 holds values other than 0 and 1, expected dark and light patches.")
    pictures = patches.T.reshape(-1, SIDE, SIDE).transpose(0, 2, 1)  # MATLAB counts columns first
    return np.asarray(responses.T), pictures.astype(np.uint8)


def _number_pictures(pictures: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The distinct pictures in order of first appearance, and for each trial the number of its picture, from 1."""
    numbers: dict[bytes, int] = {}
    of_trial = np.array([numbers.setdefault(picture.tobytes(), len(numbers) + 1) for picture in pictures])
    return [pictures[int(np.argmax(of_trial == number))] for number in numbers.values()], of_trial


def _check_design(source: Path, responses: np.ndarray, numbers: np.ndarray) -> None:
    found = (*responses.shape, sorted(np.bincount(numbers)[1:].tolist()))
    if found != (NUM_TRIALS, NUM_VOXELS, [REPEATS] * NUM_PICTURES):
        raise DataError(
            f"{source} is not the published design: found {len(responses)} trials, {responses.shape[1]} voxels and "
            f"{numbers.max()} pictures shown {min(found[2])} to {max(found[2])} times, expected {NUM_TRIALS}, {NUM_VOXELS} "
            f"and {NUM_PICTURES} shown {REPEATS} times; give design=any if this is meant."
        )


def _tested(test: int | Sequence[int], count: int) -> list[int]:
    numbers = list(test) if isinstance(test, (list, tuple)) else [test]
    tested = [number for number in numbers if type(number) is int and 1 <= number <= count]
    if len(tested) < len(numbers) or len(set(tested)) == count:
        raise DataError(
            f"test={test!r}: give numbers of pictures from 1 to {count}, and leave at least one to train on, "
            "for example test=10 or test=[9,10]."
        )
    return tested


def _name(number: int) -> str:
    return f"image-{number:02d}"

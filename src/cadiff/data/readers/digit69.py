"""Handwritten 6 and 9 seen by one subject: van Gerven, de Lange & Heskes 2010 (Neural Computation 22:3127).

The .mat file as it circulates holds, for training (`Trn`) and test (`Test`) trials,
    fmriTrn   float (trials, voxels)   responses of V1, V2 and V3 together, not z-scored; 3092 voxels
    stimTrn   uint8 (trials, 784)      28 x 28 pictures, column by column: `row.reshape(28, 28).T` is upright
    labelTrn  (trials, 1)              1 for a six, 2 for a nine
The public file has 90 + 10 trials; selections of it have fewer, so counts are recorded in the description and not refused.
Every trial shows a different picture, once. All pictures come from MNIST's training set: a digit prior or a scoring
classifier that was trained on MNIST must leave them out. The file states no licence for them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cadiff.data.files import need_numbers
from cadiff.data.mat import load_mat
from cadiff.data.writer import dataset_writer
from cadiff.errors import DataError

SIDE, MAX_CANVAS = 28, 1024
LABELS = {1: "6", 2: "9"}
SPLITS = {"train": "Trn", "test": "Test"}
PUBLISHED = {"train": 90, "test": 10, "voxels": 3092}
KEYS = tuple(f"{part}{suffix}" for suffix in SPLITS.values() for part in ("fmri", "stim", "label"))


def read_digit69(source: Path, out: Path, *, canvas: int = SIDE, subject: str = "sub-01") -> Path:
    """Makes a dataset of the digit69 .mat file.

    Args:
        source: the .mat file.
        out: the dataset folder to make.
        canvas: side of the stored pictures in pixels; above 28 they are centred on black, never resized. A prior
            trained on MNIST padded to 32 x 32 needs 32.
        subject: name of the subject.

    Raises:
        DataError: not a .mat file, a key missing, or shapes and labels that do not fit.
    """
    if type(canvas) is not int or not SIDE <= canvas <= MAX_CANVAS:
        raise DataError(
            f"canvas={canvas!r}: the pictures have {SIDE} x {SIDE} pixels, give {SIDE} to {MAX_CANVAS}."
        )
    content = load_mat(source, KEYS)
    voxels = need_numbers(content["fmriTrn"], (None, None), f"{source}: fmriTrn").shape[1]
    parts = {split: _part(source, suffix, content, voxels) for split, suffix in SPLITS.items()}
    found = {**{split: len(responses) for split, (responses, _, _) in parts.items()}, "voxels": voxels}
    about = {
        "source": source.name,
        "units": "response estimates as published, not z-scored",
        "citation": "van Gerven, de Lange & Heskes 2010, Neural Computation 22:3127-3142",
        "licence": "not stated by the source",
        "picture": {"side": SIDE, "canvas": canvas},
        "counts": {"found": found, "published": PUBLISHED, "selection": found != PUBLISHED},
    }
    table = pd.DataFrame({"rois": ["V1-V3"] * voxels})
    with dataset_writer(out, name="digit69", subject=str(subject), voxels=table, description=about) as writer:
        for split, (responses, pictures, labels) in parts.items():
            ids = [f"{split}-{number:03d}" for number in range(1, len(responses) + 1)]
            for stimulus_id, row, label in zip(ids, pictures, labels.tolist(), strict=True):
                writer.add_stimulus(
                    stimulus_id, _upright(row, canvas), label=LABELS[int(label)], licence="not stated"
                )
            trials = pd.DataFrame({"stimulus_id": ids, "split": split, "session": 1, "run": 1, "repeat": 1})
            writer.add_trials(responses, trials)
    return out


def _part(
    source: Path, suffix: str, content: dict[str, np.ndarray], voxels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responses (n, voxels), pictures uint8 (n, 784) and labels (n,) of the training or the test trials."""
    responses = need_numbers(content[f"fmri{suffix}"], (None, None), f"{source}: fmri{suffix}")
    pictures = need_numbers(content[f"stim{suffix}"], (None, SIDE * SIDE), f"{source}: stim{suffix}")
    labels = content[f"label{suffix}"].ravel()
    if responses.shape[1] != voxels:
        raise DataError(
            f"{source}: fmriTrn and fmri{suffix} have different numbers of voxels, {voxels} and {responses.shape[1]}."
        )
    if not len(responses) == len(pictures) == labels.size:
        raise DataError(
            f"{source}: {len(responses)} trials in fmri{suffix}, {len(pictures)} in stim{suffix}, {labels.size} in "
            f"label{suffix}; expected the same number in each."
        )
    grey = np.isin(pictures, np.arange(256))  # MATLAB may have stored them as double
    if not grey.all():
        raise DataError(
            f"{source}: stim{suffix} holds {pictures[~grey].flat[0]}, expected uint8, or whole numbers from 0 to 255."
        )
    if strange := sorted(set(labels.tolist()) - set(LABELS)):
        raise DataError(f"{source}: label{suffix} holds {strange[0]!r}; expected 1 (a six) and 2 (a nine).")
    return responses, pictures.astype(np.uint8), labels


def _upright(row: np.ndarray, canvas: int) -> np.ndarray:
    """One stimulus, uint8 (canvas, canvas), upright and centred."""
    before = (canvas - SIDE) // 2
    return np.pad(row.reshape(SIDE, SIDE).T, (before, canvas - SIDE - before))

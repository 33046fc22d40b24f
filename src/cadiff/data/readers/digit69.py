"""Handwritten 6 and 9 seen by one subject: van Gerven, de Lange & Heskes 2010 (Neural Computation 22:3127).

The .mat file as it circulates holds, for training (`Trn`) and test (`Test`) trials,
    fmriTrn   float (trials, voxels)   responses of V1, V2 and V3 together, not z-scored; 3092 voxels
    stimTrn   uint8 (trials, 784)      28 x 28 pictures, column by column: `row.reshape(28, 28).T` is upright
    labelTrn  (trials, 1)              1 for a six, 2 for a nine
The public file has 90 + 10 trials; selections of it have fewer, so counts are not fixed here. Every trial shows a
different picture, once. All pictures come from MNIST's training set: a digit prior or a scoring classifier that was
trained on MNIST must leave them out. The file states no licence for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cadiff.data.dataset import write_dataset
from cadiff.errors import DataError

SIDE = 28
LABELS = {1: "6", 2: "9"}
SPLITS = {"train": "Trn", "test": "Test"}
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
    if not isinstance(canvas, int) or canvas < SIDE:
        raise DataError(f"canvas={canvas!r}: the pictures have {SIDE} x {SIDE} pixels, give {SIDE} or more.")
    arrays = _load(source)
    betas, trials, stimuli, images = [], [], [], {}
    for split, suffix in SPLITS.items():
        responses, pictures, labels = (arrays[f"{part}{suffix}"] for part in ("fmri", "stim", "label"))
        betas.append(responses)
        for number, (row, label) in enumerate(zip(pictures, labels.ravel(), strict=True), start=1):
            stimulus_id = f"{split}-{number:03d}"
            images[stimulus_id] = _picture(row, canvas)
            trials.append({"stimulus_id": stimulus_id, "split": split, "session": 1, "run": 1, "repeat": 1})
            stimuli.append({"stimulus_id": stimulus_id, "label": LABELS[int(label)], "licence": "not stated"})
    responses = np.concatenate(betas)
    return write_dataset(
        out,
        name="digit69",
        subject=subject,
        betas=responses,
        trials=pd.DataFrame(trials),
        voxels=pd.DataFrame({"rois": ["V1-V3"] * responses.shape[1]}),
        stimuli=pd.DataFrame(stimuli),
        images=images,
        description={
            "source": source.name,
            "units": "response estimates as published, not z-scored",
            "citation": "van Gerven, de Lange & Heskes 2010, Neural Computation 22:3127-3142",
            "licence": "not stated by the source",
            "picture": {"side": SIDE, "canvas": canvas},
        },
    )


def _load(source: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not source.is_file():
        raise DataError(f"{source} is not a file: expected the .mat file, digit69_28x28.mat.")
    try:
        content: dict[str, Any] = loadmat(source, variable_names=KEYS)
    except (OSError, ValueError, IndexError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(
            f"{source} is not a .mat file that can be read ({error}): expected digit69_28x28.mat."
        ) from None
    if missing := [key for key in KEYS if key not in content]:
        found = ", ".join(key for key in content if not key.startswith("__")) or "none of its arrays"
        raise DataError(f"{source} lacks {', '.join(missing)} (found: {found}); expected {', '.join(KEYS)}.")
    arrays = {key: np.asarray(content[key]) for key in KEYS}
    widths = {arrays[f"fmri{suffix}"].shape[-1] for suffix in SPLITS.values()}
    if len(widths) > 1:
        raise DataError(f"{source}: fmriTrn and fmriTest have different numbers of voxels, {sorted(widths)}.")
    for suffix in SPLITS.values():
        _check(source, suffix, arrays)
    return arrays


def _check(source: Path, suffix: str, arrays: dict[str, np.ndarray]) -> None:
    betas, pictures, labels = (arrays[f"{part}{suffix}"] for part in ("fmri", "stim", "label"))
    if pictures.ndim != 2 or pictures.shape[1] != SIDE * SIDE or pictures.dtype != np.uint8:
        raise DataError(
            f"{source}: stim{suffix} is {pictures.dtype} {pictures.shape}, expected uint8 (trials, {SIDE * SIDE})."
        )
    if betas.ndim != 2 or not len(betas) == len(pictures) == labels.size:
        raise DataError(
            f"{source}: {len(betas)} trials in fmri{suffix}, {len(pictures)} in stim{suffix}, {labels.size} in "
            f"label{suffix}; expected the same number in each."
        )
    if strange := sorted(set(labels.ravel().tolist()) - set(LABELS)):
        raise DataError(f"{source}: label{suffix} holds {strange[0]!r}; expected 1 (a six) and 2 (a nine).")


def _picture(row: np.ndarray, canvas: int) -> np.ndarray:
    """One stimulus, uint8 (canvas, canvas), upright and centred."""
    before = (canvas - SIDE) // 2
    return np.pad(row.reshape(SIDE, SIDE).T, (before, canvas - SIDE - before))

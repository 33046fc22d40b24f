"""81 object categories seen by one subject, labels only: `python_roi_data.pickle`.

The file circulates with teaching material on encoding models and names no source; its design is that of Bonner & Epstein
2021 (Nature Communications 12:4081): one response a category, over its pictures. It is a pickle of a dict of numpy arrays,
    betas     float32 (81, 696)     one row a category, not z-scored
    conds     object (81, 1)        the name of each category, a text array in each cell, as scipy reads MATLAB's cells
    rois      object (1, 7)         EVC, OPA, PPA, LOC, PFS, OFA, FFA, likewise
    indices   uint8 (1, 696)        the ROI of each voxel, from 1
A pickle can hold code: it is read as plain data only (`cadiff.safe_pickle`).

There are no pictures, so such a dataset can be described and its categories decoded, but not reconstructed. There is one row
a category, so no repeats, no noise ceiling, and any test split is about categories that were never trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cadiff.data.files import need_file, need_numbers
from cadiff.data.writer import dataset_writer
from cadiff.errors import DataError
from cadiff.safe_pickle import load_plain_pickle

NUM_CATEGORIES, NUM_VOXELS = 81, 696
ROIS = ("EVC", "OPA", "PPA", "LOC", "PFS", "OFA", "FFA")
KEYS = ("betas", "conds", "indices", "rois")
LONGEST_NAME = 100


def read_objects81(
    source: Path,
    out: Path,
    *,
    subject: str = "sub-01",
    design: str = "published",
    licence: str = "not stated",
) -> Path:
    """Makes a dataset of labels without pictures; all trials are training trials.

    Args:
        source: python_roi_data.pickle.
        out: the dataset folder to make.
        subject: name of the subject.
        design: "published" (81 categories, 696 voxels in 7 ROIs), or "any" for selections of it.
        licence: what the place where you got the file says; the file itself says nothing.

    Raises:
        DataError: not a pickle of plain data, a part missing, parts that contradict each other, or not that design.
    """
    if design not in ("published", "any"):
        raise DataError(f"design={design!r}: give published or any.")
    betas, labels, regions = _load(source)
    if design == "published":
        found = (*betas.shape, tuple(dict.fromkeys(regions)))
        if found != (NUM_CATEGORIES, NUM_VOXELS, ROIS):
            raise DataError(
                f"{source} is not the published design: found {betas.shape[0]} categories, {betas.shape[1]} voxels in "
                f"{', '.join(found[2])}, expected {NUM_CATEGORIES}, {NUM_VOXELS} in {', '.join(ROIS)}; "
                "give design=any if this is meant."
            )
    about = {
        "source": source.name,
        "units": "response estimates of a general linear model as published, not z-scored",
        "licence": str(licence),
        "citation": "not stated by the file; its design is that of Bonner & Epstein 2021, Nature Communications 12:4081",
        "design": design,
        "pictures": "none: labels only",
    }
    ids = [label.replace(" ", "-") for label in labels]
    trials = pd.DataFrame({"stimulus_id": ids, "split": "train", "session": 1, "run": 1, "repeat": 1})
    voxels = pd.DataFrame({"rois": regions})
    with dataset_writer(
        out, name="objects81", subject=str(subject), voxels=voxels, description=about
    ) as writer:
        for stimulus_id, label in zip(ids, labels, strict=True):
            writer.add_stimulus(stimulus_id, None, label=label, licence="not stated")
        writer.add_trials(betas, trials)
    return out


def _load(source: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Responses (categories, voxels), the name of each category, and the ROI of each voxel."""
    need_file(source, "expected python_roi_data.pickle.")
    content = load_plain_pickle(source)
    if not isinstance(content, dict) or any(key not in content for key in KEYS):
        found = (
            ", ".join(map(_shorten, list(content)[:9])) if isinstance(content, dict) else _shorten(content)
        )
        raise DataError(f"{source} holds {found or 'nothing'}, expected a dict with {', '.join(KEYS)}.")
    betas = need_numbers(_array(source, content, "betas"), (None, None), f"{source}: betas")
    labels = _words(source, content, "conds")
    names = _words(source, content, "rois")
    index = _array(source, content, "indices").ravel()
    if len(labels) != len(betas) or len(set(labels)) != len(labels):
        raise DataError(
            f"{source}: conds names {len(labels)} categories, {len(set(labels))} of them different, but betas has "
            f"{len(betas)} rows; expected one name a row."
        )
    if index.dtype.kind not in "iu" or len(index) != betas.shape[1]:
        raise DataError(
            f"{source}: indices is {index.dtype} with {len(index)} entries, but betas has {betas.shape[1]} voxels; "
            "expected the number of an ROI for each voxel."
        )
    if index.min() < 1 or index.max() > len(names):
        raise DataError(
            f"{source}: indices holds {index.min()} to {index.max()}, but rois names {len(names)} ROIs, counted from 1."
        )
    return betas, labels, [names[number - 1] for number in index.tolist()]


def _array(source: Path, content: dict[Any, Any], key: str) -> np.ndarray:
    if not isinstance(content[key], np.ndarray):
        raise DataError(f"{source}: {key} is a {type(content[key]).__name__}, expected a numpy array.")
    return content[key]


def _words(source: Path, content: dict[Any, Any], key: str) -> list[str]:
    """Names in an array of text, or of cells that each hold one."""
    words = []
    for cell in _array(source, content, key).ravel().tolist():
        word = cell.item() if isinstance(cell, np.ndarray) and cell.size == 1 else cell
        name = word.strip() if isinstance(word, str) else ""
        if (
            not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or "," in name
        ):  # a comma would make two ROIs
            raise DataError(f"{source}: {key} holds a cell that is not a name ({_shorten(word)}).")
        words.append(name)
    return words


def _shorten(value: object) -> str:
    return repr(value)[:60] if isinstance(value, (str, int, float)) else type(value).__name__

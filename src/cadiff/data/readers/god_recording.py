"""One subject's recording, whichever of GOD's two file forms it came from; and what the published design is.

`god_npz` and `god_h5` fill a `Recording`; `god` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cadiff.errors import DataError

ROIS = ("V1", "V2", "V3", "V4", "LOC", "FFA", "PPA", "LVC", "HVC", "VC")
# Voxels in VC, subjects 1 to 5, of the release that the paper is about (SPM). The lab's later release after fmriprep
# has 3444, 4979, 5355, 4656, 6237: other data. A file may differ, so these are told, not enforced.
VC_VOXELS = {1: 4466, 2: 4404, 3: 4643, 4: 4133, 5: 4370}
# (trials, pictures, classes, trials a picture)
TRAINING = (1200, 1200, 150, 1)
TESTS = {"perception": (1750, 50, 50, 35), "imagery": (500, 50, 50, 10)}
SESSIONS = {"train": 1, "test": 2}  # neither form tells scanning days apart, only kinds of session
BLOCK_ROWS = 128  # rows of betas that are in memory at once


@dataclass
class Recording:
    """What a file of one subject holds, voxels chosen."""

    voxels: pd.DataFrame
    """One row a voxel: `rois`, and where known `noise_ceiling`, `x`, `y`, `z`."""
    trials: pd.DataFrame
    """One row a trial: `stimulus_id`, `split`, `session`, `run`, `repeat`, `task`."""
    blocks: Iterable[np.ndarray]
    """The betas (rows, voxels) of the trials in their order, a few rows at a time."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Entries for the dataset's description."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the dataset's description: what was left out and what looks strange."""


def choose_voxels(
    masks: Mapping[str, np.ndarray], rois: Sequence[str] | None, path: Path
) -> tuple[np.ndarray, pd.DataFrame]:
    """(numbers of the voxels in any of `rois`, or in any ROI at all; their table with the column `rois`).

    masks: name -> bool (voxels,).
    """
    if not masks:
        raise DataError(f"{path} has no ROI masks; expected {', '.join(ROIS)}.")
    order = [name for name in ROIS if name in masks] + [name for name in masks if name not in ROIS]
    if missing := [name for name in rois or () if name not in masks]:
        raise DataError(f"{path} has no ROI {missing[0]!r}; it has: {', '.join(order)}.")
    inside = np.stack([masks[name] for name in order])  # (ROIs, voxels)
    chosen = inside[[order.index(name) for name in rois]] if rois else inside
    index = np.flatnonzero(chosen.any(axis=0))
    if not len(index):
        raise DataError(f"{path}: no voxel lies in {', '.join(rois or order)}.")
    names = [
        ",".join(name for name, is_in in zip(order, column, strict=True) if is_in) for column in inside.T
    ]
    return index, pd.DataFrame({"rois": [names[voxel] for voxel in index]})


def voxel_facts(
    masks: Mapping[str, np.ndarray], kept: int, subject: int | None
) -> tuple[dict[str, Any], list[str]]:
    """(numbers for the description, a sentence where the size of VC is not the published one)."""
    total = len(next(iter(masks.values())))
    facts: dict[str, Any] = {
        "voxels": {"in_file": total, "kept": kept},
        "voxels_per_roi_in_file": {name: int(mask.sum()) for name, mask in masks.items()},
    }
    notes = []
    published = VC_VOXELS.get(subject or 0)
    if "VC" in masks and published is not None and int(masks["VC"].sum()) != published:
        notes.append(
            f"VC has {int(masks['VC'].sum())} voxels; {published} are known of subject {subject}'s original release."
        )
    return facts, notes


def with_repeats(trials: pd.DataFrame) -> pd.DataFrame:
    """Adds `repeat`, from 1 within stimulus and split, in the order of the rows."""
    return trials.assign(repeat=trials.groupby(["split", "stimulus_id"]).cumcount() + 1)


def averaged_trials(ids: Sequence[str], counts: Sequence[int], task: str) -> pd.DataFrame:
    """Rows for averages of the test trials of each stimulus; the runs are mixed, so `run` is 1."""
    return pd.DataFrame(
        {
            "stimulus_id": list(ids),
            "split": "test",
            "session": SESSIONS["test"],
            "run": 1,
            "task": task,
            "averaged_trials": list(counts),
        }
    )


def as_float32(block: np.ndarray) -> np.ndarray:
    """Betas as they are stored; numbers too large for it become infinite, which the writer refuses."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(block).astype(np.float32)


def group_means(blocks: Iterable[np.ndarray], group: np.ndarray, num_groups: int) -> np.ndarray:
    """Mean (num_groups, voxels) float64 of the rows of each group; `group` (rows,) counts from 0, -1 for none."""
    total, done = None, 0
    with np.errstate(all="ignore"):
        for block in blocks:
            member = group[done : done + len(block)] == np.arange(num_groups)[:, None]
            part = member.astype(np.float64) @ np.asarray(block, dtype=np.float64)
            total = part if total is None else total + part
            done += len(block)
        counts = np.bincount(group[group >= 0], minlength=num_groups)
        if total is None:
            raise ValueError("no rows to average")
        return total / counts[:, None]


def rows_in_blocks(count: int) -> Iterator[slice]:
    """Slices that cover `count` rows."""
    for start in range(0, count, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, count))


def check_design(trials: pd.DataFrame, path: Path, *, part: str, averaged: bool, published: bool) -> None:
    """Raises `DataError` for trials that are not those of the experiment.

    Training and test pictures must differ in any case; numbers of trials, pictures and classes and the difference of
    classes only where `published`.
    """
    split = {name: trials[trials["split"] == name] for name in ("train", "test")}
    for name, rows in split.items():
        if rows.empty:
            raise DataError(f"{path} has no {name} trials of {part}.")
    if both := sorted(set(split["train"]["stimulus_id"]) & set(split["test"]["stimulus_id"])):
        raise DataError(f"{path} shows {both[0]!r} in training and test; the experiment has no such picture.")
    if not published:
        return
    test = TESTS[part]
    expected = {"train": TRAINING, "test": (test[1], *test[1:3], 1) if averaged else test}
    for name, rows in split.items():
        each = rows["stimulus_id"].value_counts()
        found = (len(rows), len(each), _classes(rows).nunique())
        wanted = expected[name]
        if found != wanted[:3] or set(each) != {wanted[3]}:
            raise DataError(
                f"{path} holds {found[0]} {name} trials of {found[1]} pictures in {found[2]} classes, each picture "
                f"{each.min()} to {each.max()} times, but the published design is {wanted[0]} trials of {wanted[1]} "
                f"pictures in {wanted[2]} classes, each {wanted[3]} times: get the whole file, or import a selection "
                "with design=any."
            )
    if averaged and set(split["test"]["averaged_trials"]) != {test[3]}:
        counts = split["test"]["averaged_trials"]
        raise DataError(
            f"{path} repeats its test pictures {counts.min()} to {counts.max()} times, but the published design "
            f"{test[3]} times: get the whole file, or import a selection with design=any."
        )
    if shared := sorted(set(_classes(split["train"])) & set(_classes(split["test"]))):
        raise DataError(
            f"{path} tests on class {shared[0]}, which it trained on; the published design does not: is the file "
            "rearranged? design=any imports it as it is."
        )


def _classes(trials: pd.DataFrame) -> pd.Series:
    return trials["stimulus_id"].str.partition("_")[0]

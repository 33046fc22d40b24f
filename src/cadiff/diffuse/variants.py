"""Further brain conditions for the curves of a report: fewer repeats averaged, one ROI alone, one ROI left out.

    repeats_4     the average of 4 presentations of every stimulus, drawn by seed without replacement; the 2 of repeats_2
                  are among them, and a number that reaches all presentations gives the brain condition itself
    only_V1       voxels outside the ROI at their mean over training trials, which is 0 after voxel-wise z-scoring
    without_V1    voxels of the ROI at that mean; a voxel that belongs to several ROIs counts for each of them

The means are those of the pipeline's fitted preprocessing, so no test trial is in them. The model was not tuned with silent
voxels: what is lost without an ROI is what this model does without it, a new model might do better; and what one ROI scores
alone and what is lost without it need not add up, since ROIs tell much of the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor
from cadiff.data.splits import average_repeats
from cadiff.diffuse.importance import voxels_read
from cadiff.errors import DataError

ALL = "all"
"""Stands for every ROI of the dataset that the pipeline reads."""
LONGEST_NAME = 60


class Variant(NamedTuple):
    """What the brain condition reads instead."""

    kind: Literal["repeats", "only_roi", "without_roi"]
    value: int | str
    """Number of repeats averaged, or the ROI as the dataset calls it."""
    betas: np.ndarray
    """(n, V) raw betas."""
    repeats: np.ndarray
    """(n,) how many trials each row averages."""
    num_voxels: int | None = None
    """With ROIs: voxels that still tell the pipeline something."""

    def as_json(self) -> dict[str, Any]:
        """What config.json says of it: kind, value, and num_voxels where ROIs are silenced."""
        about: dict[str, Any] = {"kind": self.kind, "value": self.value}
        return about if self.num_voxels is None else {**about, "num_voxels": self.num_voxels}


def repeat_variants(
    data: BrainDataset, split: str, stimulus_ids: Sequence[str], counts: Iterable[int], seed: int
) -> Iterator[tuple[str, Variant]]:
    """Condition name and variant for every number of repeats.

    Args:
        data: the dataset.
        split: whose trials.
        stimulus_ids: (n,) distinct stimuli, in the order of the rows to make.
        counts: how many presentations of each to average.
        seed: of the draw, which depends on it, on the stimulus's position and on nothing else.

    Raises:
        DataError: a stimulus with fewer presentations than asked for.
    """
    counts = list(dict.fromkeys(counts))
    if not counts:
        return
    rows = data.rows(split)
    shown = data.trials["stimulus_id"].to_numpy(dtype=str)[rows]
    order = np.argsort(shown, kind="stable")
    names, first, have = np.unique(shown[order], return_index=True, return_counts=True)
    trials = {
        str(name): rows[order[i : i + count]] for name, i, count in zip(names, first, have, strict=True)
    }
    short = [name for name in stimulus_ids if len(trials[name]) < max(counts)]
    if short:
        least = min(len(trials[name]) for name in short)
        raise DataError(
            f"repeats asks for the average of {max(counts)} presentations, but {short[0]!r} has {len(trials[short[0]])} "
            f"trials of split {split} in {data.folder} ({len(short)} of {len(stimulus_ids)} stimuli have too few): ask for "
            f"at most {least}."
        )
    drawn = [
        np.random.default_rng([seed % 2**63, i]).permutation(trials[name])
        for i, name in enumerate(stimulus_ids)
    ]
    place = {name: i for i, name in enumerate(stimulus_ids)}
    for count in counts:
        chosen = np.sort(np.concatenate([some[:count] for some in drawn]))
        betas, ids, repeats = average_repeats(data, split, chosen)
        back = np.argsort([place[name] for name in ids])
        yield f"repeats_{count}", Variant("repeats", count, betas[back], repeats[back])


def roi_variants(
    data: BrainDataset,
    preprocessor: Preprocessor,
    betas: np.ndarray,
    repeats: np.ndarray,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Iterator[tuple[str, Variant]]:
    """Condition name and variant for every ROI, one at a time, since each holds a copy of the betas.

    Args:
        data: the dataset.
        preprocessor: of the pipeline; has the training means.
        betas: (n, V) raw betas of the brain condition.
        repeats: (n,) how many trials each row averages.
        only: ROIs to read alone, `ALL` for each of them.
        without: ROIs to silence, `ALL` for each of them.

    Raises:
        DataError: an ROI that the dataset does not have, or of which the pipeline reads no voxel.
    """
    if not only and not without:
        return
    members = roi_members(data.voxels)
    names = condition_names(members)
    read = voxels_read(preprocessor)
    means = training_means(preprocessor)
    asked = {
        "only": _find_rois(only, members, read, data, "only_rois"),
        "without": _find_rois(without, members, read, data, "without_rois"),
    }
    for what, rois in asked.items():
        for roi in rois:
            silent = read & (members[roi] if what == "without" else ~members[roi])
            replaced = np.where(silent, means, betas).astype(betas.dtype, copy=False)
            left = int((read & ~silent).sum())
            kind = "without_roi" if what == "without" else "only_roi"
            yield f"{what}_{names[roi]}", Variant(kind, roi, replaced, repeats, left)


def training_means(preprocessor: Preprocessor) -> np.ndarray:
    """Mean raw beta of each voxel over the training trials, float32 (V,); NaN for voxels outside the pipeline's ROIs."""
    means = np.full(preprocessor.num_input_voxels, np.nan, dtype=np.float32)
    means[preprocessor.voxel_index] = preprocessor.mean + preprocessor.voxel_mean * preprocessor.std
    return means


def roi_members(voxels: pd.DataFrame) -> dict[str, np.ndarray]:
    """ROI -> which voxels belong to it, bool (V,), in the order of their first voxel; `rois` holds "V1,VC"."""
    members: dict[str, np.ndarray] = {}
    for i, entry in enumerate(voxels["rois"]):
        for name in {part.strip() for part in str(entry).split(",")} - {"", "nan", "n/a"}:
            members.setdefault(name, np.zeros(len(voxels), dtype=bool))[i] = True
    return dict(sorted(members.items(), key=lambda item: (int(item[1].argmax()), item[0])))


def condition_names(rois: Iterable[str]) -> dict[str, str]:
    """ROI -> a name that every file system takes, another one for each ROI also where case does not count.

    It depends on the set of ROIs alone, so an ROI is called the same in every folder of a dataset.
    """
    safe = {roi: re.sub(r"[^A-Za-z0-9_-]", "_", roi)[:LONGEST_NAME] for roi in set(rois)}
    names: dict[str, str] = {}
    taken: set[str] = set()
    # names that need no change go first and keep theirs
    for roi in sorted(safe, key=lambda roi: (safe[roi] != roi, roi)):
        name, number = safe[roi], 1
        while name.casefold() in taken:
            number += 1
            name = f"{safe[roi]}-{number}"
        names[roi] = name
        taken.add(name.casefold())
    return names


def _find_rois(
    asked: Sequence[str], members: dict[str, np.ndarray], read: np.ndarray, data: BrainDataset, option: str
) -> list[str]:
    there = [roi for roi, voxels in members.items() if (voxels & read).any()]
    known = ", ".join(there) or "none"
    if ALL in asked:
        if not there:
            raise DataError(f"{option} asks for all ROIs, but the voxels of {data.folder} are in none.")
        asked = [*asked, *there]
    wanted = [roi for roi in dict.fromkeys(asked) if roi != ALL or ALL in members]
    for roi in wanted:
        if roi not in members:
            raise DataError(
                f"{option} names the ROI {roi!r}, which has no voxel in {data.folder}; there are: {known}."
            )
        if roi not in there:
            raise DataError(
                f"{option} names the ROI {roi!r}, of which this pipeline reads no voxel; it reads: {known}."
            )
    return wanted

"""GOD as .npz arrays: sbj_1.npz to sbj_5.npz of SelfSuperReconst (Gaziv et al. 2022), passed on by MinD-Vis and CAD.

`np.savez` of positional arrays and named masks, Vall voxels:

    arr_0 (1200, Vall)   training trials, one a picture
    arr_1 (1750, Vall)   single test trials, 50 pictures x 35, not grouped by picture
    arr_2 (50, Vall)     averages of the test trials of each picture, in the order of the pictures
    arr_3 (1200,)        for each row of arr_0, the picture's position in the training list
    arr_4 (1750,)        for each row of arr_1, the picture's position in the test list
    arr_5, arr_6 (Vall,) noise ceiling and signal-to-noise ratio of each voxel
    V1 ... VC (Vall,)    bool, membership in an ROI

The meaning of arr_0 to arr_6 is that of the loading code of both projects; neither documents it. How arr_5 was computed is
not said either: it is kept where it can be a fraction. Runs, sessions and the order of acquisition are not in the file.

Trap: appending arr_1 to arr_2 and repeating each test picture 35 times (MinD-Vis's `include_nonavg_test`) pairs trials
with wrong pictures. Here arr_4 pairs them, and the averages in arr_2 are used to check it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cadiff.data.files import Archive, need_numbers
from cadiff.data.readers.god_recording import (
    ROIS,
    SESSIONS,
    Recording,
    as_float32,
    averaged_trials,
    choose_voxels,
    group_means,
    rows_in_blocks,
    voxel_facts,
    with_repeats,
)
from cadiff.data.readers.god_stimuli import Lists
from cadiff.data.reliability import noise_ceiling
from cadiff.errors import DataError

TOLERANCE = 1e-3  # of the spread of the averages: far above float32 rounding, far below a wrong picture
CEILING_VOXELS = 512  # enough for a median
PREPARE = "`cadiff data prepare --set noise_ceiling=test`"
LEAST_OWN = 0.5  # share of averages that must resemble the mean of their own trials most


def read_npz(
    path: Path,
    lists: Lists,
    *,
    subject: int | None,
    rois: Sequence[str] | None,
    averaged: bool,
    published: bool,
) -> Recording:
    """A subject's .npz file.

    Args:
        path: sbj_3.npz or the like.
        lists: the stimuli that arr_3 and arr_4 count.
        subject: its number, to compare the voxel count with.
        rois: keep voxels in any of these; nothing keeps voxels in any ROI.
        averaged: test trials are arr_2, not arr_1.
        published: refuse single trials and averages that do not fit each other, instead of noting it.

    Raises:
        DataError: arrays missing, of the wrong shape or type, or in contradiction to each other.
    """
    archive = Archive(path)
    archive.need("arr_0", "arr_1", "arr_2", "arr_3", "arr_4")
    train = need_numbers(archive["arr_0"], (None, None), f"{path}: arr_0 (training trials, voxels)")
    count = train.shape[1]
    single = need_numbers(archive["arr_1"], (None, count), f"{path}: arr_1 (test trials, voxels)")
    average = need_numbers(
        archive["arr_2"], (len(lists.test), count), f"{path}: arr_2 (pictures in the test list, voxels)"
    )
    shown = _positions(path, archive, "arr_3", len(train), len(lists.train))
    tested = _positions(path, archive, "arr_4", len(single), len(lists.test))
    masks, notes = _masks(path, archive, count)
    index, voxels = choose_voxels(masks, rois, path)
    facts, more = voxel_facts(masks, len(index), subject)
    notes += more + _add_noise_ceiling(archive, voxels, index, count)
    if "noise_ceiling" in voxels:
        notes += _estimate_ceiling(voxels, single, tested, index)
    notes.append(_compare_averages(path, single, average, tested, index, published))
    if averaged:
        ids, counts = lists.test, np.bincount(tested, minlength=len(lists.test)).tolist()
        test_trials = averaged_trials(ids, counts, "perception")
    else:
        test_trials = _trials([lists.test[place] for place in tested], "test")
    trials = pd.concat(
        [_trials([lists.train[place] for place in shown], "train"), test_trials], ignore_index=True
    )
    if averaged:
        trials["averaged_trials"] = trials["averaged_trials"].fillna(1).astype(int)
    notes.append("The file does not tell runs, sessions or the order of acquisition: run is 1 throughout.")
    blocks = _blocks([train, average if averaged else single], index)
    return Recording(voxels, with_repeats(trials), blocks, facts, notes)


def _trials(ids: list[str], split: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"stimulus_id": ids, "split": split, "session": SESSIONS[split], "run": 1, "task": "perception"}
    )


def _blocks(arrays: Sequence[np.ndarray], index: np.ndarray) -> Iterator[np.ndarray]:
    for array in arrays:
        for rows in rows_in_blocks(len(array)):
            yield as_float32(array[rows][:, index])


def _positions(path: Path, archive: Archive, name: str, rows: int, pictures: int) -> np.ndarray:
    """Positions of pictures, int64 (rows,), from 0."""
    array = archive[name]
    values = need_numbers(array.reshape(-1) if array.size == rows else array, (rows,), f"{path}: {name}")
    with np.errstate(invalid="ignore"):
        whole = np.asarray(values, dtype=np.float64)
        bad = ~((whole == np.floor(whole)) & (whole >= 0) & (whole < pictures))
    if bad.any():
        raise DataError(
            f"{path}: {name} holds {whole[bad][0]:g} in row {int(np.flatnonzero(bad)[0])}; expected positions 0 to "
            f"{pictures - 1}, one of the {pictures} pictures that the csv lists."
        )
    return whole.astype(np.int64)


def _masks(path: Path, archive: Archive, count: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """(name -> bool (voxels,), a sentence on arrays that are no masks)."""
    masks, others = {}, []
    for name in archive:
        if re.fullmatch(r"arr_\d+", name):
            continue
        array = archive[name]
        fits = array.shape == (count,) and (
            array.dtype == bool or (array.dtype.kind in "fiu" and bool(np.isin(array, (0, 1)).all()))
        )
        if fits and re.fullmatch(r"[\w.+-]+", name):
            masks[name] = np.asarray(array).astype(bool)
        elif name in ROIS:
            raise DataError(
                f"{path}: the mask {name} is {array.dtype} {array.shape}, expected bool ({count},), one a voxel."
            )
        else:
            others.append(name[:40])
    return masks, [f"Arrays that are no ROI masks were left out: {', '.join(others[:10])}."] if others else []


def _add_noise_ceiling(archive: Archive, voxels: pd.DataFrame, index: np.ndarray, count: int) -> list[str]:
    """Fills `noise_ceiling` from arr_5 where that can be a fraction of variance; else a sentence on why not."""
    if "arr_5" not in archive:
        return ["There is no arr_5: noise ceilings are unknown."]
    array = archive["arr_5"]
    if array.size != count or array.dtype.kind not in "fiu":
        return [f"arr_5 is {array.dtype} {array.shape}, not a number a voxel: noise ceilings are unknown."]
    values = np.asarray(array, dtype=np.float64).reshape(-1)[index]
    known = values[~np.isnan(values)]
    if not len(known):
        return ["arr_5 holds no numbers: noise ceilings are unknown."]
    if known.min() < 0 or known.max() > 1:
        return [
            f"arr_5 reaches from {known.min():.3g} to {known.max():.3g} and so is no fraction of variance: it was left out. "
            f"{PREPARE} estimates noise ceilings from the repeats."
        ]
    voxels["noise_ceiling"] = values
    return []


def _estimate_ceiling(
    voxels: pd.DataFrame, single: np.ndarray, tested: np.ndarray, index: np.ndarray
) -> list[str]:
    """A sentence that sets arr_5 beside the single-trial noise ceiling of the test trials, since nobody says what it is."""
    told = float(voxels["noise_ceiling"].median())
    some = index[:: -(-len(index) // CEILING_VOXELS)]
    try:
        with np.errstate(all="ignore"):
            found = noise_ceiling(single[:, some], [str(place) for place in tested])
    except DataError:  # nothing is repeated
        found = np.array([np.nan])
    known = found[np.isfinite(found)]
    estimate = f"; estimated from the repeats it is {np.median(known):.2f}" if len(known) else ""
    return [
        f"noise_ceiling is arr_5 as released, in the median {told:.2f} of a single trial's variance if that is what it "
        f"means, which nobody says{estimate}. {PREPARE} replaces it by estimates."
    ]


def _compare_averages(
    path: Path,
    single: np.ndarray,
    average: np.ndarray,
    tested: np.ndarray,
    index: np.ndarray,
    published: bool,
) -> str:
    """A sentence on whether arr_2 is the mean of arr_1 by arr_4; refuses what only wrong picture numbers explain."""
    blocks = (single[rows][:, index] for rows in rows_in_blocks(len(single)))
    means = group_means(blocks, tested, len(average))
    with np.errstate(all="ignore"):
        given = np.asarray(average[:, index], dtype=np.float64)
        there = np.isfinite(means).all(axis=1) & np.isfinite(given).all(axis=1)
        means, given = means[there], given[there]
        if not len(means):
            return "arr_2 could not be compared with the means of arr_1."
        worst = float(np.abs(means - given).max())
        if worst <= TOLERANCE * float(means.std()):
            return "arr_2 is the mean of arr_1 over the trials of each picture in arr_4 (compared)."
        # Averages may have been normalised apart; which picture they resemble most survives that.
        likeness = _z(means) @ _z(given).T
    own = float((np.nan_to_num(likeness).argmax(axis=0) == np.arange(len(means))).mean())
    if own < LEAST_OWN and published:
        raise DataError(
            f"{path}: only {own:.0%} of the averages in arr_2 resemble the mean of their own trials in arr_1 most, so the "
            "picture numbers in arr_4 do not fit: download the file again, or import it as it is with design=any."
        )
    return (
        f"arr_2 is not the mean of arr_1 over the trials of each picture in arr_4 (they differ by up to {worst:.3g}); "
        f"{own:.0%} of the averages resemble the mean of their own trials most."
    )


def _z(rows: np.ndarray) -> np.ndarray:
    """Rows without what they share, each of length 1."""
    rows = rows - rows.mean(axis=0)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

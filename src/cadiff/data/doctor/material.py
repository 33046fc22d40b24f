"""The trials, voxels and lists that the checks of order work on, and lists moved by some trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cadiff.data.doctor.folder import Folder
from cadiff.data.doctor.repeats import Repeats, clean_patterns
from cadiff.data.doctor.scan import Scan

MAX_TRIALS = 800
MAX_VOXELS = 300
LAGS = (-3, -2, -1, 1, 2, 3)
CHANCE, SURE = (
    0.05,
    0.01,
)  # p above which an order counts as no better than shuffled, and up to which as right
CLEAR = 4.0  # standard deviations over shuffled orders by which a right order, or a moved one, stands out
FEWEST = 8  # stimuli
READ_ROWS = 256


@dataclass(frozen=True, eq=False)
class Material:
    """Trials of one split, in whole runs."""

    rows: np.ndarray
    """(n,) rows of trials.tsv, ascending."""
    names: np.ndarray
    """(n,) stimulus ids, str."""
    patterns: np.ndarray
    """(n, v) float32 betas of `voxels`, without drift, deviation 1."""
    raw: np.ndarray
    """(n, v) float32, with drift."""
    voxels: np.ndarray
    """(v,) the most reliable voxels; a random choice where nothing is known."""
    sample: str = ""


def gather(
    folder: Folder, scan: Scan, repeats: Repeats, split: str, rng: np.random.Generator
) -> Material | None:
    """Up to `MAX_TRIALS` trials of whole runs; None when there is no such trial or no usable voxel."""
    rows = np.intersect1d(folder.rows(split), scan.rows)
    rows = rows[folder.trials["stimulus_id"].iloc[rows].notna().to_numpy()]
    usable = np.flatnonzero(scan.usable)
    if not len(rows) or not len(usable):
        return None
    chosen: list[np.ndarray] = []
    blocks = folder.blocks(rows)
    for index in rng.permutation(len(blocks)):
        if sum(map(len, chosen)) < MAX_TRIALS:
            chosen.append(blocks[index][:MAX_TRIALS])
    kept = np.sort(np.concatenate(chosen))
    sample = "" if len(kept) == len(rows) else f"{len(kept):,} of {len(rows):,} trials, whole runs at random"
    worth = repeats.ceilings
    if worth is None and folder.voxels["noise_ceiling"].notna().any():
        worth = folder.voxels["noise_ceiling"].fillna(0).to_numpy(float)
    if worth is None:
        voxels = np.sort(rng.permutation(usable)[: 2 * MAX_VOXELS])
    else:
        voxels = np.sort(usable[np.argsort(-worth[usable], kind="stable")][:MAX_VOXELS])
    return load(folder, kept, voxels, sample)


def load(folder: Folder, rows: np.ndarray, voxels: np.ndarray, sample: str = "") -> Material:
    """These trials and voxels, read in pieces."""
    assert folder.betas is not None
    starts = range(0, len(rows), READ_ROWS)
    parts = [np.asarray(folder.betas[rows[s : s + READ_ROWS]], np.float32)[:, voxels] for s in starts]
    raw = np.concatenate(parts)
    names = folder.trials["stimulus_id"].to_numpy(dtype=str)[rows]
    return Material(rows, names, clean_patterns(folder.trials.iloc[rows], raw), raw, voxels, sample)


def average(patterns: np.ndarray, names: np.ndarray, ids: list[str]) -> np.ndarray:
    """Mean pattern float32 (m, v) of each of `ids`, every voxel with mean 0 and deviation 1 over them."""
    row_of = {name: row for row, name in enumerate(ids)}
    member = np.array([row_of[name] for name in names])
    out = np.zeros((len(ids), patterns.shape[1]))
    np.add.at(out, member, patterns)
    out /= np.maximum(np.bincount(member, minlength=len(ids)), 1)[:, None]
    out -= out.mean(axis=0)
    return (out / np.maximum(out.std(axis=0), 1e-12)).astype(np.float32)


def moved(folder: Folder, rows: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The list moved by `lag` trials inside the runs: (positions in `rows`, the ids that are listed `lag` trials later).

    Trials at the ends of runs, where the list does not reach that far, are left out.
    """
    ids = folder.trials["stimulus_id"].to_numpy(dtype=object)
    place = {row: position for position, row in enumerate(rows)}
    positions, names = [], []
    for block in folder.blocks(rows):
        here, there = (
            (block, block)
            if not lag
            else (block[:-lag], block[lag:])
            if lag > 0
            else (block[-lag:], block[:lag])
        )
        for a, b in zip(here, there, strict=True):
            if isinstance(ids[b], str):
                positions.append(place[a])
                names.append(ids[b])
    return np.array(positions, int), np.array(names, dtype=str)


def shift(lags: Mapping[int, float], here: float) -> int | None:
    """The lag whose z stands out by itself, above the listed order's z `here`, and by half as much again; None: no shift."""
    best = max(lags, key=lags.__getitem__, default=0)
    there = lags.get(best, 0.0)
    stands_out = there >= CLEAR and there - max(here, 0.0) >= CLEAR and there > 1.5 * here
    return best if best and stands_out else None


def in_words(lag: int, there: float, here: float) -> str:
    """`betas fit the stimulus listed 1 trial later in the run, not their own (z 12 against 0)`."""
    trials = f"{abs(lag)} trial{'s' if abs(lag) > 1 else ''} {'later' if lag > 0 else 'earlier'}"
    return (
        f"betas fit the stimulus listed {trials} in the run, not their own (z {there:.0f} against {here:.0f})"
    )


def p_text(value: float) -> str:
    """`p < 0.01` or `p = 0.03`."""
    return "p < 0.01" if value < SURE else f"p = {value:.2g}"

"""Do repeats of a stimulus resemble each other: per voxel (noise ceiling, split-half) and as patterns (with a p value)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cadiff.data.doctor.findings import Check, Finding, count
from cadiff.data.doctor.folder import Folder, blocks_of
from cadiff.data.doctor.scan import Scan
from cadiff.data.reliability import noise_ceiling, split_half

MAX_TRIALS = 3000  # of repeated stimuli, for ceilings
PATTERN_TRIALS = 1500  # for the comparison of patterns
BLOCK_VOXELS = 1024
BINS = 20  # of the histogram of ceilings, from 0 to 1
SURE = 0.01  # p below which repeats count as alike
NUM_PERMUTATIONS = 299


class Alike(NamedTuple):
    """How much more alike the patterns of repeats are than those of other trials."""

    r: float
    """Mean correlation of patterns of the same stimulus, less that of different stimuli."""
    z: float
    p: float
    pairs: int


@dataclass
class Repeats:
    """What repeats say about a dataset."""

    split: str = ""
    """Split that the ceilings come from; empty where nothing is repeated."""
    stimuli: int = 0
    trials: int = 0
    ceilings: np.ndarray | None = None
    """(V,) noise ceiling of a single trial."""
    halves: np.ndarray | None = None
    """(V,) split-half reliability of the average of all repeats."""
    alike: Alike | None = None
    sample: str = ""


def examine_repeats(folder: Folder, scan: Scan, *, seed: int = 0) -> Repeats:
    """Ceilings of all voxels, and whether patterns of repeats are alike, from the split that repeats most."""
    assert folder.betas is not None
    split, groups = _repeated(folder)
    if not split:
        return Repeats()
    rng = np.random.default_rng([seed, 4])
    chosen = _some_groups(groups, MAX_TRIALS, rng)
    rows = np.sort(np.concatenate(chosen))
    names = folder.trials["stimulus_id"].to_numpy(dtype=str)
    usable = scan.usable
    ceilings, halves = np.zeros(len(usable)), np.zeros(len(usable))
    for start in range(0, len(usable), BLOCK_VOXELS):
        stop = min(start + BLOCK_VOXELS, len(usable))
        good = np.flatnonzero(usable[start:stop])
        if not len(good):
            continue
        block = np.asarray(folder.betas[rows, start:stop], np.float32)[:, good]
        ceilings[start + good] = noise_ceiling(block, list(names[rows]))
        if len(chosen) >= 3:
            halves[start + good] = split_half(block, list(names[rows]), seed=seed, num_splits=5)[1]
    rows_alike = np.intersect1d(np.concatenate(_some_groups(groups, PATTERN_TRIALS, rng)), scan.rows)
    alike = None
    if usable[scan.columns].any() and len(rows_alike):
        patterns = clean_patterns(folder.trials.iloc[scan.rows], scan.values[:, usable[scan.columns]])
        runs = run_numbers(folder.trials.iloc[rows_alike])
        alike = repeats_alike(patterns[np.searchsorted(scan.rows, rows_alike)], names[rows_alike], runs, rng)
    total = sum(map(len, groups))
    sample = (
        ""
        if len(rows) == total
        else f"{count(len(rows), 'trial')} of {count(len(chosen), 'stimulus')} at random"
    )
    return Repeats(split, len(chosen), len(rows), ceilings, halves, alike, sample)


def clean_patterns(trials: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """Betas (n, k) without the mean and the straight trend of each run, voxels scaled to deviation 1 and cut at 5.

    trials: the table of these n trials. Runs too short for that lose the mean of their session, or of everything.
    """
    out = values.astype(np.float32) - values.mean(axis=0, dtype=np.float64).astype(np.float32)
    small = np.ones(len(values), bool)
    for rows in blocks_of(trials, "session", "run").values():
        if len(rows) < 8:
            continue
        small[rows] = False
        out[rows] -= out[rows].mean(axis=0)
        if len(rows) >= 12:
            line = np.linspace(-1, 1, len(rows), dtype=np.float32)[:, None]
            out[rows] -= line * ((line * out[rows]).sum(axis=0) / (line**2).sum())
    for rows in blocks_of(trials, "session").values():
        rest = rows[small[rows]]
        if len(rest) >= 8:
            out[rest] -= out[rest].mean(axis=0)
    out /= np.maximum(out.std(axis=0), 1e-12)
    return np.clip(out, -5, 5, out=out)


def repeats_alike(
    patterns: np.ndarray,
    names: np.ndarray,
    runs: np.ndarray,
    rng: np.random.Generator,
    num_permutations: int = NUM_PERMUTATIONS,
) -> Alike | None:
    """Compares patterns (n, k) of equal names; None when there are fewer than 3 pairs, or no other name.

    Only pairs from different `runs` (n,) count where there are several: taking the mean of a run off its trials makes them
    less alike than others, and neighbours in time are more alike than others, whatever they show.
    """
    patterns = patterns - patterns.mean(axis=0)
    patterns = patterns / np.maximum(np.linalg.norm(patterns, axis=1, keepdims=True), 1e-12)
    gram = patterns @ patterns.T
    _, group = np.unique(names, return_inverse=True)
    several = len(np.unique(runs)) > 1
    apart = runs[:, None] != runs[None] if several else ~np.eye(len(runs), dtype=bool)
    left, right = np.nonzero(np.triu(group[:, None] == group[None], 1))
    pairs = int(apart[left, right].sum())
    if pairs < 3 or len(np.unique(group)) < 2:
        return None
    values = np.empty(num_permutations + 1)
    for i in range(num_permutations + 1):
        order = rng.permutation(len(names)) if i else np.arange(len(names))
        a, b = order[left], order[right]
        counted = apart[a, b]
        values[i] = gram[a[counted], b[counted]].mean() if counted.any() else 0.0
    z = (values[0] - values[1:].mean()) / max(float(values[1:].std()), 1e-12)
    return Alike(float(values[0] - gram[apart].mean()), float(z), float((values >= values[0]).mean()), pairs)


def run_numbers(trials: pd.DataFrame) -> np.ndarray:
    """(n,) one number for each session and run."""
    return trials.groupby(["session", "run"], sort=False).ngroup().to_numpy()


def check_reliability(folder: Folder, repeats: Repeats) -> Finding:
    """Whether repeats agree, and whether the noise ceilings of voxels.tsv belong to these voxels."""
    check = Check("reliability", "Reliability", repeats.sample)
    if repeats.ceilings is None:
        known = folder.voxels["noise_ceiling"].notna().any()
        more = "; noise ceilings come with the dataset" if known else ""
        return check("not applicable", f"No stimulus is repeated{more}.")
    ceilings, alike = repeats.ceilings, repeats.alike
    middle, zero = float(np.median(ceilings)), float((ceilings <= 0).mean())
    check.details |= {
        "split": repeats.split,
        "stimuli": repeats.stimuli,
        "trials": repeats.trials,
        "median_ceiling": middle,
        "share_at_zero": zero,
        "alike": alike._asdict() if alike else None,
    }
    which = f"{count(repeats.trials, 'trial')} of {count(repeats.stimuli, 'repeated stimulus')}"
    which = which.replace("stimulus", "stimuli") if repeats.stimuli != 1 else which
    if alike is None or alike.pairs < 10:
        return check("note", f"There are {which}, too few to tell.")
    if alike.p > SURE:
        hardly = "hardly" if alike.p <= 0.05 else "no"
        return check(
            "note" if alike.p <= 0.05 else "warning",
            f"Repeats of a stimulus are {hardly} more alike than other trials ({which}, p = {alike.p:.2g}).",
            "Compare the trial list with the source (order, session and run numbers); if it is right, there is no signal.",
        )
    told = f"Patterns of repeats correlate by {alike.r:.2g} more than others (p < {SURE:g}); the median voxel's noise "
    told += f"ceiling is {middle:.2f}, and {zero:.0%} of voxels are at 0."
    if (match := _match(folder.voxels["noise_ceiling"].to_numpy(float), ceilings)) is not None:
        check.details["rank_correlation_with_table"] = match
        if match < 2.5 / len(ceilings) ** 0.5:
            return check(
                "warning",
                f"The noise ceilings in voxels.tsv do not go with those of the betas (rank correlation {match:.2f}).",
                "Look whether voxels.tsv lists the voxels in the order of the betas; ROI names may be wrong as well.",
            )
    return check("ok", told)


def roi_table(folder: Folder, repeats: Repeats) -> list[dict[str, Any]]:
    """Per ROI and for all voxels: number, noise ceiling (median, quartiles, share at 0, histogram), split-half median.

    Ceilings are those of the repeats, else those of voxels.tsv.
    """
    stated = folder.voxels["noise_ceiling"].to_numpy(float)
    ceilings = stated if repeats.ceilings is None else repeats.ceilings
    members: dict[tuple[int, str], list[int]] = {}
    for row, names in enumerate(folder.voxels["rois"]):
        for place, name in enumerate(part.strip() for part in str(names).split(",") if part.strip()):
            members.setdefault((place, name), []).append(row)
    groups: dict[str, np.ndarray] = {}
    for (_, name), rows in sorted(
        members.items(), key=lambda item: item[0][0]
    ):  # "V1,LVC,VC": areas, then their unions
        groups[name] = np.union1d(groups.get(name, np.empty(0, int)), rows)
    groups["all"] = np.arange(len(ceilings))
    table = []
    for name, rows in groups.items():
        known = ceilings[rows][np.isfinite(ceilings[rows])]
        entry: dict[str, Any] = {"roi": name, "voxels": len(rows), "known": len(known)}
        if len(known):
            low, middle, high = np.percentile(known, (25, 50, 75))
            bins = np.histogram(np.clip(known, 0, 1), BINS, (0, 1))[0]
            entry |= {
                "median": middle,
                "quartiles": [low, high],
                "at_zero": (known <= 0).mean(),
                "histogram": bins,
            }
        if repeats.halves is not None:
            entry["split_half"] = float(np.median(repeats.halves[rows]))
        table.append(entry)
    return table


def _repeated(folder: Folder) -> tuple[str, list[np.ndarray]]:
    """The split with most repeated trials (test where even), and its rows by repeated stimulus."""
    best: tuple[str, list[np.ndarray]] = ("", [])
    for split in ("test", "train"):
        rows = folder.rows(split)
        stimuli = blocks_of(folder.trials.iloc[rows], "stimulus_id").values()
        groups = [rows[part] for part in stimuli if len(part) > 1]
        enough = len(groups) > 1 and (not best[0] or sum(map(len, groups)) > 4 * sum(map(len, best[1])))
        if enough:
            best = (split, groups)
    return best


def _some_groups(groups: Sequence[np.ndarray], most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Groups in random order until they hold `most` trials; at least two, cut to what fits."""
    chosen, total = [], 0
    for index in rng.permutation(len(groups)):
        if total >= most and len(chosen) > 1:
            break
        chosen.append(groups[index][: max(most // 2, 2)])
        total += len(chosen[-1])
    return chosen


def _match(stated: np.ndarray, found: np.ndarray) -> float | None:
    """Rank correlation over voxels for which both are known; None where there are too few or they do not vary."""
    known = np.isfinite(stated)
    if known.sum() < 50 or np.unique(stated[known]).size < 10 or np.unique(found[known]).size < 10:
        return None
    ranks = np.stack([pd.Series(values[known]).rank().to_numpy() for values in (stated, found)])
    return float(np.corrcoef(ranks)[0, 1])

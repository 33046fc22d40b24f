"""Were the betas normalised with statistics that test trials took part in.

Whoever z-scores all trials together lets every test trial shift what the model is trained on. It can be told from the
numbers: over the trials whose statistics were used, every voxel has mean 0 and standard deviation 1 exactly, which
never happens by chance. Asked of a sample of voxels, for all trials, each split, each session and each run, with one
mean and deviation a voxel or a single pair for all voxels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cadiff.data.doctor.findings import Check, Finding, Verdict
from cadiff.data.doctor.folder import Folder, blocks_of
from cadiff.data.doctor.scan import Scan

TOLERANCE = 1e-3  # float16 storage keeps means and deviations better than this; nature misses it by far
MOST = 0.9  # share of voxels that must be exact
FEWEST = 4  # trials: statistics of fewer say nothing


def check_normalisation(folder: Folder, scan: Scan) -> Finding:
    """Whether betas are z-scored, over which trials, and whether test trials were among them."""
    check = Check("normalisation", "Normalisation", scan.sampled)
    keep = scan.usable[scan.columns]
    if not keep.any() or len(scan.rows) < FEWEST:
        return check("not applicable", "There are too few trials, or no voxel changes.")
    split = folder.trials["split"].to_numpy(dtype=str)[scan.rows]
    values = scan.values[:, keep].astype(np.float64)
    attempts = [np.arange(len(values))]
    _, first = np.unique(scan.row_hashes, return_index=True)
    if len(first) < len(values):  # trials that were copied afterwards would hide the traces
        attempts.append(np.sort(first))
    for rows in attempts:
        how = _how(values[rows], scan.row_moments[rows], split[rows], folder.trials.iloc[scan.rows[rows]])
        if how is not None:
            break
    else:
        check.details["over"] = None
        return check("ok", "Betas are not z-scored.")
    over, verdict = how
    check.details["over"] = over
    what, do = SENTENCES[over]
    found = f"Z-scored with test trials: {what}" if verdict == "wrong" else what[0].upper() + what[1:]
    return check(verdict, found, do)


AGAIN = "Import betas that are not normalised; every stage fits its normalisation on training trials."
SENTENCES = {
    "all": ("over all trials, test trials included, every voxel has mean 0 and deviation 1 exactly.", AGAIN),
    "all-scalar": (
        "over all trials, test trials included, the values have mean 0 and deviation 1 exactly.",
        AGAIN,
    ),
    "sessions": (
        "inside every session, where training and test trials mix, every voxel has mean 0 and deviation 1 exactly.",
        AGAIN,
    ),
    "runs": (
        "inside every run, where training and test trials mix, every voxel has mean 0 and deviation 1 exactly.",
        AGAIN,
    ),
    "each split": (
        "training and test trials were z-scored on their own: every test trial depends on the other test trials.",
        AGAIN,
    ),
    "train": (
        "betas are z-scored with the statistics of training trials; the stages do the same again, without harm.",
        "",
    ),
    "train-scalar": (
        "betas are scaled by one mean and deviation of the training trials, which does no harm.",
        "",
    ),
    "no test": (
        "betas are z-scored over all trials, and there is no test split yet.",
        "Split before you normalise: test trials chosen from these have already taken part.",
    ),
    "pure sessions": (
        "betas are z-scored inside every session; no session holds both training and test trials.",
        "Say so beside your results: test trials are scaled by other test trials.",
    ),
    "pure runs": (
        "betas are z-scored inside every run; no run holds both training and test trials.",
        "Say so beside your results: test trials are scaled by other test trials of their run.",
    ),
}


def _how(
    values: np.ndarray, moments: np.ndarray, split: np.ndarray, table: pd.DataFrame
) -> tuple[str, Verdict] | None:
    """(key of `SENTENCES`, verdict), or None when betas are not normalised.

    values: (n, k) a sample of voxels; moments: (n, 2) mean and mean square of each trial over all voxels; table: the
    trials.
    """
    train, test = split == "train", split == "test"
    wholes = [np.ones(len(values), bool), train | test]
    if not test.any():
        return ("no test", "note") if any(_exact(values[w]) for w in wholes) else None
    # Inside runs first: what is exact in every run is also exact over all of them.
    for name, columns in (("runs", ("session", "run")), ("sessions", ("session",))):
        blocks = [block for block in blocks_of(table, *columns).values() if len(block) >= FEWEST]
        if len(blocks) > 1 and all(_exact(values[block]) for block in blocks):
            if any(train[block].any() and test[block].any() for block in blocks):
                return name, "wrong"
            alone = sum(test[block].any() for block in blocks) == 1
            return ("each split", "warning") if alone else (f"pure {name}", "note")
    if _exact(values[train]):
        return ("each split", "warning") if _exact(values[test]) else ("train", "ok")
    if any(_exact(values[w]) for w in wholes):
        return "all", "wrong"
    if _exact_together(moments[train]):
        return "train-scalar", "ok"
    if any(_exact_together(moments[w]) for w in wholes):
        return "all-scalar", "wrong"
    return None


def _exact(values: np.ndarray) -> bool:
    """Mean 0 and deviation 1, with n or n - 1 in the denominator, of (almost) every column of (n, k)."""
    if len(values) < FEWEST:
        return False
    mean, spread = values.mean(axis=0), values.std(axis=0)
    other = spread * np.sqrt(len(values) / (len(values) - 1))
    good = (np.abs(mean) < TOLERANCE) & (np.minimum(np.abs(spread - 1), np.abs(other - 1)) < TOLERANCE)
    return bool(good.mean() >= MOST)


def _exact_together(moments: np.ndarray) -> bool:
    """Mean 0 and deviation 1 over all voxels and trials together; moments: (n, 2)."""
    if len(moments) < FEWEST:
        return False
    mean, square = moments.mean(axis=0)
    return bool(abs(mean) < TOLERANCE and abs(np.sqrt(max(square - mean**2, 0.0)) - 1) < TOLERANCE)

"""Slow changes that are not the stimulus: levels of runs and sessions, trends inside runs, sessions on another scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cadiff.data.doctor.findings import Check, Finding
from cadiff.data.doctor.folder import Folder, blocks_of
from cadiff.data.doctor.scan import Scan

LEVELS, TRENDS = 0.3, 0.2  # shares of the median voxel's variance from which on they are worth a warning
SCALE = 2.5  # times the usual deviation, or less than one over it: a session that is not like the others
FEWEST = 8  # trials of a run or session


def check_drift(folder: Folder, scan: Scan) -> Finding:
    """Shares of variance that runs, sessions and slow trends explain, and sessions of an odd scale."""
    check = Check("drift", "Drift", scan.sampled)
    keep = scan.usable[scan.columns]
    values = scan.values[:, keep].astype(np.float64)
    if len(values) < 2 * FEWEST or not keep.any():
        return check("not applicable", "There are too few trials.")
    values -= values.mean(axis=0)
    table = folder.trials.iloc[scan.rows]
    runs = [b for b in blocks_of(table, "session", "run").values() if len(b) >= FEWEST]
    sessions = blocks_of(table, "session")
    levels = levels_share(values, runs)
    session_levels = levels_share(values, [b for b in sessions.values() if len(b) >= FEWEST])
    trends = trend_share(values, runs)
    odd = odd_sessions(values, sessions)
    check.details |= {
        "run_levels": levels,
        "session_levels": session_levels,
        "trends_inside_runs": trends,
        "odd_sessions": {str(name): scale for name, scale in odd.items()},
    }
    if odd:
        name, scale = next(iter(odd.items()))
        return check(
            "warning",
            f"Betas of session {name} vary {scale:.2g} times as much as those of other sessions"
            + (f", and {len(odd) - 1} more are odd." if len(odd) > 1 else "."),
            "Look for another unit or a failed fit in that session; normalise inside sessions, or leave it out.",
        )
    parts = [
        f"{share:.0%} by {what}"
        for share, what in ((levels, "levels of runs"), (trends, "trends inside runs"))
    ]
    told = "Of the median voxel's variance, slow changes explain " + " and ".join(parts) + "."
    if max(levels, session_levels) > LEVELS or trends > TRENDS:
        return check(
            "warning",
            told,
            "Centre betas inside runs before import, unless runs differ in what they show; drift is noise that repeats do not "
            "average away.",
        )
    if not runs:
        return check("ok", "Runs are too short to tell levels from responses.")
    return check("ok", told)


def levels_share(values: np.ndarray, blocks: list[np.ndarray]) -> float:
    """Share of the median voxel's variance that block means explain, less what they would by chance; centred (n, k)."""
    if len(blocks) < 2:
        return 0.0
    rows = np.concatenate(blocks)
    inside = values[rows] - values[rows].mean(axis=0)
    total = (inside**2).sum(axis=0) / (len(rows) - 1)
    rest = sum(((values[b] - values[b].mean(axis=0)) ** 2).sum(axis=0) for b in blocks) / (
        len(rows) - len(blocks)
    )
    return max(float(np.median(1 - rest / np.maximum(total, 1e-30))), 0.0)


def trend_share(values: np.ndarray, blocks: list[np.ndarray]) -> float:
    """Share of variance inside blocks that a straight line and a bow through each explain, less chance; median voxel."""
    blocks = [block for block in blocks if len(block) >= 2 * FEWEST]
    if not blocks:
        return 0.0
    total = rest = np.zeros(values.shape[1])
    freedom = left = 0
    for block in blocks:
        centred = values[block] - values[block].mean(axis=0)
        time = np.linspace(-1, 1, len(block))
        basis, _ = np.linalg.qr(np.stack([np.ones_like(time), time, time**2], axis=1))
        total = total + (centred**2).sum(axis=0)
        rest = rest + ((centred - basis @ (basis.T @ centred)) ** 2).sum(axis=0)
        freedom, left = freedom + len(block) - 1, left + len(block) - 3
    return max(float(np.median(1 - (rest / left) / np.maximum(total / freedom, 1e-30))), 0.0)


def odd_sessions(values: np.ndarray, sessions: Mapping[Any, np.ndarray]) -> dict[Any, float]:
    """Session -> how much its median voxel deviates, in units of the median session, where that is far from 1."""
    spreads = {
        name: float(np.median(values[rows].std(axis=0)))
        for name, rows in sessions.items()
        if len(rows) >= FEWEST
    }
    if len(spreads) < 3:
        return {}
    usual = max(float(np.median(list(spreads.values()))), 1e-30)
    return {n: s / usual for n, s in spreads.items() if not 1 / SCALE <= s / usual <= SCALE}

"""Two datasets that hold the same brain: by all betas, by trials in any order, by voxels in any order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cadiff.data.doctor.findings import Check, Finding, count
from cadiff.data.doctor.folder import Folder, open_folder
from cadiff.data.doctor.scan import Scan, scan_betas
from cadiff.errors import DataError

MOST = 0.9  # share of trials or voxels in common, from which on the one is called a copy of the other

FEWEST_VOXELS = 50  # that two trials are compared by
SAME_PATTERN = 0.97  # correlation over them: other trials reach about .6


def check_subjects(
    folder: Folder, scanned: Scan | None, others: Sequence[Path], *, seed: int = 0, progress: bool = True
) -> list[Finding]:
    """One finding for every other dataset.

    Raises:
        DataError: one of the others is the dataset itself.
    """
    title = "Copied subjects"
    if not others:
        check = Check("subjects", title)
        return [
            check("not applicable", "No other subject was given.", "Name the other subjects with --against.")
        ]
    findings = []
    for other in others:
        check = Check("subjects" if len(others) == 1 else f"subjects:{Path(other).name}", title)
        if Path(other).resolve() == folder.path.resolve():
            raise DataError(f"{other} is the dataset itself: name other subjects to compare it with.")
        try:
            second = open_folder(other)
        except DataError as error:
            findings.append(check("warning", f"Not compared: {error}"))
            continue
        if scanned is None or not second.num_trials:
            findings.append(
                check(
                    "not applicable",
                    f"The betas of {folder.path if scanned is None else other} cannot be read.",
                )
            )
            continue
        findings.append(
            _compare(check, folder, scanned, second, scan_betas(second, seed=seed, progress=progress))
        )
    return findings


def _compare(check: Check, folder: Folder, mine: Scan, second: Folder, theirs: Scan) -> Finding:
    name = f"{second.name}, {second.description.get('subject', '?')} (folder {second.path.name})"
    trials, voxels = shared_trials(mine, theirs), shared_voxels(mine, theirs)
    same = np.array_equal(mine.row_hashes, theirs.row_hashes)
    check.sample = mine.sample or theirs.sample
    check.details |= {"other": name, "same_betas": same, "shared_trials": trials, "shared_voxels": voxels}
    do = "One of them is a copy: find out where each comes from and use one. Together they count one brain twice."
    if same:
        return check("wrong", f"The betas are those of {name}, bit by bit.", do)
    if trials or voxels:
        parts = [f"{count(trials, 'trial')} of {len(mine.rows):,}"] * bool(trials)
        parts += [f"{count(voxels, 'voxel')} of {len(mine.finite):,}"] * bool(voxels)
        if trials < MOST * len(mine.rows) and voxels < MOST * len(mine.finite):
            do = "Find out what the two share, such as a joined file or a common mean, before you use both."
        return check("wrong", f"{' and '.join(parts)} are those of {name}, bit by bit.", do)
    if (rescaled := rescaled_trials(mine, theirs)) > MOST / 2:
        check.details["rescaled_trials"] = rescaled
        found = f"{rescaled:.0%} of a sample of trials are those of {name}, with voxels scaled otherwise."
        return check("wrong", found, do)
    leaks = _tested_and_trained(folder, second) + _tested_and_trained(second, folder)
    check.details["tested_in_one_trained_in_other"] = leaks
    if leaks:
        found = f"No betas are shared with {name}, but {count(leaks, 'picture')} tested in one are trained on in the other."
        return check("note", found, "Before training on both together, give them the same split.")
    return check("ok", f"Nothing is shared with {name}.")


def shared_trials(mine: Scan, theirs: Scan) -> int:
    """Trials of `mine` that are also in `theirs`, in any order: all voxels alike, or those of half of the parts or more."""
    whole = np.isin(mine.row_hashes, theirs.row_hashes)
    if len(mine.finite) != len(theirs.finite):  # parts of other voxels cannot be compared
        return int((whole & ~mine.flat_rows).sum())
    alike = [
        np.isin(part, other)
        for part, other in zip(mine.row_parts.T, theirs.row_parts.T, strict=True)
        if len(np.unique(part)) > 1
    ]
    parts = np.mean(alike, axis=0) >= 0.5 if len(alike) > 1 else np.zeros(len(whole), bool)
    return int(((whole | parts) & ~mine.flat_rows).sum())


def shared_voxels(mine: Scan, theirs: Scan) -> int:
    """Voxels of `mine` that are also in `theirs`, in any order, over as many first trials as both have."""
    if len(mine.rows) == len(theirs.rows):
        hashes = mine.column_hashes, theirs.column_hashes
    elif both := set(mine.column_starts) & set(theirs.column_starts):
        hashes = mine.column_starts[max(both)], theirs.column_starts[max(both)]
    else:
        return 0
    return int(np.isin(hashes[0][mine.usable], hashes[1][theirs.usable]).sum())


def rescaled_trials(mine: Scan, theirs: Scan, most: int = 200) -> float:
    """Share of trials whose pattern correlates almost fully with one of `theirs` when voxels are z-scored in each.

    0 where the numbers of voxels differ, or too few sampled voxels are common.
    """
    common = np.intersect1d(
        mine.columns[mine.usable[mine.columns]], theirs.columns[theirs.usable[theirs.columns]]
    )
    if len(mine.finite) != len(theirs.finite) or len(common) < FEWEST_VOXELS:
        return 0.0
    rows = np.linspace(0, len(mine.rows) - 1, min(most, len(mine.rows))).astype(int)
    patterns = [
        _unit_patterns(each.values[:, np.searchsorted(each.columns, common)]) for each in (mine, theirs)
    ]
    best = (patterns[0][rows] @ patterns[1].T).max(axis=1)
    return float((best > SAME_PATTERN).mean())


def _unit_patterns(values: np.ndarray) -> np.ndarray:
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)
    values -= values.mean(axis=1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _tested_and_trained(folder: Folder, second: Folder) -> int:
    """Test pictures of the one that are training pictures of the other, by the recorded hash."""

    def hashes(of: Folder, split: str) -> set[str]:
        return set(of.stimuli["sha256"].reindex(of.shown(split)).dropna().astype(str))

    return len(hashes(folder, "test") & hashes(second, "train"))

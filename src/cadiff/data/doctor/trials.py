"""Trials, runs and sessions that come twice, and splits that a stage cannot use."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from cadiff.data.doctor.findings import Check, Finding, count
from cadiff.data.doctor.folder import Folder
from cadiff.data.doctor.scan import Scan

MOST = 0.9  # share of a session's trials that are copies, from which on the whole of it is called a copy


def check_duplicates(folder: Folder, scan: Scan) -> Finding:
    """Trials whose betas are bit-identical, named as sessions or runs where these are copies as a whole."""
    check = Check("duplicate-trials", "Copied trials", scan.sample)
    table = folder.trials.iloc[scan.rows]
    flat = np.flatnonzero(scan.flat_rows)
    alive = np.flatnonzero(~scan.flat_rows)
    _, first, group = np.unique(scan.row_hashes[alive], return_index=True, return_inverse=True)
    original = alive[first[group.reshape(-1)]]  # the first trial with the same betas, for each trial
    copies, sources = alive[original != alive], original[original != alive]
    check.details |= {"copies": len(copies), "constant_trials": len(flat)}
    if not len(copies) and not len(flat):
        return check("ok", "No two trials have the same betas.")
    if not len(copies):
        found = f"In {count(len(flat), 'trial')} all voxels have one value (first: trial {scan.rows[flat[0]] + 1})."
        return check("wrong", found, "Leave them out: they are no responses.")
    ids, split = table["stimulus_id"].to_numpy(dtype=str), table["split"].to_numpy(dtype=str)
    renamed = int((ids[copies] != ids[sources]).sum())
    leaks = int((split[copies] != split[sources]).sum())
    sessions = _whole(table["session"].to_numpy(), copies, sources)
    places = (table["session"].astype(str) + "." + table["run"].astype(str)).to_numpy()
    runs = _whole(places, copies, sources)
    pairs = [[int(scan.rows[a]) + 1, int(scan.rows[b]) + 1] for a, b in zip(copies, sources, strict=True)]
    check.details |= {"sessions": sessions, "runs": runs[:100], "under_other_stimuli": renamed}
    check.details |= {"across_splits": leaks, "trials": pairs[:100]}
    if sessions:
        copy, source = sessions[0]
        what = f"Session {copy} holds the betas of session {source}{_more(sessions, 'session')}: "
    elif runs:
        (of_copy, copy), (of_source, source) = (str(name).split(".") for name in runs[0])
        what = f"Run {copy} of session {of_copy} holds the betas of run {source} of session {of_source}"
        what += f"{_more(runs, 'run')}: "
    else:
        what = f"Trial {pairs[0][0]} has the betas of trial {pairs[0][1]}: "
    found = f"{what}{count(len(copies), 'copied trial')} in all"
    found += f", {renamed:,} under another stimulus" if renamed else ""
    found += f", {leaks:,} across training and test" if leaks else ""
    do = "Remove the copies: a file was read under two names, or the source holds it twice."
    do += " Which of two stimuli a trial belongs to must be looked up in the source." if renamed else ""
    return check("wrong", found + ".", do)


def check_splits(folder: Folder) -> Finding:
    """Whether there is something to train and to test on, and the numbers of repeats."""
    check = Check("splits", "Splits")
    splits = folder.trials["split"].value_counts()
    sizes = {name: int(splits.get(name, 0)) for name in ("train", "test", "unlabelled")}
    stimuli = {name: len(folder.shown(name)) for name in ("train", "test")}
    labelled = folder.trials[folder.trials["split"].isin(["train", "test"])].dropna(subset="stimulus_id")
    repeated = int(labelled.duplicated(["stimulus_id", "split", "repeat"]).sum())
    check.details |= {"trials": sizes, "stimuli": stimuli, "repeat_numbers_twice": repeated}
    if not sizes["train"] and not sizes["test"] and sizes["unlabelled"]:
        found = f"There are {sizes['unlabelled']:,} unlabelled trials and no others: good for phase 1 only."
        return check("note", found)
    if not sizes["train"]:
        return check(
            "warning",
            "There are no training trials: every stage needs them.",
            "Import the training data as well.",
        )
    if not sizes["test"]:
        found = "There are no test trials: `cadiff reconstruct` and scores need them."
        do = "Hold stimuli out: `cadiff data split DATASET --out NEW --fraction 0.2`."
        return check("note", found, do)
    if stimuli["test"] == 1:
        return check(
            "note", "There is one test stimulus: nothing can be identified among one.", "Test on more."
        )
    if repeated:
        found = f"{count(repeated, 'trial', 'has')} the stimulus, split and repeat number of another one."
        return check("note", found, "Number the repeats of every stimulus from 1; averages do not need it.")
    return check(
        "ok", "Trials: " + ", ".join(f"{number:,} {name}" for name, number in sizes.items() if number) + "."
    )


def _whole(names: np.ndarray, copies: np.ndarray, sources: np.ndarray) -> list[tuple[Any, Any]]:
    """(copy, source) for each block of which (almost) every trial repeats one of the same other block."""
    sizes = Counter(names.tolist())
    pairs = Counter(zip(names[copies].tolist(), names[sources].tolist(), strict=True))
    return [
        (copy, source)
        for (copy, source), number in pairs.items()
        if copy != source and number >= max(2, MOST * sizes[copy])
    ]


def _more(blocks: list[tuple[Any, Any]], what: str) -> str:
    return f", and {count(len(blocks) - 1, what)} more alike" if len(blocks) > 1 else ""

"""Which picture the Natural Scenes Dataset showed when: nsd_expdesign.mat, and two files that tell the same again.

nsddata/experiments/nsd/nsd_expdesign.mat, numbers that count from 1:
    masterordering (1, 30000)      for each trial of a subject, which of that subject's 10,000 pictures; the same for all
    subjectim      (8, 10000)      the 73k id of each of these pictures
    sharedix       (1, 1000)       the 73k ids that all subjects share
    stimpattern    (40, 12, 75)    session, run, slot of 4 s: 1 where a picture was shown, 0 where the screen was blank
nsddata/ppdata/subjNN/behav/responses.tsv        optional: SESSION and 73KID of each trial as it happened
nsddata/experiments/nsd/nsd_stim_info_merged.csv optional: nsdId (counts from 0), cocoId, cocoSplit, shared1000, BOLD5000

The traps: every id in the .mat and the .tsv counts from 1, every id in the .csv and every row of the pictures from 0. A
subject whose scans ended early followed the same order, so session n is always trials 750 (n - 1) + 1 to 750 n.
Source: NSD Data Manual, "Experiments" and "Behavioral data".
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cadiff.data.dataset import read_table
from cadiff.data.files import need_file
from cadiff.data.mat import MatFile
from cadiff.data.readers.nsd_betas import reading
from cadiff.errors import DataError

TRIALS_PER_SESSION = 750
NUM_SUBJECTS = 8
NUM_TRIALS, PICTURES_PER_SUBJECT, NUM_SHARED, NUM_PICTURES = 30_000, 10_000, 1_000, 73_000
RUN_TRIALS = (63, 62) * 6
"""Trials of the 12 runs of a session; used where the .mat has no stimpattern."""
INFO_COLUMNS = {"cocoId": "coco_id", "cocoSplit": "coco_split", "BOLD5000": "in_bold5000"}


class Design(NamedTuple):
    """The design for one subject; ids count from 0."""

    pictures: np.ndarray
    """73k id of every trial, in the order of the design, (trials,)."""
    shared: np.ndarray
    """73k ids that all subjects share, sorted."""
    pattern: np.ndarray | None
    """Trials of each run, (sessions, runs)."""
    path: Path


def load_design(path: Path, subject: int, *, published: bool) -> Design:
    """Reads nsd_expdesign.mat.

    Args:
        path: the file.
        subject: 1 to 8.
        published: refuse sizes that differ from the published ones.

    Raises:
        DataError: absent, damaged, numbers out of range, or not the published design.
    """
    content = MatFile(need_file(path, "it says which picture was shown when; download it with nsddata."))
    content.need("masterordering", "subjectim", "sharedix")
    order = _whole(path, "masterordering", content["masterordering"]).ravel()
    table = _whole(path, "subjectim", content["subjectim"])
    shared = np.unique(_whole(path, "sharedix", content["sharedix"]))
    if table.ndim != 2 or len(table) < subject:
        raise DataError(f"{path}: subjectim is {table.shape}, expected a row for subject {subject}.")
    found = {"masterordering": order.size, "subjectim": table.shape, "sharedix": shared.size}
    wanted = {
        "masterordering": NUM_TRIALS,
        "subjectim": (NUM_SUBJECTS, PICTURES_PER_SUBJECT),
        "sharedix": NUM_SHARED,
    }
    if published and found != wanted:
        raise DataError(
            f"{path} is not the published design: found {_sizes(found)}, expected {_sizes(wanted)}; "
            "give design=any if this is meant."
        )
    for name, numbers, most in (
        ("masterordering", order, table.shape[1]),
        ("subjectim", table, NUM_PICTURES),
    ):
        if not numbers.size or numbers.min() < 1 or numbers.max() > most:
            raise DataError(f"{path}: {name} holds numbers outside 1 to {most}; is the file damaged?")
    mine = table[subject - 1]
    if len(np.unique(mine)) != len(mine) or (published and not np.isin(shared, mine).all()):
        raise DataError(
            f"{path}: subjectim has a picture twice for subject {subject}, or lacks shared ones: download it again."
        )
    return Design(mine[order - 1] - 1, shared - 1, _run_lengths(content), path)


def _sizes(facts: dict[str, object]) -> str:
    return ", ".join(f"{name} {size}" for name, size in facts.items())


def _whole(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    numbers = np.asarray(array, dtype=np.float64)
    if not np.array_equal(numbers, np.rint(numbers)) or not (np.abs(numbers) < 1e9).all():
        raise DataError(f"{path}: {name} must hold whole numbers; is the file damaged?")
    return numbers.astype(np.int64)


def _run_lengths(content: MatFile) -> np.ndarray | None:
    if "stimpattern" not in content:
        return None
    pattern = content["stimpattern"]
    return (pattern != 0).sum(axis=2) if pattern.ndim == 3 else None


def trials_of(design: Design, sessions: list[int], per_session: int) -> pd.DataFrame:
    """One row a trial of these sessions, in the order in which they happened.

    `repeat` counts among these sessions; `presentation` among all that the design has, scanned or not.

    Raises:
        DataError: the design is shorter than the sessions.
    """
    if max(sessions) * per_session > len(design.pictures):
        raise DataError(
            f"{design.path} has {len(design.pictures)} trials, session {max(sessions)} of {per_session} trials each "
            "goes beyond: do betas and design belong together?"
        )
    presentation = pd.Series(design.pictures).groupby(design.pictures).cumcount().to_numpy() + 1
    parts = []
    for session in sessions:
        rows = slice((session - 1) * per_session, session * per_session)
        ids = design.pictures[rows]
        parts.append(
            pd.DataFrame(
                {
                    "stimulus_id": [stimulus_id(int(n)) for n in ids],
                    "split": np.where(np.isin(ids, design.shared), "test", "train"),
                    "session": session,
                    "run": runs_of(design, session, per_session)[0],
                    "nsd_id": ids,
                    "trial_in_session": np.arange(1, per_session + 1),
                    "presentation": presentation[rows],
                }
            )
        )
    trials = pd.concat(parts, ignore_index=True)
    trials["repeat"] = trials.groupby("stimulus_id").cumcount() + 1
    return trials


def stimulus_id(nsd_id: int) -> str:
    """`nsd-00000` is the first picture of nsd_stimuli.hdf5."""
    return f"nsd-{nsd_id:05d}"


def runs_of(design: Design, session: int, per_session: int) -> tuple[np.ndarray, str]:
    """The run of each trial of a session, (trials,), and where that is known from."""
    pattern = design.pattern
    if pattern is not None and len(pattern) >= session and pattern[session - 1].sum() == per_session:
        lengths, known = pattern[session - 1], "stimpattern of nsd_expdesign.mat"
    elif per_session == TRIALS_PER_SESSION:
        lengths, known = np.asarray(RUN_TRIALS), "the published rule: runs of 63 and 62 trials in turn"
    else:
        lengths, known = np.asarray([per_session]), "not known: all trials of a session are called run 1"
    return np.repeat(np.arange(1, len(lengths) + 1), lengths), known


def check_responses(path: Path, trials: pd.DataFrame) -> list[int]:
    """Compares the design with what responses.tsv says was shown.

    Returns:
        the sessions that could be compared; sessions with another number of rows there are passed over.

    Raises:
        DataError: not a table, or the two show different pictures.
    """
    table = read_table(path)
    if missing := [name for name in ("SESSION", "73KID") if name not in table]:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))})."
        )
    numbers = table[["SESSION", "73KID"]].apply(pd.to_numeric, errors="coerce")
    compared = []
    for session, mine in trials.groupby("session"):
        theirs = numbers.loc[numbers["SESSION"] == session, "73KID"].to_numpy() - 1
        if len(theirs) != len(mine):
            continue
        differ = np.flatnonzero(theirs != mine["nsd_id"].to_numpy())
        if len(differ):
            raise DataError(
                f"{path} and nsd_expdesign.mat show different pictures in {len(differ)} trials of session {session} "
                f"(first: trial {differ[0] + 1}, 73k ids {theirs[differ[0]]:g} and {mine['nsd_id'].iloc[differ[0]]}, "
                "counted from 0): are they of the same subject?"
            )
        compared.append(int(str(session)))
    return compared


def load_info(path: Path, trials: pd.DataFrame) -> pd.DataFrame:
    """coco_id, coco_split and in_bold5000 of the pictures that the trials show, by 73k id from 0.

    Raises:
        DataError: not a table, or it says otherwise which pictures are shared.
    """
    with reading(path, "a table with commas between and the columns nsdId, cocoId, cocoSplit, shared1000"):
        table = pd.read_csv(path, encoding="utf-8", dtype={"cocoSplit": str})
        table = table.set_index(pd.Index(pd.to_numeric(table["nsdId"]).astype("int64"), name="nsd_id"))
        if not table.index.is_unique:
            raise ValueError("an nsdId comes twice")
        shared = table["shared1000"].astype(str).str.lower().isin(["true", "1"])
        info = table[[name for name in INFO_COLUMNS if name in table]].rename(columns=INFO_COLUMNS)
        if "coco_id" in info:
            info["coco_id"] = pd.to_numeric(info["coco_id"]).astype("Int64")
    test = trials.drop_duplicates("nsd_id").set_index("nsd_id")["split"] == "test"
    known = test.index[test.index.isin(shared.index)]
    differ = known[test[known].to_numpy() != shared[known].to_numpy()]
    if len(differ):
        raise DataError(
            f"{path} and nsd_expdesign.mat disagree whether {len(differ)} pictures are shared by all subjects "
            f"(first: nsdId {differ[0]}): are both of this release?"
        )
    return info.reindex(test.index)

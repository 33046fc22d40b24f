"""The trials of all runs as the dataset lists them: stimulus ids, splits, repeats; and the stimuli with their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cadiff.data.files import PICTURES, inside, need_file, need_folder
from cadiff.data.readers.bids_layout import SubjectFiles
from cadiff.data.readers.bids_names import matches
from cadiff.data.readers.bids_runs import Run
from cadiff.data.readers.bids_tables import stimulus_name
from cadiff.data.writer import DatasetWriter
from cadiff.errors import DataError

AUTO = "auto"
MAX_ID_BYTES = 200  # file systems allow 255


class TestChoice(NamedTuple):
    """What is held out for testing; all empty: the column `split` of the events decides, and without it all is training."""

    __test__ = False  # not a test of ours, whatever pytest makes of the name

    stimuli: tuple[str, ...] = ()
    runs: tuple[int, ...] = ()
    sessions: tuple[str, ...] = ()


def join_trials(runs: Sequence[Run], test: TestChoice) -> pd.DataFrame:
    """All trials in order, with `TRIAL_COLUMNS` but `trial`, and onset_s, duration_s, trial_type, label, cell.

    Raises:
        DataError: two stimuli of one id, a choice of tests that fits nothing, or a stimulus in training and test.
    """
    tables = []
    for number, run in enumerate(runs):
        tables.append(
            pd.DataFrame(
                {
                    "stimulus_id": run.trials["stimulus"].map(stimulus_name),
                    "split": run.trials["split"],
                    "session": run.files.session,
                    "run": run.files.run,
                    "onset_s": run.trials["onset"],
                    "duration_s": run.trials["duration"],
                    "trial_type": run.trials["trial_type"],
                    "ses": run.files.ses or None,
                    "label": run.trials["label"],
                    "cell": run.trials["stimulus"],
                    "source": number,
                }
            )
        )
    trials = pd.concat(tables, ignore_index=True)
    for name, cells in trials.groupby("stimulus_id")["cell"]:
        if len(found := sorted(set(cells))) > 1 or not name:
            raise DataError(
                f"The stimuli {' and '.join(map(repr, found))} would both be named {name!r}: rename one in the events."
            )
        if len(str(name).encode()) > MAX_ID_BYTES:
            raise DataError(
                f"The stimulus {str(name)[:40]!r}... has {len(str(name))} characters: ids name files."
            )
    trials["split"] = _splits(trials, test)
    trials["repeat"] = trials.groupby(["stimulus_id", "split"]).cumcount() + 1
    both = {split: set(trials.loc[trials["split"] == split, "stimulus_id"]) for split in ("train", "test")}
    if shared := sorted(both["train"] & both["test"]):
        raise DataError(
            f"{len(shared)} stimuli would be both trained on and tested (first: {shared[0]!r}): hold out stimuli instead, "
            "test=, or import all trials as training and choose trials to test in your own analysis."
        )
    return trials


def add_stimuli(
    writer: DatasetWriter, trials: pd.DataFrame, files: SubjectFiles, column: str, images: Path | str | None
) -> None:
    """Adds each stimulus once, with its picture where there are pictures, and its label where its trials agree on one.

    A label that all stimuli share (a trial type such as "picture") says nothing and is left out.
    """
    folder = _picture_folder(files, column, images)
    shown = trials[trials["split"] != "unlabelled"]
    several = shown["label"].nunique() > 1
    for stimulus_id, rows in shown.groupby("stimulus_id", sort=False):
        name, cell = str(stimulus_id), str(rows["cell"].iloc[0])
        labels = set(rows["label"].dropna())
        about = {"label": labels.pop()} if several and len(labels) == 1 else {}
        picture = None if folder is None else _picture(folder, name, cell.strip())
        writer.add_stimulus(name, picture, **about)


def _splits(trials: pd.DataFrame, test: TestChoice) -> pd.Series:
    if not any(test):
        return trials["split"].astype(object).where(trials["split"].notna(), "train")
    ses = trials["ses"].fillna("").astype(str)
    chosen = pd.Series(False, index=trials.index)
    checks: list[tuple[str, Iterable[object], pd.Series]] = [
        ("test", test.stimuli, trials["stimulus_id"]),
        ("test_runs", test.runs, trials["run"].astype(str)),
        ("test_sessions", test.sessions, ses.where(ses != "", trials["session"].astype(str))),
    ]
    for option, patterns, values in checks:
        for pattern in patterns:
            fits = pd.Series([matches(str(value), [pattern]) for value in values], index=trials.index)
            if not fits.any():
                known = list(dict.fromkeys(values))
                shown = ", ".join(known[:10]) + ", ..." * (len(known) > 10)
                raise DataError(f"{option} names {pattern!r}, which no trial has; there are: {shown}.")
            chosen |= fits
    return chosen.map({True: "test", False: "train"})


def _picture_folder(files: SubjectFiles, column: str, images: Path | str | None) -> Path | None:
    if images is None or (images == AUTO and column != "stim_file"):
        return None
    if images != AUTO:
        return need_folder(Path(images), "images= gives the folder of pictures.")
    return need_folder(
        (files.bids or files.derivatives) / "stimuli",
        "the events name pictures (stim_file): give their folder, images=FOLDER, or images=null to do without.",
    )


def _picture(folder: Path, name: str, cell: str) -> Path:
    """The file that the events name, or one named after the stimulus."""
    exact = inside(folder, cell)
    if exact.is_file():
        return exact
    for suffix in PICTURES:
        if (named := inside(folder, name + suffix)).is_file():
            return named
    return need_file(exact, f"expected the picture of stimulus {name!r} ({', '.join(PICTURES)}).")

"""The two tables of a run: events, and the confounds that fMRIPrep estimated.

    *_events.tsv                     onset, duration (seconds from the first volume), trial_type, stim_file, ...
    *_desc-confounds_timeseries.tsv  one row a volume: trans_x, ..., cosine00, ..., motion_outlier00, ...

Gaps are `n/a` in both; derivatives and displacements have one in their first row. The strategies are those of
`nilearn.interfaces.fmriprep.load_confounds` as far as the table alone can serve them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from cadiff.data.dataset import SPLITS, read_table
from cadiff.data.files import PICTURES, need_file
from cadiff.data.readers.bids_names import matches
from cadiff.errors import DataError

MOTION = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")
MODELS = {
    "basic": ("",),
    "derivatives": ("", "_derivative1"),
    "power2": ("", "_power2"),
    "full": ("", "_derivative1", "_power2", "_derivative1_power2"),
}
EXPANDED = {
    "motion": (MOTION, "full"),
    "wm_csf": (("csf", "white_matter"), "basic"),
    "global_signal": (("global_signal",), "basic"),
}
COUNTED = {
    "high_pass": "cosine*",
    "non_steady_state": "non_steady_state_outlier*",
    "scrub": "motion_outlier*",
}
"""Strategies whose columns may be absent because the run has none."""


class EventOptions(NamedTuple):
    """Which rows of an events table are trials, and of what."""

    stimulus_column: str | None = None
    trial_type_column: str = "trial_type"
    trial_types: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    nuisance: tuple[str, ...] = ()
    label_column: str | None = None
    duration_s: float | None = None
    onset_shift_s: float = 0.0


class Events(NamedTuple):
    """What happened in a run."""

    trials: pd.DataFrame
    """onset, duration, stimulus, label, trial_type, split (None where the table has none); ordered by onset."""
    nuisance: dict[str, tuple[np.ndarray, np.ndarray]]
    """Onsets and durations of other events, by kind."""
    kinds: frozenset[str]
    """All trial types in the table."""
    stimulus_column: str


def read_events(path: Path, options: EventOptions) -> Events:
    """The trials in an events table.

    Raises:
        DataError: a column that is missing, times that are no numbers, or no trial at all.
    """
    table = read_table(need_file(path, "expected a table of events."), dtype=str, keep_default_na=False)
    table = table.replace("", np.nan)  # pandas leaves gaps empty where nobody tells it of n/a
    column = options.stimulus_column or next(
        (c for c in ("stim_file", "trial_type") if c in table), "stim_file"
    )
    wanted = [column, "onset", *([] if options.duration_s is not None else ["duration"])]
    wanted += [options.label_column] if options.label_column else []
    wanted += [options.trial_type_column] if options.trial_types or options.ignore or options.nuisance else []
    if missing := [name for name in wanted if name not in table]:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))}): options "
            "stimulus_column, trial_type_column and label_column name the columns to use."
        )
    kinds = table.get(options.trial_type_column, pd.Series(index=table.index, dtype=object))
    chosen = table[column].notna()
    if options.trial_types:
        chosen &= _fits(kinds, options.trial_types)
    other = _fits(kinds, options.nuisance)
    chosen &= ~other & ~_fits(kinds, options.ignore)
    if not chosen.any():
        raise DataError(
            f"{path} holds no trial: {len(table)} rows, {int(table[column].notna().sum())} with a {column}, trial "
            f"types {', '.join(sorted(set(kinds.dropna()))) or 'none'}."
        )
    used = chosen | other
    onset = _times(path, table, "onset", used) + options.onset_shift_s
    duration = pd.Series(options.duration_s, index=table.index, dtype=float)
    if options.duration_s is None:
        duration = _times(path, table, "duration", used)
        if len(short := duration[used & ~(duration > 0)]):
            raise DataError(
                f"{path}, line {short.index[0] + 2}: the duration is {table.at[short.index[0], 'duration']!r}; give one "
                "for all trials in seconds, duration_s=."
            )
    label = options.label_column or (
        options.trial_type_column if options.trial_type_column in table else column
    )
    trials = pd.DataFrame(
        {
            "onset": onset,
            "duration": duration,
            "stimulus": table[column],
            "label": table[label],
            "trial_type": kinds,
            "split": table.get("split"),
        }
    )[chosen].sort_values("onset", kind="stable", ignore_index=True)
    if strange := sorted(set(trials["split"].dropna()) - set(SPLITS)):
        raise DataError(f"{path}: split {strange[0]!r}; splits are {', '.join(SPLITS)}.")
    groups = {name: other & (kinds == name) for name in sorted(set(kinds[other]))}
    nuisance = {name: (onset[rows].to_numpy(), duration[rows].to_numpy()) for name, rows in groups.items()}
    return Events(trials, nuisance, frozenset(kinds.dropna()), column)


def stimulus_name(value: str) -> str:
    """A stimulus id that can name a file, from a cell: "faces/f 1.png" of the column stim_file is "faces_f 1"."""
    path = PurePosixPath(value.strip().replace("\\", "/"))
    parts = (path.with_suffix("") if path.suffix.lower() in PICTURES else path).parts
    return "_".join(part for part in parts if part not in ("/", "..", ".")).lstrip(".").replace("\0", "")


def read_confounds(path: Path, wanted: Sequence[str], num_volumes: int) -> tuple[np.ndarray, list[str]]:
    """Columns of a confounds table, float64 (volumes, m), and their names.

    Args:
        path: the table.
        wanted: strategies ("motion", "motion:basic", "wm_csf:full", "high_pass", "scrub") and names of columns, in which
            `*` stands for anything.
        num_volumes: how many volumes the run has.

    Raises:
        DataError: another number of rows, a column that is not there, or gaps below the first row.
    """
    table = read_table(
        need_file(path, "expected fMRIPrep's table of confounds."), dtype=str, keep_default_na=False
    )
    if len(table) != num_volumes:
        raise DataError(
            f"{path} has {len(table)} rows, the BOLD has {num_volumes} volumes: they are of different runs."
        )
    names = list(dict.fromkeys(name for item in wanted for name in _columns(path, table, item)))
    columns = np.empty((num_volumes, len(names)))
    for i, name in enumerate(names):
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, copy=True)
        if np.isnan(numbers[0]) and num_volumes > 1:  # a derivative has no first value; as nilearn does
            numbers[0] = numbers[1]
        if bad := np.flatnonzero(~np.isfinite(numbers)).tolist():
            raise DataError(
                f"{path}, line {bad[0] + 2}: {name} is {table[name].iloc[bad[0]]!r}, expected a number."
            )
        columns[:, i] = numbers
    return columns, names


def _columns(path: Path, table: pd.DataFrame, item: str) -> list[str]:
    there = [str(name) for name in table.columns]
    strategy, _, model = item.partition(":")
    if item in COUNTED:
        return fnmatch.filter(there, COUNTED[item])
    if strategy in EXPANDED and item not in there:
        bases, usual = EXPANDED[strategy]
        if (model or usual) not in MODELS:
            raise DataError(f"confounds={item!r}: after {strategy}: comes one of {', '.join(MODELS)}.")
        names = [base + ending for base in bases for ending in MODELS[model or usual]]
    else:
        names = fnmatch.filter(there, item) or [item]
    if missing := [name for name in names if name not in there]:
        raise DataError(
            f"{path} lacks the confound {missing[0]!r} (it has: {', '.join(there[:12])}{', ...' * (len(there) > 12)}); "
            f"besides columns, confounds= takes {', '.join([*EXPANDED, *COUNTED])}."
        )
    return names


def _fits(kinds: pd.Series, patterns: Sequence[str]) -> pd.Series:
    return kinds.map(lambda kind: isinstance(kind, str) and matches(kind, patterns)).astype(bool)


def _times(path: Path, table: pd.DataFrame, column: str, used: pd.Series) -> pd.Series:
    """A column of seconds; gaps are left in rows that are not used, and in `duration`."""
    times = pd.to_numeric(table[column], errors="coerce")
    strange = used & ~np.isfinite(times) & ~(times.isna() & table[column].isna() & (column == "duration"))
    if strange.any():
        row = int(strange.to_numpy().argmax())
        raise DataError(
            f"{path}, line {row + 2}: the {column} is {table[column].iloc[row]!r}, expected seconds."
        )
    return times.astype(float)

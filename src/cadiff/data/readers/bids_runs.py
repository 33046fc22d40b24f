"""What is known of a run before its BOLD is read: its events, its model, and how its betas will be estimated.

All that can be refused is refused here, for every run, before the first series is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from cadiff.data import glm
from cadiff.data.readers.bids_images import Series
from cadiff.data.readers.bids_layout import RunFiles, SubjectFiles
from cadiff.data.readers.bids_names import matches
from cadiff.data.readers.bids_surfaces import open_series
from cadiff.data.readers.bids_tables import EventOptions, Events, read_confounds, read_events
from cadiff.errors import DataError

MIN_TR_S, MAX_TR_S = 0.05, 30.0
TR_TOLERANCE = 0.01
MIN_SHARE = 0.5
"""Trials of which the run saw less of the response than this are cut off: their betas would be mostly noise."""


class ModelOptions(NamedTuple):
    """How trial-wise betas are estimated."""

    method: glm.Method
    hrf: str
    confounds: tuple[str, ...]
    high_pass_s: float | None
    tr_s: float | None
    slice_time_ref: float | None
    cut_trials: Literal["refuse", "drop"]


class Run(NamedTuple):
    """One run, ready to be estimated."""

    files: RunFiles
    trials: pd.DataFrame
    """See `Events.trials`; cut trials are left out."""
    solution: glm.Solution
    about: dict[str, Any]
    """Facts for the description."""


def prepare(files: SubjectFiles, events: EventOptions, model: ModelOptions) -> tuple[Series, list[Run], str]:
    """The first run's series, every run's model, and the column that names stimuli.

    Raises:
        DataError: runs over different grids, or whatever is wrong with the tables or the design of one of them.
    """
    first, runs, kinds, columns = None, [], set(), set()
    for run in files.runs:
        series = open_series(run.bold)
        first = first or series
        if difference := first.differs(series):
            raise DataError(f"{series.path} cannot be joined with {first.path}: {difference}.")
        table = read_events(run.events, events)
        kinds |= table.kinds
        columns.add(table.stimulus_column)
        runs.append(_model(run, series, table, model))
    for name in ("trial_types", "ignore", "nuisance"):
        for pattern in getattr(events, name):
            if not any(matches(kind, [pattern]) for kind in kinds):
                raise DataError(
                    f"{name} names {pattern!r}, which no run of {files.name} has; there are: {', '.join(sorted(kinds))}."
                )
    if first is None or len(columns) != 1:
        raise DataError(
            f"{files.name}: some events tables name stimuli in {' and some in '.join(sorted(columns)) or 'no run'}: "
            "choose one with stimulus_column=."
        )
    return first, runs, columns.pop()


def _model(run: RunFiles, series: Series, table: Events, options: ModelOptions) -> Run:
    tr_s = _repetition_time(run, series, options.tr_s)
    if series.num_volumes < 2:
        raise DataError(f"{series.path} has {series.num_volumes} volume, expected a time series.")
    reference = _reference(run, tr_s, options.slice_time_ref)
    frame_times = (np.arange(series.num_volumes) + reference) * tr_s
    confounds, names = _confounds(run, series, options.confounds)
    own_drift = None if any(name.startswith("cosine") for name in names) else options.high_pass_s
    drift = glm.cosine_drift(series.num_volumes, tr_s, own_drift)
    onsets, durations = (table.trials[column].to_numpy(dtype=float) for column in ("onset", "duration"))
    responses = glm.trial_regressors(onsets, durations, frame_times, options.hrf)
    share = glm.share_of_response(responses, durations, frame_times, options.hrf)
    whole = share >= MIN_SHARE
    if not whole.all() and options.cut_trials == "refuse":
        worst = int(share.argmin())
        raise DataError(
            f"{run.events}: {int((~whole).sum())} of {len(whole)} trials have less than half of their response inside "
            f"the run, first the one at {onsets[~whole][0]:g} s; {series.path.name} lasts "
            f"{series.num_volumes} x {tr_s:g} s ({share[worst]:.0%} at worst). Are the events of another run, or in "
            "milliseconds? cut_trials=drop leaves such trials out."
        )
    if not whole.any():
        raise DataError(f"{run.events}: no trial has half of its response inside the run {series.path}.")
    others = glm.condition_regressors(list(table.nuisance.values()), frame_times, options.hrf)
    nuisance = np.concatenate([drift, confounds, others], axis=1)
    try:
        solution = glm.solve(responses[:, whole], nuisance, options.method)
    except DataError as error:
        raise DataError(f"{series.path}: {error}") from None
    about = {
        "run": run.name,
        "volumes": series.num_volumes,
        "tr_s": tr_s,
        "slice_time_ref": round(reference, 6),
        "trials": int(whole.sum()),
        "cut_trials": int((~whole).sum()),
        "confounds": len(names),
        "cosines": drift.shape[1] - 1,
        "degrees_of_freedom": solution.degrees_of_freedom,
    }
    return Run(run, table.trials[whole].reset_index(drop=True), solution, about)


def _confounds(run: RunFiles, series: Series, wanted: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    if not wanted:
        return np.empty((series.num_volumes, 0)), []
    if run.confounds is None:
        raise DataError(
            f"There is no table of confounds (*_desc-confounds_timeseries.tsv) for {run.name} beside {series.path}: "
            "give confounds=[] to do without."
        )
    return read_confounds(run.confounds, wanted, series.num_volumes)


def _repetition_time(run: RunFiles, series: Series, given: float | None) -> float:
    """Seconds from volume to volume: the option, else the JSON file, which the image's header may not contradict."""
    said = run.sidecar.get("RepetitionTime") or None
    header = series.tr_s if series.tr_s and MIN_TR_S <= series.tr_s <= MAX_TR_S else None
    if given is None and said and header and abs(said - header) > TR_TOLERANCE * said:
        raise DataError(
            f"{series.path}: RepetitionTime is {said:g} s in the JSON file, {header:g} s in the image's header: give the "
            "true one, tr_s=."
        )
    found = given or said or header
    if found is None or not MIN_TR_S <= found <= MAX_TR_S:
        where = f" but {series.tr_s or said:g} s" if series.tr_s or said else ""
        raise DataError(
            f"{series.path}: no plausible RepetitionTime in its JSON file or header{where}; give it in seconds, tr_s=."
        )
    return found


def _reference(run: RunFiles, tr_s: float, given: float | None) -> float:
    """When in its TR a volume is taken to be measured, 0..1.

    fMRIPrep corrects slice timing to the middle of the TR unless told otherwise, and says so as StartTime since version
    21; a model that takes volumes as measured at their beginning is half a TR off.
    """
    if given is not None:
        return given
    if (start := run.sidecar.get("StartTime")) is not None:
        return min(start / tr_s, 1.0)
    return 0.5 if run.sidecar.get("SliceTimingCorrected") else 0.0

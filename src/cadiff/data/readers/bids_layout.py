"""Finding the files of one subject in fMRIPrep derivatives beside raw BIDS.

    fmriprep/sub-01/[ses-02/]func/sub-01_[ses-02_]task-x_[run-1_]space-T1w_desc-preproc_bold.nii.gz
                                  ..._space-T1w_desc-brain_mask.nii.gz
                                  ..._hemi-L_space-fsaverage5_bold.func.gii          (and hemi-R)
                                  ..._space-fsLR_den-91k_bold.dtseries.nii
                                  ..._desc-confounds_timeseries.tsv                  (confounds_regressors before 20.2)
    bids/sub-01/[ses-02/]func/sub-01_[ses-02_]task-x_[run-1_]events.tsv

Sources: BIDS specification 1.10 (inheritance principle), fMRIPrep's page "Outputs" and the lists of files that its own
tests compare with. Traps: a file of a higher folder (`task-x_events.tsv`) is meant for all runs that have its
entities; masks of the native grid are named `space-run` by the newest fMRIPrep, the series has no space entity; JSON
files give the time to which slice timing was corrected only since version 21.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cadiff.artifacts import what_is_at
from cadiff.data.files import need_folder, read_text
from cadiff.data.readers.bids_names import (
    KINDS,
    NATIVE,
    Named,
    RunKey,
    fetched,
    files_about,
    matches,
    natural,
    pick,
    run_name,
    run_numbers,
)  # fmt: skip
from cadiff.errors import DataError

NATIVE_MASKS = (NATIVE, "run", "boldref")
PASSED_OVER = {"sourcedata", "freesurfer", "logs", "figures", "stimuli", "code", "work"}
MAX_TIME_S = 30
DEPTH = 3  # bids/derivatives/fmriprep lies two folders down


class RunFiles(NamedTuple):
    """What belongs to one run of one subject in one space."""

    name: str
    """As in file names, for example "ses-02_task-x_run-1"."""
    task: str
    ses: str
    """Label of the session, empty without sessions."""
    session: int
    run: int
    bold: tuple[Path, ...]
    """One file; of surfaces left and right."""
    events: Path
    mask: Path | None
    confounds: Path | None
    sidecar: dict[str, Any]
    """Facts about timing from JSON files."""


class SubjectFiles(NamedTuple):
    """The runs of one subject, in order of session and run."""

    name: str
    space: str
    runs: tuple[RunFiles, ...]
    derivatives: Path
    """The folder of preprocessed data, which holds dataset_description.json."""
    bids: Path | None
    """The folder of raw data, where events come from; it may hold stimuli/."""


def find_bids(
    source: Path,
    *,
    subject: str | int | None = None,
    task: str | None = None,
    sessions: Sequence[str] = (),
    space: str | None = None,
    desc: str | None = "preproc",
    bids: Path | None = None,
) -> SubjectFiles:
    """The runs of a subject in fMRIPrep derivatives; `source` may be their folder or one that holds raw data as well.

    Args:
        source: where to look.
        subject: "01" or "sub-01"; may be absent when there is only one.
        task: task label; may be absent when there is only one.
        sessions: patterns of session labels, all when empty.
        space: "T1w", "MNI152NLin2009cAsym:res-2", "native"; may be absent when there is only one.
        desc: the `desc` entity of the volumes to take; None takes files without one, for example raw BIDS.
        bids: folder of the raw data, where it is not found from `source`.

    Raises:
        DataError: no derivatives, a choice that must be made, or a file that a run lacks.
    """
    roots = list(_subject_roots(need_folder(source, "expected a folder of fMRIPrep derivatives.")))
    holding = {root: found for root in roots if (found := _bold_by_subject(root, desc))}
    if not holding:
        raise _nothing_found(source, roots, desc)
    if len(holding) > 1:
        raise DataError(
            f"{source} holds several folders of BOLD: {', '.join(map(str, holding))}. Give one of them as the source."
        )
    root = next(iter(holding))
    wanted_subject = None if subject is None else f"sub-{str(subject).removeprefix('sub-')}"
    folder = pick(wanted_subject, holding[root], f"{root} holds several subjects", "subject")
    bold = [file for file in files_about(root, folder.name) if _is_bold(file, desc)]
    tasks = {file.entities.get("task", ""): file.entities.get("task", "") for file in bold}
    wanted_task = None if task is None else str(task).removeprefix("task-")
    chosen = pick(wanted_task, tasks, f"{folder} holds several tasks", "task")
    bold = [file for file in bold if file.entities.get("task", "") == chosen]
    keys = {file.run_key for file in bold}
    spaces = {file.space: file.space for file in bold}
    wanted = pick(space, spaces, f"{folder} holds several spaces", "space")
    bold = [file for file in bold if file.space == wanted]
    if lacking := sorted(run_name(key) for key in keys - {file.run_key for file in bold}):
        raise DataError(
            f"{folder}: {lacking[0]} has no BOLD in space {wanted!r}, other runs have: run fMRIPrep again."
        )
    raw = _raw_roots(source, root, roots, holding, bids)
    return _collect(folder.name, wanted, bold, sessions, root, raw)


def read_facts(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        facts = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}.") from None
    if not isinstance(facts, dict):
        raise DataError(
            f"{path} holds a JSON {type(facts).__name__}, expected an object with names and values."
        )
    return facts


def _collect(
    subject: str, space: str, bold: list[Named], sessions: Sequence[str], root: Path, raw: list[Path]
) -> SubjectFiles:
    groups: dict[RunKey, list[Named]] = {}
    for file in bold:
        groups.setdefault(file.run_key, []).append(file)
    order = sorted(
        groups, key=lambda key: (natural(dict(key).get("ses", "")), natural(dict(key).get("run", "")), key)
    )
    numbers = run_numbers(order)
    if sessions:
        order = [key for key in order if matches(dict(key).get("ses", ""), sessions)]
    if not order:
        labels = ", ".join(sorted({dict(key).get("ses", "none") for key in groups}, key=natural))
        raise DataError(f"{root / subject}: no session fits {list(sessions)}; there are: {labels}.")
    derived = list(files_about(root, subject))
    events = [file for folder in raw for file in files_about(folder, subject) if file.suffix == "events"]
    raw_facts = [file for folder in raw for file in files_about(folder, subject) if file.suffix == "bold"]
    runs = []
    for key in order:
        series = _series(groups[key])
        table = _closest(key, [file for file in events if file.extension == ".tsv"])
        if table is None:
            places = ", ".join(str(folder) for folder in raw)
            raise DataError(
                f"There is no table of events for {run_name(key)} of {subject} in {places}: fMRIPrep does not copy "
                "*_events.tsv, so give the folder of the raw BIDS data, bids=FOLDER."
            )
        session, run = numbers[key]
        runs.append(
            RunFiles(
                name=run_name(key),
                task=dict(key).get("task", ""),
                ses=dict(key).get("ses", ""),
                session=session,
                run=run,
                bold=tuple(fetched(file.path) for file in series),
                events=fetched(table.path),
                mask=_brain_mask(key, series[0], derived),
                confounds=_confounds(key, derived),
                sidecar=_timing(key, series[0].path, raw_facts),
            )
        )
    bids = next((folder for folder in raw if any(file.path.is_relative_to(folder) for file in events)), None)
    return SubjectFiles(subject, space, tuple(runs), root, bids)


def _subject_roots(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folders, `folder` or below, that hold folders of subjects."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if any(path.name.startswith("sub-") for path in inside):
        yield folder
    for path in inside if depth else ():
        if not path.name.startswith("sub-") and path.name not in PASSED_OVER:
            yield from _subject_roots(path, depth - 1)


def _is_bold(file: Named, desc: str | None) -> bool:
    kind = KINDS.get(file.extension)
    if file.suffix != "bold" or kind is None or "echo" in file.entities or "sub" not in file.entities:
        return False
    if kind != "volume" and desc == "preproc" and "desc" not in file.entities:
        return True  # fMRIPrep gives surfaces and grayordinates no desc
    return file.entities.get("desc") == desc and (kind == "volume" or desc is not None)


def _bold_by_subject(root: Path, desc: str | None) -> dict[str, Path]:
    folders = {path.name: path for path in sorted(root.glob("sub-*")) if path.is_dir()}
    return {
        name: path
        for name, path in folders.items()
        if any(_is_bold(f, desc) for f in files_about(root, name))
    }


def _nothing_found(source: Path, roots: list[Path], desc: str | None) -> DataError:
    raw = any(_bold_by_subject(root, None) for root in roots)
    wanted = f"*_desc-{desc}_bold.nii.gz" if desc else "*_bold.nii.gz"
    if raw and desc:
        return DataError(
            f"{source} holds raw BOLD only, no {wanted}: run fMRIPrep first, or give desc=null to take it as it is."
        )
    return DataError(
        f"{source} holds {what_is_at(source)}; expected fMRIPrep derivatives, sub-01/[ses-01/]func/{wanted}, with the "
        "folder sub-01 at most three folders down."
    )


def _raw_roots(
    source: Path, root: Path, roots: list[Path], holding: Mapping[Path, Any], bids: Path | None
) -> list[Path]:
    """Where events may be: the folder given; else the derivatives, raw data in `source`, and above `derivatives/`."""
    if bids is not None:
        return [need_folder(bids, "bids= gives the folder of the raw BIDS data.")]
    above = [
        path.parent for path in (root.absolute(), *root.absolute().parents[:2]) if path.name == "derivatives"
    ]
    return list(dict.fromkeys([*(path for path in roots if path not in holding), *above, root]))


def _series(files: list[Named]) -> list[Named]:
    """One file, or the left and the right hemisphere."""
    hemispheres = {file.entities.get("hemi", ""): file for file in files}
    if set(hemispheres) == {"L", "R"} and len(files) == 2:
        return [hemispheres["L"], hemispheres["R"]]
    if len(files) == 1 and "hemi" not in files[0].entities:
        return files
    names = ", ".join(sorted(file.path.name for file in files))
    raise DataError(
        f"{files[0].path.parent}: found {names}; expected one BOLD file a run, or hemi-L and hemi-R."
    )


def _closest(key: Iterable[tuple[str, str]], files: list[Named]) -> Named | None:
    """Of the files whose entities the run has all, the one with most of them: BIDS's inheritance principle."""
    fitting = [file for file in files if set(file.run_key) <= set(key)]
    return max(fitting, key=lambda file: (len(file.run_key), "sub" in file.entities), default=None)


def _brain_mask(key: RunKey, bold: Named, derived: list[Named]) -> Path | None:
    spaces = NATIVE_MASKS if bold.space == NATIVE else (bold.space,)
    masks = [
        f for f in derived if f.suffix == "mask" and f.entities.get("desc") == "brain" and f.run_key == key
    ]
    found = [
        f.path for space in spaces for f in masks if f.space == space and KINDS.get(f.extension) == "volume"
    ]
    return fetched(found[0]) if found else None


def _confounds(key: RunKey, derived: list[Named]) -> Path | None:
    tables = [
        file
        for file in derived
        if file.entities.get("desc") == "confounds" and file.extension == ".tsv" and file.run_key == key
    ]
    return fetched(tables[0].path) if tables else None


def _timing(key: RunKey, bold: Path, raw: list[Named]) -> dict[str, Any]:
    """RepetitionTime from the raw data's JSON files, overridden and completed by the one beside the series."""
    facts: dict[str, Any] = {}
    fitting = [file for file in raw if file.extension == ".json" and set(file.run_key) <= set(key)]
    for file in sorted(fitting, key=lambda file: len(file.run_key)):
        facts |= _times(file.path, ("RepetitionTime",))
    stem = bold.name.partition(".")[0]
    for beside in (bold.with_name(f"{stem}.dtseries.json"), bold.with_name(f"{stem}.json")):
        if beside.is_file():
            facts |= _times(beside, ("RepetitionTime", "StartTime"))
            facts["SliceTimingCorrected"] = read_facts(beside).get("SliceTimingCorrected") is True
    return facts


def _times(path: Path, names: tuple[str, ...]) -> dict[str, float]:
    """The times that a JSON file has of these, in seconds."""
    facts = read_facts(path)
    for name in names:
        value = facts.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_TIME_S:
            raise DataError(f"{path}: {name} is {value!r}, expected seconds between 0 and {MAX_TIME_S}.")
    return {name: float(facts[name]) for name in names if name in facts}

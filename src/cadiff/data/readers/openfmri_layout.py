"""The layout that OpenfMRI had before BIDS, in which for example Haxby et al. 2001 still circulates.

    sub001/BOLD/task001_run001/bold.nii.gz        or another name, see `bold_name`
                               bold_events.tsv    onset, duration (seconds), trial_type; as DataLad's conversion adds it

Not read: onsets in `model/model001/onsets/`, motion estimates in `bold_moest.txt`.
"""

from __future__ import annotations

from pathlib import Path

from cadiff.artifacts import what_is_at
from cadiff.data.files import need_folder
from cadiff.data.readers.bids_layout import RunFiles, SubjectFiles
from cadiff.data.readers.bids_names import fetched, pick
from cadiff.errors import DataError


def find_openfmri(
    source: Path, *, subject: str | int | None = None, task: str | None = None, bold_name: str = "bold"
) -> SubjectFiles:
    """The runs of a subject; `bold_name` is the series' name without `.nii.gz`.

    Raises:
        DataError: not that layout, a choice that must be made, or a file that a run lacks.
    """
    need_folder(source, "expected a folder with sub001/BOLD/task001_run001/.")
    subjects = {path.name: path for path in sorted(source.glob("sub[0-9]*")) if (path / "BOLD").is_dir()}
    if not subjects:
        raise DataError(
            f"{source} holds {what_is_at(source)}; expected sub001/BOLD/task001_run001/{bold_name}.nii.gz."
        )
    wanted = None if subject is None else f"sub{str(subject).removeprefix('sub')}"
    folder = pick(wanted, subjects, f"{source} holds several subjects", "subject")
    folders = {
        path: path.name.partition("_run") for path in sorted((folder / "BOLD").iterdir()) if path.is_dir()
    }
    found = {path: (name[0], int(name[2])) for path, name in folders.items() if name[2].isdecimal()}
    if not found:
        raise DataError(
            f"{folder / 'BOLD'} holds {what_is_at(folder / 'BOLD')}; expected task001_run001 and so on."
        )
    tasks = {name: name for name, _ in found.values()}
    chosen = pick(
        None if task is None else str(task), tasks, f"{folder / 'BOLD'} holds several tasks", "task"
    )
    runs = [
        RunFiles(
            name=path.name,
            task=name,
            ses="",
            session=1,
            run=number,
            bold=(fetched(path / f"{bold_name}.nii.gz", "bold_name= names the series, without .nii.gz."),),
            events=fetched(path / "bold_events.tsv", "expected a table: onset, duration, trial_type."),
            mask=None,
            confounds=None,
            sidecar={},
        )
        for path, (name, number) in found.items()
        if name == chosen
    ]
    return SubjectFiles(folder.name, bold_name, tuple(sorted(runs, key=lambda run: run.run)), source, None)

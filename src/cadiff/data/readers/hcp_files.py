"""Names of HCP files: which runs of which subjects lie below a folder.

    <id>/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_<cleaning>.dtseries.nii   packages, cloud
    <id>_rfMRI_REST1_LR_Atlas_MSMAll_<cleaning>.dtseries.nii                                      gathered in one folder
    npz/<id>/HCP_visual_voxel.npz                                                                 MinD-Vis

<cleaning> is hp2000_clean in the S1200 release and hp2000_clean_rclean_tclean in the renewed one of 2025 (YA2025): the
same scans, cleaned once more, so a subject's runs must all be of one kind. Left out unless asked for by name: runs that
are the others concatenated (rfMRI_REST, rfMRI_REST_7T), 7 T runs and tasks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cadiff.artifacts import what_is_at
from cadiff.errors import DataError

RUNS = ("REST1_LR", "REST1_RL", "REST2_LR", "REST2_RL")  # the four 3 T runs at rest, 1200 frames each
CLEANING = {"hp2000_clean": "S1200", "hp2000_clean_rclean_tclean": "YA2025"}
NPZ = "HCP_visual_voxel.npz"
SERIES = re.compile(
    r"(?:(?P<subject>[A-Za-z0-9.-]+(?:_[A-Za-z0-9.-]+)*?)_)?(?P<run>[rt]fMRI_[A-Za-z0-9_]+?)_Atlas(?:_1\.6mm)?_MSMAll_"
    r"(?P<cleaning>[A-Za-z0-9_]+)\.dtseries\.nii"
)
NOT_A_SUBJECT = re.compile(r"npz|Results|MNINonLinear|HCP.*|([rt]fMRI_|REST)\w*", re.IGNORECASE)
SKIPPED_FOLDERS = {"unprocessed", "T1w"}  # large, without grayordinates of MSMAll runs


class RunFile(NamedTuple):
    """One run of one subject."""

    path: Path
    subject: str
    run: str | None
    """"REST1_LR"; None where the name does not say (npz)."""
    cleaning: str | None


class Subject(NamedTuple):
    """A subject and the files that are read of it."""

    name: str
    """As HCP calls it, "100307"."""
    files: tuple[RunFile, ...]


def one_file(path: Path) -> RunFile:
    """What the name of a file that the user chose says; any .dtseries.nii and .npz will do."""
    match = SERIES.fullmatch(path.name)
    run = cleaning = None
    if match:
        run, cleaning = match["run"].removeprefix("rfMRI_"), match["cleaning"]
    elif not path.name.endswith((".dtseries.nii", ".npz")):
        raise DataError(
            f"{path} is neither a .dtseries.nii file nor {NPZ}: give one of these, or the folder of subjects."
        )
    return RunFile(path, (match and match["subject"]) or _subject_by_folder(path), run, cleaning)


def find_files(source: Path) -> list[RunFile]:
    """Every run and npz file below a folder, in order of subject and run.

    Raises:
        DataError: none there.
    """
    found, others = [], []
    for path in _walk(source):
        if path.name == NPZ or SERIES.fullmatch(path.name):
            found.append(one_file(path))
        elif path.name.endswith(".dtseries.nii"):
            others.append(path.name)
    if not found:
        more = f" (it has {others[0]}, which is not cleaned or not aligned by MSMAll)" if others else ""
        raise DataError(
            f"{source} holds no *_Atlas_MSMAll_*_clean*.dtseries.nii and no {NPZ}{more or f' (found: {what_is_at(source)})'}: "
            "give the folder of the subjects, or one such file."
        )
    return sorted(found, key=lambda file: (file.subject, file.run or "", file.path))


def by_subject(files: Iterable[RunFile]) -> dict[str, list[RunFile]]:
    """Subject name -> its files."""
    groups: dict[str, list[RunFile]] = {}
    for file in files:
        groups.setdefault(file.subject, []).append(file)
    return groups


def choose_runs(
    name: str, files: Sequence[RunFile], runs: Sequence[str] | None, cleaning: str | None
) -> Subject:
    """The runs of a subject that are read, each once, in the order REST1_LR, REST1_RL, REST2_LR, REST2_RL or of `runs`.

    Where a subject has both, its series are read and not the npz that was made of them.

    Raises:
        DataError: a run missing or there twice, or both releases and no choice between them.
    """
    series = [file for file in files if file.path.name != NPZ]
    if not series:
        return Subject(name, (_only(name, list(files), NPZ),))
    there = ", ".join(f"{file.run} {file.cleaning}" for file in series[:8])
    kinds = [cleaning] if cleaning else [kind for kind in CLEANING if any(f.cleaning == kind for f in series)]
    if len(kinds) > 1:
        raise DataError(
            f"Subject {name} has runs of two releases ({there}): they are the same scans, choose one with "
            f"{' or '.join(f'cleaning={kind} ({CLEANING[kind]})' for kind in kinds)}."
        )
    mine = [file for file in series if kinds and file.cleaning == kinds[0]]
    chosen = []
    for run in runs or RUNS:
        same = [file for file in mine if file.run == run.removeprefix("rfMRI_")]
        if same:
            chosen.append(_only(name, same, run))
        elif runs:
            raise DataError(f"Subject {name} lacks the run {run} (found: {there}).")
    if not chosen:
        raise DataError(
            f"Subject {name} has none of the runs {', '.join(RUNS)} as {cleaning or ' or '.join(CLEANING)} (found: {there}): "
            "name others with runs=[...] and cleaning=..."
        )
    return Subject(name, tuple(chosen))


def _only(name: str, files: list[RunFile], what: str) -> RunFile:
    if len(files) > 1:
        raise DataError(
            f"Subject {name} has {what} {len(files)} times ({files[0].path} and {files[1].path}): keep one, or give "
            "the folder of one."
        )
    return files[0]


def _subject_by_folder(path: Path) -> str:
    """The folder above MNINonLinear, else the nearest one that is not called after a run or a package."""
    parts = path.absolute().parent.parts
    if "MNINonLinear" in parts[1:]:
        return parts[parts.index("MNINonLinear") - 1].removeprefix("sub-")
    names = [part for part in reversed(parts[1:]) if not NOT_A_SUBJECT.fullmatch(part)]
    return (names[0] if names else "01").removeprefix("sub-")


def _walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, links followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and name[0] != ".")
        yield from (Path(place) / name for name in sorted(files) if name[0] != ".")

"""Plain arrays: what almost every lab can export, in one folder.

    betas.npy | .npz | .mat | .csv      (trials, voxels); .npz and .mat hold one array or one named "betas"; .csv is numbers
                                        only, with or without a header line; see `cadiff.data.readers.arrays_betas`
    trials.tsv                          one row a row of betas: stimulus_id, split (train | test | unlabelled), and
                                        optionally session, run, repeat and any further columns
    stimuli/                            a picture a stimulus, named after its stimulus_id (photo-1.png, .jpg, ...)
    stimuli.tsv                         optional: stimulus_id and any of file, label, imagenet_index, licence
    voxels.tsv                          optional: one row a voxel, any of rois, noise_ceiling, x, y, z

Unlabelled trials need no stimulus: write n/a. Without a stimuli/ folder every stimulus needs a label: such a dataset can
be decoded, not reconstructed. Betas are read piece by piece and pictures one at a time.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from cadiff.data.dataset import SPLITS, read_table
from cadiff.data.files import PICTURES, inside, need_file, need_folder
from cadiff.data.readers.arrays_betas import open_betas
from cadiff.data.writer import dataset_writer
from cadiff.errors import DataError

LONGEST_ID = 200  # bytes; a stimulus id names a file
MOST = 10**6  # of sessions, runs, repeats, and of millimetres
RESERVED = ("picture", "self")  # columns of stimuli.tsv that would be taken for something else


def read_arrays(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    subject: str = "sub-01",
    units: str = "not stated",
    licence: str = "not stated",
    citation: str = "not stated",
    bad_voxels: Literal["refuse", "drop"] = "refuse",
) -> Path:
    """Makes a dataset of a folder of plain arrays; the module's docstring lists its files.

    Args:
        source: the folder.
        out: the dataset folder to make.
        name: name of the dataset; the folder's name when absent.
        subject: name of the subject.
        units: of the betas, for example "percent signal change" or "z".
        licence: of betas and pictures; a column licence in stimuli.tsv holds for single pictures.
        citation: what to cite.
        bad_voxels: "refuse" voxels with NaN or infinite values in any trial, or "drop" them; the others keep their number
            in `source_voxel`.

    Raises:
        DataError: a file missing, unreadable or in contradiction to another; the message names it.
    """
    if bad_voxels not in ("refuse", "drop"):
        raise DataError(f"bad_voxels={bad_voxels!r}: give refuse or drop.")
    need_folder(source, "the arrays reader wants one with betas.npy, trials.tsv and stimuli/.")
    betas = open_betas(source)
    count, num_voxels = betas.shape
    trials = _load_trials(source / "trials.tsv", betas.path, count, num_voxels)
    shown = list(dict.fromkeys(trials.loc[trials["split"] != "unlabelled", "stimulus_id"]))
    stimuli = _load_stimuli(source / "stimuli.tsv", shown)
    pictures = _find_pictures(source, stimuli)
    voxels = _load_voxels(source / "voxels.tsv", num_voxels)
    about = {
        "source": source.resolve().name,
        "units": str(units),
        "licence": str(licence),
        "citation": str(citation),
    }
    with dataset_writer(
        out,
        name=str(name or source.resolve().name),
        subject=str(subject),
        voxels=voxels,
        description=about,
        bad_voxels=bad_voxels,
    ) as writer:
        # with the id, since older pandas makes no record at all of a table without columns
        rows = stimuli.drop(columns="file", errors="ignore").to_dict("records")
        ids = stimuli["stimulus_id"].astype(str)
        for stimulus_id, row in tqdm(zip(ids, rows, strict=True), "stimuli", len(ids), disable=None):
            about = {str(k): v for k, v in row.items() if k != "stimulus_id"}
            writer.add_stimulus(stimulus_id, pictures.get(stimulus_id), **about)
        for block in tqdm(betas.blocks(), "betas", disable=None):
            some = slice(writer.num_trials, writer.num_trials + len(block))
            writer.add_trials(block, trials.iloc[some])
    return out


def _load_trials(path: Path, betas: Path, count: int, num_voxels: int) -> pd.DataFrame:
    trials = _read_table(path, required=("stimulus_id", "split"))
    if len(trials) != count:
        turned = ": is it (voxels, trials)? Transpose it" if len(trials) == num_voxels else ""
        raise DataError(
            f"{path} has {len(trials)} rows, but {betas.name} has {count} trials{turned}; expected one row a trial, in the "
            "same order."
        )
    if len(unknown := trials.loc[~trials["split"].isin(SPLITS), "split"]):
        raise DataError(f"{path}: split {unknown.iloc[0]!r} is not one of {', '.join(SPLITS)}.")
    nameless = trials["stimulus_id"].isna() & (trials["split"] != "unlabelled")
    if nameless.any():
        raise DataError(
            f"{path}: row {int(np.flatnonzero(nameless)[0]) + 1} has no stimulus_id, its split is not unlabelled."
        )
    for column in ("session", "run"):
        if column not in trials:
            trials[column] = 1
    if "repeat" not in trials:  # counted in file order, per stimulus and split
        trials["repeat"] = trials.groupby(["split", "stimulus_id"], dropna=False).cumcount() + 1
    for column in ("session", "run", "repeat"):
        _check_numbers(trials, column, 1 if column == "repeat" else 0, MOST, path, whole=True, gaps=False)
        trials[column] = pd.to_numeric(trials[column]).astype(int)
    return trials.drop(columns="trial", errors="ignore")


def _load_stimuli(path: Path, shown: list[str]) -> pd.DataFrame:
    """One row for each stimulus that is shown, in the order of the table if there is one."""
    if not path.is_file():
        return pd.DataFrame({"stimulus_id": pd.Series(shown, dtype=str)})
    stimuli = _read_table(path, required=("stimulus_id",))
    if reserved := [column for column in RESERVED if column in stimuli]:
        raise DataError(
            f"{path}: a column cannot be called {reserved[0]!r}; the picture's file goes in 'file'."
        )
    twice = stimuli["stimulus_id"].duplicated() | stimuli["stimulus_id"].isna()
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise DataError(
            f"{path}: row {row + 1} has no stimulus_id, or one that came before ({stimuli['stimulus_id'][row]!r})."
        )
    listed = set(stimuli["stimulus_id"])
    if missing := [s for s in shown if s not in listed]:
        raise DataError(f"{path} does not list {missing[0]!r}, which trials.tsv shows.")
    _check_numbers(stimuli, "imagenet_index", 0, 999, path, whole=True)
    if "imagenet_index" in stimuli:
        stimuli["imagenet_index"] = pd.to_numeric(stimuli["imagenet_index"]).astype("Int64")
    return stimuli[stimuli["stimulus_id"].isin(shown)].drop(columns="sha256", errors="ignore")


def _load_voxels(path: Path, count: int) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame({"rois": [""] * count})
    voxels = _read_table(path, required=()).drop(columns="voxel", errors="ignore")
    if len(voxels) != count:
        raise DataError(
            f"{path} has {len(voxels)} rows, but betas has {count} voxels; expected one row a voxel, in the same order."
        )
    _check_numbers(voxels, "noise_ceiling", 0, 1, path)
    for column in ("x", "y", "z"):
        _check_numbers(voxels, column, -MOST, MOST, path)
    return voxels.assign(rois=voxels["rois"].fillna("") if "rois" in voxels else "")


def _find_pictures(source: Path, stimuli: pd.DataFrame) -> dict[str, Path]:
    """The picture of every stimulus; none at all when there is no stimuli/ folder and every stimulus has a label."""
    folder = source / "stimuli"
    files = stimuli["file"] if "file" in stimuli else pd.Series(index=stimuli.index, dtype=object)
    if not folder.is_dir():
        labelled = "label" in stimuli and stimuli["label"].notna().all()
        if len(stimuli) and (not labelled or files.notna().any()):
            raise DataError(
                f"There is no folder {folder}: it holds one picture a stimulus, named after its stimulus_id. A dataset "
                "without pictures needs stimuli.tsv with a label for each stimulus and no column 'file'."
            )
        return {}
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURES:
            by_stem.setdefault(path.stem, []).append(path)
    return {
        stimulus_id: _picture_of(folder, stimulus_id, file, by_stem)
        for stimulus_id, file in zip(stimuli["stimulus_id"], files, strict=True)
    }


def _picture_of(folder: Path, stimulus_id: str, file: object, by_stem: dict[str, list[Path]]) -> Path:
    found = [inside(folder, file)] if isinstance(file, str) else by_stem.get(stimulus_id, [])
    if len(found) > 1:
        raise DataError(
            f"{folder} has {len(found)} pictures of stimulus {stimulus_id!r} ({', '.join(p.name for p in found)}): "
            "keep one, or name it in the column 'file' of stimuli.tsv."
        )
    if not found or not _is_file(found[0]):
        stem = Path(stimulus_id).stem
        if not found and stimulus_id in [path.name for path in by_stem.get(stem, [])]:
            raise DataError(
                f"Stimulus id {stimulus_id!r} is the name of a file in {folder}; ids are file names without ending: write "
                f"{stem!r} in trials.tsv, and in stimuli.tsv where there is one."
            )
        expected = repr(file) if found else f"{stimulus_id!r} and one of {', '.join(PICTURES)}"
        raise DataError(
            f"{folder} has no picture of stimulus {stimulus_id!r} (expected {expected}); "
            "give every stimulus a picture, or none of them and no folder stimuli/."
        )
    return found[0]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _check_numbers(
    table: pd.DataFrame,
    column: str,
    low: int,
    high: int,
    path: Path,
    *,
    whole: bool = False,
    gaps: bool = True,
) -> None:
    """Refuses what is neither a number in the range nor, where allowed, a gap; it would be lost without a word later."""
    if column not in table:
        return
    given = table[column].dropna() if gaps else table[column]
    numbers = pd.to_numeric(given, errors="coerce")
    fits = numbers.between(low, high)
    if whole:
        fits &= numbers.mod(1) == 0
    wrong = given[~fits]
    if len(wrong):
        value = wrong.iloc[0]
        shown = "n/a" if pd.isna(value) else repr(value) if isinstance(value, str) else value
        raise DataError(
            f"{path}: column {column!r} must hold {'whole ' if whole else ''}numbers from {low} to {high}"
            f"{', or n/a' if gaps else ''}; row {wrong.index[0] + 1} holds {shown}."
        )


def _read_table(path: Path, *, required: tuple[str, ...]) -> pd.DataFrame:
    need_file(path, "the arrays reader needs it.")
    text = dict.fromkeys(("stimulus_id", "split", "label", "licence", "rois", "file"), str)
    table = read_table(path, dtype=text, keep_default_na=False, encoding="utf-8-sig")  # "NA" may be a name
    table = _without_nameless(path, table.replace("", np.nan))
    if missing := [column for column in required if column not in table]:
        tabs = "; are there tabs between the columns?" if len(table.columns) == 1 else ""
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))}{tabs})."
        )
    if "stimulus_id" in table:
        lengths = table["stimulus_id"].dropna().map(lambda name: len(str(name).encode()))
        if len(lengths) and lengths.max() > LONGEST_ID:
            row = int(str(lengths.idxmax())) + 1
            raise DataError(
                f"{path}: the stimulus_id in row {row} has {lengths.max()} bytes; it names a file, "
                f"so use at most {LONGEST_ID}."
            )
    return table


def _without_nameless(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table without the row names that pandas and R put in front, and without empty columns at its end."""
    nameless = []
    for place, column in enumerate(table.columns):
        if re.fullmatch(r"Unnamed: [\d.]+", str(column)):
            nameless.append(column)
            given = table[column].dropna()
            if place and len(given):
                raise DataError(
                    f"{path}: column {place + 1} has no name, and its first value is {given.iloc[0]!r}: name it, or leave it out."
                )
    return table.drop(columns=nameless)

"""Opening a dataset folder whatever its state: what can be read is read, what cannot becomes a fault in words.

`BrainDataset.open` refuses a folder at the first fault; the doctor goes on with the rest of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib import format as npy_format

from cadiff.artifacts import read_json, what_is_at
from cadiff.data.dataset import STIMULUS_COLUMNS, TRIAL_COLUMNS, read_table
from cadiff.errors import ArtifactError, DataError

FILES = ("dataset_description.json", "betas.npy", "trials.tsv", "voxels.tsv", "stimuli.tsv")
VOXEL_COLUMNS = ("voxel", "rois", "noise_ceiling")


@dataclass
class Folder:
    """What a dataset folder holds, as far as it can be read. Tables that cannot be read are empty."""

    path: Path
    description: dict[str, Any]
    betas: np.ndarray | None
    """(trials, voxels), memory-mapped, or None. Rows that are not complete are cut off."""
    trials: pd.DataFrame
    voxels: pd.DataFrame
    stimuli: pd.DataFrame
    """Indexed by stimulus_id; the first row of an id that comes twice."""
    faults: list[str] = field(default_factory=list)
    """One sentence for every thing that cannot be read or contradicts something else."""

    @property
    def num_trials(self) -> int:
        """Trials that have both betas and a row in trials.tsv: the others cannot be examined."""
        return 0 if self.betas is None else min(len(self.betas), len(self.trials))

    @property
    def name(self) -> str:
        """The dataset's name, as described."""
        return str(self.description.get("name") or self.path.name)

    def rows(self, *splits: str) -> np.ndarray:
        """Row numbers (n,) of examined trials in these splits, in file order."""
        return np.flatnonzero(self.trials["split"].iloc[: self.num_trials].isin(splits).to_numpy())

    def shown(self, *splits: str) -> list[str]:
        """Distinct stimuli of these splits, in order of first appearance, over all rows of trials.tsv."""
        ids = self.trials.loc[self.trials["split"].isin(splits), "stimulus_id"].dropna()
        return list(dict.fromkeys(ids))

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """`rows` by session and run, in file order."""
        return [rows[part] for part in blocks_of(self.trials.iloc[rows], "session", "run").values()]


def blocks_of(table: pd.DataFrame, *columns: str) -> dict[Any, np.ndarray]:
    """Positions (n,) of the rows that agree in some columns, by their values, in order of first appearance."""
    grouped = table.groupby(columns[0] if len(columns) == 1 else list(columns), sort=False)
    return {key: np.asarray(rows) for key, rows in grouped.indices.items()}


def open_folder(path: Path) -> Folder:
    """Reads what there is.

    Raises:
        DataError: no folder, or one that holds none of a dataset's files.
    """
    path = Path(path)
    if not any((path / name).is_file() for name in FILES):
        raise DataError(
            f"{path} is not a cadiff dataset (found: {what_is_at(path)}; expected {', '.join(FILES)}): "
            "make one with `cadiff simulate` or `cadiff data import`."
        )
    faults: list[str] = []
    description = _description(path, faults)
    trials = _table(path / "trials.tsv", TRIAL_COLUMNS, faults)
    voxels = _table(path / "voxels.tsv", VOXEL_COLUMNS, faults)
    stimuli = _table(path / "stimuli.tsv", STIMULUS_COLUMNS, faults)
    for column in ("trial", "session", "run", "repeat"):
        trials[column] = _whole_numbers(trials[column], column, faults)
    voxels["rois"] = voxels["rois"].astype(object).where(voxels["rois"].notna(), "").astype(str)
    voxels["noise_ceiling"] = pd.to_numeric(voxels["noise_ceiling"], errors="coerce")
    if twice := list(stimuli.loc[stimuli["stimulus_id"].duplicated(), "stimulus_id"]):
        faults.append(f"stimuli.tsv lists {len(twice)} stimuli twice (first: {twice[0]!r}).")
    stimuli = stimuli.drop_duplicates("stimulus_id").set_index("stimulus_id")
    folder = Folder(path, description, _betas(path / "betas.npy", faults), trials, voxels, stimuli, faults)
    _compare(folder)
    return folder


def _description(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        description = read_json(path / "dataset_description.json")
    except (ArtifactError, OSError) as error:
        faults.append(str(error))
        return {}
    if not isinstance(description, dict):
        faults.append(f"dataset_description.json holds a {type(description).__name__}, not named facts.")
        return {}
    return description


def _table(path: Path, columns: tuple[str, ...], faults: list[str]) -> pd.DataFrame:
    empty = pd.DataFrame({column: pd.Series(dtype=object) for column in columns})
    if not path.is_file():
        faults.append(f"There is no {path.name}.")
        return empty
    try:
        text = {"stimulus_id": str, "label": str, "rois": str, "file": str, "sha256": str}
        table = read_table(path, dtype=text, keep_default_na=False)
    except (DataError, OSError) as error:
        faults.append(str(error))
        return empty
    if missing := [column for column in columns if column not in table]:
        faults.append(f"{path.name} lacks the column {', '.join(missing)}.")
        for column in missing:
            table[column] = np.nan
    return table


def _whole_numbers(column: pd.Series, name: str, faults: list[str]) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").replace([np.inf, -np.inf], np.nan)
    if bad := int((numbers.isna() | (numbers % 1 != 0)).sum()):
        faults.append(f"trials.tsv: {bad} values of the column {name!r} are not whole numbers.")
    return numbers.fillna(0).astype(int)


def _betas(path: Path, faults: list[str]) -> np.ndarray | None:
    if not path.is_file():
        faults.append("There is no betas.npy.")
        return None
    try:
        with path.open("rb") as file:
            version = npy_format.read_magic(file)
            read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start = file.tell()
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError) as error:
        faults.append(f"betas.npy cannot be read as a numpy array ({' '.join(str(error).split())}).")
        return None
    if len(shape) != 2 or dtype.kind not in "fiu" or min(shape) < 1:
        faults.append(f"betas.npy is {dtype} {shape}, expected float32 (trials, voxels).")
        return None
    if dtype != np.float32:
        faults.append(f"betas.npy is {dtype}, expected float32.")
    there, wanted = path.stat().st_size - start, math.prod(shape) * dtype.itemsize
    if there < wanted:
        complete = there // (shape[1] * dtype.itemsize)
        faults.append(
            f"betas.npy is cut off: its header says {shape[0]:,} trials x {shape[1]:,} voxels, {wanted:,} bytes, and "
            f"{there:,} are there ({complete:,} complete trials)."
        )
        if fortran or not complete:
            return None
        shape = (int(complete), shape[1])
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def _compare(folder: Folder) -> None:
    """Adds what the files say against each other."""
    betas, faults = folder.betas, folder.faults
    if betas is not None and len(betas) != len(folder.trials):
        faults.append(f"betas.npy holds {len(betas):,} trials, trials.tsv lists {len(folder.trials):,}.")
    if betas is not None and betas.shape[1] != len(folder.voxels):
        faults.append(f"betas.npy holds {betas.shape[1]:,} voxels, voxels.tsv lists {len(folder.voxels):,}.")
        blank = {"rois": "", "noise_ceiling": np.nan}
        folder.voxels = pd.DataFrame(blank, index=pd.RangeIndex(betas.shape[1]))
    splits = folder.trials["split"].dropna().unique()
    if strange := sorted(set(map(str, splits)) - {"train", "test", "unlabelled"}):
        faults.append(f"trials.tsv has the split {strange[0]!r}; splits are train, test, unlabelled.")
    if unlisted := [name for name in folder.shown("train", "test") if name not in folder.stimuli.index]:
        faults.append(
            f"trials.tsv shows {len(unlisted)} stimuli that stimuli.tsv does not list (first: {unlisted[0]!r})."
        )
    labelled = folder.trials["split"].isin(["train", "test"])
    if nameless := int(folder.trials.loc[labelled, "stimulus_id"].isna().sum()):
        faults.append(f"{nameless} training or test trials name no stimulus.")

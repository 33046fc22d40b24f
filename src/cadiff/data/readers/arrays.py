"""Plain arrays: what almost every lab can export.

    betas.npy | betas.npz | betas.csv   (trials, voxels); .npz holds one array or one named "betas"; .csv is numbers only,
                                        with or without a header line
    trials.tsv                          one row a row of betas: stimulus_id, split (train | test | unlabelled), and
                                        optionally session, run, repeat
    stimuli/                            a picture a stimulus, named after its stimulus_id (photo-1.png, .jpg, ...)
    stimuli.tsv                         optional: stimulus_id and any of file, label, imagenet_index, licence
    voxels.tsv                          optional: one row a voxel, any of rois, noise_ceiling, x, y, z

Unlabelled trials need no stimulus: write n/a.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from cadiff.data.dataset import SPLITS, read_table, write_dataset
from cadiff.errors import DataError

BETAS = ("betas.npy", "betas.npz", "betas.csv")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def read_arrays(
    source: Path, out: Path, *, name: str | None = None, subject: str = "sub-01", units: str = "not stated"
) -> Path:
    """Makes a dataset of a folder of plain arrays; the module's docstring lists its files.

    Args:
        source: the folder.
        out: the dataset folder to make.
        name: name of the dataset; the folder's name when absent.
        subject: name of the subject.
        units: of the betas, for example "percent signal change" or "z".

    Raises:
        DataError: a file missing, unreadable or in contradiction to another; the message names it.
    """
    if not source.is_dir():
        raise DataError(
            f"{source} is not a folder; the arrays reader wants one with betas.npy, trials.tsv and stimuli/."
        )
    betas = _load_betas(source)
    trials = _load_trials(source / "trials.tsv", len(betas))
    shown = list(dict.fromkeys(trials.loc[trials["split"] != "unlabelled", "stimulus_id"]))
    if not shown:
        raise DataError(
            f"{source / 'trials.tsv'} has no training or test trials: set split to train or test."
        )
    stimuli = _load_stimuli(source / "stimuli.tsv", shown)
    return write_dataset(
        out,
        name=name or source.resolve().name,
        subject=subject,
        betas=betas,
        trials=trials,
        voxels=_load_voxels(source / "voxels.tsv", betas.shape[1]),
        stimuli=stimuli.drop(columns="file", errors="ignore"),
        images=_load_pictures(source / "stimuli", stimuli),
        description={"source": source.resolve().name, "units": units},
    )


def _load_betas(folder: Path) -> np.ndarray:
    there = [folder / file for file in BETAS if (folder / file).is_file()]
    if len(there) != 1:
        found = ", ".join(p.name for p in there) or "none of them"
        raise DataError(f"{folder}: expected exactly one of {', '.join(BETAS)}, found {found}.")
    path = there[0]
    try:
        betas = _load_csv(path) if path.suffix == ".csv" else np.load(path, allow_pickle=False)
        if isinstance(betas, np.lib.npyio.NpzFile):
            with betas:
                betas = betas[_array_name(path, betas.files)]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        if "pickle" in reason:  # numpy's advice, to load it unsafely, is not ours
            reason = "it is not a numpy file, or one of Python objects"
        raise DataError(f"{path} cannot be read as an array of numbers: {reason}.") from None
    if betas.ndim != 2 or betas.dtype.kind not in "fiu" or not betas.size:
        raise DataError(f"{path} holds {betas.dtype} {betas.shape}, expected numbers (trials, voxels).")
    return betas


def _load_csv(path: Path) -> np.ndarray:
    with path.open() as file:
        first = file.readline()
    separator = "\t" if "\t" in first else ";" if ";" in first else ","
    try:
        [float(cell) for cell in first.split(separator)]
        header = None
    except ValueError:  # names of voxels, not numbers
        header = 0
    return pd.read_csv(path, sep=separator, header=header).to_numpy(dtype=np.float64)


def _array_name(path: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if "betas" in names:
        return "betas"
    raise DataError(f"{path} holds {len(names)} arrays ({', '.join(names)}): name the responses 'betas'.")


def _load_trials(path: Path, count: int) -> pd.DataFrame:
    trials = _read_table(path, required=("stimulus_id", "split"))
    if len(trials) != count:
        raise DataError(
            f"{path} has {len(trials)} rows, but betas has {count} trials: one row a trial, same order."
        )
    trials["split"] = trials["split"].astype(str)
    if unknown := sorted(set(trials["split"]) - set(SPLITS)):
        raise DataError(f"{path}: split {unknown[0]!r} is not one of {', '.join(SPLITS)}.")
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
        numbers = pd.to_numeric(trials[column], errors="coerce")
        if numbers.isna().any():
            raise DataError(
                f"{path}: column {column!r} must hold whole numbers, found {trials[column][numbers.isna()].iloc[0]!r}."
            )
        trials[column] = numbers.astype(int)
    return trials.drop(columns="trial", errors="ignore")


def _load_stimuli(path: Path, shown: list[str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame({"stimulus_id": shown})
    stimuli = _read_table(path, required=("stimulus_id",)).drop_duplicates("stimulus_id")
    if missing := [s for s in shown if s not in set(stimuli["stimulus_id"])]:
        raise DataError(f"{path} does not list {missing[0]!r}, which trials.tsv shows.")
    _check_numbers(stimuli, "imagenet_index", 0, 999, path)
    return stimuli[stimuli["stimulus_id"].isin(shown)].drop(columns="sha256", errors="ignore")


def _load_voxels(path: Path, count: int) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame({"rois": [""] * count})
    voxels = _read_table(path, required=()).drop(columns="voxel", errors="ignore")
    if len(voxels) != count:
        raise DataError(
            f"{path} has {len(voxels)} rows, but betas has {count} voxels: one row a voxel, same order."
        )
    _check_numbers(voxels, "noise_ceiling", 0, 1, path)
    return voxels if "rois" in voxels else voxels.assign(rois="")


def _load_pictures(folder: Path, stimuli: pd.DataFrame) -> dict[str, np.ndarray]:
    """stimulus_id -> uint8 (H, W, 3)."""
    if not folder.is_dir():
        raise DataError(
            f"There is no folder {folder}: it holds one picture a stimulus, named after its stimulus_id."
        )
    by_stem = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES}
    images: dict[str, np.ndarray] = {}
    for row in stimuli.to_dict("records"):
        stimulus_id, file = str(row["stimulus_id"]), row.get("file")
        path = folder / file if isinstance(file, str) else by_stem.get(stimulus_id)
        if path is None or not path.is_file():
            raise DataError(
                f"{folder} has no picture of stimulus {stimulus_id!r} (expected {file or stimulus_id + '.png'})."
            )
        try:
            with Image.open(path) as picture:
                images[stimulus_id] = np.asarray(picture.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"The picture {path} cannot be read: {error}.") from None
    return images


def _check_numbers(table: pd.DataFrame, column: str, low: int, high: int, path: Path) -> None:
    """Refuses what is neither a number in the range nor a gap; it would be lost without a word later."""
    if column not in table:
        return
    given = table[column].dropna()
    wrong = given[~pd.to_numeric(given, errors="coerce").between(low, high)]
    if len(wrong):
        raise DataError(
            f"{path}: column {column!r} must hold numbers from {low} to {high}, or n/a; row {wrong.index[0] + 1} "
            f"holds {wrong.iloc[0]!r}."
        )


def _read_table(path: Path, *, required: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"There is no {path}; the arrays reader needs it.")
    text = {"stimulus_id": str, "label": str, "rois": str, "file": str}
    table = read_table(path, dtype=text)
    if missing := [column for column in required if column not in table]:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))}; tabs between?)."
        )
    return table

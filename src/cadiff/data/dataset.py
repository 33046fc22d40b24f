"""The cadiff dataset: a folder of betas, trials, voxels and stimuli that describes itself.

dataset_description.json    name, subject, what was simulated or measured, sha256 of the other files
betas.npy                   float32 (trials, voxels), memory-mapped
trials.tsv                  trial, stimulus_id, split (train | test | unlabelled), session, run, repeat
voxels.tsv                  voxel, rois (comma list), noise_ceiling (fraction of single-trial variance, n/a unknown)
stimuli.tsv + stimuli/      stimulus_id, file, sha256, label (WordNet id or name), imagenet_index, licence
                            (file and sha256 n/a: only the label is known)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from cadiff.artifacts import read_json, sha256_file, what_is_at
from cadiff.errors import ArtifactError, DataError
from cadiff.framing import framed

FORMAT = 1
SPLITS = ("train", "test", "unlabelled")
TRIAL_COLUMNS = ("trial", "stimulus_id", "split", "session", "run", "repeat")
CHUNK_TRIALS = 1024
STIMULUS_COLUMNS = ("stimulus_id", "file", "sha256", "label", "imagenet_index", "licence")


class BrainDataset:
    """One subject's trials, opened from a dataset folder. Betas stay on disk until they are indexed."""

    def __init__(
        self,
        folder: Path,
        description: dict[str, Any],
        trials: pd.DataFrame,
        voxels: pd.DataFrame,
        stimuli: pd.DataFrame,
    ) -> None:
        self.folder, self.description = folder, description
        self.trials, self.voxels, self.stimuli = trials, voxels, stimuli

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False) -> BrainDataset:
        """Reads the tables and checks that they fit together.

        Args:
            folder: a folder made by `cadiff simulate` or `cadiff data import`.
            verify: also compare every file with its recorded SHA-256.

        Raises:
            DataError: not a dataset folder, a file missing or damaged, or tables that contradict each other.
        """
        folder = Path(folder)
        if not (folder / "dataset_description.json").is_file():
            raise DataError(
                f"{folder} is not a cadiff dataset (found: {what_is_at(folder)}; expected dataset_description.json): "
                "make one with `cadiff simulate` or `cadiff data import`."
            )
        try:
            description = read_json(folder / "dataset_description.json")
            if not isinstance(description, dict):
                raise DataError(
                    f"{folder / 'dataset_description.json'} holds a {type(description).__name__}, expected name, "
                    "subject, sha256 and more: import the data again."
                )
            if verify:
                _compare(folder, description.get("sha256", {}))
            trials = _table(folder / "trials.tsv", TRIAL_COLUMNS)
            voxels = _table(folder / "voxels.tsv", ("voxel", "rois", "noise_ceiling"))
            stimuli = _table(folder / "stimuli.tsv", STIMULUS_COLUMNS).set_index("stimulus_id")
            if verify:
                pictures = stimuli.dropna(subset="file")
                _compare(folder / "stimuli", dict(zip(pictures["file"], pictures["sha256"], strict=True)))
        except ArtifactError as error:
            raise DataError(str(error)) from None
        for column in ("trial", "session", "run", "repeat"):
            try:
                trials[column] = trials[column].astype(int)
            except ValueError as error:
                raise DataError(
                    f"{folder / 'trials.tsv'}: column {column!r} must hold whole numbers ({error}): import the data again."
                ) from None
        voxels["noise_ceiling"] = pd.to_numeric(voxels["noise_ceiling"], errors="coerce")
        voxels["rois"] = voxels["rois"].fillna("")
        stimuli["imagenet_index"] = pd.to_numeric(stimuli["imagenet_index"], errors="coerce").astype("Int64")
        dataset = cls(folder, description, trials, voxels, stimuli)
        dataset._check()
        return dataset

    @cached_property
    def betas(self) -> np.ndarray:
        """Responses, float32 (trials, voxels), memory-mapped read-only."""
        try:
            return np.load(self.folder / "betas.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{self.folder / 'betas.npy'} cannot be read ({error}): import the data again."
            ) from None

    def rows(self, split: str) -> np.ndarray:
        """Row numbers (n,) of the trials in a split, in file order."""
        return np.flatnonzero((self.trials["split"] == split).to_numpy())

    def stimulus_ids(self, split: str) -> list[str]:
        """Distinct stimuli of a split, in order of first appearance."""
        return list(dict.fromkeys(self.trials["stimulus_id"].to_numpy()[self.rows(split)]))

    def image(self, stimulus_id: str) -> np.ndarray:
        """The picture, uint8 (H, W, 3)."""
        if stimulus_id not in self.stimuli.index:
            raise DataError(f"{self.folder}: stimuli.tsv has no stimulus {stimulus_id!r}.")
        file = self.stimuli.at[stimulus_id, "file"]
        if not isinstance(file, str):
            raise no_picture(self.folder, self.stimuli["file"], stimulus_id)
        path = self.folder / "stimuli" / file
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise DataError(
                f"The picture of stimulus {stimulus_id!r}, {path}, cannot be read: {error}."
            ) from None

    def images(self, stimulus_ids: Sequence[str], size: int | None = None) -> np.ndarray:
        """Pictures, uint8 (n, H, W, 3); their middle squares at `size` pixels a side when given, by `cadiff.framing`.

        Raises:
            DataError: a stimulus without a picture, one that cannot be read, or sizes that differ where `size` is not given.
        """
        pictures = np.empty((0, size or 0, size or 0, 3), np.uint8)
        for i, stimulus_id in enumerate(stimulus_ids):
            picture = self.image(stimulus_id)
            if size is not None:
                picture = framed(picture, (size, size))
            if i == 0:  # filled one by one: none is in memory twice
                pictures = np.empty((len(stimulus_ids), *picture.shape), np.uint8)
            if picture.shape != pictures.shape[1:]:
                one, other = (f"{found.shape[1]} x {found.shape[0]}" for found in (pictures[0], picture))
                raise DataError(
                    f"{self.folder}: pictures differ in size (stimulus {stimulus_ids[0]!r} {one}, {stimulus_id!r} {other} "
                    "pixels) and do not fit in one array: give size=, a side in pixels for all of them."
                )
            pictures[i] = picture
        return pictures

    def refuse_unreadable(self, rows: np.ndarray) -> None:
        """Raises `DataError` unless the betas (n, voxels) of these trials are finite and their pictures open."""
        for stimulus_id in dict.fromkeys(self.trials["stimulus_id"].to_numpy()[rows]):
            self.image(str(stimulus_id))
        self.refuse_non_finite(rows)

    def refuse_non_finite(self, rows: np.ndarray) -> None:
        """Raises `DataError` naming trial and voxel unless the betas of these trials are finite; memory stays small."""
        in_trial = np.zeros(len(rows), dtype=np.int64)
        in_voxel = np.zeros(len(self.voxels), dtype=np.int64)
        for start in range(0, len(rows), CHUNK_TRIALS):
            part = slice(start, start + CHUNK_TRIALS)
            bad = ~np.isfinite(self.betas[rows[part]])
            in_trial[part] = bad.sum(axis=1)
            in_voxel += bad.sum(axis=0)
        trials, voxels = np.flatnonzero(in_trial), np.flatnonzero(in_voxel)
        if len(trials) == 0:
            return
        first = self.trials.iloc[int(rows[trials[0]])]
        raise DataError(
            f"{self.folder}: {int(in_trial.sum())} betas are NaN or infinite, in {len(trials)} of {len(rows)} trials (first: "
            f"trial {first['trial']}, stimulus {first['stimulus_id']}) and {len(voxels)} of {len(self.voxels)} voxels (first: "
            f"voxel {int(voxels[0]) + 1}): leave those trials or those voxels out and import the data again."
        )

    def _check(self) -> None:
        shape = (len(self.trials), len(self.voxels))
        if self.betas.shape != shape or self.betas.dtype != np.float32:
            raise DataError(
                f"{self.folder}: betas.npy is {self.betas.dtype} {self.betas.shape}, but trials.tsv and voxels.tsv "
                f"say float32 {shape}: import the data again."
            )
        if unknown := sorted(set(self.trials["split"]) - set(SPLITS)):
            raise DataError(
                f"{self.folder}: trials.tsv has split {unknown[0]!r}; splits are {', '.join(SPLITS)}."
            )
        shown = self.trials.loc[self.trials["split"] != "unlabelled", "stimulus_id"]
        if missing := sorted(set(shown) - set(self.stimuli.index)):
            raise DataError(
                f"{self.folder}: trials.tsv shows {missing[0]!r}, which stimuli.tsv does not list."
            )


def no_picture(folder: Path, files: pd.Series, stimulus_id: str) -> DataError:
    """What to raise when the picture of a stimulus is asked for and the dataset knows its label only.

    files: column `file` of the dataset's stimuli.tsv, gaps where there is no picture.
    """
    lacking = int(files.isna().sum())
    found = f"of stimulus {stimulus_id!r} only the label is known ({lacking} such of {len(files)})"
    if lacking == len(files):
        found = f"it has labels and no pictures (of all {lacking} stimuli only the label is known)"
    return DataError(
        f"{folder}: {found}. What looks at pictures, such as reconstruction and scoring, needs them: import the data again "
        "with pictures (god, bids: --set images=FOLDER; arrays: a folder stimuli/ in the source)."
    )


def write_dataset(
    out: Path,
    *,
    name: str,
    subject: str,
    betas: np.ndarray,
    trials: pd.DataFrame,
    voxels: pd.DataFrame,
    stimuli: pd.DataFrame,
    images: Mapping[str, np.ndarray],
    description: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes a dataset folder, atomically.

    Args:
        out: the folder to make; it must not exist.
        name: dataset name, for example "GOD".
        subject: subject name, for example "sub-03".
        betas: (trials, voxels), stored as float32.
        trials: one row a trial; `TRIAL_COLUMNS`, `trial` may be absent (it counts from 1).
        voxels: one row a voxel; `rois` and optionally `noise_ceiling`, `x`, `y`, `z`.
        stimuli: one row a stimulus; `stimulus_id` and optionally `label`, `imagenet_index`, `licence`.
        images: stimulus_id -> uint8 (H, W, 3) or (H, W); saved as PNG.
        description: further facts for `dataset_description.json`.
        arrays: further arrays by file name (.npy), kept beside the betas.

    Raises:
        DataError: shapes that contradict each other, values that are not finite, or a stimulus without a picture.
        ArtifactError: `out` exists.
    """
    from cadiff.data.writer import dataset_writer  # the writer reads back what it wrote, with this file

    if betas.ndim != 2 or betas.shape != (len(trials), len(voxels)):
        raise DataError(
            f"betas are {betas.shape}, but there are {len(trials)} trials and {len(voxels)} voxels."
        )
    if missing := [str(s) for s in stimuli["stimulus_id"] if str(s) not in images]:
        raise DataError(f"{len(missing)} stimuli have no picture (first: {missing[0]!r}).")
    with dataset_writer(out, name=name, subject=subject, voxels=voxels, description=description) as writer:
        for row in stimuli.to_dict("records"):
            about = {
                str(key): value for key, value in row.items() if key not in ("stimulus_id", "file", "sha256")
            }
            writer.add_stimulus(str(row["stimulus_id"]), images[str(row["stimulus_id"])], **about)
        writer.add_trials(betas, trials)
        for file, array in (arrays or {}).items():
            np.save(writer.folder / file, array)
    return out


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path.parent} lacks {path.name}: the dataset is incomplete, import it again.")
    text = {"stimulus_id": str, "label": str, "rois": str}
    table = read_table(path, dtype=text, keep_default_na=False)  # "NA" may be a name
    if missing := [c for c in columns if c not in table]:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))})."
        )
    return table


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """A table with tabs between and n/a for gaps; `options` go to `pandas.read_csv`.

    Raises:
        DataError: an empty file, one that is not UTF-8 text, or rows of unequal length.
    """
    try:
        table = pd.read_csv(path, sep="\t", na_values=["n/a"], **options)
        if not table.index.equals(
            pd.RangeIndex(len(table))
        ):  # pandas would take the first column as row names
            raise ValueError("rows have more cells than the header line: are there row names?")
        return table
    except (ValueError, pd.errors.ParserError) as error:  # EmptyDataError, UnicodeDecodeError are ValueErrors
        raise DataError(
            f"{path} cannot be read as a table ({' '.join(str(error).split())}): expected UTF-8 text, a header line, "
            "tabs between the columns."
        ) from None


def _compare(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises `DataError` naming the first file that is missing or differs from its checksum."""
    for name, digest in expected.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise DataError(f"{folder / name} is missing or damaged (checksum differs): import it again.")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """A table with tabs between and n/a for gaps; `read_table` is the inverse."""
    table.to_csv(path, sep="\t", index=False, na_rep="n/a", lineterminator="\n")

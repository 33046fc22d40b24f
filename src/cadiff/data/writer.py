"""Writing a dataset folder piece by piece: memory holds one piece at a time, and nothing appears until all is written.

with dataset_writer(out, name="GOD", subject="sub-03", voxels=voxels) as writer:
    for row, picture in enumerate(pictures):
        writer.add_stimulus(ids[row], picture, label=labels[row])
    for rows in chunks:
        writer.add_trials(betas[rows], trials.iloc[rows])
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.lib import format as npy_format
from PIL import Image

from cadiff.artifacts import new_folder, provenance, sha256_file, write_json
from cadiff.data.dataset import FORMAT, STIMULUS_COLUMNS, TRIAL_COLUMNS, BrainDataset, write_table
from cadiff.data.files import load_picture
from cadiff.errors import DataError

CHUNK_ROWS = 1024
KEPT_FORMATS = {"PNG": ".png", "JPEG": ".jpg"}  # copied byte for byte; everything else is stored as PNG


@contextmanager
def dataset_writer(
    out: Path,
    *,
    name: str,
    subject: str,
    voxels: pd.DataFrame,
    description: Mapping[str, Any] | None = None,
    bad_voxels: Literal["refuse", "drop"] = "refuse",
) -> Iterator[DatasetWriter]:
    """Yields a `DatasetWriter`; when the block ends well, the folder is completed, read back, and renamed to `out`.

    Args:
        out: the folder to make; it must not exist.
        name: dataset name, for example "GOD".
        subject: subject name, for example "sub-03".
        voxels: one row a voxel; `rois` ("V1,VC") and optionally `noise_ceiling`, `x`, `y`, `z`, `grayordinate`.
        description: further facts for `dataset_description.json`, above all units, licence and citation.
        bad_voxels: what to do with voxels that hold NaN or infinite values in any trial. Where some are dropped, the others
            keep their number (from 1) in a column `source_voxel`.

    Raises:
        DataError: parts that contradict each other, values that are not finite, or a stimulus without a picture.
        ArtifactError: `out` exists.
    """
    with new_folder(out) as folder:
        writer = DatasetWriter(folder, voxels)
        try:
            yield writer
        finally:
            writer.close()
        about = {"name": name, "subject": subject, "format": FORMAT, **(description or {})}
        writer.complete(about, drop=bad_voxels == "drop")


def copy_stimuli(dataset: BrainDataset, writer: DatasetWriter, only: Collection[str] | None = None) -> None:
    """Hands the stimuli of a dataset (or those of some ids) to a writer, pictures as the files they are."""
    for row in dataset.stimuli.reset_index().to_dict("records"):
        stimulus_id = str(row["stimulus_id"])
        if only is None or stimulus_id in only:
            about = {str(k): v for k, v in row.items() if k not in ("stimulus_id", "file", "sha256")}
            file = dataset.folder / "stimuli" / row["file"] if isinstance(row["file"], str) else None
            writer.add_stimulus(stimulus_id, file, **about)


class DatasetWriter:
    """Takes stimuli and trials in any order and number of pieces; made by `dataset_writer`."""

    def __init__(self, folder: Path, voxels: pd.DataFrame) -> None:
        self.folder, self.voxels = folder, voxels
        self.num_trials = 0
        self._stimuli: dict[str, dict[str, Any]] = {}
        self._trials: list[pd.DataFrame] = []
        self._bad = np.zeros(len(voxels), dtype=bool)
        self._digest = hashlib.sha256()
        (folder / "stimuli").mkdir()
        self._file = (folder / "betas.npy").open("wb")
        self._start = self._write_header()

    def add_trials(self, betas: np.ndarray, trials: pd.DataFrame) -> None:
        """Appends trials: betas (n, voxels) of any numeric type, and one row each with `TRIAL_COLUMNS` (trial may lack)."""
        if betas.ndim != 2 or betas.shape != (len(trials), len(self.voxels)):
            raise DataError(
                f"betas are {betas.shape}, but there are {len(trials)} trials and {len(self.voxels)} voxels."
            )
        for start in range(0, len(betas), CHUNK_ROWS):
            with np.errstate(
                over="ignore"
            ):  # what float32 cannot hold becomes infinite, and is refused as that
                rows = np.ascontiguousarray(betas[start : start + CHUNK_ROWS], dtype="<f4")
            self._bad |= ~np.isfinite(rows).all(axis=0)
            self._digest.update(rows.data)
            self._file.write(rows.data)
        self._trials.append(trials)
        self.num_trials += len(trials)

    def add_stimulus(self, stimulus_id: str, picture: np.ndarray | Path | None, /, **about: Any) -> None:
        """Adds a picture: uint8 (H, W, 3) or (H, W), stored as PNG, or a file (JPEG and PNG are copied as they are).

        None adds a stimulus of which only the label is known: it can be decoded, not reconstructed.

        about: `label`, `imagenet_index`, `licence` and any further columns of stimuli.tsv.
        """
        if stimulus_id in self._stimuli:
            raise DataError(f"Stimulus {stimulus_id!r} comes twice: stimulus ids must be unique.")
        if "/" in stimulus_id or "\\" in stimulus_id or "\0" in stimulus_id or stimulus_id.startswith("."):
            raise DataError(
                f"Stimulus id {stimulus_id!r} cannot name a file: use ids without '/' and without a leading dot."
            )
        row = {"stimulus_id": stimulus_id, **about, "file": None, "sha256": None}
        if picture is not None:
            target = self._place(stimulus_id, picture)
            row |= {"file": target.name, "sha256": sha256_file(target)}
        self._stimuli[stimulus_id] = row

    def close(self) -> None:
        """Closes the betas file; `complete` may follow."""
        self._file.close()

    def complete(self, about: Mapping[str, Any], *, drop: bool) -> None:
        """Writes the tables and the description, and reads everything back."""
        trials = pd.concat(self._trials, ignore_index=True) if self._trials else pd.DataFrame()
        if not self.num_trials or not len(self.voxels):
            raise DataError(
                f"betas are {(self.num_trials, len(self.voxels))}: expected at least one trial and one voxel."
            )
        shown = trials.loc[trials["split"] != "unlabelled", "stimulus_id"]
        if missing := [name for name in dict.fromkeys(shown) if name not in self._stimuli]:
            raise DataError(f"{len(missing)} stimuli of the trials were not added (first: {missing[0]!r}).")
        with (self.folder / "betas.npy").open("rb+") as file:
            self._file = file
            self._write_header()
        self._verify_betas()
        about = dict(about)
        if self._bad.any():
            self._refuse_or_drop(about, drop)
        self._write_tables(trials)
        arrays = sorted(path.name for path in self.folder.glob("*.npy"))
        files = (*arrays, "trials.tsv", "voxels.tsv", "stimuli.tsv")
        about["sha256"] = {file: sha256_file(self.folder / file) for file in files}
        write_json(self.folder / "dataset_description.json", {**about, "provenance": provenance()})
        BrainDataset.open(self.folder)

    def _place(self, stimulus_id: str, picture: np.ndarray | Path) -> Path:
        stem = self.folder / "stimuli" / stimulus_id
        if isinstance(picture, Path):
            pixels = load_picture(picture)
            with Image.open(picture) as image:
                suffix = KEPT_FORMATS.get(image.format or "") if image.mode == "RGB" else None
            if suffix is not None:
                return Path(shutil.copyfile(picture, stem.with_name(stem.name + suffix)))
            picture = pixels
        target = stem.with_name(stem.name + ".png")
        Image.fromarray(picture).convert("RGB").save(target, compress_level=1)
        return target

    def _write_header(self) -> int:
        """Numpy leaves room for the number of rows to grow, so the header can be written again when it is known."""
        self._file.seek(0)
        about = {"shape": (self.num_trials, len(self.voxels)), "fortran_order": False, "descr": "<f4"}
        npy_format.write_array_header_1_0(self._file, about)
        return self._file.tell()

    def _verify_betas(self) -> None:
        digest = hashlib.sha256()
        with (self.folder / "betas.npy").open("rb") as file:
            file.seek(self._start)
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.digest() != self._digest.digest():
            raise DataError(
                f"{self.folder / 'betas.npy'} does not hold what was written to it: is the disk failing? Nothing was kept."
            )

    def _refuse_or_drop(self, about: dict[str, Any], drop: bool) -> None:
        bad = np.flatnonzero(self._bad)
        if drop and len(bad) == len(self.voxels):
            raise DataError(
                f"all {len(bad)} voxels hold NaN or infinite values: none would be left. Look for trials without a response."
            )
        if not drop:
            raise DataError(
                f"{len(bad)} of {len(self.voxels)} voxels hold NaN or infinite values (first: voxel {bad[0] + 1}): "
                "mask them out before importing, or leave them out with --set bad_voxels=drop (arrays, bids, bold5000, god, nsd)."
            )
        source, target = self.folder / "betas.npy", self.folder / "kept.npy"
        old = np.load(source, mmap_mode="r")
        keep = np.flatnonzero(~self._bad)
        new = npy_format.open_memmap(target, "w+", np.dtype("<f4"), (len(old), len(keep)))
        for start in range(0, len(old), CHUNK_ROWS):
            new[start : start + CHUNK_ROWS] = old[start : start + CHUNK_ROWS][:, keep]
        new.flush()
        del old, new
        target.replace(source)
        if "source_voxel" not in self.voxels:
            self.voxels = self.voxels.assign(source_voxel=range(1, len(self.voxels) + 1))
        self.voxels = self.voxels.iloc[keep].reset_index(drop=True)
        about["dropped_voxels"] = len(bad)

    def _write_tables(self, trials: pd.DataFrame) -> None:
        stimuli = pd.DataFrame(list(self._stimuli.values()))
        columns = list(dict.fromkeys([*STIMULUS_COLUMNS, *stimuli.columns]))
        write_table(stimuli.reindex(columns=columns), self.folder / "stimuli.tsv")
        trials = trials.assign(trial=range(1, len(trials) + 1))
        write_table(
            trials[[*TRIAL_COLUMNS, *(c for c in trials if c not in TRIAL_COLUMNS)]],
            self.folder / "trials.tsv",
        )
        voxels = self.voxels.assign(voxel=range(1, len(self.voxels) + 1))
        if "noise_ceiling" not in voxels:
            voxels = voxels.assign(noise_ceiling=np.nan)
        first = ["voxel", "rois", "noise_ceiling"]
        write_table(voxels[[*first, *(c for c in voxels if c not in first)]], self.folder / "voxels.tsv")

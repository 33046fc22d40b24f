"""One HCP run: the options of the reader, opening the grayordinates of some areas, and means of windows of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from cadiff.data.files import Archive, need_numbers
from cadiff.data.readers.hcp_cifti import SERIES, open_dense, repetition_time
from cadiff.data.readers.hcp_files import CLEANING, RunFile
from cadiff.data.readers.hcp_regions import Parcellation, find_regions, roi_label, voxel_table
from cadiff.errors import ConfigError, DataError

FRAMES, REPETITION_TIME = 1200, 0.72  # of a 3 T run at rest
# Grayordinates of HCP-MMP 1.0 areas on the 32k mesh, left and right
PUBLISHED = {"V1": (831, 787), "V2": (619, 601), "V3": (337, 347), "V4": (361, 300)}
COLUMNS_AT_ONCE = 512
CONSTANT = 1e-7  # relative spread below which a float32 series does not vary


@dataclass(frozen=True)
class HcpOptions:
    """What `read_hcp` can be told, checked; the same for every subject."""

    rois: tuple[str, ...]
    window: int
    zscore: bool
    frames: int | Literal["any"]
    runs: tuple[str, ...] | None
    cleaning: str | None
    parcellation: Path | None

    @classmethod
    def check(
        cls, rois: Any, window: Any, zscore: Any, frames: Any, runs: Any, cleaning: Any, parcellation: Any
    ) -> HcpOptions:
        """Options as the command line gives them.

        Raises:
            ConfigError: one of the wrong type.
        """
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ConfigError(f"window={window!r} must be a whole number of frames, for example 10.")
        if not isinstance(zscore, bool):
            raise ConfigError(f"zscore={zscore!r} must be true or false.")
        if frames != "any" and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
            raise ConfigError(f"frames={frames!r} must be a number of frames, for example {FRAMES}, or any.")
        if cleaning is not None and not isinstance(cleaning, str):
            raise ConfigError(
                f"cleaning={cleaning!r} must be a part of a file name, such as {next(iter(CLEANING))}."
            )
        if parcellation is not None and not isinstance(parcellation, (str, Path)):
            raise ConfigError(f"parcellation={parcellation!r} must be a file.")
        names = _names(rois, "rois", "[V1, V2]")
        if not names:
            raise ConfigError("rois is empty: name at least one area, for example rois=[V1, V2].")
        chosen = _names(runs, "runs", "[REST1_LR]") if runs is not None else None
        file = Path(parcellation) if parcellation is not None else None
        return cls(names, window, zscore, frames, chosen, cleaning, file)


class Part(NamedTuple):
    """The frames of one area, on disk."""

    values: np.ndarray
    """(frames, n), memory-mapped."""
    columns: np.ndarray
    """Which of the n to read, ascending."""
    slope: float = 1.0
    inter: float = 0.0


class Run(NamedTuple):
    """One run, opened."""

    file: RunFile
    parts: list[Part]
    voxels: pd.DataFrame
    repetition_time: float | None

    @property
    def num_frames(self) -> int:
        """Frames of the run."""
        return len(self.parts[0].values)


def open_run(file: RunFile, options: HcpOptions, areas: Parcellation | None) -> Run:
    """Opens a run; nothing of its frames is read yet.

    Raises:
        DataError: not what it should be, or not as many frames as `options` say.
    """
    if areas is None or file.path.suffix == ".npz":
        run = _open_npz(file, options)
    else:
        run = _open_series(file, options, areas)
    found = run.num_frames
    if options.frames != "any" and found != options.frames:
        raise DataError(
            f"{file.path} has {found} frames, expected {options.frames}: frames={found} accepts it, frames=any accepts "
            "runs of every length."
        )
    if found < options.window:
        raise DataError(f"{file.path} has {found} frames, fewer than one window of {options.window}.")
    seconds = run.repetition_time
    if options.frames == FRAMES and seconds is not None and abs(seconds - REPETITION_TIME) > 1e-3:
        raise DataError(
            f"{file.path} has a frame every {seconds:g} s, expected {REPETITION_TIME} s (3 T runs at rest): frames=any "
            "accepts others."
        )
    return run


def window_starts(num_frames: int, window: int) -> np.ndarray:
    """First frame (from 0) of each window: those of `np.array_split(frames, num_frames // window)`."""
    count = num_frames // window
    size, longer = divmod(num_frames, count)
    sizes = np.full(count, size)
    sizes[:longer] += 1
    return np.cumsum(sizes) - sizes


def window_means(run: Run, starts: np.ndarray, *, zscore: bool) -> tuple[np.ndarray, int]:
    """Means of windows, float32 (windows, voxels), and the number of grayordinates that never change.

    Those are stored as 0 where the others are z-scored. Memory holds `COLUMNS_AT_ONCE` grayordinates of the run.
    """
    sizes = np.diff([*starts, run.num_frames])
    betas = np.empty((len(starts), sum(len(part.columns) for part in run.parts)), np.float32)
    done = constant = 0
    for part in run.parts:
        for start in range(0, len(part.columns), COLUMNS_AT_ONCE):
            columns = part.columns[start : start + COLUMNS_AT_ONCE]
            with np.errstate(over="ignore", invalid="ignore"):
                series = part.values.T[columns].astype(np.float64) * part.slope + part.inter
                if zscore:
                    spread = series.std(axis=1, keepdims=True)
                    still = spread <= CONSTANT * np.abs(series).max(axis=1, keepdims=True)
                    constant += int(still.sum())
                    series = (series - series.mean(axis=1, keepdims=True)) / np.where(still, np.inf, spread)
                means = np.add.reduceat(series, starts, axis=1) / sizes
                betas[:, done : done + len(columns)] = means.T
            done += len(columns)
    wrong = np.flatnonzero(~np.isfinite(betas).all(axis=0))
    if len(wrong):
        raise DataError(
            f"{run.file.path}: {len(wrong)} of the {betas.shape[1]} grayordinates to import hold NaN or infinite values: "
            "download the file again."
        )
    if constant == betas.shape[1]:
        raise DataError(f"{run.file.path}: no grayordinate changes over its {run.num_frames} frames.")
    return betas, constant


def _open_series(file: RunFile, options: HcpOptions, areas: Parcellation) -> Run:
    dense = open_dense(file.path, SERIES)
    regions = find_regions(dense, areas, options.rois)
    parts = [Part(dense.values, region.columns, dense.slope, dense.inter) for region in regions]
    return Run(file, parts, voxel_table(dense, regions), repetition_time(dense))


def _open_npz(file: RunFile, options: HcpOptions) -> Run:
    archive = Archive(file.path)
    archive.need(*options.rois)
    arrays = [need_numbers(archive[area], (None, None), f"{file.path}: {area}") for area in options.rois]
    if len(lengths := {len(array) for array in arrays}) > 1:
        raise DataError(
            f"{file.path}: areas have different numbers of frames, {sorted(lengths)}: download it again."
        )
    sides: list[str | None] = []
    for area, array in zip(options.rois, arrays, strict=True):
        left, right = PUBLISHED.get(area, (0, 0))
        known = array.shape[1] == left + right
        sides += ["L"] * left + ["R"] * right if known else [None] * array.shape[1]
    labels = np.repeat([roi_label(area) for area in options.rois], [array.shape[1] for array in arrays])
    voxels = pd.DataFrame({"rois": labels, "hemisphere": sides})
    return Run(file, [Part(array, np.arange(array.shape[1])) for array in arrays], voxels, None)


def _names(value: Any, option: str, example: str) -> tuple[str, ...]:
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    # an area may be called 4, which YAML reads as a number
    if not isinstance(names, Sequence) or not all(
        isinstance(name, (str, int)) and str(name) for name in names
    ):
        raise ConfigError(f"{option}={value!r} must be a list of names, for example {option}={example}.")
    if len(set(map(str, names))) < len(names):
        raise ConfigError(f"{option}={value!r} names something twice.")
    return tuple(str(name) for name in names)

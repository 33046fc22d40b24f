"""Which points of the BOLD become voxels, where they are, and the regions of an atlas that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cadiff.data.dataset import read_table
from cadiff.data.readers.bids_images import Series
from cadiff.data.readers.bids_layout import SubjectFiles
from cadiff.data.readers.bids_names import matches
from cadiff.errors import DataError

BRAIN = "brain"


def choose_voxels(
    files: SubjectFiles,
    series: Series,
    *,
    mask: Path | str | None,
    atlas: Path | None,
    atlas_names: Path | None,
    rois: Sequence[str],
) -> tuple[np.ndarray, pd.DataFrame]:
    """Numbers of the chosen points in ascending order (voxels,), and the table voxels.tsv will hold of them.

    Args:
        files: the subject; with mask="brain" the masks of all runs must agree on a voxel.
        series: any run; all have the same points.
        mask: "brain", the path of a map whose values other than 0 are kept, or None for all points.
        atlas: the path of a map of whole numbers, 0 where there is no region.
        atlas_names: table with the columns index and name; absent, the table beside the atlas or the names in it.
        rois: patterns of region names; given, only voxels of these regions are kept.

    Raises:
        DataError: a map over other points, a map of probabilities as an atlas, or no voxel left.
    """
    kept = _mask(files, series, mask)
    regions = np.zeros(series.num_points, dtype=np.int64)
    names: dict[int, str] = {}
    if atlas is not None:
        regions, names = _atlas(series, atlas, atlas_names)
    if rois:
        wanted = [label for label, name in names.items() if matches(name, rois)]
        if not wanted:
            known = ", ".join(dict.fromkeys(names.values())) or "none, for atlas= is not given"
            raise DataError(f"No region fits rois={list(rois)}; there are: {known}.")
        kept &= np.isin(regions, wanted)
    points = np.flatnonzero(kept)
    if not len(points):
        raise DataError(f"{series.path}: the mask{' and the regions leave' if rois else ' leaves'} no voxel.")
    labels = [names.get(int(region), "") for region in regions[points]]
    return points, series.places().iloc[points].reset_index(drop=True).assign(rois=labels)


def _mask(files: SubjectFiles, series: Series, mask: Path | str | None) -> np.ndarray:
    kept = np.ones(series.num_points, dtype=bool)
    if mask == BRAIN:
        for run in files.runs if series.kind == "volume" else ():
            if run.mask is None:
                raise DataError(
                    f"There is no brain mask of {run.name} in space {files.space!r} beside {run.bold[0]}: give a NIfTI "
                    "mask, mask=PATH, or mask=null for all voxels."
                )
            kept &= _nonzero(series.map_values(run.mask)[0])
    elif mask is not None:
        kept &= _nonzero(series.map_values(Path(mask))[0])
    return kept


def _nonzero(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values) & (values != 0)


def _atlas(series: Series, path: Path, table: Path | None) -> tuple[np.ndarray, dict[int, str]]:
    values, names = series.map_values(path)
    whole = np.rint(np.where(np.isfinite(values), values, 0.0))
    if np.abs(whole).max() > 1 << 31 or not np.allclose(whole, values, atol=1e-3, equal_nan=True):
        raise DataError(
            f"{path} holds values that are not whole numbers: an atlas numbers its regions, 0 is none."
        )
    beside = path.with_name(path.name.partition(".")[0] + ".tsv")
    if table is not None or beside.is_file():
        names = _names(table or beside)
    found = [int(label) for label in np.unique(whole) if label]
    return whole.astype(np.int64), {n: names.get(n, f"label-{n}").replace(",", "") for n in found}


def _names(path: Path) -> dict[int, str]:
    if not path.is_file():
        raise DataError(f"There is no file {path}: expected a table with the columns index and name.")
    table = read_table(path, dtype=str, keep_default_na=False)
    if missing := [column for column in ("index", "name") if column not in table]:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))})."
        )
    numbers = pd.to_numeric(table["index"], errors="coerce")
    pairs = zip(numbers, table["name"], strict=True)
    return {int(n): name for n, name in pairs if abs(n) < 1 << 31 and isinstance(name, str)}

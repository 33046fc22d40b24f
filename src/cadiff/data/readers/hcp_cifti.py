"""Opening dense CIFTI-2 files (.dtseries.nii, .dlabel.nii) without believing their headers.

A CIFTI-2 file is a NIfTI-2 file: 540 bytes of header, an XML extension that says what rows and columns are, then the
matrix. Each grayordinate's values lie together on disk (the first dimension varies fastest), so a few thousand of the
91,282 grayordinates of a run cost a few thousand short reads and not the whole file.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cadiff.data.files import need_file
from cadiff.errors import DataError

LEFT, RIGHT = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"
HEMISPHERES = {LEFT: "L", RIGHT: "R"}
BRAIN_MODELS, SERIES, LABELS = (f"CIFTI_INDEX_TYPE_{kind}" for kind in ("BRAIN_MODELS", "SERIES", "LABELS"))
MAX_EXPONENT = 30  # of the unit of time; a larger one is damage


class Dense(NamedTuple):
    """A matrix of T frames (or label maps) by G grayordinates."""

    path: Path
    values: np.ndarray
    """(T, G), memory-mapped, as stored: `slope * values + inter` is meant."""
    slope: float
    inter: float
    structure: np.ndarray
    """(G,) CIFTI structure names, for example CIFTI_STRUCTURE_CORTEX_LEFT."""
    vertex: np.ndarray
    """(G,) int64 vertex of the surface mesh, -1 for voxels."""
    num_vertices: dict[str, int]
    """Vertices of the whole mesh, by structure."""
    rows: Any
    """What CIFTI says of the T rows."""


def open_dense(path: Path, rows: str) -> Dense:
    """Opens a dense CIFTI-2 file.

    Args:
        path: the file.
        rows: what its rows must be, `SERIES` or `LABELS`.

    Raises:
        DataError: not a CIFTI-2 file, truncated, of another kind, or a header that contradicts itself.
    """
    import nibabel

    if path.is_symlink() and not path.exists():
        raise DataError(f"{path} is a link to a file that is not here: fetch it first (`datalad get`).")
    need_file(path, "expected a dense CIFTI-2 file (.dtseries.nii, .dlabel.nii).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what nibabel would warn of is checked below
            # as NIfTI: opened as CIFTI, nibabel would build axes of any length that the header claims
            image: Any = nibabel.Nifti2Image.from_filename(path)
            proxy = image.dataobj
            shape = tuple(int(length) for length in proxy.shape[4:])
            matrix = _cifti_header(image).matrix
            needed = int(proxy.offset) + int(np.prod(proxy.shape, dtype=object)) * proxy.dtype.itemsize
            if needed > os.path.getsize(path):
                raise ValueError(
                    f"its header claims {needed} bytes, it has {os.path.getsize(path)}: the download is incomplete"
                )
            maps = _check(matrix, shape, proxy.dtype, rows)
            structure, vertex, num_vertices = _grayordinates(maps[1], shape[1])
            values = proxy.get_unscaled()[0, 0, 0, 0]
        slope, inter = (float(number) for number in (proxy.slope, proxy.inter))
    except DataError:
        raise
    except Exception as error:  # parsers of headers and XML raise whatever the damage makes of them
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"its XML lacks {reason}"
        raise DataError(
            f"{path} cannot be read as a dense CIFTI-2 file: {reason[:300]}. Download it again."
        ) from None
    if not np.isfinite([slope, inter]).all():
        raise DataError(f"{path}: the scaling in its header is {slope} and {inter}: download it again.")
    return Dense(path, values, slope, inter, structure, vertex, num_vertices, maps[0])


def repetition_time(dense: Dense) -> float | None:
    """Seconds between frames of a series, or None where the file does not say."""
    unit, exponent = dense.rows.series_unit, dense.rows.series_exponent
    if unit != "SECOND" or exponent is None or abs(exponent) > MAX_EXPONENT:
        return None
    seconds = float(dense.rows.series_step or 0) * 10.0**exponent
    return round(seconds, 9) if np.isfinite(seconds) and seconds > 0 else None


def label_names(dense: Dense) -> dict[int, str]:
    """Label number -> name, of the first map of a label file."""
    try:
        table = next(iter(dense.rows.named_maps)).label_table
        return {int(key): str(table[key].label) for key in table}
    except Exception as error:
        raise DataError(f"{dense.path} has no readable table of labels ({error}).") from None


def _cifti_header(image: Any) -> Any:
    from nibabel.cifti2.cifti2 import Cifti2Header

    for extension in image.header.extensions:
        content = extension.get_content()
        if isinstance(content, Cifti2Header):
            return content
    raise ValueError("it has no CIFTI-2 header")


def _check(matrix: Any, shape: tuple[int, ...], dtype: np.dtype, rows: str) -> tuple[Any, Any]:
    """The two index maps; a ValueError for anything but a dense matrix of numbers with such rows."""
    maps = tuple(matrix.get_index_map(axis) for axis in (0, 1))
    kinds = tuple(each.indices_map_to_data_type for each in maps)
    if len(shape) != 2 or kinds != (rows, BRAIN_MODELS):
        names = " by ".join(str(kind).removeprefix("CIFTI_INDEX_TYPE_").lower() for kind in kinds)
        wanted = "frames" if rows == SERIES else "labels"
        raise ValueError(f"it holds {names} {shape}, expected {wanted} by brain models (grayordinates)")
    if dtype.kind not in "fiu" or 0 in shape:
        raise ValueError(f"it holds {dtype} {shape}, expected numbers")
    counted = len(list(maps[0].named_maps)) if rows == LABELS else maps[0].number_of_series_points
    if counted != shape[0]:
        raise ValueError(f"its header describes {counted} rows, the matrix has {shape[0]}")
    return maps


def _grayordinates(mapping: Any, count: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    structure, vertex = np.full(count, "", dtype=object), np.full(count, -1, dtype=np.int64)
    num_vertices: dict[str, int] = {}
    filled = 0
    for model in mapping.brain_models:
        start, stop = model.index_offset, model.index_offset + model.index_count
        if not 0 <= start < stop <= count or (structure[start:stop] != "").any():
            raise ValueError(f"its brain model {model.brain_structure} claims columns {start} to {stop}")
        structure[start:stop] = str(model.brain_structure)
        filled += stop - start
        if model.model_type == "CIFTI_MODEL_TYPE_SURFACE":
            mesh = int(model.surface_number_of_vertices)
            vertices = np.asarray(list(model.vertex_indices), dtype=np.int64)
            if len(vertices) != stop - start or vertices.min() < 0 or vertices.max() >= mesh:
                raise ValueError(
                    f"its brain model {model.brain_structure} has vertices that do not fit its mesh"
                )
            vertex[start:stop] = vertices
            num_vertices[str(model.brain_structure)] = mesh
    if filled != count:
        raise ValueError(f"its brain models describe {filled} of {count} columns")
    return structure, vertex, num_vertices

"""Time series of three kinds, opened without reading them, and maps (masks, atlases) over the same points.

    Volume         NIfTI (x, y, z, time)            points are voxels, in C order of the grid
    Surface        two GIFTI files, left and right  points are vertices, left ones first; one array a volume
    Grayordinates  CIFTI-2 .dtseries.nii            points are the columns of its brain models

A map of grayordinates is a .dlabel.nii or .dscalar.nii; one of a surface is two GIFTI files, whose path is given with
`{hemi}` for L and R. Only one run is in memory at a time; a NIfTI file is read a few volumes at a time and only the
voxels asked for are kept. Traps: TR in a NIfTI header may be in milliseconds, or 0; a damaged header can claim any size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from typing_extensions import override

from cadiff.data.files import need_file
from cadiff.errors import DataError

GZIP_RATIO = 1100  # deflate shrinks no further
CHUNK_BYTES = 64 << 20
AFFINE_TOLERANCE_MM = 1e-3


class Series(ABC):
    """The BOLD of one run; `read` gives the values."""

    kind: Literal["volume", "surface", "grayordinates"]

    def __init__(
        self, paths: tuple[Path, ...], num_points: int, num_volumes: int, tr_s: float | None
    ) -> None:
        self.paths, self.num_points, self.num_volumes, self.tr_s = paths, num_points, num_volumes, tr_s

    @property
    def path(self) -> Path:
        """The file, or the left hemisphere's."""
        return self.paths[0]

    @abstractmethod
    def read(self, points: np.ndarray) -> np.ndarray:
        """Values float32 (volumes, points) of the points with these numbers, in ascending order."""

    @abstractmethod
    def places(self) -> pd.DataFrame:
        """Where each point is: one row a point."""

    @abstractmethod
    def map_values(self, path: Path) -> tuple[np.ndarray, dict[int, str]]:
        """A map over the same points: values float64 (points,), and names of the labels where the file has them."""

    @abstractmethod
    def differs(self, other: Series) -> str | None:
        """How the other's points differ from ours, in words; None when they are the same."""


class Volume(Series):
    """A 4-D NIfTI file."""

    kind = "volume"

    def __init__(self, paths: tuple[Path, ...]) -> None:
        image = load_image(paths[0])
        self.shape, self.affine = _grid(image, paths[0], 4)
        num_volumes = int(image.shape[3])
        super().__init__(paths, int(np.prod(self.shape)), num_volumes, _header_tr(image))

    @override
    def read(self, points: np.ndarray) -> np.ndarray:
        image = load_image(self.path)
        values = np.empty((self.num_volumes, len(points)), dtype=np.float32)
        step = max(1, CHUNK_BYTES // (8 * self.num_points))
        for start in range(0, self.num_volumes, step):
            part = image_values(self.path, image.dataobj, (..., slice(start, start + step)))
            values[start : start + step] = part.reshape(self.num_points, -1)[points].T
        return values

    @override
    def places(self) -> pd.DataFrame:
        index = np.stack(np.unravel_index(np.arange(self.num_points), self.shape), axis=1)
        millimetres = index @ self.affine[:3, :3].T + self.affine[:3, 3]
        return pd.DataFrame(np.round(millimetres, 3), columns=["x", "y", "z"])

    @override
    def map_values(self, path: Path) -> tuple[np.ndarray, dict[int, str]]:
        image = load_image(need_file(path, "expected a NIfTI image."))
        shape, affine = _grid(image, path, 3)
        if difference := self._other_grid(shape, affine):
            raise DataError(
                f"{path} has another grid than {self.path} ({difference}): resample it first, for example with "
                "nilearn.image.resample_to_img(..., interpolation='nearest')."
            )
        return image_values(path, image.dataobj, (...,), np.float64).reshape(-1), {}

    @override
    def differs(self, other: Series) -> str | None:
        if not isinstance(other, Volume):
            return "another kind of file"
        return self._other_grid(other.shape, other.affine)

    def _other_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> str | None:
        if shape != self.shape:
            return f"shape {shape}, expected {self.shape}"
        shift = float(np.abs(affine - self.affine).max())
        return f"the affine differs by {shift:.3g}" if not shift <= AFFINE_TOLERANCE_MM else None


def load_image(path: Path) -> Any:
    """An image of nibabel's, its data still on disk; refused when the header claims more than the file can hold."""
    import nibabel

    try:
        image: Any = nibabel.load(path, keep_file_open=True) if path.suffix == ".gz" else nibabel.load(path)
        claimed = 0
        if hasattr(image, "dataobj"):
            claimed = int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
    except Exception as error:  # nibabel lets pass whatever its parsers of NIfTI, CIFTI and GIFTI run into
        reason = in_one_line(error).replace(f'"{path}"', "it")
        raise DataError(f"{path} cannot be read as an image: {reason}.") from None
    there = path.stat().st_size * (GZIP_RATIO if path.suffix == ".gz" else 1)
    if claimed > there:
        raise DataError(
            f"{path}: the header claims {claimed} bytes, the file holds {there} at most: it is damaged."
        )
    return image


def image_values(path: Path, data: Any, where: tuple[Any, ...], dtype: Any = np.float32) -> np.ndarray:
    """Part of an image's data, read from disk; raises `DataError` where the file is truncated or damaged."""
    try:
        with np.errstate(all="ignore"):
            return np.asarray(data[where]).astype(dtype)
    except Exception as error:  # gzip, zlib and nibabel each have their own
        raise DataError(f"{path} is damaged: {in_one_line(error)}.") from None


def _grid(image: Any, path: Path, ndim: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (x, y, z) and affine of a NIfTI image."""
    shape = tuple(int(length) for length in image.shape) if hasattr(image, "affine") else ()
    if ndim == 3 and len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if (
        len(shape) != ndim
        or min(shape) < 1
        or image.affine is None
        or image.get_data_dtype().kind not in "iuf"
    ):
        raise DataError(
            f"{path} has the shape {shape or 'of no volume'}, expected numbers in {ndim} dimensions"
            f"{' (x, y, z, time)' if ndim == 4 else ''}."
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise DataError(f"{path}: the affine in its header is not finite: it is damaged.")
    return shape[:3], affine


def _header_tr(image: Any) -> float | None:
    """Seconds from volume to volume, None where the header does not say."""
    try:
        value, unit = float(image.header.get_zooms()[3]), image.header.get_xyzt_units()[1]
    except Exception:  # units that NIfTI does not know
        return None
    return value * {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0) or None


def in_one_line(error: Exception) -> str:
    """What an exception says, to go on in our sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__

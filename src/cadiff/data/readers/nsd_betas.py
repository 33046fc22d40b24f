"""The Natural Scenes Dataset's volumes: label masks, noise maps, and single-trial betas, one file a session.

    betas_sessionNN.nii.gz   int16 (x, y, z, trials), trial after trial, compressed as one stream
    betas_sessionNN.hdf5     int16 "betas", (trials, z, y, x) as h5py shows what MATLAB wrote as (x, y, z, trials);
                             uncompressed, one chunk a voxel: (trials, 1, 1, 1)

Both hold 300 times the percent signal change, and neither says so in its header. The axes are the trap: a mask from NIfTI
indexes (x, y, z), so its voxel (i, j, k) is [:, k, j, i] of the HDF5 form. Reading the HDF5 form volume by volume touches
every chunk of the file, so it is read voxel by voxel, in runs along x; the NIfTI form is read as a stream, a block of
volumes at a time. Layout: nsddatapaper, main/export.m (Kay 2021), and the NSD Data Manual, "Functional data (NSD)".
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from cadiff.data.files import need_file
from cadiff.errors import DataError

BLOCK_BYTES = 1 << 25
MAX_VOXELS = 20_000_000  # the largest volume of the release has 4.6 million
MAX_CHUNK_BYTES = 1 << 28
BETAS_FORMS = (".hdf5", ".nii.gz", ".nii")
"""Forms of a session's betas; the first that is there is read."""


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turns whatever a library raises on a damaged file into a `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # h5py, nibabel, zlib and pandas raise nearly anything on damaged files
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{path} cannot be read ({reason}); expected {expected}. Download it again."
        ) from None


def read_volume(path: Path, hint: str) -> np.ndarray:
    """The numbers of a NIfTI volume, (x, y, z), in native byte order and scaled as its header says.

    Raises:
        DataError: absent, damaged, not one volume, or larger than any volume of the release.
    """
    with reading(need_file(path, hint), "a NIfTI volume"), _open(path) as file:
        header = _Header.read(file)
        shape = header.shape[:3]
        if len(header.shape) < 3 or math.prod(header.shape) != math.prod(shape) or not math.prod(shape):
            raise DataError(f"{path} has the shape {header.shape}, expected one volume (x, y, z).")
        if math.prod(shape) > MAX_VOXELS:
            raise DataError(f"{path} claims the shape {shape}: no volume of NSD is that large.")
        file.seek(header.offset)
        values = np.frombuffer(_exactly(file, math.prod(shape) * header.dtype.itemsize), header.dtype)
        _need_end(file)
    values = values.reshape(shape, order="F").astype(header.dtype.newbyteorder("="))
    slope, inter = header.scale
    with np.errstate(all="ignore"):  # a damaged scale overflows; the callers look at the values
        return values if (slope, inter) == (1.0, 0.0) else values * slope + inter


def read_labels(path: Path, hint: str) -> np.ndarray:
    """The whole numbers of a label volume, int64 (x, y, z); -1 outside cortex, 0 in no region."""
    values = read_volume(path, hint)
    wrong = values[~(np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 1e6))]
    if wrong.size:
        raise DataError(
            f"{path} holds {wrong[0]!s}, expected labels (-1, 0, 1, 2 ...): is it a mask from the roi folder?"
        )
    return values.astype(np.int64)


def session_shape(path: Path) -> tuple[tuple[int, ...], int]:
    """The grid (x, y, z) and the number of trials of a session's betas, from the header alone.

    Raises:
        DataError: damaged, or not int16 in four dimensions without a scale of its own.
    """
    if path.suffix == ".hdf5":
        import h5py

        with reading(path, "HDF5 with the data set 'betas'"), h5py.File(path, "r") as file:
            data = hdf5_array(file, "betas", path)
            shape, dtype, scale = data.shape[::-1], data.dtype, (1.0, 0.0)
    else:
        with reading(path, "NIfTI with int16 betas"), _open(path) as file:
            header = _Header.read(file)
            shape, dtype, scale = header.shape, header.dtype, header.scale
    if len(shape) != 4 or min(shape) < 1 or (dtype.kind, dtype.itemsize) != ("i", 2):
        raise DataError(f"{path} holds {dtype} {shape}, expected the release's int16 (x, y, z, trials).")
    if scale != (1.0, 0.0):
        raise DataError(
            f"{path} has the scale {scale[0]:g} and offset {scale[1]:g} in its header; the release has none "
            "(int16, 300 times the percent signal change): use the file as it was downloaded."
        )
    return tuple(int(n) for n in shape[:3]), int(shape[3])


def read_session(path: Path, voxels: np.ndarray) -> np.ndarray:
    """The betas of some voxels as they are stored.

    Args:
        path: a file whose `session_shape` was looked at.
        voxels: indices into (x, y, z), int (n, 3).

    Returns:
        int16 (trials, n), 300 times the percent signal change.
    """
    if path.suffix != ".hdf5":
        return _read_nifti(path, voxels)
    import h5py

    with reading(path, "HDF5 with the data set 'betas'"), h5py.File(path, "r") as file:
        data = hdf5_array(file, "betas", path)
        if data.chunks is None or data.chunks[0] < len(data):  # somebody stored it anew, trial by trial
            return _read_by_trials(data, voxels)
        found = np.empty((len(data), len(voxels)), np.int16)
        for columns, (x, y, z) in _runs(voxels):
            found[:, columns] = data[:, z, y, x : x + len(columns)]
        return found


def hdf5_array(file: Any, name: str, path: Path) -> Any:
    """The data set of that name when it lies in this very file; a link could lead to any file of the reader's."""
    import h5py

    data = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        found = ", ".join(str(key) for key in list(file)[:8]) or "nothing"
        raise DataError(f"{path} has no data set {name!r} of its own (found: {found}).")
    if data.chunks is not None and math.prod(data.chunks) * data.dtype.itemsize > MAX_CHUNK_BYTES:
        raise DataError(f"{path}: {name!r} claims chunks of {data.chunks}, which is damage.")
    return data


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    scale: tuple[float, float]

    @classmethod
    def read(cls, file: IO[bytes]) -> _Header:
        """The facts of a NIfTI-1 header; nibabel reads either byte order."""
        from nibabel.imageglobals import LoggingOutputSuppressor
        from nibabel.nifti1 import Nifti1Header

        with LoggingOutputSuppressor():  # it would print its complaint as well as raise it
            header = Nifti1Header.from_fileobj(file)
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        if dtype.kind not in "iuf" or dtype.itemsize > 8 or offset < 348:
            raise ValueError(f"its header claims {dtype} from byte {offset} on")
        slope, inter = header.get_slope_inter()
        scale = (1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter))
        return cls(tuple(int(n) for n in header.get_data_shape()), dtype, offset, scale)


def _read_nifti(path: Path, voxels: np.ndarray) -> np.ndarray:
    with reading(path, "NIfTI with int16 betas"), _open(path) as file:
        header = _Header.read(file)
        grid, trials = header.shape[:3], header.shape[3]
        where = np.ravel_multi_index(tuple(voxels.T), grid, order="F")
        found = np.empty((trials, len(voxels)), np.int16)
        file.seek(header.offset)
        step = max(1, BLOCK_BYTES // (2 * math.prod(grid)))
        for start in range(0, trials, step):
            count = min(step, trials - start)
            block = np.frombuffer(_exactly(file, count * math.prod(grid) * 2), header.dtype)
            found[start : start + count] = block.reshape(count, -1)[:, where]
        _need_end(file)
    return found


def _read_by_trials(data: Any, voxels: np.ndarray) -> np.ndarray:
    where = np.ravel_multi_index(tuple(voxels.T[::-1]), data.shape[1:])
    found = np.empty((len(data), len(voxels)), np.int16)
    step = max(1, BLOCK_BYTES // (2 * math.prod(data.shape[1:])))
    for start in range(0, len(data), step):
        block = data[start : start + step]
        found[start : start + step] = block.reshape(len(block), -1)[:, where]
    return found


def _runs(voxels: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int, int]]]:
    """Voxels that are neighbours along x: their rows of `voxels`, and (x, y, z) of the first."""
    order = np.lexsort(voxels.T)  # by z, then y, then x
    step = np.diff(voxels[order], axis=0)
    breaks = np.flatnonzero((step != (1, 0, 0)).any(axis=1)) + 1
    for rows in np.split(order, breaks):
        x, y, z = voxels[rows[0]].tolist()
        yield rows, (x, y, z)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # pyright: ignore[reportReturnType]


def _exactly(file: IO[bytes], count: int) -> bytes:
    found = file.read(count)
    if len(found) != count:
        raise ValueError(f"it ends {count - len(found)} bytes early")
    return found


def _need_end(file: IO[bytes]) -> None:
    """Reads on to the end, where gzip compares its checksum: a flipped bit would pass otherwise."""
    if file.read(1):
        raise ValueError("it holds more than its header claims")

"""Opening files that other people made: checked, memory-mapped where the format allows it, nothing executed.

Every function raises `DataError` with the path for what is missing, damaged or not what it claims to be.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image

from cadiff.artifacts import what_is_at
from cadiff.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000  # a picture that claims more is damaged or hostile
LOCAL_HEADER = 30  # bytes of a zip member's local header before its name


def need_file(path: Path, hint: str) -> Path:
    """`path` when it is a file; else a `DataError` that says what is there and gives the hint."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file: {hint}")
    if not path.is_file():
        raise DataError(f"There is no file {path} (found: {what_is_at(path.parent)}): {hint}")
    return path


def need_folder(path: Path, hint: str) -> Path:
    """`path` when it is a folder; else a `DataError` that gives the hint."""
    if not path.is_dir():
        raise DataError(f"{path} is not a folder (found: {what_is_at(path)}): {hint}")
    return path


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused when the name (read from a file) would lead out of the folder."""
    path = folder / name
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{name!r} does not name a file inside {folder}: names must not leave the folder.")
    return path


def read_text(path: Path, hint: str = "expected a UTF-8 text file.") -> str:
    """The text of a small UTF-8 file."""
    try:
        return need_file(path, hint).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): {hint}") from None


def load_picture(path: Path) -> np.ndarray:
    """A picture as uint8 (H, W, 3); grey, palette, alpha and 16-bit pictures are converted."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"The picture {path} claims {picture.width} x {picture.height} pixels.")
            if picture.mode in ("I;16", "I;16B", "I"):
                return np.repeat(
                    (np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8)[..., None], 3, 2
                )
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"The picture {path} cannot be read: {error}.") from None


def open_npy(path: Path) -> np.ndarray:
    """The array in a .npy file, memory-mapped read-only: any numeric or text dtype in native or swapped byte order."""
    try:
        array = np.load(need_file(path, "expected a .npy file."), mmap_mode="r", allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # numpy parses the header as Python text, and trips in many ways
        raise DataError(f"{path} cannot be read as a numpy array: {_reason(error)}.") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays (.npz), expected a single array (.npy).")
    return array


class Archive(Mapping[str, np.ndarray]):
    """The arrays of an .npz file by name. Members that `np.savez` stored are memory-mapped, compressed ones are read."""

    def __init__(self, path: Path) -> None:
        self.path = need_file(path, "expected an .npz file.")
        try:
            with zipfile.ZipFile(path) as archive:
                members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise DataError(f"{path} cannot be read as an .npz archive: {_reason(error)}.") from None
        self._members = {info.filename.removesuffix(".npy"): info for info in members}

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._members:
            raise KeyError(name)
        info = self._members[name]
        try:
            return self._map(info) if info.compress_type == zipfile.ZIP_STORED else self._inflate(info)
        except Exception as error:  # a damaged archive or header: zipfile and numpy trip in many ways
            raise DataError(f"{self.path}: the array {name!r} cannot be read: {_reason(error)}.") from None

    def need(self, *names: str) -> None:
        """Raises `DataError` that lists what is missing and what is there, unless all `names` are."""
        if missing := [name for name in names if name not in self]:
            raise DataError(
                f"{self.path} lacks {', '.join(missing)} (it has: {', '.join(list(self)[:20]) or 'no arrays'})."
            )

    def _map(self, info: zipfile.ZipInfo) -> np.ndarray:
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            local = file.read(LOCAL_HEADER)
            if len(local) < LOCAL_HEADER or local[:4] != b"PK\x03\x04":
                raise ValueError("the archive's directory does not fit its content")
            file.seek(sum(struct.unpack("<HH", local[26:30])), 1)  # the member's name and extra field
            start = file.tell()
            shape, fortran, dtype = _npy_header(file)
            offset = file.tell()
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if offset - start + size != info.file_size:
            raise ValueError(f"its header claims {size} bytes, the archive holds {info.file_size}")
        if not size:
            return np.zeros(shape, dtype)
        return np.memmap(self.path, dtype, "r", offset, shape, "F" if fortran else "C")

    def _inflate(self, info: zipfile.ZipInfo) -> np.ndarray:
        with zipfile.ZipFile(self.path) as archive, archive.open(info) as file:
            shape, fortran, dtype = _npy_header(file)
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if size > info.file_size or info.file_size > 1100 * max(info.compress_size, 1):  # deflate's limit
                raise ValueError(f"its header claims {size} bytes, the archive holds {info.file_size}")
            content = file.read(size)
            if len(content) != size or file.read(1):
                raise ValueError(f"it holds {len(content)} bytes, its header claims {size}")
        flat = np.frombuffer(content, dtype)
        return flat.reshape(shape, order="F" if fortran else "C")


def _npy_header(file: object) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(file)  # pyright: ignore[reportArgumentType]
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"numpy format {version} is unknown")
    shape, fortran, dtype = readers[version](file)  # pyright: ignore[reportArgumentType]
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, fortran, dtype


def need_numbers(array: np.ndarray, shape: tuple[int | None, ...], what: str) -> np.ndarray:
    """`array` when it holds numbers of that shape (None fits any length but 0); else a `DataError` starting with `what`."""
    fits = len(array.shape) == len(shape) and all(
        found > 0 and wanted in (None, found) for found, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind not in "fiub":
        wanted = ", ".join("n" if length is None else str(length) for length in shape)
        raise DataError(f"{what} is {array.dtype} {array.shape}, expected numbers ({wanted}).")
    return array


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if "pickle" in reason:  # numpy's advice, to load it unsafely, is not ours
        return "it is not a numpy file, or one of Python objects"
    if isinstance(error, (zipfile.BadZipFile, EOFError)) or "mmap length" in reason or "EOF" in reason:
        return "it is cut off or damaged, or no file of this kind; copy it again"
    return reason

"""Numeric arrays in MATLAB's .mat files, versions 5 to 7 (`save -v6`, `-v7`) and 7.3 (HDF5), read without trust.

A file of version 5 is a header of 128 bytes (text, the version 0x0100, and "IM" or "MI" for the byte order) and a row of
elements: a tag (uint32 type, uint32 bytes; or uint16 twice, and four bytes of content, when the content is that small) and
content padded to eight bytes. A variable is an element of type miMATRIX, or one of type miCOMPRESSED that inflates to it,
and holds elements itself: flags with its class, its lengths, its name, its values column by column.
From "MAT-File Format" (The MathWorks). A file of version 7.3 is HDF5 behind a block of 512 bytes, one data set a variable,
its axes in reversed order because MATLAB counts columns first.

scipy.io.loadmat is not used: on damaged files it crashes the interpreter, and it allocates whatever a header claims.
Here a claim is compared with the bytes that are there before anything is allocated. Values that lie uncompressed in the
file are memory-mapped. Cells, structs, text, sparse and complex arrays are passed over.
"""

from __future__ import annotations

import math
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from cadiff.data.files import need_file
from cadiff.errors import DataError

HEADER = 128
MATRIX, COMPRESSED = 14, 15
NUMERIC_CLASSES = range(6, 16)  # double, single, and the integers of 1 to 8 bytes
COMPLEX = 0x0800
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
DEFLATE_LIMIT = 1100  # deflate makes a file at most some 1032 times smaller
PIECE = 1 << 22
LONGEST_HEAD = 4096  # bytes of a variable's lengths or name; more is damage
IN_MEMORY = 1 << 30  # larger arrays of compressed HDF5 are unpacked to a temporary file
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
FAILURES = (
    OSError, ValueError, EOFError, TypeError, LookupError, OverflowError, MemoryError, AttributeError, RuntimeError,
    SystemError, struct.error, zlib.error,
)  # fmt: skip


def load_mat(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The numeric arrays of a .mat file, in the shape that MATLAB shows, read-only and perhaps memory-mapped.

    Args:
        path: the file, of version 5 to 7.3.
        names: the arrays that are needed; None for all.

    Raises:
        DataError: not a .mat file, a damaged one, or one that lacks a numeric array of that name.
    """
    content = MatFile(path)
    if names is not None:
        content.need(*names)
    return {name: content[name] for name in (content if names is None else names)}


class MatFile(Mapping[str, np.ndarray]):
    """The numeric arrays of a .mat file by name; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = need_file(path, "expected a .mat file.")
        try:
            with path.open("rb") as file:
                self._hdf5 = _is_hdf5(file)
                self._members: Mapping[str, Any] = _list_hdf5(path) if self._hdf5 else dict(_variables(file))
        except FAILURES as error:
            raise DataError(
                f"{path} is not a .mat file that can be read: {_reason(error)}. Save or download it again."
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        try:
            return _load_hdf5(self.path, name) if self._hdf5 else member.load(self.path)
        except FAILURES as error:
            raise DataError(
                f"{self.path}: the array {name!r} cannot be read: {_reason(error)}. Save or download it again."
            ) from None

    def need(self, *names: str) -> None:
        """Raises `DataError` that lists what is missing and what is there, unless all `names` are."""
        if missing := [name for name in names if name not in self._members]:
            found = ", ".join(list(self)[:20]) or "none"
            raise DataError(
                f"{self.path} lacks {', '.join(missing)} (numeric arrays found: {found}); "
                f"expected {', '.join(names)}."
            )


class _Variable(NamedTuple):
    """Where the values of a version 5 variable are; places are counted in its element, inflated if need be."""

    start: int
    size: int
    compressed: bool
    place: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def load(self, path: Path) -> np.ndarray:
        count = math.prod(self.shape)
        if not count:
            return np.zeros(self.shape, self.dtype)
        if not self.compressed:
            return np.memmap(path, self.dtype, "r", self.start + self.place, self.shape, "F")
        with path.open("rb") as file:
            file.seek(self.start)
            stream = _Inflated(file, self.size)
            stream.read(self.place)
            values = np.frombuffer(stream.read(count * self.dtype.itemsize), self.dtype)
            stream.finish()
        values.flags.writeable = False
        return values.reshape(self.shape, order="F")


class _Stream(Protocol):
    def read(self, count: int, /) -> bytes | bytearray: ...


class _Inflated:
    """The content of a miCOMPRESSED element, from the place of `file`, piece by piece."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size
        self._inflate = zlib.decompressobj()

    def read(self, count: int, /) -> bytearray:
        found = bytearray()
        while len(found) < count:
            piece = self._inflate.unconsumed_tail
            if not piece:
                piece = self._file.read(min(self._left, PIECE))
                self._left -= len(piece)
            out = self._inflate.decompress(piece, min(count - len(found), PIECE))
            if not piece and not out:
                raise ValueError(f"it ends {count - len(found)} bytes early")
            found += out
        return found

    def finish(self) -> None:
        """Raises ValueError unless the content ends here, or after padding, with the right checksum."""
        rest = self._inflate.unconsumed_tail + self._file.read(min(self._left, PIECE))
        if len(self._inflate.decompress(rest, LONGEST_HEAD)) == LONGEST_HEAD or not self._inflate.eof:
            raise ValueError("its values do not end where they should")


def _is_hdf5(file: IO[bytes]) -> bool:
    for place in (0, 512, 1024, 2048):
        file.seek(place)
        if file.read(8) == HDF5_MAGIC:
            return True
    return False


def _variables(file: IO[bytes]) -> Iterator[tuple[str, _Variable]]:
    """Name and place of every numeric array of a version 5 file."""
    end = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEADER)
    if len(head) < HEADER or head[126:] not in (b"IM", b"MI"):
        raise ValueError("it has no header of MATLAB 5 to 7.3")
    order = "<" if head[126:] == b"IM" else ">"
    if struct.unpack(order + "H", head[124:126])[0] != 0x0100:
        raise ValueError(f"its header claims the unknown version {head[124:126].hex()}")
    start = HEADER
    while start < end:
        file.seek(start)
        kind, size = struct.unpack(order + "II", _exactly(file, 8))
        start += 8
        if kind not in (MATRIX, COMPRESSED):
            raise ValueError(f"byte {start - 8} holds an element of type {kind}, expected a variable")
        if not 0 < size <= end - start:
            raise ValueError(f"a variable at byte {start} claims {size} bytes, the file has {end - start}")
        stream: _Stream = _Inflated(file, size) if kind == COMPRESSED else file
        found = _variable(stream, order, start, size, compressed=kind == COMPRESSED)
        if found is not None:
            yield found
        start += size


def _variable(
    stream: _Stream, order: str, start: int, size: int, *, compressed: bool
) -> tuple[str, _Variable] | None:
    """Reads a variable up to its values; None for what is not a named array of real numbers."""
    place, limit = 0, size
    if compressed:
        kind, limit = struct.unpack(order + "II", _exactly(stream, 8))
        place = 8
        if kind != MATRIX or limit > DEFLATE_LIMIT * size:
            raise ValueError(f"a compressed variable of {size} bytes claims type {kind} and {limit} bytes")
        limit += 8
    _, used, flags = _head_element(stream, order)
    place += used
    if len(flags) < 4:
        raise ValueError(f"a variable at byte {start} has no flags")
    word = struct.unpack(order + "I", flags[:4])[0]
    if word & 0xFF not in NUMERIC_CLASSES or word & COMPLEX:
        return None
    kind, used, lengths = _head_element(stream, order)
    place += used
    shape = tuple(np.frombuffer(lengths, np.dtype(order + "i4")).tolist())
    if kind not in (5, 6) or not 2 <= len(shape) <= 32 or min(shape) < 0:
        raise ValueError(f"a variable at byte {start} claims the shape {shape}")
    _, used, name = _head_element(stream, order)
    place += used
    kind, stored, used = _tag(stream, order)
    place += used
    if kind not in TYPES:
        raise ValueError(f"the values at byte {start} are of the unknown type {kind}")
    dtype = np.dtype(order + TYPES[kind])
    if math.prod(shape) * dtype.itemsize != stored or place + stored > limit:
        raise ValueError(
            f"a variable at byte {start} claims the shape {shape}, its values take {stored} bytes of {limit}"
        )
    if not name:
        return None
    return name.decode("utf-8"), _Variable(start, size, compressed, place, shape, dtype)


def _tag(stream: _Stream, order: str) -> tuple[int, int, int]:
    """Type, bytes of content, and bytes of the tag: 4 when the content shares the tag's eight bytes, else 8."""
    word = struct.unpack(order + "I", _exactly(stream, 4))[0]
    if not word >> 16:
        return word, struct.unpack(order + "I", _exactly(stream, 4))[0], 8
    if word >> 16 > 4:
        raise ValueError(f"a small element claims {word >> 16} bytes")
    return word & 0xFFFF, word >> 16, 4


def _head_element(stream: _Stream, order: str) -> tuple[int, int, bytes]:
    """Type, bytes that it takes with tag and padding, and content of an element of at most `LONGEST_HEAD` bytes."""
    kind, size, tag = _tag(stream, order)
    if size > LONGEST_HEAD:
        raise ValueError(f"an element of a variable's head claims {size} bytes")
    padded = 4 if tag == 4 else size + -size % 8
    return kind, tag + padded, _exactly(stream, padded)[:size]


def _exactly(stream: _Stream, count: int) -> bytes:
    found = bytes(stream.read(count))
    if len(found) != count:
        raise ValueError("it is cut off")
    return found


def _list_hdf5(path: Path) -> dict[str, None]:
    """Names of the numeric data sets at the root of a version 7.3 file."""
    import h5py

    with h5py.File(path, "r") as file:
        return {name: None for name in map(str, file) if _numeric(file, name) is not None}


def _numeric(file: Any, name: str) -> Any:
    """The data set when it holds real numbers in this very file; else None."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):  # a link may lead to any file
        return None
    found = file[name]
    if (
        not isinstance(found, h5py.Dataset)
        or found.dtype.kind not in "fiu"
        or found.is_virtual
        or found.external
    ):
        return None
    matlab = found.attrs.get("MATLAB_class", b"double")
    return None if matlab in (b"char", b"cell", b"struct") else found


def _load_hdf5(path: Path, name: str) -> np.ndarray:
    import h5py

    with h5py.File(path, "r") as file:
        found = _numeric(file, name)
        if "MATLAB_empty" in found.attrs:  # the data set holds the lengths
            return np.zeros((0, 0))
        if not found.size:
            return np.zeros(found.shape[::-1], found.dtype)
        stored, there = found.id.get_storage_size(), path.stat().st_size
        if stored > there or found.nbytes > DEFLATE_LIMIT * stored:
            raise ValueError(f"it claims {found.nbytes} bytes, {min(stored, there)} are stored")
        if found.chunks is None and (offset := found.id.get_offset()) is not None:
            return np.memmap(path, found.dtype, "r", offset, found.shape).T
        if found.nbytes <= IN_MEMORY:
            return found[()].T
        with tempfile.TemporaryFile() as room:  # stays until the array goes
            array = np.memmap(room, found.dtype, "w+", 0, found.shape)
        step = max(1, found.chunks[0] if found.chunks else 1)
        for start in range(0, len(found), step):
            found.read_direct(array, np.s_[start : start + step], np.s_[start : start + step])
        return array.T


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__

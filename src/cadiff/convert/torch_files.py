"""Files of `torch.save`, zip and older, read without running them and without loading their tensors.

A checkpoint is a pickle that refers to storages by key. The pickle is read by `cadiff.safe_pickle`; where the storages lie in the
file is worked out from the zip directory, or from the counts that an older file puts before each. Every size is held against the
file before anything is mapped. `torch.load` is not used: its `weights_only` mode refuses the pickled settings of the checkpoints
that this is for, and could be made to run code before PyTorch 2.6.

    zip      <name>/data.pkl, <name>/data/<key> stored uncompressed, <name>/byteorder
    older    pickles: magic number, protocol, system, the object, the storage keys; then (int64 count, data) for each key
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cadiff.convert.tensor_refs import unpickle
from cadiff.errors import ArtifactError, DataError
from cadiff.safe_pickle import load_inert_pickle

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of an older file
MAX_PICKLE, MAX_ENTRIES = 64 << 20, 100_000
AGAIN = "download it again"


class Contents(NamedTuple):
    """What a file holds, and where its storages are."""

    layout: str
    """The format in words."""
    value: Any
    """With `TensorRef`s for tensors."""
    places: Mapping[str, tuple[int, int]]
    """Storage key -> (position in the file, bytes there)."""
    checksums: Mapping[str, int]
    """Storage key -> CRC-32 of its bytes, where the file keeps one."""


def read_torch_file(path: Path) -> Contents:
    """The pickle of a torch file, and the places of its storages.

    Raises:
        ArtifactError: not a torch file, a truncated or damaged one, or one that asks for what can run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            return _read_zip(path, file) if start == b"PK\x03\x04" else _read_older(path, file)
    except DataError as error:  # of the pickle; what is wrong with weights is an ArtifactError
        raise ArtifactError(str(error)) from None


def _read_zip(path: Path, file: BinaryIO) -> Contents:
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise ArtifactError(_cut_off(path, file, str(error))) from None
    names = [entry.filename for entry in entries]
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or len(set(names)) != len(names) or len(names) > MAX_ENTRIES:
        shown = ", ".join(name for name in names[:4] if name.isprintable()) or "nothing"
        raise ArtifactError(
            f"{path} is a zip archive, but none of torch.save (it holds {shown}): expected one data.pkl in it."
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise ArtifactError(
            f"{path} is a TorchScript program, which is code: expected a checkpoint, with weights by name."
        )
    places = _places(path, file, entries)
    if _bytes(file, places.get(f"{root}byteorder", (0, 0))) == b"big":
        raise ArtifactError(f"{path} was written on a big-endian machine: save it again on another one.")
    if places[pickles[0]][1] > MAX_PICKLE:
        raise ArtifactError(
            f"{path}: its list of contents has {places[pickles[0]][1]:,} bytes, expected at most {MAX_PICKLE:,}: it "
            "holds more than weights and settings."
        )
    value, storages = unpickle(io.BytesIO(_bytes(file, places[pickles[0]])), str(path))
    for key, storage in storages.items():
        found = places.get(f"{root}data/{key}", (0, None))[1]
        if found != storage.size:
            there = "is absent" if found is None else f"has {found:,} bytes"
            raise ArtifactError(
                f"{path}: storage {key} {there}, expected {storage.size:,}: it is damaged, {AGAIN}."
            )
    checksums = {entry.filename: entry.CRC for entry in entries}
    inside = {key: f"{root}data/{key}" for key in storages}
    return Contents(
        "PyTorch (zip)",
        value,
        {key: places[name] for key, name in inside.items()},
        {key: checksums[name] for key, name in inside.items()},
    )


def _places(path: Path, file: BinaryIO, entries: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Name -> (position, bytes) of every entry, all of them stored as they are and inside the file."""
    size, places = path.stat().st_size, {}
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
        if not stored or entry.flag_bits & 1:
            raise ArtifactError(
                f"{path}: {entry.filename!r} is compressed or encrypted, which torch.save never does: it may be made to "
                "fill the memory."
            )
        places[entry.filename] = (_data_start(file, entry.header_offset), entry.file_size)
    total = sum(length for _, length in places.values())
    if max(start + length for start, length in places.values()) > size or total > size:
        raise ArtifactError(
            f"{path}: its directory lists {total:,} bytes, which do not lie in its {size:,}: {AGAIN}."
        )
    return places


def _data_start(file: BinaryIO, header: int) -> int:
    """Where an entry's bytes begin: after its local header, whose name and padding differ from the directory's."""
    file.seek(max(0, header))
    local = file.read(30)
    if header < 0 or local[:4] != b"PK\x03\x04" or len(local) < 30:
        return 1 << 62  # outside any file
    return header + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _bytes(file: BinaryIO, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def _cut_off(path: Path, file: BinaryIO, reason: str) -> str:
    """The sentence for a zip without its directory, which stands at the end: the first entry lists what should follow."""
    size, start = path.stat().st_size, _data_start(file, 0)
    reason = "the directory at its end is missing" if "not a zip file" in reason else reason
    said = f"{path} is cut off or damaged ({reason}): it has {size:,} bytes"
    try:
        _, storages = unpickle(io.BytesIO(_bytes(file, (start, MAX_PICKLE))), str(path))
    except (DataError, OSError, OverflowError):
        storages = {}
    if needed := sum(storage.size for storage in storages.values()):
        said += f", and the tensors it lists take {needed:,} alone"
    return f"{said}; {AGAIN}, or resume the download."


def _read_older(path: Path, file: BinaryIO) -> Contents:
    size, head, what = path.stat().st_size, io.BytesIO(file.read(MAX_PICKLE)), str(path)
    try:
        magic = load_inert_pickle(head, what=what)
    except DataError as error:
        if "can run code" in str(error):
            raise
        raise _no_torch_file(path) from None
    if magic != MAGIC:
        raise _no_torch_file(path)
    load_inert_pickle(head, what=what)  # protocol
    system = load_inert_pickle(head, what=what)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise ArtifactError(f"{path} was written on a big-endian machine: save it again on another one.")
    value, storages = unpickle(head, what)
    keys = load_inert_pickle(head, what=what)
    position, places = head.tell(), {}
    if (
        not isinstance(keys, list)
        or any(type(key) is not str for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise ArtifactError(f"{path}: its list of storages does not fit its tensors: it is damaged, {AGAIN}.")
    expected = position + sum(8 + storage.size for storage in storages.values())
    if expected > size:
        raise ArtifactError(
            f"{path} is cut off: it has {size:,} bytes, and the tensors it lists need {expected:,}; {AGAIN}."
        )
    for key in keys:
        numel = int.from_bytes(_bytes(file, (position, 8)), "little")
        if numel != storages[key].numel:
            raise ArtifactError(
                f"{path}: storage {key} has {numel:,} numbers, expected {storages[key].numel:,}: it is damaged, {AGAIN}."
            )
        places[key] = (position + 8, storages[key].size)
        position += 8 + storages[key].size
    return Contents("PyTorch (before 1.6)", value, places, {})


def refuse_other_files(path: Path, head: bytes) -> None:
    """Raises `ArtifactError` for what comes instead of weights where a download went wrong."""
    size, start = path.stat().st_size, head.lstrip().lower()
    if size == 0:
        raise ArtifactError(f"{path} is empty: {AGAIN}.")
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise ArtifactError(
            f"{path} is a web page ({size:,} bytes), not weights: the link asked for a log-in or a confirmation, so "
            "download it in a browser."
        )
    if start.startswith(b"version https://git-lfs"):
        lines = head.decode(errors="replace").splitlines()
        wanted = next((line.split()[-1] for line in lines if line.startswith("size ")), "unknown")
        raise ArtifactError(
            f"{path} is a Git LFS pointer; the weights ({wanted} bytes) are not here: run `git lfs pull`."
        )


def _no_torch_file(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} ({path.stat().st_size:,} bytes) is no file of weights that this reads: expected .safetensors, or a "
        "checkpoint of torch.save."
    )

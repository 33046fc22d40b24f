"""One door to a file of weights, whatever its format: its contents by name, and its tensors mapped from the disk.

Nothing is copied when a file is opened: a tensor is a view of the mapped file, and its pages are read when they are used.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.convert.tensor_refs import ITEM_SIZES, StorageRef, TensorRef
from cadiff.convert.torch_files import AGAIN, Contents, read_torch_file, refuse_other_files
from cadiff.errors import ArtifactError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl")
MAX_HEADER = 100_000_000  # of the safetensors format
SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, eq=False)
class WeightFile:
    """An opened file: what it holds, with a `TensorRef` for every tensor."""

    path: Path
    contents: Contents
    _map: list[np.memmap] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> WeightFile:
        """Reads what is in a file, but no tensor.

        Raises:
            ArtifactError: no such file, not weights, truncated, damaged, or made to run code or to fill the memory.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"There is no file of weights {path}.")
        with path.open("rb") as file:
            head = file.read(1024)
        refuse_other_files(path, head)
        safetensors = path.suffix == ".safetensors" or head[8:9] == b"{"
        return cls(path, (_read_safetensors if safetensors else read_torch_file)(path))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    def tensors(self, wanted: Mapping[str, TensorRef]) -> dict[str, Tensor]:
        """Views of the mapped file by name, of the precision in which they are stored, after a look at every byte of them.

        Raises:
            ArtifactError: they claim more than the file holds, differ from the file's checksums, or are not finite.
        """
        claimed = sum(ref.size for ref in wanted.values())
        if claimed > 2 * self.size:  # weights may be shared, but not all of them twice
            raise ArtifactError(
                f"{self.path}: its tensors claim {claimed:,} bytes, the file has {self.size:,}: it may be made to fill "
                "the memory."
            )
        for key in sorted({ref.storage.key for ref in wanted.values()} & self.contents.checksums.keys()):
            start, length = self.contents.places[key]
            if zlib.crc32(self._bytes()[start : start + length].data) != self.contents.checksums[key]:
                raise ArtifactError(
                    f"{self.path}: storage {key} differs from its checksum: it is damaged, {AGAIN}."
                )
        found = {name: self._tensor(ref) for name, ref in wanted.items()}
        for name, tensor in found.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ArtifactError(f"{self.path}: the weight {name} is not finite: take another file.")
        return found

    def _tensor(self, ref: TensorRef) -> Tensor:
        dtype = getattr(torch, ref.dtype)
        if ref.numel == 0:
            return torch.empty(ref.shape, dtype=dtype)
        start = self.contents.places[ref.storage.key][0]
        numbers = torch.from_numpy(self._bytes()[start : start + ref.storage.size])
        if start % ITEM_SIZES[ref.dtype]:  # older files do not align their data
            numbers = numbers.clone()
        return numbers.view(dtype).as_strided(ref.shape, ref.stride, ref.offset)

    def _bytes(self) -> np.memmap:
        if not self._map:
            # copy on write: the file is never changed, and PyTorch takes the pages without a warning
            self._map.append(np.memmap(self.path, np.uint8, "c"))
        return self._map[0]


def _read_safetensors(path: Path) -> Contents:
    """Header length (8 bytes), header (JSON: name -> dtype, shape, data_offsets), data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise ArtifactError(
                f"{path} has {size:,} bytes, of which its header claims {length:,}: it is cut off, or no .safetensors "
                f"file; {AGAIN}."
            )
        header = file.read(length)
    refs, places = {}, {}
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
            if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
                raise ValueError(f"{name} has a size that cannot be")
            if entry["dtype"] not in SAFETENSORS:
                raise ValueError(f"{name} is of type {entry['dtype']}")
            refs[name] = _whole(name, SAFETENSORS[entry["dtype"]], shape)
            if end - start != refs[name].size:
                raise ValueError(f"{name} takes {refs[name].size:,} bytes and is given {end - start:,}")
            places[name] = (8 + length + start, refs[name].size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(ascii(str(error))[1:-1].split())[:200]
        raise ArtifactError(
            f"{path} has a header that cannot be read ({reason}): expected a .safetensors file."
        ) from None
    expected = max((start + taken for start, taken in places.values()), default=8 + length)
    if expected > size:
        raise ArtifactError(
            f"{path} is cut off: it has {size:,} bytes, and its header lists {expected:,}; {AGAIN}."
        )
    return Contents("safetensors", refs, places, {})


def _whole(name: str, dtype: str, shape: tuple[int, ...]) -> TensorRef:
    stride, step = [], 1
    for length in reversed(shape):
        stride.append(step)
        step *= length
    return TensorRef(StorageRef(name, dtype, step), 0, shape, tuple(reversed(stride)))

"""Tensors that are still in their file, and the pickles of `torch.save` with such in the place of every tensor."""

from __future__ import annotations

import math
from typing import Any, BinaryIO, NamedTuple

from cadiff.safe_pickle import Sealed, StandIn, load_inert_pickle

STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
ITEM_SIZES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


class StorageRef(NamedTuple):
    """A stretch of numbers that tensors look at."""

    key: str
    dtype: str
    numel: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numel * ITEM_SIZES[self.dtype]


class TensorRef(NamedTuple):
    """A tensor that is still in its file."""

    storage: StorageRef
    offset: int
    """Numbers before its first one."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """As PyTorch calls it, without `torch.`"""
        return self.storage.dtype

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes it takes when it stands alone."""
        return self.numel * ITEM_SIZES[self.dtype]


def unpickle(file: BinaryIO, what: str) -> tuple[Any, dict[str, StorageRef]]:
    """The object that `torch.save` pickled, and the storages that its tensors look at, by key.

    Raises:
        DataError: as `load_inert_pickle`, and for tensors that claim more than their storage.
    """
    storages: dict[str, StorageRef] = {}

    def storage(pid: Any) -> StorageRef:
        tag, kind, key, _, numel, *view = pid
        name = getattr(kind, "__name__", "")
        named = isinstance(key, str) and key.isprintable()
        if tag != "storage" or not named or type(numel) is not int or numel < 0:
            raise ValueError("it refers to a storage in an unknown way")
        if name not in STORAGES:
            raise ValueError(f"it has a storage of kind {name or 'unknown'}")
        if any(part is not None for part in view):
            raise ValueError("it has storages that are views of others, as PyTorch before 0.4 wrote them")
        ref = StorageRef(key, STORAGES[name], numel)
        if storages.setdefault(key, ref) != ref:
            raise ValueError(f"it describes storage {key} in two ways")
        return ref

    return load_inert_pickle(file, what=what, known=_rebuilders(), persistent=storage), storages


def _rebuilders() -> dict[tuple[str, str], Sealed]:
    """What PyTorch writes for tensors and parameters; made anew for every file."""

    def tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, StorageRef) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("it describes a tensor that cannot be")
        made = TensorRef(storage, offset, tuple(shape), tuple(stride))
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        if made.numel and (last >= storage.numel or made.numel > storage.numel):
            raise ValueError(f"it has a tensor of {made.numel:,} numbers in a storage of {storage.numel:,}")
        return made

    def parameter(data: Any, *_: Any) -> Any:
        return data

    def subclass(function: Any, kind: Any, args: Any, *_: Any) -> Any:
        known = isinstance(function, Sealed) and isinstance(args, tuple)
        return function(*args) if known else StandIn(function, kind, args)

    functions = {
        "torch._utils": {
            "_rebuild_tensor": tensor,
            "_rebuild_tensor_v2": tensor,
            "_rebuild_parameter": parameter,
            "_rebuild_parameter_with_state": parameter,
        },
        "torch._tensor": {"_rebuild_from_type_v2": subclass},
    }
    return {
        (module, name): Sealed(function)
        for module, names in functions.items()
        for name, function in names.items()
    }

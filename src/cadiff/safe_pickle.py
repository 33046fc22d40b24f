"""Reading pickles without running what is in them.

`load_plain_pickle`  public data that is a pickled dict of numpy arrays: builds containers, numbers, text and arrays of numbers or
                     text, and refuses any other name in the stream before it is imported.
`load_inert_pickle`  checkpoints, whose settings are pickled objects of classes that need not exist here: builds plain containers,
                     with a `StandIn`, which records and never runs, in the place of every other object.

No code of the file runs in either: both find a name in a literal table or not at all.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import warnings
from _compat_pickle import (
    IMPORT_MAPPING,
)  # Python 2 module -> Python 3 module; protocols up to 2 are written with the old names
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cadiff.errors import DataError

# What numpy's own arrays, scalars and dtypes pickle as (numpy 1 and 2), and the plain containers beyond the opcodes'.
ALLOWED = {
    (f"{core}.{module}", name)
    for core in ("numpy.core", "numpy._core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # bytes of pickles written by Python 2
}
FAILURES = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
    RecursionError,
    LookupError,
)
# Modules of the standard library hold what a pickle needs to do harm (os, subprocess, builtins, runpy, ...) and hardly a class
# that settings are made of: these few are not refused by name, but stood in for like any other.
HARMLESS = {
    *(
        "argparse",
        "collections",
        "copyreg",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "pathlib",
    ),
    *("types", "uuid", "_codecs"),
}
HARMLESS_BUILTINS = {
    *(
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "int",
        "list",
        "object",
        "range",
        "slice",
        "str",
    ),
    *("tuple", "long", "unicode", "xrange"),  # the last three of Python 2, whose names protocols up to 2 keep
}
STANDARD = frozenset(
    name
    for name in sys.stdlib_module_names | set(IMPORT_MAPPING) | {"distutils", "imp", "urllib2"}
    if IMPORT_MAPPING.get(name, name) not in HARMLESS
)
BUILTINS = ("builtins", "__builtin__")
MAX_OPCODES, MAX_NAMES = 2_000_000, 1_000
# Opcodes that no checkpoint needs: names by number, and buffers whose length is believed before it is read.
STRANGE = {"EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")
        return super().find_class(module, name)


def load_plain_pickle(source: Path | bytes | BinaryIO, *, what: str | None = None) -> Any:
    """The plain data in a pickle: a file by its path, its bytes, or a file open where the pickle begins.

    Args:
        source: a file, or the pickle itself.
        what: how a message calls it; the path by default.

    Raises:
        DataError: not a pickle, a damaged one, or one that holds anything but containers, numbers, text and arrays.
    """
    what = what or (str(source) if isinstance(source, Path) else "the pickle")
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                return _Plain(file, encoding="latin1").load()
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return _Plain(file, encoding="latin1").load()
    except FAILURES as error:
        raise DataError(
            f"{what} cannot be read as plain data ({_reason(error)}): expected a pickle of dicts, lists, text and arrays only; "
            "nothing in it was executed. Download it again from its source."
        ) from None


class StandIn:
    """What a pickle holds in the place of an object whose class is not built: a record of it, without behaviour.

    Its type is named after the class. All that a pickle can do to it (call the class, set a state, add items) is written down.
    """

    __slots__ = ("args", "items", "kwargs", "state")
    args: tuple[Any, ...]
    """What the class was called with."""
    kwargs: dict[str, Any]
    state: Any
    """What the object was restored from: mostly its attributes by name."""
    items: list[Any]
    """(key, value) pairs of a mapping, elements of a list or set."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Whatever the class is called with."""
        self = object.__new__(cls)
        self.args, self.kwargs, self.state, self.items = args, kwargs, None, []
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """As of a list."""
        self.items.append(value)

    def extend(self, values: Iterable[Any]) -> None:
        """As of a list."""
        self.items.extend(values)

    add = append

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes by name, as far as the state or the items are that; {} otherwise."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        named = dict(state) if isinstance(state, dict) else {}
        named |= {pair[0]: pair[1] for pair in self.items if isinstance(pair, tuple) and len(pair) == 2}
        return {key: value for key, value in named.items() if isinstance(key, str)}


class Sealed:
    """A function that a pickle may call and cannot change: BUILD sets the attributes of a plain function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        """Of the function."""
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Dict(dict[Any, Any]):
    """An OrderedDict whose attributes (`_metadata` of a state dict) are forgotten, since they could hide its methods."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Inert(pickle.Unpickler):
    def __init__(
        self, file: BinaryIO, known: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._found = {("collections", "OrderedDict"): _Dict, **known}
        for builtins in BUILTINS:
            self._found |= {(builtins, "set"): set, (builtins, "frozenset"): frozenset}
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._found:
            builtin = module in BUILTINS and name in HARMLESS_BUILTINS
            ways = [module.split(".")[0], *name.split(".")[:-1]]  # torch, os.system is os.system too
            if not builtin and not STANDARD.isdisjoint(ways):
                raise pickle.UnpicklingError(f"it asks for {module}.{name}, which can run code")
            if len(self._found) >= MAX_NAMES:
                raise pickle.UnpicklingError(f"it asks for more than {MAX_NAMES} classes and functions")
            self._found[module, name] = type(name, (StandIn,), {"__slots__": (), "__module__": module})
        return self._found[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to something outside itself")
        return self._persistent(pid)


def load_inert_pickle(
    file: BinaryIO,
    *,
    what: str,
    known: Mapping[tuple[str, str], Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The data in a pickle, with a `StandIn` for every object but containers, numbers and text; the file is left behind it.

    Args:
        file: open where the pickle begins.
        what: how a message calls it.
        known: (module, name) -> what is put there instead of a `StandIn`; functions as `Sealed`.
        persistent: resolves persistent ids, such as the storages of PyTorch.

    Raises:
        DataError: not a pickle, a damaged one, one made to exhaust memory, or one that asks for what can run code, such as
            posix.system; nothing is executed.
    """
    start = file.tell()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in a damaged file
            _refuse_bombs(file)
            file.seek(start)
            return _Inert(file, known or {}, persistent).load()
    except FAILURES as error:
        raise DataError(
            f"{what} cannot be read ({_reason(error)}): expected tensors, plain containers and settings; nothing in it was "
            "executed."
        ) from None


def _refuse_bombs(file: BinaryIO) -> None:
    """A pass over the opcodes, which builds nothing: lengths hold, and the memo is no larger than the pickle."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MAX_OPCODES:
            raise pickle.UnpicklingError(f"it has more than {MAX_OPCODES:,} steps")
        if opcode.name in STRANGE:
            raise pickle.UnpicklingError(f"it has the step {opcode.name}, which checkpoints do not need")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError("it numbers its parts beyond their count")


def _reason(error: BaseException) -> str:
    said = "".join(char if char.isprintable() else " " for char in str(error))  # names come from the file
    return " ".join(said.split())[:300] or type(error).__name__

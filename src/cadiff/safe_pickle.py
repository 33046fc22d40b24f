"""Reading pickles without running what is in them.

Some public data is a pickled dict of numpy arrays. `load_plain_pickle` builds exactly that: containers, numbers, text and
numpy arrays of numbers or text. Any other name in the stream is refused before it is imported, so no code of the file runs.
"""

from __future__ import annotations

import io
import pickle
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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{what} cannot be read as plain data ({reason}): expected a pickle of dicts, lists, text and arrays only; "
            "nothing in it was executed. Download it again from its source."
        ) from None

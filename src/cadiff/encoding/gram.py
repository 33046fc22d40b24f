"""Gram matrices of tables that are too large to be in memory twice, or in float64 at all.

A table of single trials takes gigabytes (27,000 trials of 15,724 voxels: 1.7 in float32), and the Gram matrix of its voxels
another two. So a table is read in parts, each part's product is added in place by BLAS `syrk`, which works out one triangle,
and LAPACK `syevr` decomposes the matrix with one more of its size (`numpy.linalg.eigh` needs three).

Letters in shapes: n rows, V columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from scipy.linalg import eigh, get_blas_funcs

NUMBERS = 1 << 23
"""That are in float64 at a time, about."""
LARGE = 4096
"""Columns from which on a decomposition spares memory: below, `syevd` is faster by a tenth and takes two more of the size."""


class Table(Protocol):
    """An array (n, V), or what makes its parts when they are asked for (`cadiff.encoding.responses.Residuals`)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """n, V."""
        ...

    def __getitem__(self, part: Any, /) -> np.ndarray: ...


def parts(count: int, across: int) -> Iterator[slice]:
    """0 to `count` in slices, each of which holds about `NUMBERS` numbers where an entry has `across` of them."""
    step = max(1, NUMBERS // max(across, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def zeros(size: int) -> np.ndarray:
    """An empty Gram matrix (size, size) for `add`."""
    return np.zeros((size, size), order="F")


def add(gram: np.ndarray, rows: np.ndarray) -> None:
    """gram += rows^T rows in the lower triangle; the other stays 0. gram from `zeros`, rows (n, V) float64."""
    turned = rows.flags.f_contiguous
    syrk: Any = get_blas_funcs("syrk", dtype=np.float64)
    syrk(1.0, rows if turned else rows.T, beta=1.0, c=gram, trans=turned, lower=1, overwrite_c=1)


def decompose(gram: np.ndarray, threshold: float, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (r,), ascending, and vectors (V, r) of a symmetric matrix, by its lower triangle; destroys it.

    Only those above `threshold` times the largest are kept, and of these the `most` largest.
    """
    size = len(gram)
    largest = None if most is None or most >= size else (size - most, size - 1)
    driver = "evd" if size < LARGE and largest is None else "evr"
    options = {"overwrite_a": True, "check_finite": False, "driver": driver, "subset_by_index": largest}
    values, vectors = eigh(gram, lower=True, **options)
    first = int(np.searchsorted(values, threshold * max(float(values[-1]), 1e-300), side="right"))
    return values[first:], vectors[:, first:]

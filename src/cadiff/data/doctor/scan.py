"""One pass over the betas: what every voxel and every trial is asked, with memory bounded whatever their number.

Letters in shapes: n trials looked at, V voxels, k voxels kept in memory as a sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from cadiff.data.doctor.findings import count
from cadiff.data.doctor.folder import Folder

CHUNK_VALUES = 4_000_000  # values of betas in memory at a time
MAX_VALUES = 4_000_000_000  # 16 GB of betas are read in full; of more, a part spread over all trials
SAMPLE_VALUES = 16_000_000  # values of the sample of voxels that stays in memory
SAMPLE_VOXELS = 512
HUGE = 1e18  # larger values count as infinite: their squares are, in float32
PARTS = 8  # of the voxels, in file order


@dataclass
class Scan:
    """What one pass over the betas found."""

    rows: np.ndarray
    """(n,) the trials looked at: all of them, unless `sample` says otherwise."""
    finite: np.ndarray
    """(V,) bool: every value is finite, and below `HUGE`."""
    num_bad: int
    """Values that are not."""
    low: np.ndarray
    """(V,) smallest value; of no meaning where a value is not finite."""
    high: np.ndarray
    """(V,) largest value, likewise."""
    binary: np.ndarray
    """(V,) bool: every value is 0 or 1."""
    flat_rows: np.ndarray
    """(n,) bool: all voxels have the same value in this trial."""
    row_moments: np.ndarray
    """(n, 2) mean and mean square over the finite voxels of each trial."""
    row_hashes: np.ndarray
    """(n,) 16 bytes that equal trials share."""
    row_parts: np.ndarray
    """(n, PARTS) uint64: the same for parts of the voxels, so that trials are known again when a few voxels changed."""
    column_hashes: np.ndarray
    """(V,) uint64 that equal voxels share."""
    column_starts: dict[int, np.ndarray]
    """Number of first trials (powers of 2) -> (V,) uint64: `column_hashes` of these trials alone."""
    columns: np.ndarray
    """(k,) voxels of the sample, ascending."""
    values: np.ndarray
    """(n, k) float32, the sample."""
    sample: str = ""
    """What part of the trials was looked at, in words; empty means all."""

    @property
    def usable(self) -> np.ndarray:
        """(V,) bool: voxels that are finite and change."""
        return self.finite & (self.high > self.low)

    @property
    def sampled(self) -> str:
        """The sample of voxels in words; empty when it is all of them."""
        return (
            "" if len(self.columns) == len(self.finite) else count(len(self.columns), "voxel") + " at random"
        )


def scan_betas(folder: Folder, *, seed: int = 0, progress: bool = True) -> Scan:
    """Reads the betas once, in pieces."""
    betas = folder.betas
    assert betas is not None
    num, width = folder.num_trials, betas.shape[1]
    rng = np.random.default_rng([seed, 1])
    kept = min(width, SAMPLE_VOXELS, max(SAMPLE_VALUES // max(num, 1), 16))
    columns = np.sort(rng.choice(width, kept, replace=False))
    of_rows, of_columns = odd_weights(num), odd_weights(width)
    pieces = _pieces(num, width)
    rows = np.concatenate([np.arange(start, stop) for start, stop in pieces])
    out = Scan(
        rows=rows,
        finite=np.ones(width, bool),
        num_bad=0,
        low=np.full(width, np.inf, np.float32),
        high=np.full(width, -np.inf, np.float32),
        binary=np.ones(width, bool),
        flat_rows=np.zeros(len(rows), bool),
        row_moments=np.zeros((len(rows), 2)),
        row_hashes=np.empty(len(rows), "S16"),
        row_parts=np.zeros((len(rows), PARTS), np.uint64),
        column_hashes=np.zeros(width, np.uint64),
        column_starts={},
        columns=columns,
        values=np.empty((len(rows), kept), np.float32),
        sample="" if len(rows) == num else f"{len(rows):,} of {num:,} trials, in blocks over the whole file",
    )
    digests: list[bytes] = []
    done = 0
    bar = tqdm(pieces, desc="betas", unit="block", disable=None if progress else True, leave=False)
    for start, stop in bar:
        part = np.ascontiguousarray(betas[start:stop], dtype=np.float32)
        here = slice(done, done + len(part))
        _look(part, here, out)
        _hash(part, here, of_rows[start:stop], of_columns, out)
        digests += [hashlib.blake2b(row.data, digest_size=16).digest() for row in part]
        done += len(part)
        if done == stop and stop & (stop - 1) == 0:  # a power of 2, and nothing was left out before it
            out.column_starts[stop] = out.column_hashes.copy()
    out.row_hashes = np.frombuffer(b"".join(digests), dtype="V16")
    return out


def odd_weights(num: int) -> np.ndarray:
    """(num,) odd uint64; the first ones are the same in every dataset, so that hashes can be compared."""
    rng = np.random.default_rng(20)
    return rng.integers(0, 2**63, num, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def _look(part: np.ndarray, here: slice, out: Scan) -> None:
    low, high = part.min(axis=0), part.max(axis=0)
    clean = (low > -HUGE) & (high < HUGE)  # NaN and infinity survive minimum or maximum, and compare as false
    if not clean.all():
        out.finite &= clean
        out.num_bad += int((~(np.abs(part[:, ~clean]) < HUGE)).sum())
    np.fmin(out.low, low, out=out.low)
    np.fmax(out.high, high, out=out.high)
    asked = np.flatnonzero(out.binary & ((low == 0) | (low == 1)) & ((high == 0) | (high == 1)))
    out.binary[:] = np.isin(np.arange(len(low)), asked[((part[:, asked] % 1) == 0).all(axis=0)])
    out.flat_rows[here] = part.min(axis=1) == part.max(axis=1)
    out.values[here] = part[:, out.columns]
    there = None if clean.all() else np.abs(part) < HUGE
    whole = part if there is None else np.where(there, part, np.float32(0))
    known = part.shape[1] if there is None else np.maximum(there.sum(axis=1), 1)
    out.row_moments[here, 0] = whole.sum(axis=1, dtype=np.float64) / known
    out.row_moments[here, 1] = np.einsum("ij,ij->i", whole, whole) / known


def _hash(part: np.ndarray, here: slice, of_rows: np.ndarray, of_columns: np.ndarray, out: Scan) -> None:
    """Sums of random multiples modulo 2^64: what is equal agrees, what differs practically never does."""
    bits = part.view(np.uint32).astype(np.uint64)
    width = part.shape[1]
    starts = np.unique(np.linspace(0, width, PARTS + 1).astype(int)[:-1])
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], width], strict=True)):
        out.row_parts[here, number] = (bits[:, start:stop] * of_columns[start:stop]).sum(
            axis=1, dtype=np.uint64
        )
    bits *= of_rows[:, None]
    out.column_hashes += bits.sum(axis=0, dtype=np.uint64)


def _pieces(num: int, width: int) -> list[tuple[int, int]]:
    """Blocks of rows (start, stop) that together hold at most `MAX_VALUES` values, spread over the file."""
    step = max(CHUNK_VALUES // width, 1)
    powers = 2 ** np.arange(5, 63)
    starts = np.union1d(np.arange(0, num, step), powers[powers < num])
    stops = [*map(int, starts[1:]), num]
    pieces = list(zip(map(int, starts), stops, strict=True))
    most = max(MAX_VALUES // (step * width), 1)
    if num * width > MAX_VALUES:
        pieces = [pieces[index] for index in np.linspace(0, len(pieces) - 1, most).astype(int)]
    return pieces

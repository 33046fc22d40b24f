"""The betas of the arrays reader: one array (trials, voxels) in any of four kinds of file, handed on in blocks of rows.

betas.npy       memory-mapped, in any byte order
betas.npz       memory-mapped when saved by `np.savez`, read when compressed
betas.mat       MATLAB 5 to 7.3; memory-mapped where it lies uncompressed (`-v6`)
betas.csv       numbers with comma, semicolon or tab between; read in blocks
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cadiff.data.files import Archive, open_npy
from cadiff.data.mat import MatFile
from cadiff.errors import DataError

BETAS = ("betas.npy", "betas.npz", "betas.mat", "betas.csv")
BLOCK_BYTES, PAGE_BYTES = 1 << 25, 4096


class CsvLayout(NamedTuple):
    """How a table of numbers is written."""

    separator: str
    has_header: bool


class Betas(NamedTuple):
    """Responses (trials, voxels) in a file."""

    path: Path
    shape: tuple[int, int]
    source: np.ndarray | CsvLayout

    def blocks(self) -> Iterator[np.ndarray]:
        """Successive rows, some `BLOCK_BYTES` at a time."""
        step = max(1, BLOCK_BYTES // (8 * self.shape[1]))
        if isinstance(self.source, np.ndarray):
            if not self.source.flags.c_contiguous:  # column by column on disk: read each page of it once
                step = max(step, PAGE_BYTES // self.source.itemsize)
            for start in range(0, len(self.source), step):
                yield np.asarray(self.source[start : start + step])
        else:
            yield from _csv_blocks(self.path, self.shape, self.source, step)


def open_betas(folder: Path) -> Betas:
    """The one file of betas in a folder.

    Raises:
        DataError: none or several, one that cannot be read, one that is not (trials, voxels), or a mask.
    """
    there = [folder / file for file in BETAS if (folder / file).is_file()]
    if len(there) != 1:
        found = ", ".join(path.name for path in there) or "none of them"
        raise DataError(f"{folder}: expected exactly one of {', '.join(BETAS)}, found {found}.")
    path = there[0]
    if path.suffix == ".csv":
        betas = _open_csv(path)
    else:
        array = open_npy(path) if path.suffix == ".npy" else _only_array(path)
        if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.size:
            raise DataError(f"{path} holds {array.dtype} {array.shape}, expected numbers (trials, voxels).")
        betas = Betas(path, (len(array), array.shape[1]), array)
    if all(np.isin(block, (0, 1)).all() for block in betas.blocks()):
        raise DataError(
            f"{path} holds only 0 and 1, so it is a mask of voxels and not their responses: save the responses as {path.name}."
        )
    return betas


def _only_array(path: Path) -> np.ndarray:
    """The array named betas in an .npz or .mat file, or the only one there is."""
    content: Mapping[str, np.ndarray] = Archive(path) if path.suffix == ".npz" else MatFile(path)
    names = list(content)
    if "betas" not in names and len(names) != 1:
        found = ", ".join(names[:20]) or "none"
        raise DataError(f"{path} holds {len(names)} numeric arrays ({found}): name the responses 'betas'.")
    return content["betas" if "betas" in names else names[0]]


def _open_csv(path: Path) -> Betas:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline()
            rows = sum(1 for line in file if line.strip())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text: {error}; expected numbers in UTF-8.") from None
    separator = "\t" if "\t" in first else ";" if ";" in first else ","
    cells = first.rstrip("\r\n").split(separator)
    has_header = not all(_is_number(cell) for cell in cells) or _counts_up(cells)
    if has_header and not cells[0].strip():
        raise DataError(
            f"{path}: the first column has no name, so it holds row numbers and not responses: save without them "
            "(pandas: to_csv(index=False))."
        )
    rows += not has_header
    if not first.strip() or not rows:
        raise DataError(f"{path} holds no numbers, expected one row a trial and one column a voxel.")
    return Betas(path, (rows, len(cells)), CsvLayout(separator, has_header))


def _csv_blocks(path: Path, shape: tuple[int, int], layout: CsvLayout, step: int) -> Iterator[np.ndarray]:
    seen = 0
    try:
        with pd.read_csv(
            path,
            sep=layout.separator,
            header=None,
            skiprows=int(layout.has_header),
            dtype=np.float64,
            chunksize=step,
            encoding="utf-8-sig",
        ) as reader:
            for frame in reader:
                if frame.shape[1] != shape[1]:
                    raise ValueError(f"a row has {frame.shape[1]} cells, the first line {shape[1]}")
                seen += len(frame)
                yield frame.to_numpy()
    except (OSError, ValueError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{path} cannot be read as numbers after row {seen}: {reason}; expected {shape[1]} numbers a row."
        ) from None
    if seen != shape[0]:
        raise DataError(f"{path} holds {seen} rows of numbers in {shape[0]} lines; expected a row a line.")


def _counts_up(cells: list[str]) -> bool:
    """Whether a line is 0, 1, 2, ... or 1, 2, 3, ...: the header that pandas writes by default, not responses."""
    return len(cells) > 2 and cells in (
        [str(place + first) for place in range(len(cells))] for first in (0, 1)
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

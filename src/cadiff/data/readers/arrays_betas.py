"""The betas of the arrays reader: one array (trials, voxels) in any of four kinds of file, handed on in blocks of rows.

betas.npy       memory-mapped, in any byte order
betas.npz       memory-mapped when saved by `np.savez`, read when compressed
betas.mat       MATLAB 5 to 7.3; memory-mapped where it lies uncompressed (`-v6`)
betas.csv       numbers with comma, semicolon or tab between (decimal commas with semicolons only); read in blocks

Programs that save tables like to put row numbers in front; they are never taken for a voxel, whatever the kind of file.
"""

from __future__ import annotations

import csv
import re
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
GAPS = ("", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "<NA>")  # in rows of numbers, not in headers
FEWEST_COUNTED = 4  # rows from which on a column that counts them cannot be responses
WITHOUT_NAMES = "save without them (pandas: to_csv(index=False); R: write.csv(row.names = FALSE))."


class CsvLayout(NamedTuple):
    """How a table of numbers is written."""

    separator: str
    decimal: str
    skipped: int
    """Lines before the first row of numbers."""


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
        DataError: none or several, one that cannot be read, one that is not (trials, voxels), a mask, or row numbers as
            the first column.
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
    _refuse_what_are_no_responses(betas)
    return betas


def _refuse_what_are_no_responses(betas: Betas) -> None:
    """Refuses a mask and row numbers; most files show in their first block that they are neither."""
    is_mask, counts, start, seen = True, True, 0, 0
    for block in betas.blocks():
        start = start if seen else block[0, 0]
        counted = np.arange(seen, seen + len(block)) + start
        is_mask = is_mask and bool(np.isin(block, (0, 1)).all())
        counts = counts and start in (0, 1) and np.array_equal(block[:, 0], counted)
        seen += len(block)
        if not (is_mask or counts):
            return
    path = betas.path
    if is_mask:
        raise DataError(
            f"{path} holds only 0 and 1, so it is a mask of voxels and not their responses: save the responses as {path.name}."
        )
    if seen >= FEWEST_COUNTED:
        raise DataError(
            f"{path}: the first column counts {start:g}, {start + 1:g}, {start + 2:g}, ... over all {seen} rows, so it holds "
            f"row numbers and not responses: {WITHOUT_NAMES}"
        )


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
            lines = ((number, line.rstrip("\n")) for number, line in enumerate(file) if line.strip())
            place, first = next(lines, (0, ""))
            bare = re.sub(r'"[^"]*"', "", first)  # names may hold anything
            separator = "\t" if "\t" in bare else ";" if ";" in bare else ","
            cells = _cells(first, separator)
            rows, num_second, ends, has_commas = 0, len(cells), not cells[-1], False
            for rows, (_, line) in enumerate(lines, start=1):
                num_second = len(_cells(line, separator)) if rows == 1 else num_second
                ends = ends and line.endswith(separator)
                has_commas = has_commas or "," in line
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as text: {error}; expected numbers in UTF-8.") from None
    decimal = "," if separator == ";" and (has_commas or "," in bare) else "."
    has_header = _is_header([cell.replace(decimal, ".") for cell in cells])
    if has_header and re.fullmatch(r"(unnamed: [\d.]+)?", cells[0], re.IGNORECASE):
        raise DataError(
            f"{path}: the first column has no name{f' ({cells[0]})' if cells[0] else ''}, so it holds row numbers and not "
            f"responses: {WITHOUT_NAMES}"
        )
    if has_header and num_second == len(cells) + 1:
        raise DataError(
            f"{path}: the second line has {num_second} cells, the first line {len(cells)}: do the rows begin with names? If so, "
            f"{WITHOUT_NAMES}"
        )
    if ends and len(cells) > 1:
        raise DataError(
            f"{path}: each line ends in {separator!r}, so the last column is empty: save without it."
        )
    if separator == "\t" and has_commas:
        raise DataError(
            f"{path} has decimal commas, or thousands, between tabs: save the numbers with a decimal point and no other mark."
        )
    rows += not has_header
    if not first or not rows:
        raise DataError(f"{path} holds no numbers, expected one row a trial and one column a voxel.")
    return Betas(path, (rows, len(cells)), CsvLayout(separator, decimal, place + 1 if has_header else 0))


def _csv_blocks(path: Path, shape: tuple[int, int], layout: CsvLayout, step: int) -> Iterator[np.ndarray]:
    seen = 0
    try:
        with pd.read_csv(
            path,
            sep=layout.separator,
            header=None,
            decimal=layout.decimal,
            skiprows=layout.skipped,
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


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator))] or [""]


def _is_header(cells: list[str]) -> bool:
    """Whether a line holds a word, or is 0, 1, 2, ... or 1, 2, 3, ...: the header that pandas writes by default."""
    if any(cell not in GAPS and not _is_number(cell) for cell in cells):
        return True
    numbered = cells[1:] if not cells[0] else cells if len(cells) > 2 else []
    return bool(numbered) and numbered in (
        [str(place + first) for place in range(len(numbered))] for first in (0, 1)
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

"""GOD's pictures and classes: ids, the csv lists, where pictures come from, and ImageNet-1k indices.

One picture has three names: the float 1518878.010042 (class, then the picture's number in six digits after the point;
tables and floats drop trailing zeros: 1621127.01902 is picture 19020), the file n01518878_10042.JPEG, and a position in
the csv lists, whose order is that of the file names as text, not of the numbers. Here its id is the file's stem,
n01518878_10042, and its label the WordNet id, n01518878.

imagenet_training_label.csv (1200 rows), imagenet_testing_label.csv (50): no header line, `1518878.010042,"n01518878_
    10042.JPEG"`; the lab's own copies are named imageID_training.csv and imageID_test.csv. Row i is picture i.
images_256.npz: `train_images` (1200, 256, 256, 3), `test_images` (50, 256, 256, 3), channels last; 0..255 (MinD-Vis) or
    floats in 0..1 (SelfSuperReconst).
imagenet_class_index.json: {"34": ["n01665541", "n01664990", "leatherback_turtle"]}. The first WordNet id is the class of
    ImageNet-1k; the others are classes of GOD that someone found near to it (n01664990 is the hawksbill turtle, which
    ImageNet-1k lacks): they get no index here, or a judge would be asked for a class that the picture does not show.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cadiff.artifacts import sha256_file, what_is_at
from cadiff.data.files import PICTURES, Archive, need_file, need_numbers, read_text
from cadiff.data.stimulus_sets import imagenet_indices as shipped_indices
from cadiff.errors import DataError

LISTS = {
    "train": ("imagenet_training_label.csv", "imageID_training.csv"),
    "test": ("imagenet_testing_label.csv", "imageID_test.csv"),
}
ARRAYS = {"train": "train_images", "test": "test_images"}
IMAGES = "images_256.npz"
CLASS_INDEX = "imagenet_class_index.json"
NUM_IMAGENET = 1000
BLOCK_PICTURES = 16


class Lists(NamedTuple):
    """Stimulus ids by position."""

    train: list[str]
    test: list[str]


def stimulus_id(number: float) -> str | None:
    """1518878.010042 -> "n01518878_10042"; 1443537.0, a class without a picture, -> "n01443537"; else None."""
    if not math.isfinite(number) or not 1 <= number < 1e8:
        return None
    whole = math.floor(number + 5e-7)
    picture = round((number - whole) * 1e6)
    if abs((number - whole) * 1e6 - picture) > 0.05:
        return None
    return f"n{whole:08d}_{picture}" if picture else f"n{whole:08d}"


def read_lists(folder: Path) -> Lists:
    """The csv lists in a folder."""
    train, test = (_read_list(folder, names) for names in LISTS.values())
    if both := sorted(set(train) & set(test)):
        raise DataError(f"{folder}: the lists name {both[0]!r} for training and for test.")
    return Lists(train, test)


def _read_list(folder: Path, names: Sequence[str]) -> list[str]:
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    hint = "expected the list of stimuli, rows like 1518878.010042,n01518878_10042.JPEG."
    text = read_text(need_file(path, hint), hint)
    ids = []
    try:
        for number, row in enumerate(csv.reader(text.splitlines()), start=1):
            if row:
                ids.append(_listed(row, f"{path}, line {number}"))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a csv file ({error}): {hint}") from None
    if not ids:
        raise DataError(f"{path} is empty: {hint}")
    if len(set(ids)) < len(ids):
        raise DataError(
            f"{path} lists {Counter(ids).most_common(1)[0][0]!r} twice; every picture has one row."
        )
    return ids


def _listed(row: list[str], where: str) -> str:
    try:
        name = stimulus_id(float(row[0]))
    except ValueError:
        name = None
    if name is None or "_" not in name:
        raise DataError(f"{where}: {row[0][:40]!r} is not a stimulus id; expected one like 1518878.010042.")
    if len(row) > 1 and Path(row[1].strip()).stem != name:
        raise DataError(f"{where}: the id says {name}, the file name {row[1][:60]!r}.")
    return name


class ArrayPictures:
    """Pictures in images_256.npz, by stimulus id."""

    def __init__(self, path: Path, lists: Lists) -> None:
        self.path = path
        archive = Archive(path)
        archive.need(*ARRAYS.values())
        self._arrays: dict[str, np.ndarray] = {}
        self._place: dict[str, tuple[str, int]] = {}
        for split, name in ARRAYS.items():
            ids = lists._asdict()[split]
            array = need_numbers(archive[name], (None, None, None, 3), f"{path}: {name}")
            if len(array) != len(ids):
                raise DataError(
                    f"{path}: {name} has {len(array)} pictures, the list of its stimuli {len(ids)} rows."
                )
            self._arrays[name] = array
            self._place |= {stimulus: (name, row) for row, stimulus in enumerate(ids)}
        self._scale = self._find_scale()

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The ids without a picture."""
        return [name for name in ids if name not in self._place]

    def __getitem__(self, name: str) -> np.ndarray:
        array, row = self._place[name]
        picture = self._arrays[array][row]
        return picture if picture.dtype == np.uint8 else np.rint(picture * self._scale).astype(np.uint8)

    def _find_scale(self) -> float:
        """What makes 0..255 of the values: looked up in all of them, since one dark picture tells nothing."""
        kinds = {array.dtype.kind for array in self._arrays.values()}
        if len(kinds) > 1:
            types = ", ".join(f"{name} {array.dtype}" for name, array in self._arrays.items())
            raise DataError(
                f"{self.path} mixes kinds of numbers ({types}): are its arrays from different files?"
            )
        low, high = 0.0, 0.0
        for array in self._arrays.values():
            if array.dtype != np.uint8:
                for start in range(0, len(array), BLOCK_PICTURES):
                    block = array[start : start + BLOCK_PICTURES]
                    with np.errstate(invalid="ignore"):  # NaN stays, and is refused below
                        low, high = np.minimum(low, block.min()), np.maximum(high, block.max())
        if not (low >= 0 and high <= 255):
            raise DataError(
                f"{self.path} holds values from {low:g} to {high:g}; expected pictures in 0..255 or 0..1."
            )
        return 255.0 if kinds == {"f"} and 0 < high <= 1 else 1.0


class FolderPictures:
    """Picture files named after their stimulus, n01518878_10042.JPEG, anywhere below a folder."""

    def __init__(self, folder: Path, wanted: Collection[str]) -> None:
        self.path = folder
        self._files: dict[str, Path] = {}
        names = set(wanted)
        for place, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                path = Path(place, file)
                if path.stem in names and path.suffix.lower() in PICTURES:
                    self._keep(path)

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The ids without a picture."""
        return [name for name in ids if name not in self._files]

    def __getitem__(self, name: str) -> Path:
        return self._files[name]

    def _keep(self, path: Path) -> None:
        other = self._files.setdefault(path.stem, path)
        if other != path and sha256_file(other) != sha256_file(path):
            raise DataError(f"{other} and {path} differ, but are one stimulus by name: keep one of them.")


def open_pictures(path: Path, wanted: Collection[str]) -> ArrayPictures | FolderPictures:
    """Pictures in an .npz file (with the csv lists beside it), or in a folder with that file or with picture files.

    Raises:
        DataError: nothing there, or not a picture for every `wanted` stimulus.
    """
    if path.is_dir() and (path / IMAGES).is_file():
        path = path / IMAGES
    if path.is_dir():
        pictures = FolderPictures(path, wanted)
    elif path.suffix.lower() == ".npz":
        need_file(
            path,
            "expected the pictures, images_256.npz; or give a folder of picture files with images=FOLDER.",
        )
        pictures = ArrayPictures(path, read_lists(path.parent))
    else:
        raise DataError(
            f"{path} is neither a folder nor an .npz file (found: {what_is_at(path)}): images=... needs one."
        )
    if absent := pictures.missing(wanted):
        raise DataError(
            f"{path} lacks {len(absent)} of {len(wanted)} pictures (first: {absent[0]}, as .JPEG): the lab shares "
            "them on request; without images=... a Subject*.h5 is imported with labels only."
        )
    return pictures


def imagenet_indices(folders: Iterable[Path]) -> tuple[Mapping[str, int], str]:
    """(WordNet id -> ImageNet-1k index, a sentence on where that is from); the first class index file found is taken."""
    shipped = shipped_indices()
    fallback = f"the {len(shipped)} classes of the shipped prior only; other stimuli have no imagenet_index"
    path = next((folder / CLASS_INDEX for folder in folders if (folder / CLASS_INDEX).is_file()), None)
    if path is None:
        return shipped, fallback + f" (no {CLASS_INDEX} found)"
    try:
        table = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as JSON ({error}): download it again, or remove it."
        ) from None
    found = _first_ids(table)
    if found is None or any(found.get(name) != index for name, index in shipped.items()):
        return shipped, fallback + f" ({CLASS_INDEX} is not in the order of ImageNet-1k)"
    return found, f"{CLASS_INDEX}, the first WordNet id of each of its {len(found)} classes"


def _first_ids(table: object) -> dict[str, int] | None:
    """First WordNet id of every entry -> its key, if these are 1000 ascending ids under 0..999: ImageNet-1k's order."""
    if not isinstance(table, dict) or set(table) != {str(number) for number in range(NUM_IMAGENET)}:
        return None
    entries = [table[str(number)] for number in range(NUM_IMAGENET)]
    if not all(isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in entries):
        return None
    ids = [entry[0] for entry in entries]
    if not all(re.fullmatch(r"n\d{8}", name) for name in ids) or sorted(set(ids)) != ids:
        return None
    return {name: number for number, name in enumerate(ids)}

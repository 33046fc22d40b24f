"""Labelled images for training a prior: read a folder or an .npz, bring every picture to one size.

Shapes: N pictures, S the image size in pixels; images are uint8 (N, S, S, 3), grey pictures repeated over the three channels.
Two sources are read:

    folder    CLASS/**/picture.png|jpg|jpeg, one folder a class (Tiny ImageNet's own layout fits), and optionally
              `classes.tsv` with columns class, name, imagenet_index (place among the ImageNet-1k classes, or empty)
    .npz      `images` uint8 (N, H, W) or (N, H, W, 3) and `labels` int (N,), and optionally `names` and
              `imagenet_index`, one a class in the order of the labels

`read_idx` and `write_mnist` turn MNIST's files (LeCun et al. 1998) into such an .npz.
"""

import csv
import gzip
import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from cadiff.artifacts import atomic_path
from cadiff.errors import DataError
from cadiff.framing import framed

Fit = Literal["resize", "pad"]
PICTURES = {".png", ".jpg", ".jpeg"}
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class LabelledImages:
    """Pictures of one size with their classes."""

    images: np.ndarray
    """uint8 (N, S, S, 3)."""
    labels: np.ndarray
    """int64 (N,), rows of `classes`."""
    classes: list[str]
    """Stable name of each class: its folder's name, or its number in the .npz."""
    names: list[str]
    """Name of each class for people."""
    imagenet_index: list[int] | None
    """Place of each class among the 1,000 ImageNet classes (-1: none), or None where that is not known."""
    digest: str
    """SHA-256 of the images and labels as read: two sources with the same digest train the same prior."""

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, num_heldout: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (train, held out), both sorted; the held-out ones are a seeded draw that no stage trains on."""
        order = np.random.default_rng(seed).permutation(len(self))
        return np.sort(order[num_heldout:]), np.sort(order[:num_heldout])


def load_images(source: Path, image_size: int, *, fit: Fit = "resize") -> LabelledImages:
    """Labelled pictures of `source` (a folder of class folders, or an .npz) as uint8 (N, S, S, 3).

    `resize` crops the centre square and scales it (bicubic, antialiased); `pad` sets the picture unscaled in the middle of a
    black square, which keeps the pixels of small pictures as they are (MNIST's 28 -> 32).
    """
    source = Path(source)
    if source.is_dir():
        return _load_folder(source, image_size, fit)
    if source.suffix == ".npz" and source.is_file():
        return _load_npz(source, image_size, fit)
    raise DataError(
        f"{source} is neither a folder of class folders nor an .npz file with arrays images and labels."
    )


def to_square(picture: np.ndarray, image_size: int, fit: Fit, *, name: str = "picture") -> np.ndarray:
    """One picture uint8 (H, W[, 3]) -> (S, S, 3)."""
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    height, width, _ = picture.shape
    if fit == "pad":
        if max(height, width) > image_size:
            found = f"{name} is {height}x{width} pixels"
            raise DataError(
                f"{found} and cannot be padded to {image_size}: raise image_size or use fit resize."
            )
        square = np.zeros((image_size, image_size, 3), np.uint8)
        top, left = (image_size - height) // 2, (image_size - width) // 2
        square[top : top + height, left : left + width] = picture
        return square
    return framed(picture, (image_size, image_size))


def _load_folder(folder: Path, image_size: int, fit: Fit) -> LabelledImages:
    classes = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    files = [(row, path) for row, name in enumerate(classes) for path in _pictures(folder / name)]
    if not files:
        raise DataError(
            f"{folder} holds no picture: expected CLASS/picture.png (or .jpg, .jpeg), one folder a class."
        )
    labels = np.array([row for row, _ in files], np.int64)
    empty = sorted(set(range(len(classes))) - set(labels.tolist()))
    if empty:
        raise DataError(
            f"Class folder {classes[empty[0]]!r} of {folder} holds no picture: fill it or remove it."
        )
    images = np.empty((len(files), image_size, image_size, 3), np.uint8)
    for place, (_, path) in enumerate(files):
        try:
            with Image.open(path) as picture:
                images[place] = to_square(np.asarray(picture.convert("RGB")), image_size, fit, name=str(path))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(
                f"{path} cannot be read as a picture ({error}): replace it or remove it."
            ) from error
    names, index = _read_class_table(folder / "classes.tsv", classes)
    return LabelledImages(images, labels, classes, names, index, _digest(images, labels))


def _pictures(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


def _read_class_table(path: Path, classes: list[str]) -> tuple[list[str], list[int] | None]:
    """Names and ImageNet indices of `classes`; the class names themselves and None without a table."""
    if not path.exists():
        return list(classes), None
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row.get("class", ""): row for row in csv.DictReader(file, delimiter="\t")}
    if missing := [name for name in classes if name not in rows]:
        raise DataError(
            f"{path} has no row for class {missing[0]!r}: its column class must name every class folder."
        )
    names = [rows[name].get("name") or name for name in classes]
    places = [rows[name].get("imagenet_index") or "" for name in classes]
    if not any(places):
        return names, None
    try:
        return names, [int(place) if place else -1 for place in places]
    except ValueError as error:
        raise DataError(
            f"{path}: column imagenet_index must hold whole numbers or nothing ({error})."
        ) from error


def _load_npz(path: Path, image_size: int, fit: Fit) -> LabelledImages:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz file of plain arrays ({error}).") from error
    if missing := [key for key in ("images", "labels") if key not in arrays]:
        raise DataError(
            f"{path} has no array {missing[0]!r} (found: {sorted(arrays)}); expected images and labels."
        )
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(
            f"{path}: images are {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, 3)."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        found = f"{labels.dtype} {labels.shape}"
        raise DataError(
            f"{path}: labels are {found}, expected one whole number for each of {len(images)} images."
        )
    if not len(images):
        raise DataError(f"{path} holds no picture.")
    found, rows = np.unique(labels, return_inverse=True)
    classes = [str(label) for label in found]
    for key in ("names", "imagenet_index"):
        if key in arrays and len(arrays[key]) != len(classes):
            counts = f"{len(arrays[key])} {key} for {len(classes)} classes"
            raise DataError(f"{path}: {counts}; expected one a class, in the order of the labels.")
    names = [str(name) for name in arrays["names"]] if "names" in arrays else list(classes)
    index = [int(place) for place in arrays["imagenet_index"]] if "imagenet_index" in arrays else None
    squares = np.empty((len(images), image_size, image_size, 3), np.uint8)
    for row, image in enumerate(images):
        squares[row] = to_square(image, image_size, fit, name=f"image {row} of {path}")
    rows = rows.astype(np.int64).reshape(-1)
    return LabelledImages(squares, rows, classes, names, index, _digest(squares, rows))


def _digest(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- MNIST's files


def read_idx(path: Path) -> np.ndarray:
    """One IDX file, plain or gzip-packed, in the machine's byte order; MNIST images are uint8 (N, 28, 28), labels uint8 (N,)."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"No file {path}: expected an IDX file such as train-images-idx3-ubyte.gz.")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is a damaged gzip file ({error}): fetch it again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise DataError(f"{path} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}.")
    dtype, ndim = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    expected = start + dtype.itemsize * math.prod(shape)
    if len(shape) != ndim or len(content) != expected:
        raise DataError(
            f"{path} is cut short or damaged: {len(content)} bytes, an array {shape} takes {expected}."
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def write_mnist(
    images: Path,
    labels: Path,
    out: Path,
    *,
    exclude: Path | None = None,
    classes: Sequence[int] | None = None,
) -> Path:
    """Writes the .npz that `load_images` reads from MNIST's IDX files.

    `exclude` is an .npz whose array `exclude` holds rows of these files to leave out, such as the digits that a brain data set
    showed its subjects; `classes` keeps only these digits. The rows that were kept stand in the array `source_row`.
    """
    pictures, digits = read_idx(images), read_idx(labels)
    if len(pictures) != len(digits):
        raise DataError(
            f"{images} holds {len(pictures)} pictures and {labels} {len(digits)} labels: they are not a pair."
        )
    keep = np.ones(len(digits), bool) if classes is None else np.isin(digits, list(classes))
    if exclude is not None:
        rows = _read_exclusion(Path(exclude), len(digits))
        keep[rows] = False
    missing = sorted(set(classes or ()) - set(digits[keep].tolist()))
    if missing or not keep.any():
        wanted = f"picture of class {missing[0]}" if missing else "picture"
        raise DataError(f"No {wanted} is left to write: {labels} holds classes {np.unique(digits).tolist()}.")
    with atomic_path(Path(out)) as temporary, temporary.open("wb") as file:
        kept = {
            "images": pictures[keep],
            "labels": digits[keep].astype(np.int64),
            "source_row": np.flatnonzero(keep),
        }
        np.savez_compressed(file, allow_pickle=False, **kept)
    return Path(out)


def _read_exclusion(path: Path, num_items: int) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"No file {path}: expected an .npz whose array exclude holds the rows to leave out.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            rows = archive["exclude"]
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} has no readable array 'exclude' ({error}).") from error
    if not np.issubdtype(rows.dtype, np.integer) or ((rows < 0) | (rows >= num_items)).any():
        raise DataError(
            f"{path}: `exclude` must hold rows between 0 and {num_items - 1} ({rows.dtype} found)."
        )
    return rows

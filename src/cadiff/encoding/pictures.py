"""Pictures that betas are compared with: those that trials showed, those of classes, and none that a test trial showed."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from cadiff.data.dataset import BrainDataset
from cadiff.errors import DataError
from cadiff.priors.images import load_images


def first_side(dataset: BrainDataset, stimulus_ids: Sequence[str]) -> int:
    """The side in pixels that pictures are brought to where nobody names one: the shorter of the first."""
    return min(dataset.image(stimulus_ids[0]).shape[:2])


def common_side(dataset: BrainDataset, stimulus_ids: Sequence[str], size: int | None = None) -> int | None:
    """The side that pictures have to be brought to before they fit into one array.

    `size` where it is given; None where they are all squares of one size, and stay as they are; else `first_side`.
    """
    if size is not None:
        return size
    extents = {_extent(dataset, name) for name in stimulus_ids}
    alike = len(extents) < 2 and all(wide == high for wide, high in extents)
    return None if alike else first_side(dataset, stimulus_ids)


def shown_pictures(dataset: BrainDataset, stimulus_ids: Sequence[str], size: int | None = None) -> np.ndarray:
    """The pictures of these stimuli, uint8 (n, H, W, 3), at their `common_side`; none is in memory twice."""
    side = common_side(dataset, stimulus_ids, size)
    first = dataset.images(stimulus_ids[:1], side)
    found = np.empty((len(stimulus_ids), *first.shape[1:]), np.uint8)
    for i, name in enumerate(stimulus_ids):
        found[i] = dataset.images([name], side)[0]
    return found


def _extent(dataset: BrainDataset, stimulus_id: str) -> tuple[int, int]:
    """Width and height by the head of the file, which costs a hundredth of the picture."""
    try:
        with Image.open(dataset.folder / "stimuli" / str(dataset.stimuli.at[stimulus_id, "file"])) as picture:
            return picture.size
    except (OSError, KeyError):
        height, width = dataset.image(stimulus_id).shape[:2]  # says what is wrong with it
        return width, height


def refuse_test_stimuli(pictures: np.ndarray, dataset: BrainDataset, side: int, source: str) -> None:
    """Raises `DataError` where a test stimulus is among pictures uint8 (k, side, side, 3) that came from `source`."""
    tested = {
        sha256(dataset.images([name], side)[0].tobytes()).digest(): name
        for name in dataset.stimulus_ids("test")
    }
    for i, picture in enumerate(pictures):
        if (name := tested.get(sha256(picture.tobytes()).digest())) is not None:
            raise DataError(
                f"Picture {i + 1} of {source} is test stimulus {name!r}: leave the test stimuli out of it."
            )


def pictures_of_classes(
    source: str | Path, classes: Sequence[str], dataset: BrainDataset, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labelled pictures of an image prior's classes, instead of those that it draws itself.

    Args:
        source: folder of class folders, or .npz, as for `cadiff prior train`; classes that the prior lacks are left out.
        classes: of the prior, in the order of its label table.
        dataset: whose test stimuli must not be among them.
        side: pixels.

    Returns:
        uint8 (k, side, side, 3) and the row of each one's class (k,).

    Raises:
        DataError: unreadable, none of the prior's classes, or a test stimulus.
    """
    found = load_images(Path(source), side)
    place = {name: row for row, name in enumerate(classes)}
    rows = np.array([place.get(found.classes[label], -1) for label in found.labels])
    if not (rows >= 0).any():
        raise DataError(
            f"{source}: none of its {len(found.classes)} classes ({', '.join(found.classes[:3])}, ...) is among the prior's "
            f"{len(classes)} ({', '.join(classes[:3])}, ...)."
        )
    kept = found.images[rows >= 0]
    refuse_test_stimuli(kept, dataset, side, str(source))
    return kept, rows[rows >= 0]

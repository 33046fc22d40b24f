"""GOD as the lab released it: Subject1.h5 to Subject5.h5 (figshare 7387130) in the format of bdpy, BrainDecoderToolbox2.

    /dataSet               float64 (N, M): a row a trial; columns are voxels and labels
    /metaData/key          text (K,), for example VoxelData, ROI_V1, voxel_x, DataType, stimulus_id
    /metaData/description  text (K,)
    /metaData/value        float64 (K, M): what a key says of each column, NaN where nothing

Later versions of bdpy write /dataset and /metadata. A key with value 1 in exactly one column names that column:
    DataType      1 training (1200 rows), 2 perception test (1750), 3 imagery test (500)
    stimulus_id   (older: Label) the picture as a float, see `god_stimuli`; imagery rows carry the test picture's id, or its
                  class alone, since the subjects imagined a class and not a picture
    Run           counts within each kind of session
    image_index   not used here: it counts the csv lists from 1
ROI_<name> marks voxels; voxel_x, voxel_y, voxel_z are their coordinates. One-back repeats of pictures are
not in the file: the lab removed them. The later release after fmriprep (Subject1_ImageNetTraining.h5 and so on) has the
same layout, but three files and no DataType, and other voxels: it is other data and not read.

The ids need float64: float32 cannot hold the picture's number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cadiff.data.readers.god_recording import (
    SESSIONS,
    Recording,
    as_float32,
    averaged_trials,
    choose_voxels,
    group_means,
    rows_in_blocks,
    voxel_facts,
    with_repeats,
)
from cadiff.data.readers.god_stimuli import stimulus_id
from cadiff.errors import DataError

TYPES = {"train": 1, "perception": 2, "imagery": 3}
LABELS = ("stimulus_id", "Label")
MOST_COMPRESSED = (
    1100  # deflate's limit: a dataset that claims more than this per stored byte is damaged or hostile
)
FAILURES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    AttributeError,
    OverflowError,
    MemoryError,
)


def read_h5(
    path: Path, *, subject: int | None, rois: Sequence[str] | None, averaged: bool, part: str
) -> Recording:
    """A subject's .h5 file.

    Args:
        path: Subject3.h5 or the like.
        subject: its number, to compare the voxel count with.
        rois: keep voxels in any of these; nothing keeps voxels in any ROI.
        averaged: average the test trials of each stimulus.
        part: "perception" or "imagery": what the test trials are; training trials are perception always.

    Raises:
        DataError: not such a file, a column missing, or labels that cannot be.
    """
    with _open(path) as (data, keys, values):
        kind = _column(path, data, keys, values, "DataType")
        if strange := sorted(set(kind.tolist()) - set(TYPES.values())):
            raise DataError(
                f"{path}: DataType holds {strange[0]:g}; expected 1, 2 and 3 (training, perception, imagery)."
            )
        name = next((label for label in LABELS if label in keys), LABELS[0])
        numbers = _column(path, data, keys, values, name)
        columns, masks, places = _voxels(path, keys, values)
        notes: list[str] = []
        when = {
            column: _whole(path, data, keys, values, column, notes) for column in ("session", "run", "block")
        }
    rows = np.flatnonzero((kind == TYPES["train"]) | (kind == TYPES[part]))
    ids = _ids(path, name, numbers, kind)
    index, voxels = choose_voxels(masks, rois, path)
    for axis, values_of_axis in places.items():
        voxels[axis] = values_of_axis[index]
    facts, more = voxel_facts(masks, len(index), subject)
    is_train = kind[rows] == TYPES["train"]
    trials = pd.DataFrame(
        {
            "stimulus_id": [ids[row] for row in rows],
            "split": np.where(is_train, "train", "test"),
            "session": np.where(is_train, SESSIONS["train"], SESSIONS["test"]),
            "run": 1,
            "task": np.where(is_train, "perception", part),
        }
    )
    for column, found in when.items():
        if found is not None:
            trials[column] = found[rows]
    if when["session"] is None:
        notes.append("The file does not tell scanning days: session is 1 in training and 2 in test.")
    if not averaged:
        blocks = _read(path, rows, columns[index])
        return Recording(voxels, with_repeats(trials), blocks, facts, notes + more)
    tested = trials[~is_train]
    groups = sorted(set(tested["stimulus_id"]))
    group = np.array([groups.index(stimulus) for stimulus in tested["stimulus_id"]], dtype=int)
    means = averaged_trials(groups, np.bincount(group, minlength=len(groups)).tolist(), part)
    trials = pd.concat([trials[is_train].assign(averaged_trials=1), means], ignore_index=True)
    if "block" in trials:
        trials = trials.drop(columns="block")

    def blocks_and_means() -> Iterator[np.ndarray]:
        yield from _read(path, rows[is_train], columns[index])
        test_blocks = _read(path, rows[~is_train], columns[index])
        yield as_float32(group_means(test_blocks, group, len(groups)))

    return Recording(voxels, with_repeats(trials), blocks_and_means(), facts, notes + more)


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, list[str], np.ndarray]]:
    """(the dataset, still on disk; its keys; the keys' values (keys, columns)); h5py's errors become `DataError`."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = next((file[name] for name in ("metaData", "metadata") if _is_ours(file, name)), None)
            data = next((_dataset(path, file, n) for n in ("dataSet", "dataset") if n in file), None)
            if not isinstance(group, h5py.Group) or data is None:
                raise DataError(
                    f"{path} lacks /dataSet and /metaData (it has: {', '.join(list(file)[:8]) or 'nothing'}): "
                    "expected Subject1.h5 to Subject5.h5 of figshare 7387130."
                )
            keys = [_text(key) for key in np.ravel(_dataset(path, group, "key")[()])]
            value = _dataset(path, group, "value")
            if data.ndim != 2 or data.dtype.kind != "f" or data.dtype.itemsize < 8 or not data.size:
                raise DataError(
                    f"{path}: {data.name} is {data.dtype} {data.shape}, expected float64 (trials, columns)."
                )
            if value.shape != (len(keys), data.shape[1]) or value.dtype.kind not in "fiu":
                raise DataError(
                    f"{path}: {value.name} is {value.dtype} {value.shape}, expected numbers {(len(keys), data.shape[1])}: "
                    "a row for each key and a column for each of the dataset's."
                )
            yield data, keys, np.asarray(value[()], dtype=np.float64)
    except FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an HDF5 file of bdpy ({reason}): download it again."
        ) from None


def _is_ours(group: Any, name: str) -> bool:
    """Whether a name is there and no link: links of HDF5 may lead to any file of this computer."""
    import h5py

    return name in group and isinstance(group.get(name, getlink=True), h5py.HardLink)


def _dataset(path: Path, group: Any, name: str) -> Any:
    """A dataset inside the file itself, of a size that the file can hold."""
    import h5py

    if not _is_ours(group, name) or not isinstance(group[name], h5py.Dataset):
        raise DataError(f"{path} has no dataset {group.name.rstrip('/')}/{name} of its own.")
    found = group[name]
    if found.is_virtual or found.external:
        raise DataError(f"{path}: {found.name} is kept in other files; expected one whole file.")
    claimed, stored = int(found.size or 0) * found.dtype.itemsize, found.id.get_storage_size()
    if claimed > MOST_COMPRESSED * max(stored, 1):
        raise DataError(
            f"{path}: {found.name} claims {claimed} bytes and stores {stored}: the file is damaged."
        )
    return found


def _text(key: Any) -> str:
    return (key.decode() if isinstance(key, bytes) else str(key)).strip("\0 ")


def _column(path: Path, data: Any, keys: list[str], values: np.ndarray, name: str) -> np.ndarray:
    """The column that a key marks, float64 (trials,)."""
    if name not in keys:
        there = ", ".join(key for key in keys if not key.startswith(("ROI_", "voxel_")))
        raise DataError(
            f"{path} has no column {name} (it has: {there[:200] or 'none'}): expected Subject1.h5 to Subject5.h5; the "
            "files after fmriprep (Subject1_ImageNetTraining.h5 ...) are other data and not read."
        )
    marked = np.flatnonzero(values[keys.index(name)] == 1)
    if len(marked) != 1:
        raise DataError(f"{path}: {len(marked)} columns are marked {name}, expected one.")
    return np.asarray(data[:, int(marked[0])], dtype=np.float64)


def _whole(
    path: Path, data: Any, keys: list[str], values: np.ndarray, name: str, notes: list[str]
) -> np.ndarray | None:
    """An optional column of whole numbers, int64 (trials,)."""
    key = next((key for key in keys if key.lower() == name), None)
    if key is None:
        return None
    column = _column(path, data, keys, values, key)
    with np.errstate(invalid="ignore"):
        if not (np.isfinite(column) & (column == np.floor(column)) & (np.abs(column) < 1e9)).all():
            notes.append(f"The column {key} holds more than whole numbers and was left out.")
            return None
    return column.astype(np.int64)


def _voxels(
    path: Path, keys: list[str], values: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(columns that are voxels, ROI name -> bool (voxels,), axis -> coordinates (voxels,))."""
    rois = {
        key.removeprefix("ROI_"): values[row] == 1 for row, key in enumerate(keys) if key.startswith("ROI_")
    }
    rois = {name: mask for name, mask in rois.items() if re.fullmatch(r"[\w.+-]+", name)}
    if "VoxelData" in keys:
        is_voxel = values[keys.index("VoxelData")] == 1
    else:
        is_voxel = np.any(list(rois.values()), axis=0) if rois else np.zeros(values.shape[1], dtype=bool)
    if not is_voxel.any():
        raise DataError(f"{path} marks no column as VoxelData and none by an ROI_ key: it holds no voxels.")
    places = {
        axis: values[keys.index(f"voxel_{axis}")][is_voxel] for axis in "xyz" if f"voxel_{axis}" in keys
    }
    return np.flatnonzero(is_voxel), {name: mask[is_voxel] for name, mask in rois.items()}, places


def _ids(path: Path, column: str, numbers: np.ndarray, kind: np.ndarray) -> list[str]:
    """A stimulus id for each row; imagery of a class gets the id of the class's test picture where that is one."""
    names = [stimulus_id(number) for number in numbers.tolist()]
    is_imagery = kind == TYPES["imagery"]
    for row, (name, imagined) in enumerate(zip(names, is_imagery, strict=True)):
        if name is None or ("_" not in name and not imagined):
            raise DataError(
                f"{path}: {column} in row {row} is {float(numbers[row])!r}; expected a picture's id like 1518878.010042."
            )
    tested = {str(names[row]) for row in np.flatnonzero(kind == TYPES["perception"])}
    classes = Counter(name.partition("_")[0] for name in tested)
    picture = {name.partition("_")[0]: name for name in tested if classes[name.partition("_")[0]] == 1}
    return [picture.get(str(name), str(name)) for name in names]


def _read(path: Path, rows: np.ndarray, columns: np.ndarray) -> Iterator[np.ndarray]:
    """Betas of some rows (ascending) and columns, as many rows at a time as fit in memory easily."""
    if not len(rows):
        return
    with _open(path) as (data, _, _):
        for span in rows_in_blocks(len(data)):
            inside = rows[(rows >= span.start) & (rows < span.stop)]
            if len(inside):
                yield as_float32(data[span][inside - span.start][:, columns])

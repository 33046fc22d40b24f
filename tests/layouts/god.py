"""Generic Object Decoding in both of its forms, from one synthetic subject: see `cadiff.data.readers.god`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from layouts import Sample

NUM_VOXELS = 300
VC = {1: 215, 2: 208}  # neither and a multiple of 16: what padding to patches has to deal with
EXTRA = 10  # voxels of LOC outside VC, so that "any ROI" is more than VC
REPEATS = 4
SIDE = 24
NO_INDEX = "n01645776"  # a training class of GOD that ImageNet-1k lacks
GOLDFISH, OSTRICH, LEATHERBACK, HAWKSBILL = "n01443537", "n01518878", "n01665541", "n01664990"
KNOWN = {1: GOLDFISH, 9: OSTRICH, 34: LEATHERBACK}  # places in ImageNet-1k that any table of it confirms
TRAIN_CLASSES = (OSTRICH, NO_INDEX, HAWKSBILL, "n02084071", "n13109733")
TEST_CLASSES = (GOLDFISH, "n01621127", "n03767745", "n04572121")


@dataclass(eq=False)
class Subject:
    """One synthetic subject; the test rows are shuffled as in the release."""

    number: int
    train_ids: list[str]
    test_ids: list[str]
    train: np.ndarray  # (training trials, voxels)
    shown: np.ndarray  # picture of each
    single: np.ndarray  # (test trials, voxels)
    tested: np.ndarray
    imagery: np.ndarray
    imagined: np.ndarray
    masks: dict[str, np.ndarray]
    noise_ceiling: np.ndarray
    train_images: np.ndarray
    test_images: np.ndarray
    places: np.ndarray  # (3, voxels)


def make_subject(
    rng: np.random.Generator,
    number: int = 1,
    *,
    train_classes: tuple[str, ...] = TRAIN_CLASSES,
    test_classes: tuple[str, ...] = TEST_CLASSES,
    per_class: int = 2,
    repeats: int = REPEATS,
    imagery_repeats: int = 2,
    num_voxels: int = NUM_VOXELS,
    side: int = SIDE,
) -> Subject:
    """Pictures are numbered so that the traps are there: 19020 loses its zero as a float, 65 is short, text order rules."""
    numbers = [10042, 65, 5958, 12028, 7346, 7579, 14075, 8432][:per_class]
    train_ids = [f"{name}_{picture}" for name in train_classes for picture in sorted(numbers, key=str)]
    test_ids = [f"{name}_{19020 + 10 * row}" for row, name in enumerate(test_classes)]
    vc = VC[number] * num_voxels // NUM_VOXELS if num_voxels != NUM_VOXELS else VC[number]
    pattern = rng.normal(size=(len(test_ids), num_voxels))
    tested = rng.permutation(np.repeat(np.arange(len(test_ids)), repeats))
    imagined = rng.permutation(np.repeat(np.arange(len(test_ids)), imagery_repeats))

    def noisy(rows: np.ndarray) -> np.ndarray:
        # Releases hold float64 or float32; numbers exact in float32 make every form comparable bit by bit.
        return (pattern[rows] + rng.normal(size=(len(rows), num_voxels))).astype(np.float32)

    return Subject(
        number=number,
        train_ids=train_ids,
        test_ids=test_ids,
        train=rng.normal(size=(len(train_ids), num_voxels)).astype(np.float32),
        shown=rng.permutation(len(train_ids)),
        single=noisy(tested),
        tested=tested,
        imagery=noisy(imagined),
        imagined=imagined,
        masks=make_masks(rng.permutation(num_voxels), vc),
        noise_ceiling=rng.uniform(size=num_voxels),
        train_images=rng.integers(0, 256, (len(train_ids), side, side, 3), np.uint8),
        test_images=rng.integers(0, 256, (len(test_ids), side, side, 3), np.uint8),
        places=rng.normal(size=(3, num_voxels)),
    )


def make_masks(order: np.ndarray, vc: int) -> dict[str, np.ndarray]:
    """The ten ROIs over scattered voxels: V1-V4 make LVC, LOC, FFA and PPA make HVC, both and more make VC."""
    cuts = [0, *(np.array([0.2, 0.35, 0.5, 0.6, 0.75, 0.85, 0.95]) * vc).astype(int)]
    names = ("V1", "V2", "V3", "V4", "LOC", "FFA", "PPA")
    parts = {
        name: order[start:stop] for name, start, stop in zip(names, cuts[:-1], cuts[1:], strict=True)
    } | {"LVC": order[: cuts[4]], "HVC": order[cuts[4] : cuts[7]], "VC": order[:vc]}
    parts["LOC"] = np.concatenate([parts["LOC"], order[vc : vc + EXTRA]])
    return {name: np.isin(np.arange(len(order)), voxels) for name, voxels in parts.items()}


def write_npz(folder: Path, subject: Subject) -> Path:
    """sbj_k.npz and what belongs to it, training trials in another order than the lab's; subjects can share a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    average = np.stack([subject.single[subject.tested == i].mean(0) for i in range(len(subject.test_ids))])
    np.savez(
        folder / f"sbj_{subject.number}.npz",
        subject.train[::-1],
        subject.single,
        average,
        subject.shown[::-1],
        subject.tested,
        subject.noise_ceiling,
        subject.noise_ceiling * 3,
        **subject.masks,
    )
    np.savez(folder / "images_256.npz", train_images=subject.train_images, test_images=subject.test_images)
    write_lists(folder, subject)
    write_class_index(folder / "imagenet_class_index.json")
    return folder


def write_lists(folder: Path, subject: Subject) -> None:
    for file, ids in (
        ("imagenet_training_label.csv", subject.train_ids),
        ("imagenet_testing_label.csv", subject.test_ids),
    ):
        lines = [f'{as_number(name):.6f},"{name}.JPEG"\n' for name in ids]
        (folder / file).write_text("".join(lines))


def as_number(stimulus_id: str) -> float:
    """n01518878_10042 -> 1518878.010042"""
    name, _, picture = stimulus_id.partition("_")
    return float(f"{int(name[1:])}.{int(picture):06d}")


def write_class_index(path: Path) -> None:
    """1000 classes in the order of ImageNet-1k: the real ids where they are known, ascending ones between them."""
    prior = json.loads((resources.files("cadiff") / "assets" / "prior" / "prior.json").read_text())
    known = {0: "n01440764", 999: "n15075141", **KNOWN}
    known |= dict(zip(prior["imagenet_index"], prior["classes"], strict=True))
    table, last = {}, 0
    for place in range(1000):
        last = int(known[place][1:]) if place in known else last + 1
        table[str(place)] = [f"n{last:08d}", f"class {place}"]
    table["34"].insert(1, HAWKSBILL)  # a class of GOD that someone found near to the leatherback turtle
    path.write_text(json.dumps(table))


def write_pictures(folder: Path, subject: Subject) -> Path:
    """What the lab sends on request: JPEG files in a folder for each split."""
    for part, ids, pictures in (
        ("training", subject.train_ids, subject.train_images),
        ("test", subject.test_ids, subject.test_images),
    ):
        (folder / part).mkdir(parents=True)
        for name, picture in zip(ids, pictures, strict=True):
            Image.fromarray(picture).save(folder / part / f"{name}.JPEG", quality=95)
    return folder


def write_h5(
    path: Path, subject: Subject, *, lower_case: bool = False, class_only_imagery: bool = False
) -> Path:
    """Subject*.h5; with `lower_case` as later versions of bdpy write it: names, text type, voxels before the labels."""
    ids = [subject.train_ids[i] for i in subject.shown] + [subject.test_ids[i] for i in subject.tested]
    imagined = [subject.test_ids[i] for i in subject.imagined]
    labels = {
        "DataType": np.repeat([1.0, 2, 3], [len(subject.train), len(subject.single), len(subject.imagery)]),
        "Run": 1.0
        + np.concatenate(
            [
                np.arange(len(subject.train)) // 5,
                np.arange(len(ids) - len(subject.train)) // 5,
                np.arange(len(imagined)) // 3,
            ]
        ),
        "stimulus_id": np.array(
            [
                *map(as_number, ids),
                *(
                    float(int(as_number(name))) if class_only_imagery else as_number(name)
                    for name in imagined
                ),
            ]
        ),
        "image_index": np.concatenate([subject.shown, subject.tested, subject.imagined]) + 1.0,
    }
    betas = np.concatenate([subject.train, subject.single, subject.imagery]).astype(np.float64)
    columns = np.stack(list(labels.values()), axis=1)
    data = np.concatenate([betas, columns] if lower_case else [columns, betas], axis=1)
    voxels = np.arange(betas.shape[1]) + (0 if lower_case else len(labels))  # their columns
    first = betas.shape[1] if lower_case else 0  # the first label's column
    marks = [("VoxelData", voxels, 1.0)]
    marks += [(name, np.array([first + place]), 1.0) for place, name in enumerate(labels)]
    marks += [(f"voxel_{axis}", voxels, subject.places[i]) for i, axis in enumerate("xyz")]
    marks += [(f"ROI_{name}", voxels[mask], 1.0) for name, mask in subject.masks.items()]
    meta = np.full((len(marks), data.shape[1]), np.nan)
    for row, (_, where, value) in zip(meta, marks, strict=True):
        row[where] = value
    keys = [name for name, _, _ in marks]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset" if lower_case else "dataSet"] = data
        group = file.create_group("metadata" if lower_case else "metaData")
        group["key"] = keys if lower_case else np.array(keys, dtype="S16")
        group["description"] = [f"1 = {key}" for key in keys]
        group["value"] = meta
        if lower_case:
            file["header/ctime"] = "2020-01-01 00:00:00"
    return path


def make_npz(folder: Path, rng: np.random.Generator) -> Sample:
    for subject_number in (1, 2):
        write_npz(folder, make_subject(rng, subject_number))
    return Sample("god", folder, {"subject": 1, "design": "any"}, counts(), VC[1] + EXTRA)


def make_h5(folder: Path, rng: np.random.Generator) -> Sample:
    subject = make_subject(rng)
    images = write_pictures(folder.with_name(f"{folder.name}-pictures"), subject)
    path = write_h5(folder / "Subject1.h5", subject)
    return Sample("god", path, {"images": str(images), "design": "any"}, counts(), VC[1] + EXTRA)


def make_h5_lower_case(folder: Path, rng: np.random.Generator) -> Sample:
    path = write_h5(folder / "Subject2.h5", make_subject(rng, 2), lower_case=True)
    return Sample("god", path, {"rois": ["VC"], "design": "any"}, counts(), VC[2])


def counts() -> dict[str, int]:
    return {"train": 2 * len(TRAIN_CLASSES), "test": REPEATS * len(TEST_CLASSES)}


def rewrite_arrays(folder: Path, **arrays: np.ndarray | None) -> Path:
    """Changes arrays of sbj_1.npz, or leaves them out where None."""
    with np.load(folder / "sbj_1.npz") as file:
        content = {name: array for name, array in {**file, **arrays}.items() if array is not None}
    np.savez(folder / "sbj_1.npz", **content)
    return folder


def rewrite_column(path: Path, key: str, values) -> Path:
    """Changes the column that a key of Subject*.h5 marks."""
    with h5py.File(path, "r+") as file:
        row = list(file["metaData/key"].asstr()).index(key)
        column = int(np.flatnonzero(file["metaData/value"][row] == 1)[0])
        file["dataSet"][:, column] = values
    return path

"""The pictures: readable and worth looking at, labelled, and no test picture among the training pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from cadiff import fingerprints as fp
from cadiff.data.doctor.findings import Check, Finding, Pair, count, some
from cadiff.data.doctor.folder import Folder
from cadiff.data.files import inside, load_picture
from cadiff.errors import DataError

MAX_PICTURES = 12_000  # more are sampled; test pictures come first
SMALL = 32  # pixels: a smaller side is worth a remark
MAX_PAIRS = 200


@dataclass
class Pictures:
    """What one pass over the picture files found, in the order of `names`."""

    names: list[str] = field(default_factory=list)
    """Stimulus ids of the pictures that could be read."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files as they are, also of those that are no pictures."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(height, width)."""
    grey: list[bool] = field(default_factory=list)
    """Whether the three channels are the same."""
    constant: list[str] = field(default_factory=list)
    """Ids of pictures of one colour."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id -> why."""
    thumbnails: np.ndarray = field(default_factory=lambda: np.empty((0, fp.PLACES, fp.PLACES), np.uint8))
    """uint8 (n, PLACES, PLACES)."""
    sample: str = ""
    """What part of the pictures was looked at; empty means all."""


def read_pictures(folder: Folder, *, seed: int = 0, progress: bool = True) -> Pictures:
    """Reads the picture files once."""
    listed = {str(name): str(file) for name, file in folder.stimuli["file"].dropna().items()}
    names = list(listed)
    out = Pictures()
    if len(names) > MAX_PICTURES:
        tested = set(folder.shown("test"))
        drawn = np.random.default_rng([seed, 2]).permutation(names)
        first = sorted(drawn, key=lambda name: name not in tested)[:MAX_PICTURES]
        out.sample = f"{len(first):,} of {len(names):,} pictures, test pictures first"
        names = sorted(map(str, first))
    thumbnails = []
    for name in tqdm(names, desc="pictures", unit="", disable=None if progress else True, leave=False):
        try:
            path = inside(folder.path / "stimuli", listed[name])
            if not path.is_file():  # `check_pictures` says so
                continue
            out.hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            picture = load_picture(path)
        except (DataError, OSError) as error:
            out.unreadable[name] = str(error)
            continue
        out.names.append(name)
        out.sizes.append(picture.shape[:2])
        out.grey.append(bool((picture[..., :1] == picture).all()))
        if (picture == picture[:1, :1]).all():
            out.constant.append(name)
        thumbnails.append(fp.thumbnail(picture))
    if thumbnails:
        out.thumbnails = np.stack(thumbnails)
    return out


def check_quality(folder: Folder, pictures: Pictures) -> Finding:
    """Unreadable, empty, tiny and grey pictures, sizes that differ, and files or stimuli that nothing uses."""
    check = Check("picture-quality", "Picture quality", pictures.sample)
    if not pictures.names and not pictures.unreadable:
        return check("not applicable", "There are no pictures.")
    sizes = Counter(pictures.sizes)
    tiny = [
        n for n, (high, wide) in zip(pictures.names, pictures.sizes, strict=True) if min(high, wide) < SMALL
    ]
    not_square = sum(number for (high, wide), number in sizes.items() if high != wide)
    shown = set(folder.shown("train", "test", "unlabelled"))
    unused = [name for name in folder.stimuli.index if name not in shown]
    check.details |= {
        "sizes": {f"{wide} x {high}": number for (high, wide), number in sizes.most_common(20)},
        "unreadable": dict(list(pictures.unreadable.items())[:100]),
        "constant": pictures.constant[:100],
        "not_square": not_square,
        "tiny": len(tiny),
        "grey": sum(pictures.grey),
        "never_shown": len(unused),
    }
    if pictures.unreadable:
        name, why = next(iter(pictures.unreadable.items()))
        found = f"{count(len(pictures.unreadable), 'picture')} cannot be read (stimulus {name!r}: {why})"
        return check("wrong", found, "Copy or import the dataset again.")
    if pictures.constant:
        found = f"{count(len(pictures.constant), 'picture', 'is')} of one colour: stimulus {some(pictures.constant)}."
        return check(
            "warning", found, "Look whether they are placeholders for pictures that were not given out."
        )
    (high, wide), _ = sizes.most_common(1)[0]
    remarks = [f"{len(sizes)} different sizes"] * (len(sizes) > 1)
    remarks += [f"{not_square:,} not square"] * bool(not_square)
    remarks += [f"{len(tiny):,} smaller than {SMALL} pixels"] * bool(tiny)
    remarks += ["all grey" if all(pictures.grey) else f"{sum(pictures.grey):,} grey"] * any(pictures.grey)
    remarks += [f"{len(unused):,} never shown"] * bool(unused)
    about = f"{count(len(pictures.names), 'picture')}, {'mostly ' if len(sizes) > 1 else ''}{wide} x {high} pixels"
    do = (
        "Every stage takes the middle square of a picture and resizes it: where something else was seen, crop or pad the "
        "pictures and import again."
    )
    return check("note" if remarks else "ok", "; ".join([about, *remarks]) + ".", do if not_square else "")


def check_labels(folder: Folder) -> Finding:
    """Stimuli without a class label, and classes that are both trained and tested on."""
    check = Check("labels", "Classes")
    shown = folder.shown("train", "test")
    labels = folder.stimuli["label"].reindex(shown)
    missing = labels.index[labels.isna()].tolist()
    if not shown:
        return check("not applicable", "No stimulus is shown.")
    classes = {split: set(labels.reindex(folder.shown(split)).dropna()) for split in ("train", "test")}
    both = classes["train"] & classes["test"]
    check.details |= {
        "train_classes": len(classes["train"]),
        "test_classes": len(classes["test"]),
        "in_both": sorted(map(str, both))[:200],
        "num_in_both": len(both),
        "unlabelled_stimuli": len(missing),
        "labels_only": int(folder.stimuli["file"].isna().sum()),
    }
    remarks = []
    if both:
        remarks.append(
            f"{len(both):,} of {len(classes['test']):,} test classes are also trained on, so guessing the class is a "
            "strong strategy"
        )
    if missing:
        all_of = (
            "no stimulus" if len(missing) == len(shown) else f"{len(missing):,} of {len(shown):,} stimuli"
        )
        remarks.append(f"{all_of} {'has a label' if len(missing) == len(shown) else 'have no label'}")
    if check.details["labels_only"]:
        remarks.append(f"of {count(check.details['labels_only'], 'stimulus')} only the label is known")
    if not remarks:
        found = f"{len(classes['train']):,} training and {len(classes['test']):,} test classes, none in both."
        return check("ok", found)
    todo = []
    if both:
        todo.append("Report it as decoding of seen classes, beside a baseline that knows the class alone.")
    if len(missing) == len(shown):
        todo.append(
            "Label baselines, splits by class and label_start need labels, all else works without: where a preset has it, say "
            "`cadiff diffuse --set label_start=false`, `cadiff run --set diffuse.label_start=false`."
        )
    found = "; ".join(remarks) + "."
    return check("note", found[0].upper() + found[1:], " ".join(todo))


def check_leaks(folder: Folder, pictures: Pictures, *, seed: int = 0) -> tuple[Finding, list[Pair]]:
    """Test pictures among the training pictures: by id, by file, by what they show."""
    check = Check("leaks", "Test pictures in training", pictures.sample)
    train, test = folder.shown("train"), folder.shown("test")
    nothing = check("not applicable", "There are no training and test pictures to compare.")
    if not train:
        return nothing, []
    shared = sorted(set(train) & set(test))
    recorded = {str(n): str(digest) for n, digest in folder.stimuli["sha256"].dropna().items()}
    digests = recorded | pictures.hashes
    first = {digests[name]: name for name in reversed(train) if name in digests}
    again = set(shared)
    copies = [Pair(n, first[digests[n]], 1.0) for n in test if digests.get(n) in first and n not in again]
    known = {name: row for row, name in enumerate(pictures.names)}
    rows = {
        split: [known[n] for n in names if n in known] for split, names in (("train", train), ("test", test))
    }
    same, alike, within = _alike(pictures, rows, skip={*shared, *(pair.test for pair in copies)}, seed=seed)
    check.details |= {
        "same_id": shared[:100],
        "num_same_id": len(shared),
        "same_file": len(copies),
        "near_duplicates": len(alike),
        "usual_similarity": same.usual,
        "least_similarity": same.least,
        "alike_within_training": within,
    }
    pairs = copies + sorted(alike, key=lambda pair: -pair.similarity)
    check.details["pairs"] = [[p.test, p.train, round(p.similarity, 3)] for p in pairs[:MAX_PAIRS]]
    told = [f"{count(len(shared), 'test stimulus', 'is')} also shown in training ({some(shared, 1)})"] * bool(
        shared
    )
    told += [f"{count(len(copies), 'test picture', 'is')} the same file as a training picture"] * bool(copies)
    told += [
        f"{count(len(alike), 'test picture', 'shows')} what a training picture shows, in another file"
    ] * bool(alike)
    if told:
        example = f" (first: {pairs[0].test!r} and {pairs[0].train!r})" if pairs else ""
        do = "Move all trials of a picture, under all of its names, to one split, and import again."
        if not shared and not copies and same.may_be_chance:
            do = (
                "Look at the pairs on the page (`--html`): these pictures are all alike, and chance gives some pairs. "
                + do
            )
            return check("warning", "; ".join(told) + example + ".", do), pairs[:MAX_PAIRS]
        return check("wrong", "; ".join(told) + example + ".", do), pairs[:MAX_PAIRS]
    if within:
        none = f"None of {len(test):,} is; " if test else "Nothing is tested; "
        found = f"{none}{count(within, 'training picture', 'looks')} like another one under another name."
        do = (
            "Give them one stimulus id: `cadiff data split` keeps identical files on one side, not pictures that merely look "
            "alike."
        )
        return check("note", found, do), []
    if not test:
        return nothing, []
    looked = "" if rows["test"] else " by id (there are no pictures to compare)"
    return check("ok", f"None of {count(len(test), 'test stimulus')} is{looked}."), []


def _alike(
    pictures: Pictures, rows: dict[str, list[int]], *, skip: set[str], seed: int
) -> tuple[fp.LookAlikes, list[Pair], int]:
    """Near duplicates between test and training, the same by name, and the number of them within training."""
    prints = fp.fingerprints(pictures.thumbnails)
    train = prints[np.array(rows["train"], int)]
    test_rows = [row for row in rows["test"] if pictures.names[row] not in skip]
    found = fp.look_alikes(prints[np.array(test_rows, int)], train, np.random.default_rng([seed, 3]))
    pairs = [
        Pair(pictures.names[test_rows[a]], pictures.names[rows["train"][b]], similarity)
        for a, b, similarity in found.pairs
    ]
    return found, pairs, _repeats(train, found.least)


def _repeats(train: fp.Fingerprints, least: float) -> int:
    """Training pictures that look like an earlier one."""
    number = 0
    for start in range(fp.ROWS, len(train) + fp.ROWS, fp.ROWS):
        block = np.arange(start - fp.ROWS, min(start, len(train)))
        part = train[block]
        alike = fp.similarity(part, train[np.arange(block[-1] + 1)])
        alike[np.arange(len(block))[:, None] + block[0] <= np.arange(alike.shape[1])[None]] = -1.0
        best = alike.argmax(axis=1)
        near = fp.distance(part.grey, train.grey[best]) <= fp.FAR
        number += int(((alike.max(axis=1) >= least) & near).sum())
    return number

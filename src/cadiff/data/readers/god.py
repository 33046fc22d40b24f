"""Generic Object Decoding (GOD): Horikawa & Kamitani 2017, Nature Communications 8:15037.

Five subjects saw 1200 pictures of 150 ImageNet classes once (training), 50 pictures of 50 other classes 35 times each
(test), and imagined the 50 test classes 10 times each. The data circulates in two forms, and this module is the door to
both: the lab's Subject*.h5 (`god_h5`) and the sbj_*.npz of SelfSuperReconst, MinD-Vis and CAD (`god_npz`), whose authors
say that they hold the same trials in another order. Both become the same dataset: a stimulus has the id of its file,
n01518878_10042, and its WordNet id as label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm import tqdm

from cadiff.artifacts import what_is_at
from cadiff.data.readers.god_h5 import read_h5
from cadiff.data.readers.god_npz import read_npz
from cadiff.data.readers.god_recording import TESTS, Recording, check_design
from cadiff.data.readers.god_stimuli import (
    IMAGES,
    ArrayPictures,
    FolderPictures,
    imagenet_indices,
    open_pictures,
    read_lists,
)
from cadiff.data.writer import dataset_writer
from cadiff.errors import ConfigError, DataError

FORMS = {"npz": re.compile(r"sbj_(\d{1,3})\.npz"), "h5": re.compile(r"Subject(\d{1,3})\.h5")}
CITATION = (
    "Horikawa T, Kamitani Y (2017). Generic decoding of seen and imagined objects using hierarchical visual features. "
    "Nature Communications 8:15037, doi:10.1038/ncomms15037"
)
LICENCE = (
    "fMRI: terms of the release (figshare 7387130, OpenNeuro ds001246); pictures: from ImageNet, shared by the lab on "
    "request, research use, not to be redistributed"
)
PICTURE_LICENCE = "ImageNet: research use, not to be redistributed"
UNITS = {
    "h5": "percent signal change, mean over a stimulus block, as released; nothing is normalised here",
    "npz": "response amplitudes as released with the npz files (scaling not documented there); nothing is normalised here",
}


def read_god(
    source: Path,
    out: Path,
    *,
    subject: int | str | None = None,
    rois: Sequence[str] | str | None = None,
    test: str = "single",
    part: str = "perception",
    images: str | Path | None = None,
    design: str = "published",
    bad_voxels: Literal["refuse", "drop"] = "refuse",
) -> Path:
    """Makes a dataset of one subject.

    Args:
        source: a folder with sbj_*.npz (and images_256.npz, the csv lists and imagenet_class_index.json) or with
            Subject*.h5, or one of these files.
        out: the dataset folder to make.
        subject: 1 to 5; needed where the source holds several.
        rois: keep the voxels in any of these ("VC", "V1,V2", ["V1", "V2"]); by default those in any ROI. voxels.tsv lists
            every ROI of a voxel in any case.
        test: "single" test trials, or "averaged" over the repeats of each picture. The stages average repeats themselves,
            so single trials lose nothing.
        part: "perception", or "imagery": the test trials are those in which the test classes were imagined (.h5 only).
        images: the pictures: a folder of files named n01518878_10042.JPEG at any depth, or an images_256.npz with the csv
            lists beside it. The npz form takes the one beside sbj_*.npz. The h5 form without pictures is imported with
            labels only: it can be decoded, not reconstructed.
        design: "published" refuses all but the published numbers of trials, pictures and classes; "any" imports what is
            there.
        bad_voxels: "drop" leaves voxels out that hold NaN or infinite values in any trial.

    Raises:
        DataError: files missing, unreadable or in contradiction to each other or, unless design="any", to the published
            design.
        ConfigError: an option's value that does not exist.
    """
    for name, value, known in (
        ("test", test, ("single", "averaged")),
        ("part", part, tuple(TESTS)),
        ("design", design, ("published", "any")),
        ("bad_voxels", bad_voxels, ("refuse", "drop")),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value!r}: choose {' or '.join(known)}.")
    chosen, averaged, published = _names(rois), test == "averaged", design == "published"
    form, path, number = _find(source, _number(subject))
    folder = Path(str(images)).expanduser() if images is not None else None
    if form == "npz":
        if part != "perception":
            raise DataError(f"{path} holds no imagery trials: they are in the lab's Subject{number}.h5.")
        folder = folder or _images_beside(path.parent)
        recording = read_npz(
            path,
            read_lists(path.parent),
            subject=number,
            rois=chosen,
            averaged=averaged,
            published=published,
        )
    else:
        recording = read_h5(path, subject=number, rois=chosen, averaged=averaged, part=part)
    check_design(recording.trials, path, part=part, averaged=averaged, published=published)
    ids = list(dict.fromkeys(recording.trials["stimulus_id"]))
    pictures = open_pictures(folder, ids) if folder is not None else None
    beside = [path.parent, *([folder if folder.is_dir() else folder.parent] if folder is not None else [])]
    indices, whence = imagenet_indices(beside)
    stimuli = pd.DataFrame({"stimulus_id": ids, "label": [name.partition("_")[0] for name in ids]})
    stimuli["imagenet_index"] = stimuli["label"].map(dict(indices)).astype("Int64")
    description: dict[str, Any] = {
        "title": f"Generic Object Decoding, {part}",
        "source": path.name,
        "units": UNITS[form],
        "licence": LICENCE,
        "citation": CITATION,
        "task": part,
        "test_trials": test,
        "design": design,
        "imagenet_index_from": whence,
        **recording.facts,
        "notes": [*recording.notes, *_about(part, pictures)],
    }
    _write(out, number, recording, stimuli, pictures, description, bad_voxels)
    return out


def _write(
    out: Path,
    number: int,
    recording: Recording,
    stimuli: pd.DataFrame,
    pictures: ArrayPictures | FolderPictures | None,
    description: dict[str, Any],
    bad_voxels: Literal["refuse", "drop"],
) -> None:
    with dataset_writer(
        out,
        name="GOD",
        subject=f"sub-{number:02d}",
        voxels=recording.voxels,
        description=description,
        bad_voxels=bad_voxels,
    ) as writer:
        rows = stimuli.astype(object).where(stimuli.notna(), None).to_dict("records")
        for row in tqdm(rows, desc="pictures", disable=None if pictures is not None else True):
            name = str(row["stimulus_id"])
            writer.add_stimulus(
                name,
                pictures[name] if pictures is not None else None,
                label=row["label"],
                imagenet_index=row["imagenet_index"],
                licence=PICTURE_LICENCE if pictures is not None else None,
            )
        done = 0
        with tqdm(total=len(recording.trials), desc="trials", disable=None) as bar:
            for block in recording.blocks:
                writer.add_trials(block, recording.trials.iloc[done : done + len(block)])
                done += len(block)
                bar.update(len(block))


def _about(part: str, pictures: ArrayPictures | FolderPictures | None) -> list[str]:
    notes = []
    if pictures is None:
        notes.append(
            "Without pictures: of each stimulus only the label is known. Import again with images=FOLDER to reconstruct."
        )
    if part == "imagery":
        notes.append(
            "Test trials are imagery: the subject was cued with a class and imagined it. The stimulus of such a trial is the "
            "class's test picture, which stands for the class; it was not in view."
        )
    return notes


def _names(rois: Sequence[str] | str | None) -> list[str] | None:
    parts = rois.split(",") if isinstance(rois, str) else rois
    if parts is None:
        return None
    if (
        not isinstance(parts, (list, tuple))
        or not parts
        or not all(isinstance(part, str) and part.strip() for part in parts)
    ):
        raise ConfigError(f"rois={rois!r}: give names of ROIs, for example rois=VC or rois=[V1,V2].")
    return [part.strip() for part in parts]


def _number(subject: int | str | None) -> int | None:
    found = re.fullmatch(r"\D*0*(\d{1,3})", str(subject)) if not isinstance(subject, bool) else None
    if subject is not None and found is None:
        raise ConfigError(f"subject={subject!r}: give the subject's number, for example subject=3.")
    return int(found[1]) if found else None


def _find(source: Path, number: int | None) -> tuple[str, Path, int]:
    """(form, the subject's file, the subject's number)."""
    if source.is_file():
        return _one_file(source, number)
    if not source.is_dir():
        raise DataError(
            f"{source} is not there: give the folder with sbj_*.npz or Subject*.h5, or one of these files."
        )
    there = [
        (form, path, int(match[1]))
        for path in sorted(source.iterdir())
        for form, pattern in FORMS.items()
        if (match := pattern.fullmatch(path.name)) and path.is_file()
    ]
    if not there:
        raise DataError(
            f"{source} holds neither sbj_1.npz to sbj_5.npz nor Subject1.h5 to Subject5.h5 (found: {what_is_at(source)}): "
            "give the folder that holds them."
        )
    fitting = [entry for entry in there if number in (None, entry[2])]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(path.name for _, path, _ in fitting or there)
    if not fitting:
        raise DataError(f"{source} has no subject {number} (it has: {names}).")
    if len({entry[2] for entry in fitting}) == 1:
        raise DataError(
            f"{source} holds subject {fitting[0][2]} in two forms ({names}): give the file that you mean."
        )
    raise DataError(
        f"{source} holds several subjects ({names}): say which, for example subject={fitting[0][2]}."
    )


def _one_file(source: Path, number: int | None) -> tuple[str, Path, int]:
    form = {".npz": "npz", ".h5": "h5", ".hdf5": "h5"}.get(source.suffix.lower())
    if form is None or source.name == IMAGES:
        raise DataError(
            f"{source} is not a subject's file; expected sbj_1.npz ... or Subject1.h5 ..., or their folder."
        )
    match = FORMS[form].fullmatch(source.name)
    named = int(match[1]) if match else None
    if named is not None and number not in (None, named):
        raise DataError(f"{source} is subject {named}, but subject={number} was asked for.")
    if named is None and number is None:
        raise DataError(
            f"{source} is not named like {'sbj_3.npz' if form == 'npz' else 'Subject3.h5'}: give subject=."
        )
    return form, source, named if named is not None else int(number or 0)


def _images_beside(folder: Path) -> Path:
    """images_256.npz, or the only other images_*.npz in the folder."""
    others = sorted(folder.glob("images_*.npz"))
    return others[0] if len(others) == 1 else folder / IMAGES

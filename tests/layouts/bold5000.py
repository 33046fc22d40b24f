"""BOLD5000 in the layout of its release 2.0: two subjects, two sessions of two runs of 37 trials for the first.

The second subject stopped after one session: one repeated image was shown to it once, and one never. The two makers draw
the same subject; the pictures are JPEG files in one, MinD-Vis' pickled dict in the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from layouts import Sample

ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
PER_RUN = 37
VOXELS = {
    "CSI1": (5, 7, 3, 4, 2, 6, 3, 5, 1, 4),
    "CSI4": (4, 4, 2, 2, 3, 3, 2, 2, 1, 1),
}  # LH, RH of each ROI
REPEATED = (
    "COCO_train2014_000000300072.jpg",
    "COCO_train2014_000000225383.jpg",
    "n04044716_4079.JPEG",
    "dining_car.jpg",
    "library_aisle10.jpg",
    "n02229544_6831.JPEG",
)
LISTS = "BOLD5000_Stimuli/Stimuli_Presentation_Lists"
SCENES = "BOLD5000_Stimuli/Scene_Stimuli"
PRESENTED = f"{SCENES}/Presented_Stimuli"
REPEATED_LIST = f"{SCENES}/repeated_stimuli_113_list.txt"
PY = "BOLD5000_GLMsingle_ROI_betas/py"
FIRST_RUN = f"{LISTS}/CSI1/CSI1_sess01/CSI_sess01_run01.txt"
SIDE = 20  # the release's are 375 x 375


def betas_file(name: str, subject: str = "CSI1") -> str:
    """Path of a betas file below the source; name: "LHEarlyVis" and so on."""
    return f"{PY}/{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{name}.npy"


def copy(source: Path, target: Path, *, pictures: bool) -> Path:
    """A copy to spoil; the pictures stay where they are unless asked for, which saves most of the files."""
    shutil.copytree(source, target, ignore=None if pictures else shutil.ignore_patterns("Presented_Stimuli"))
    if not pictures:
        (target / PRESENTED).symlink_to(source / PRESENTED)
    return target


def edit(path: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """A change of the text of a file."""

    def apply(source: Path) -> None:
        (source / path).write_text(change((source / path).read_text()))

    return apply


def names(rng: np.random.Generator, number: int) -> list[str]:
    """Distinct image names of the three kinds, in their shares."""
    made: dict[str, None] = {}
    while len(made) < number:
        kind, value = rng.integers(3), int(rng.integers(1, 580_000))
        words = ("airplanecabin", "ATM", "auto_showroom", "balconyIN", "HorseRaceTrack")
        scene = words[int(rng.integers(len(words)))] + str(value % 40 or "")
        made[
            (
                f"COCO_train2014_{value:012d}.jpg",
                f"n{1_440_764 + value:08d}_{value % 9000}.JPEG",
                f"{scene}.jpg",
            )[kind]
        ] = None
    return list(made)


def presentation(
    rng: np.random.Generator, once: list[str], repeated: dict[str, int], runs: list[int]
) -> list[list[list[str]]]:
    """session -> run -> 37 names in random order; most, not all and not the later showings of a repeated image have rep_."""
    shows = [(name, number) for name, times in repeated.items() for number in range(times)]
    total = PER_RUN * sum(runs)
    shows += [(name, -1) for name in once[: total - len(shows)]]
    assert len(shows) == total
    marked = {name: int(rng.integers(times)) for name, times in repeated.items()}
    order = [shows[i] for i in rng.permutation(total)]
    lines = [("rep_" if number >= 0 and number != marked[name] else "") + name for name, number in order]
    starts = iter(range(0, total, PER_RUN))
    return [[lines[start : start + PER_RUN] for start in islice(starts, n)] for n in runs]


def write_lists(folder: Path, subject: str, sessions: list[list[list[str]]]) -> None:
    prefix = "CSI" if subject == "CSI1" else subject  # as in the release
    for session, runs in enumerate(sessions, start=1):
        place = folder / subject / f"{subject}_sess{session:02d}"
        place.mkdir(parents=True)
        for run, lines in enumerate(runs, start=1):
            path = place / f"{prefix}_sess{session:02d}_run{run:02d}.txt"
            path.write_text("".join(line + "\n" for line in lines), newline="\n")
            path.with_suffix(".mat").write_bytes(b"MATLAB 5.0 MAT-file")


def write_betas(source: Path, subject: str, betas: np.ndarray, widths: tuple[int, ...]) -> None:
    """betas (trials, voxels) -> the ten files, columns in the order EarlyVis LH, EarlyVis RH, LOC LH, ..."""
    (source / PY).mkdir(parents=True, exist_ok=True)
    files = [betas_file(f"{side}{roi}", subject) for roi in ROIS for side in ("LH", "RH")]
    for file, part in zip(files, np.split(betas, np.cumsum(widths)[:-1], axis=1), strict=True):
        np.save(source / file, part)


def write_pictures(folder: Path, pictures: dict[str, np.ndarray], *, as_dict: bool) -> None:
    folder.mkdir(parents=True)
    if as_dict:
        held: Any = np.array(pictures, dtype=object)
        np.save(folder / "img_dict.npy", held, allow_pickle=True)
        return
    for place in ("COCO", "ImageNet", "Scene"):
        (folder / place).mkdir()
    for name, picture in pictures.items():
        place = "COCO" if name.startswith("COCO") else "ImageNet" if name.endswith("JPEG") else "Scene"
        Image.fromarray(picture).save(folder / place / name, format="JPEG", quality=95)


def make(folder: Path, rng: np.random.Generator, *, as_dict: bool = False) -> Sample:
    source = folder / "BOLD5000"
    once = names(rng, 127)
    times = dict.fromkeys(REPEATED[:5], 4) | {REPEATED[5]: 1}
    short = dict.fromkeys(REPEATED[:4], 2) | {REPEATED[4]: 1}  # its second session would have had the rest
    for subject, repeated, runs in (("CSI1", times, [2, 2]), ("CSI4", short, [2])):
        lists = presentation(rng, once, repeated, runs)
        write_lists(source / LISTS, subject, lists)
        widths = VOXELS[subject]
        betas = rng.normal(0.3, 1.2, size=(PER_RUN * sum(runs), sum(widths)))
        write_betas(source, subject, betas, widths)
    pictures = {name: rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for name in [*once, *REPEATED]}
    write_pictures(source / PRESENTED, pictures, as_dict=as_dict)
    (source / REPEATED_LIST).write_text("".join(name + "\n" for name in REPEATED), newline="\n")
    options = {"subject": "CSI1", "design": "any"}
    return Sample("bold5000", source, options, {"train": 127, "test": 21}, sum(VOXELS["CSI1"]))


def make_with_img_dict(folder: Path, rng: np.random.Generator) -> Sample:
    return make(folder, rng, as_dict=True)

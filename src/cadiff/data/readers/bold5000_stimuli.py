"""What BOLD5000's subjects were shown: presentation lists, names, labels, and where the pictures are.

    BOLD5000_Stimuli/
      Stimuli_Presentation_Lists/CSI1/CSI1_sess01/CSI_sess01_run01.txt    37 names, one a line; a .mat with the same beside it
                                 CSI2/CSI2_sess01/CSI2_sess01_run01.txt   (only CSI1's files lack the subject's number)
      Scene_Stimuli/repeated_stimuli_113_list.txt                         113 names
      Scene_Stimuli/Presented_Stimuli/{COCO,ImageNet,Scene}/              4916 pictures, cropped as they were shown
      Scene_Stimuli/Presented_Stimuli/img_dict.npy                        or: a pickled dict, name -> uint8 (256, 256, 3),
                                                                          which MinD-Vis (Chen et al. 2023) hands around

Traps. `rep_` before a name marks most showings of a repeated image, yet not all and not the later ones: it says nothing
about order and is dropped. Names come in three kinds: COCO_train2014_000000292845.jpg, n04209133_8326.JPEG (WordNet id),
banquetHall2.jpg (scene word and number; some have no number). Copies of the pictures differ in case and suffix.
`Original_Images` beside the presented ones are not cropped and not used.
"""

from __future__ import annotations

import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib import format as npy_format

from cadiff.data.files import MAX_PIXELS, PICTURES, need_file, need_folder, read_text
from cadiff.errors import DataError
from cadiff.safe_pickle import load_plain_pickle

MAX_NAME = 200  # bytes; longer ones cannot name files everywhere
REPEATED = "repeated_stimuli_113_list.txt"
LICENCES = {
    "coco": "terms of COCO: each photo under its Flickr licence",
    "imagenet": "terms of ImageNet: non-commercial research",
    "scene": "not stated",
}


Pictures = Mapping[str, Any]  # name -> path, or array from a file that may hold anything


def unzipped(folder: Path) -> Path:
    """The folder itself, or the one of the same name inside it that unzipping "here" leaves."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def read_names(path: Path) -> list[str]:
    """Image names of a list, one a line, without `rep_`; blank lines are passed over."""
    names = []
    for number, line in enumerate(read_text(path, "expected a list of image names.").splitlines(), start=1):
        name = line.strip().removeprefix("rep_")
        if not name and not line.strip():
            continue
        if (
            not re.fullmatch(r"[^./\\][^/\\]*", name)
            or not name.isprintable()
            or len(name.encode()) > MAX_NAME
        ):
            raise DataError(
                f"{path}, line {number}: {line.strip()[:60]!r} is not an image name such as "
                "COCO_train2014_000000292845.jpg: download the list again."
            )
        names.append(name)
    return names


def read_presentation(stimuli: Path, subject: str) -> pd.DataFrame:
    """One row a trial in the order of acquisition: session, run (numbers in the file names) and name.

    Sessions and runs are sorted by number. Where the release's `CSI1_imgnames.txt` lies beside the sessions, it must
    tell the same order.
    """
    folder = need_folder(
        stimuli / "Stimuli_Presentation_Lists" / subject,
        f"expected the sessions that {subject} saw; download BOLD5000_Stimuli.zip.",
    )
    shows: list[tuple[int, int, str]] = []
    for session, place in _numbered(folder, r"sess(?:ion)?[-_]?(\d+)$", "session").items():
        runs = _numbered(place, r"run[-_]?(\d+)\.txt$", "run") if place.is_dir() else {}
        if not runs:
            raise DataError(f"{place} holds no run: expected files such as CSI_sess01_run01.txt in it.")
        for run, path in runs.items():
            shows += [(session, run, name) for name in read_names(path)]
    if not shows:
        raise DataError(f"{folder} lists no trial: expected CSI1_sess01/CSI_sess01_run01.txt and so on.")
    _compare_order(folder / f"{subject}_imgnames.txt", [name for _, _, name in shows])
    return pd.DataFrame(shows, columns=["session", "run", "name"])


def _numbered(folder: Path, pattern: str, what: str) -> dict[int, Path]:
    """number -> entry of a folder, in ascending order; entries whose name does not end in the pattern are passed over."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.search(pattern, path.name, flags=re.IGNORECASE)
        if match is None or path.name.startswith("."):
            continue
        number = int(match[1][:9])
        if number in found:
            raise DataError(
                f"{folder} has {what} {number} twice, {found[number].name} and {path.name}: keep one of them."
            )
        found[number] = path
    return dict(sorted(found.items()))


def _compare_order(path: Path, names: list[str]) -> None:
    if not path.is_file():
        return
    listed = read_names(path)
    differ = [i for i, pair in enumerate(zip(names, listed, strict=False)) if _key(pair[0]) != _key(pair[1])]
    if len(listed) != len(names) or differ:
        where = (
            f"trial {differ[0] + 1} is {listed[differ[0]]!r}" if differ else f"it has {len(listed)} trials"
        )
        here = f"{names[differ[0]]!r}" if differ else f"{len(names)}"
        raise DataError(
            f"{path} contradicts the lists of the runs beside it: {where} there and {here} in the runs. Download "
            "BOLD5000_Stimuli.zip again; if the lists of the runs are right, move this file away."
        )


def stem(name: str) -> str:
    """The name without the suffix of a picture."""
    front, dot, suffix = name.rpartition(".")
    return front if front and dot + suffix.lower() in PICTURES else name


def _key(name: str) -> str:
    return stem(name).casefold()


class Names:
    """Finds a name among others that may differ from it in case and in the suffix of a picture."""

    def __init__(self, names: Iterable[str], what: str) -> None:
        """what: how a message calls the place where the names are."""
        self.what = what
        self._exact = set(names)
        self._loose: dict[str, list[str]] = defaultdict(list)
        for name in self._exact:
            self._loose[_key(name)].append(name)

    def find(self, name: str) -> str | None:
        """The same name, else the only one that differs in case alone, else in case and suffix; None if there is none.

        Raises:
            DataError: there is more than one.
        """
        if name in self._exact:
            return name
        loose = self._loose.get(_key(name), [])
        for found in ([other for other in loose if other.casefold() == name.casefold()], loose):
            if len(found) > 1:
                raise DataError(
                    f"{name!r} could be any of {', '.join(sorted(found))} in {self.what}: keep the right one."
                )
            if found:
                return found[0]
        return None


def stimulus_ids(pictures: Iterable[str]) -> dict[str, str]:
    """name -> stimulus id: the name without its suffix, unless two names differ in nothing else."""
    names = list(pictures)
    shared: dict[str, int] = defaultdict(int)
    for name in names:
        shared[_key(name)] += 1
    return {name: stem(name) if shared[_key(name)] == 1 else name for name in names}


def source_and_label(name: str) -> tuple[str, str | None]:
    """Where an image comes from (coco | imagenet | scene), and its label: WordNet id, the scene's word, or None."""
    if name.startswith("COCO_"):
        return "coco", None
    if re.match(r"n\d{8}_", name):
        return "imagenet", name[:9]
    return "scene", re.sub(r"[\s_-]*\d*$", "", stem(name)) or stem(name)


def open_pictures(stimuli: Path, images: str) -> tuple[str, Pictures]:
    """("folders" | "img_dict", name -> path or array) of the presented pictures.

    images: "folders", "img_dict", or "auto": folders where they hold any picture, else the dict.
    """
    place = need_folder(
        stimuli / "Scene_Stimuli" / "Presented_Stimuli",
        "expected the pictures in COCO, ImageNet and Scene there, or img_dict.npy.",
    )
    found = _listed(place) if images != "img_dict" else {}
    if images == "folders" or found:
        if not found:
            raise DataError(f"{place} holds no picture: expected COCO, ImageNet and Scene folders in it.")
        return "folders", found
    return "img_dict", _read_dict(
        need_file(
            place / "img_dict.npy", "expected it, or the folders COCO, ImageNet and Scene with pictures."
        )
    )


def _listed(place: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(place.rglob("*")):
        if path.suffix.lower() not in PICTURES or path.name.startswith(".") or not path.is_file():
            continue
        if path.name in found:
            raise DataError(
                f"{place} has {path.name!r} twice, {found[path.name]} and {path}: keep one of them."
            )
        found[path.name] = path
    return found


def _read_dict(path: Path) -> dict[str, Any]:
    """The dict in an .npy file of one Python object, read without running anything; needs twice the file in memory."""
    wrong = f"{path} is not a numpy file of one dict, image name -> picture"
    with path.open("rb") as file:
        try:
            version = npy_format.read_magic(file)
            header = (
                npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            )
            shape, _, dtype = header(file)
        except (ValueError, OSError, SyntaxError, TypeError, OverflowError, tokenize.TokenError) as error:
            raise DataError(f"{wrong} ({' '.join(str(error).split()).rstrip('.')}).") from None
        if not dtype.hasobject or shape != ():
            raise DataError(f"{wrong}: it holds {dtype} {shape}.")
        content = load_plain_pickle(file.read(), what=str(path))
    held = content.item() if isinstance(content, np.ndarray) and content.shape == () else content
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise DataError(f"{wrong}: it holds {type(held).__name__}.")
    return {str(name): picture for name, picture in held.items()}


def check_picture(picture: Any, name: str) -> np.ndarray | Path:
    """A path as it is; an array only when it is uint8 (height, width, 3) or (height, width)."""
    if isinstance(picture, Path):
        return picture
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        grey, colour = picture.ndim == 2, picture.ndim == 3 and picture.shape[2] == 3
        if (grey or colour) and 0 < picture.size <= 3 * MAX_PIXELS:
            return picture
    found = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
    raise DataError(f"img_dict.npy: {name!r} is {found}, expected a picture, uint8 (height, width, 3).")

"""BOLD5000: four people and 4916 photographs. Chang et al. 2019, Scientific Data 6:49; betas of release 2.0 (GLMsingle).

    BOLD5000/
      BOLD5000_GLMsingle_ROI_betas/py/
        CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_LHEarlyVis.npy   float (trials, voxels), percent signal change;
                                                                         LH and RH of EarlyVis, LOC, OPA, PPA and RSC
      BOLD5000_Stimuli/                                                  lists and pictures: see `bold5000_stimuli`

Row n of every file is trial n in the order of acquisition: sorted sessions, in them sorted runs, 37 trials a run. CSI1 to
CSI3 have 15 sessions, 5254 trials and all 4916 images (4803 once, 112 four times, one three times); CSI4 stopped after 9
sessions and 3108 trials.

Test stimuli are the 113 of `repeated_stimuli_113_list.txt`, every trial of them; everything else is training. CSI4 saw
them less often, some once or not at all. One seen once stays a test stimulus, of a single trial: the same image is a test
image of the other subjects, and a model that is trained on several subjects must not meet it.

Trap: these files are betas, although their name says ROI. Files of zeros and ones are masks, and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from cadiff.artifacts import what_is_at
from cadiff.data.files import need_file, need_folder, need_numbers, open_npy
from cadiff.data.readers import bold5000_stimuli as shown
from cadiff.data.writer import CHUNK_ROWS, DatasetWriter, dataset_writer
from cadiff.errors import DataError

ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
HEMISPHERES = ("LH", "RH")
BETAS = "BOLD5000_GLMsingle_ROI_betas"
STIMULI = "BOLD5000_Stimuli"
FILE = "{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{hemisphere}{roi}.npy"

SESSIONS = {"CSI1": 15, "CSI2": 15, "CSI3": 15, "CSI4": 9}
TEN_RUN_SESSIONS = {  # all others have nine
    "CSI1": (1, 2, 3, 5, 7, 10, 15),
    "CSI2": (1, 3, 4, 5, 11, 12, 14),
    "CSI3": (1, 3, 5, 6, 7, 11, 15),
    "CSI4": (1, 4, 9),
}
TRIALS_PER_RUN = 37
TRIALS = {"CSI1": 5254, "CSI2": 5254, "CSI3": 5254, "CSI4": 3108}
REPEATED_IMAGES = 113
IMAGES = 4916  # of which each of CSI1 to CSI3 saw all
VOXELS = {  # left and right together
    "CSI1": {"EarlyVis": 495, "LOC": 342, "OPA": 288, "PPA": 331, "RSC": 229},
    "CSI2": {"EarlyVis": 495, "LOC": 888, "OPA": 180, "PPA": 370, "RSC": 337},
    "CSI3": {"EarlyVis": 1218, "LOC": 1027, "OPA": 392, "PPA": 273, "RSC": 194},
}
ALL_VOXELS = {"CSI1": 1685, "CSI2": 2270, "CSI3": 3104, "CSI4": 2787}
ESCAPE = "If this is a selection of the data made on purpose, set design=any."


def read_bold5000(
    source: Path,
    out: Path,
    *,
    subject: str | int = "CSI1",
    rois: str | Sequence[str] | None = None,
    images: Literal["auto", "folders", "img_dict"] = "auto",
    design: Literal["published", "any"] = "published",
    bad_voxels: Literal["refuse", "drop"] = "refuse",
) -> Path:
    """Makes a dataset of one subject of BOLD5000.

    Args:
        source: the folder that holds `BOLD5000_GLMsingle_ROI_betas` and `BOLD5000_Stimuli`.
        out: the dataset folder to make.
        subject: "CSI1" to "CSI4", or 1 to 4.
        rois: which of EarlyVis, LOC, OPA, PPA, RSC ("EarlyVis,LOC" or a list); all five when absent. They are stored in
            that order, the left hemisphere before the right.
        images: the pictures come from the "folders" COCO, ImageNet and Scene, or from "img_dict"; "auto" prefers folders.
        design: "published" refuses other numbers of sessions, runs, trials, images and voxels than were published; "any"
            takes what is there, as long as betas and lists have the same number of trials.
        bad_voxels: "refuse" voxels that hold NaN or infinite values, or "drop" them.

    Raises:
        DataError: an option that does not exist, a file missing, unreadable or not what it should be, or another design.
    """
    subject = _subject(subject)
    chosen = _rois(rois)
    for option, value, known in (
        ("images", images, ("auto", "folders", "img_dict")),
        ("design", design, ("published", "any")),
        ("bad_voxels", bad_voxels, ("refuse", "drop")),
    ):
        if value not in known:
            raise DataError(f"{option}={value!r}: choose {', '.join(known)}.")
    need_folder(source, f"expected the folder that holds {BETAS} and {STIMULI}.")
    if missing := [name for name in (BETAS, STIMULI) if not (source / name).is_dir()]:
        raise DataError(
            f"{source} has no folder {' and no folder '.join(missing)} (found: {what_is_at(source)}): give the folder "
            f"that holds {BETAS} and {STIMULI}, both unzipped."
        )
    stimuli = shown.unzipped(source / STIMULI)
    trials = shown.read_presentation(stimuli, subject)
    if design == "published":
        _check_runs(trials, subject)
    maps = _open_betas(source, subject, chosen, len(trials))
    if design == "published":
        _check_voxels(maps, subject)
    where, pictures = shown.open_pictures(stimuli, images)
    trials, names = _identify(trials, shown.Names(pictures, f"the pictures ({where})"))
    listed = shown.read_names(stimuli / "Scene_Stimuli" / shown.REPEATED)
    trials = _split(trials, names, listed)
    if design == "published":
        _check_images(trials, listed, subject)
    description = {
        "source": source.name,
        "units": "percent signal change, single trials by GLMsingle (TYPED-FITHRF-GLMDENOISE-RR), not normalised",
        "licence": "CC0 for the fMRI data; the pictures keep the terms of COCO, ImageNet and the scene collection",
        "citation": "Chang et al. 2019, Scientific Data 6:49, doi:10.1038/s41597-019-0052-3; GLMsingle: Prince et al. "
        "2022, eLife 11:e77599",
        "pictures": where,
        "design": design,
        "found": _counts(trials, listed),
        "voxels_per_roi": {roi: {side: maps[roi, side].shape[1] for side in HEMISPHERES} for roi in chosen},
    }
    voxels = pd.DataFrame(
        [(roi, side) for (roi, side), betas in maps.items() for _ in range(betas.shape[1])],
        columns=["rois", "hemisphere"],
    )
    with dataset_writer(
        out, name="BOLD5000", subject=subject, voxels=voxels, description=description, bad_voxels=bad_voxels
    ) as writer:
        _write_stimuli(
            writer, dict(zip(trials["stimulus_id"], trials["picture"], strict=True)), names, pictures
        )
        _write_betas(writer, list(maps.values()), trials.drop(columns=["name", "picture"]))
    return out


def _subject(subject: object) -> str:
    text = str(subject).strip().upper().removeprefix("SUB-").removeprefix("CSI").lstrip("0")
    if f"CSI{text}" not in SESSIONS or isinstance(subject, bool):
        raise DataError(f"subject={subject!r}: BOLD5000 has CSI1, CSI2, CSI3 and CSI4 (or 1 to 4).")
    return f"CSI{text}"


def _rois(rois: str | Sequence[str] | None) -> list[str]:
    if rois is None:
        return list(ROIS)
    names = rois.split(",") if isinstance(rois, str) else rois
    wanted = {str(name).strip() for name in names} if isinstance(names, (list, tuple)) else set()
    if not wanted or wanted - set(ROIS):
        raise DataError(f"rois={rois!r}: choose from {', '.join(ROIS)}, with commas between.")
    return [roi for roi in ROIS if roi in wanted]


def _open_betas(
    source: Path, subject: str, rois: list[str], trials: int
) -> dict[tuple[str, str], np.ndarray]:
    """(roi, hemisphere) -> memory-mapped betas (trials, voxels), in the order in which they are stored."""
    folder = need_folder(
        shown.unzipped(source / BETAS) / "py", "expected the .npy files there (the .mat files are not read)."
    )
    maps: dict[tuple[str, str], np.ndarray] = {}
    for roi in rois:
        for hemisphere in HEMISPHERES:
            path = folder / FILE.format(subject=subject, hemisphere=hemisphere, roi=roi)
            need_file(path, f"{subject} needs LH and RH of {', '.join(rois)}; unzip {BETAS}.zip again.")
            maps[roi, hemisphere] = _checked(open_npy(path), path, subject, trials)
    return maps


def _checked(betas: np.ndarray, path: Path, subject: str, trials: int) -> np.ndarray:
    if betas.ndim > 2 or betas.dtype.kind == "b" or _is_mask(betas):
        raise DataError(
            f"{path} is {betas.dtype} {betas.shape} and looks like an ROI mask, expected betas of {trials} trials, "
            f"float (trials, voxels): take the file from {BETAS}.zip, not a mask of zeros and ones."
        )
    need_numbers(betas, (None, None), str(path))
    if len(betas) != trials:
        advice = (
            "it seems to be transposed, save it as (trials, voxels)."
            if betas.shape[1] == trials
            else "are all sessions there, and are both of the same subject?"
        )
        raise DataError(
            f"{path} has {betas.shape[0]} trials of {betas.shape[1]} voxels, but the lists of {subject} show {trials} "
            f"trials: {advice}"
        )
    return betas


def _is_mask(betas: np.ndarray) -> bool:
    """Whether a two-dimensional array holds nothing but zeros and ones; betas are known by their first rows."""
    if betas.ndim != 2 or betas.dtype.kind not in "fiu" or not betas.size:
        return False
    return all(
        bool(np.isin(betas[start : start + CHUNK_ROWS], (0, 1)).all())
        for start in range(0, len(betas), CHUNK_ROWS)
    )


def _identify(trials: pd.DataFrame, pictures: shown.Names) -> tuple[pd.DataFrame, dict[str, str]]:
    """Trials with `picture` (its name where the pictures are) and `stimulus_id`, and stimulus id -> name in the lists.

    Two names that find the same picture are the same stimulus.
    """
    found = {name: pictures.find(name) for name in dict.fromkeys(trials["name"])}
    if missing := [name for name, picture in found.items() if picture is None]:
        raise DataError(
            f"{len(missing)} of {len(found)} images that were shown are not among {pictures.what} (first: "
            f"{missing[0]!r}): download the missing ones, or choose the other place with images=folders or "
            "images=img_dict."
        )
    first = {picture: name for name, picture in reversed(found.items())}
    ids = shown.stimulus_ids(first.values())
    trials = trials.assign(picture=trials["name"].map(found))
    trials["stimulus_id"] = trials["picture"].map(lambda picture: ids[first[picture]])
    return trials, {ids[name]: name for name in first.values()}


def _split(trials: pd.DataFrame, names: dict[str, str], listed: list[str]) -> pd.DataFrame:
    """Trials with `split` and `repeat`; test is every trial of an image on the list, however often it was shown."""
    presented = shown.Names(trials["name"], "the presentation lists")
    tested = {name for name in map(presented.find, listed) if name is not None}
    ids = set(trials.loc[trials["name"].isin(list(tested)), "stimulus_id"])
    if not ids or len(ids) == len(names):
        raise DataError(
            f"{len(ids)} of the {len(names)} images that were shown are in {shown.REPEATED} ({len(listed)} names): "
            "expected some, not all; are both lists of BOLD5000?"
        )
    trials = trials.assign(split=np.where(trials["stimulus_id"].isin(list(ids)), "test", "train"))
    return trials.assign(repeat=trials.groupby("stimulus_id").cumcount() + 1)


def _check_runs(trials: pd.DataFrame, subject: str) -> None:
    sessions = trials["session"].drop_duplicates().tolist()
    if sessions != list(range(1, SESSIONS[subject] + 1)):
        raise DataError(
            f"The presentation lists of {subject} have the sessions {sessions}, published are 1 to "
            f"{SESSIONS[subject]}. {ESCAPE}"
        )
    for session, group in trials.groupby("session", sort=True):
        runs = 10 if session in TEN_RUN_SESSIONS[subject] else 9
        sizes = group.groupby("run").size()
        if sizes.index.tolist() != list(range(1, runs + 1)):
            raise DataError(
                f"Session {session} of {subject} has the runs {sizes.index.tolist()}, published are 1 to {runs}. {ESCAPE}"
            )
        if (other := sizes[sizes != TRIALS_PER_RUN]).size:
            raise DataError(
                f"Session {session}, run {other.index[0]} of {subject} lists {other.iloc[0]} images, published are "
                f"{TRIALS_PER_RUN}. {ESCAPE}"
            )


def _check_voxels(maps: dict[tuple[str, str], np.ndarray], subject: str) -> None:
    counts = {
        roi: sum(maps[roi, side].shape[1] for side in HEMISPHERES) for roi in ROIS if (roi, "LH") in maps
    }
    published = VOXELS.get(subject, {})
    for what, found, expected in (
        *((f"in {roi} (left and right)", count, published.get(roi, count)) for roi, count in counts.items()),
        *([("in all", sum(counts.values()), ALL_VOXELS[subject])] if len(counts) == len(ROIS) else []),
    ):
        if found != expected:
            raise DataError(
                f"The betas of {subject} have {found} voxels {what}, published are {expected}: are the files of another "
                f"subject or release? {ESCAPE}"
            )


def _check_images(trials: pd.DataFrame, listed: list[str], subject: str) -> None:
    if len(set(listed)) != REPEATED_IMAGES:
        raise DataError(
            f"{shown.REPEATED} lists {len(set(listed))} images, published are {REPEATED_IMAGES}. {ESCAPE}"
        )
    again = trials.loc[(trials["split"] == "train") & (trials["repeat"] > 1), "name"]
    if len(again):
        raise DataError(
            f"{again.iloc[0]!r} was shown to {subject} more than once and is not in {shown.REPEATED}; published are "
            f"once for all others. {ESCAPE}"
        )
    distinct = trials["stimulus_id"].nunique()
    if TRIALS[subject] == TRIALS["CSI1"] and distinct != IMAGES:
        raise DataError(f"{subject} saw {distinct} different images, published are {IMAGES}. {ESCAPE}")


def _counts(trials: pd.DataFrame, listed: list[str]) -> dict[str, int]:
    repeats = trials[trials["split"] == "test"].groupby("stimulus_id").size()
    return {
        "sessions": int(trials["session"].nunique()),
        "runs": len(trials[["session", "run"]].drop_duplicates()),
        "trials": len(trials),
        "images": int(trials["stimulus_id"].nunique()),
        "test_images": len(repeats),
        "test_images_shown_once": int((repeats == 1).sum()),
        "listed_images_not_shown": len(set(listed)) - len(repeats),
    }


def _write_stimuli(
    writer: DatasetWriter, stimuli: dict[str, str], names: dict[str, str], pictures: shown.Pictures
) -> None:
    """stimuli: stimulus id -> name of its picture; names: stimulus id -> its name in the lists."""
    for stimulus_id, picture in tqdm(stimuli.items(), desc="pictures", unit="", disable=None, leave=False):
        kind, label = shown.source_and_label(names[stimulus_id])
        checked = shown.check_picture(pictures[picture], picture)
        writer.add_stimulus(stimulus_id, checked, label=label, source=kind, licence=shown.LICENCES[kind])


def _write_betas(writer: DatasetWriter, maps: Sequence[np.ndarray], trials: pd.DataFrame) -> None:
    for start in tqdm(
        range(0, len(trials), CHUNK_ROWS), desc="betas", unit="chunk", disable=None, leave=False
    ):
        rows = slice(start, start + CHUNK_ROWS)
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float32: infinite, and refused as such
            betas = np.concatenate([np.asarray(betas[rows], dtype=np.float32) for betas in maps], axis=1)
        writer.add_trials(betas, trials.iloc[rows])

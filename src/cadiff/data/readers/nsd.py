"""The Natural Scenes Dataset: Allen et al. 2022 (Nature Neuroscience 25:116), eight subjects, 7 T, 30 to 40 sessions each.

Read from the folders of the release, as they are downloaded; only one subject's files are needed:

    nsddata/experiments/nsd/nsd_expdesign.mat                   which picture when: see `nsd_design`
    nsddata/experiments/nsd/nsd_stim_info_merged.csv            optional: COCO ids
    nsddata/ppdata/subj0S/behav/responses.tsv                   optional: checks the order of the pictures
    nsddata/ppdata/subj0S/SPACE/roi/NAME.nii.gz                 masks: voxels with a value above 0
    nsddata/freesurfer/{subj0S,fsaverage}/label/NAME.mgz.ctab   optional: names of a mask's values, "1 V1v"
    nsddata_betas/ppdata/subj0S/SPACE/BETAS/betas_sessionNN.hdf5 | .nii.gz   750 trials each: see `nsd_betas`
    nsddata_betas/ppdata/subj0S/SPACE/BETAS/ncsnr.nii.gz        optional: signal to noise of single trials
    nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5                imgBrick uint8 (73000, 425, 425, 3)

SPACE is func1pt8mm or func1mm, BETAS one of `BETAS`. A voxel outside the field of view of a session is 0 in all its
trials. noise_ceiling is ncsnr^2 / (ncsnr^2 + 1), the share of a single trial's variance that the picture explains; for the
mean of n trials the 1 becomes 1/n.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from cadiff.artifacts import what_is_at
from cadiff.data.files import need_file, need_folder
from cadiff.data.readers import nsd_betas, nsd_design, nsd_masks
from cadiff.data.readers.nsd_pictures import Pictures
from cadiff.data.writer import DatasetWriter, dataset_writer
from cadiff.errors import DataError

BETAS = {
    "b1": "betas_assumehrf",
    "b2": "betas_fithrf",
    "b3": "betas_fithrf_GLMdenoise_RR",
}
NUM_SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
GRIDS = {
    "func1pt8mm": (
        (81, 104, 83), (82, 106, 84), (81, 106, 82), (85, 99, 80),
        (79, 97, 78), (85, 113, 83), (78, 95, 81), (80, 103, 78),
    ),
    "func1mm": (
        (145, 186, 148), (146, 190, 150), (145, 190, 146), (152, 177, 143),
        (141, 173, 139), (152, 202, 148), (139, 170, 145), (143, 184, 139),
    ),
}  # fmt: skip
NSDGENERAL_VOXELS = (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386)
"""Voxels of the mask nsdgeneral at 1.8 mm."""
INT16_PER_PERCENT = 300
PIECE = 64  # trials that are handed to the writer at a time
LICENCE = "NSD Terms and Conditions and Data Access Agreement, https://naturalscenesdataset.org"
CITATION = "Allen et al. 2022, Nature Neuroscience 25:116-126, doi:10.1038/s41593-021-00962-x"


def read_nsd(
    source: Path,
    out: Path,
    *,
    subject: int = 1,
    space: str = "func1pt8mm",
    betas: str = "b3",
    rois: str | Sequence[str] = "nsdgeneral",
    labels: str | Sequence[str] = "",
    sessions: str | int | Sequence[int] | None = None,
    licence_accepted: bool = False,
    pictures: bool = True,
    image_size: int | None = None,
    bad_voxels: Literal["drop", "refuse", "keep"] = "drop",
    design: Literal["published", "any"] = "published",
) -> Path:
    """Makes a dataset of one subject: single trials in percent signal change; the shared pictures are the test split.

    Args:
        source: the folder with nsddata, nsddata_betas and nsddata_stimuli.
        out: the dataset folder to make.
        subject: 1 to 8.
        space: "func1pt8mm" or "func1mm".
        betas: "b1", "b2" or "b3", or the name of the folder.
        rois: masks of the roi folder; a voxel above 0 in any of them is taken.
        labels: further masks that only name voxels, for example "prf-visualrois,streams".
        sessions: numbers, "1-10", or "1,2,5-7"; by default all that are there.
        licence_accepted: that you signed the NSD Data Access Agreement; without it nothing is read.
        pictures: False keeps the ids of the pictures only, and needs no nsd_stimuli.hdf5.
        image_size: side of the stored pictures in pixels; as released (425) by default.
        bad_voxels: voxels that are 0 in all trials of a session: "drop" them, "refuse", or "keep" the zeros.
        design: "published" refuses numbers of trials, sessions, voxels and pictures other than the published ones;
            "any" takes what is there and records it.

    Raises:
        DataError: agreement not accepted, an option out of range, a file missing or damaged, or files that contradict
            each other or the published design.
    """
    _need_agreement(licence_accepted)
    number, folder = _subject(subject), _betas_folder(betas)
    _need_choice("space", space, tuple(GRIDS))
    _need_choice("bad_voxels", bad_voxels, ("drop", "refuse", "keep"))
    _need_choice("design", design, ("published", "any"))
    if not isinstance(pictures, bool):
        raise DataError(f"pictures={pictures!r}: give true or false.")
    published = design == "published"
    need_folder(
        source / "nsddata",
        f"{source} holds {what_is_at(source)}; give the folder that holds nsddata, nsddata_betas and nsddata_stimuli.",
    )
    name = f"subj{number:02d}"
    files = _session_files(source / "nsddata_betas" / "ppdata" / name / space / folder, sessions)
    grid, per_session = _check_sessions(files, number, space, published)
    plan = nsd_design.load_design(
        source / "nsddata/experiments/nsd/nsd_expdesign.mat", number, published=published
    )
    trials = nsd_design.trials_of(plan, list(files), per_session)
    voxels, masks = nsd_masks.load_voxels(
        source, name, space, _names("rois", rois), _names("labels", labels), grid
    )
    general = NSDGENERAL_VOXELS[number - 1] if published and space == "func1pt8mm" else None
    if general and masks.get("nsdgeneral", general) != general:
        raise DataError(
            f"The mask nsdgeneral of {name} in {source} has {masks['nsdgeneral']} voxels, published are {general}: is it "
            "of another subject? Give design=any if this is meant."
        )
    ncsnr = next(iter(files.values())).parent / "ncsnr.nii.gz"
    noise_ceiling = nsd_masks.noise_ceiling(ncsnr, grid, voxels) if ncsnr.is_file() else None
    responses = source / "nsddata/ppdata" / name / "behav/responses.tsv"
    checked = nsd_design.check_responses(responses, trials) if responses.is_file() else []
    store = Pictures(
        source,
        trials,
        size=image_size,
        wanted=pictures,
        num_pictures=nsd_design.NUM_PICTURES if published else None,
    )
    description: dict[str, Any] = {
        "source": source.resolve().name,
        "units": "percent signal change",
        "licence": LICENCE,
        "licence_accepted": datetime.now(timezone.utc).date().isoformat(),
        "citation": CITATION,
        "space": space,
        "betas": folder,
        "betas_files": sorted({"".join(path.suffixes) for path in files.values()}),
        "masks": masks,
        "grid": list(grid),
        "voxel_order": "as numpy takes a mask from the NIfTI array: z fastest, then y, then x; x, y, z count from 0",
        "sessions": list(files),
        "sessions_missing": sorted(set(range(1, NUM_SESSIONS[number - 1] + 1)) - set(files)),
        "trials_per_session": per_session,
        "runs": nsd_design.runs_of(plan, next(iter(files)), per_session)[1],
        "sessions_checked_with_responses": checked,
        "design": design,
        "split": "test: the pictures that all subjects share; train: the subject's own",
        "stimulus_ids": "nsd-NNNNN is the 73k id counted from 0: nsdId, the row of imgBrick",
        "noise_ceiling": (
            "ncsnr^2 / (ncsnr^2 + 1); the authors estimated ncsnr from all sessions, test trials included"
            if noise_ceiling is not None
            else "not known: no ncsnr.nii.gz beside the betas"
        ),
        "bad_voxels": bad_voxels,
        "outside_field_of_view": {},
        "pictures": store.about,
    }
    table = voxels if noise_ceiling is None else voxels.assign(noise_ceiling=noise_ceiling)
    with dataset_writer(
        out,
        name="NSD",
        subject=name,
        voxels=table,
        description=description,
        bad_voxels="drop" if bad_voxels == "drop" else "refuse",
    ) as writer:
        description["outside_field_of_view"] = _add_trials(writer, files, trials, voxels, bad_voxels)
        store.add_to(writer)
    return out


def _add_trials(
    writer: DatasetWriter,
    files: Mapping[int, Path],
    trials: pd.DataFrame,
    voxels: pd.DataFrame,
    bad_voxels: str,
) -> dict[str, int]:
    """Hands the betas to the writer, session by session; returns how many voxels each session's volume misses."""
    where = voxels[["x", "y", "z"]].to_numpy()
    missed: dict[str, int] = {}
    ever = np.zeros(len(voxels), dtype=bool)
    for session, path in tqdm(files.items(), desc="sessions", unit="session", disable=None):
        stored = nsd_betas.read_session(path, where)
        empty = np.asarray(~stored.any(axis=0))
        ever |= empty
        if empty.any():
            missed[str(session)] = int(empty.sum())
        if empty.any() and bad_voxels == "refuse":
            raise DataError(
                f"{path}: {empty.sum()} of {len(empty)} voxels are 0 in all trials, outside the field of view of the session: "
                "give bad_voxels=drop, or leave the session out."
            )
        mine = trials[trials["session"] == session].drop(columns="nsd_id")
        for start in range(0, len(stored), PIECE):
            piece = stored[start : start + PIECE].astype(np.float32) / np.float32(INT16_PER_PERCENT)
            if bad_voxels == "drop":
                piece[:, empty] = np.nan  # the writer drops what is not finite in any trial
            writer.add_trials(piece, mine.iloc[start : start + PIECE])
    if ever.all() and bad_voxels != "keep":
        raise DataError(
            f"{next(iter(files.values())).parent}: every one of the {len(ever)} voxels is 0 throughout some session: do "
            "masks and betas belong together?"
        )
    return missed


def _session_files(folder: Path, sessions: str | int | Sequence[int] | None) -> dict[int, Path]:
    """Session -> its betas, in order; the HDF5 form where both are there."""
    need_folder(
        folder, "betas lie in nsddata_betas/ppdata/subj0S/SPACE/BETAS; check subject, space and betas."
    )
    found: dict[int, Path] = {}
    for form in reversed(nsd_betas.BETAS_FORMS):
        for path in folder.iterdir():
            match = re.fullmatch("betas_session([0-9]{2})" + re.escape(form), path.name)
            if match and int(match[1]) and path.is_file():
                found[int(match[1])] = path
    if not found:
        need_file(folder / "betas_session01.hdf5", "expected betas_sessionNN.hdf5 or .nii.gz.")
    wanted = sorted(found) if sessions is None else _numbers(sessions)
    if absent := [n for n in wanted if n not in found]:
        raise DataError(
            f"{folder} has no betas of session {absent[0]} (found: {', '.join(map(str, sorted(found)))}): download it, or "
            "leave it out of sessions."
        )
    return {n: found[n] for n in wanted}


def _check_sessions(
    files: Mapping[int, Path], subject: int, space: str, published: bool
) -> tuple[tuple[int, ...], int]:
    """The grid and the number of trials that all sessions share, from their headers."""
    shapes = {path: nsd_betas.session_shape(path) for path in files.values()}
    first_path, first = next(iter(shapes.items()))
    for path, shape in shapes.items():
        if shape != first:
            raise DataError(
                f"{path} has {shape[1]} trials of {shape[0]} voxels, {first_path.name} has {first[1]} of {first[0]}: "
                "sessions of one subject must be alike."
            )
    if published:
        wanted = (GRIDS[space][subject - 1], nsd_design.TRIALS_PER_SESSION)
        if first != wanted:
            raise DataError(
                f"{first_path} has {first[1]} trials of {first[0]} voxels (x, y, z), published for subject {subject} in {space} "
                f"are {wanted[1]} of {wanted[0]}: is it of another subject? Give design=any if this is meant."
            )
        if (last := max(files)) > NUM_SESSIONS[subject - 1]:
            raise DataError(
                f"{files[last]}: subject {subject} had {NUM_SESSIONS[subject - 1]} sessions; leave it out of sessions, or "
                "give design=any."
            )
    return first


def _need_agreement(licence_accepted: Any) -> None:
    if licence_accepted is not True:
        raise DataError(
            "NSD is given out under a Data Access Agreement: sign it at https://naturalscenesdataset.org, and say so with "
            "licence_accepted=true; the date is written into the dataset."
        )


def _subject(subject: Any) -> int:
    match = re.fullmatch(r"(?:subj0?)?([1-8])", str(subject)) if isinstance(subject, (int, str)) else None
    if match is None or isinstance(subject, bool):
        raise DataError(f"subject={subject!r}: NSD has the subjects 1 to {nsd_design.NUM_SUBJECTS}.")
    return int(match[1])


def _betas_folder(betas: Any) -> str:
    if not isinstance(betas, str) or betas not in (*BETAS, *BETAS.values()):
        known = ", ".join(f"{short} ({folder})" for short, folder in BETAS.items())
        raise DataError(f"betas={betas!r}: there are {known}.")
    return BETAS.get(betas, betas)


def _need_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DataError(f"{option}={value!r}: give one of {', '.join(choices)}.")


def _names(option: str, value: Any) -> list[str]:
    """From "a, b" or ["a", "b"], the names."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise DataError(
            f"{option}={value!r}: give names of masks, as in 'nsdgeneral' or 'prf-visualrois,streams'."
        )
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not names and option == "rois":
        raise DataError("rois is empty: give names of masks, as in 'nsdgeneral'.")
    return names


def _numbers(sessions: Any) -> list[int]:
    """5, [1, 2], "1-10" or "1,2,5-7" -> session numbers, sorted."""
    parts = sessions.split(",") if isinstance(sessions, str) else sessions
    found: set[int] = set()
    for part in parts if isinstance(parts, (list, tuple)) else [parts]:
        match = re.fullmatch(r"\s*([0-9]{1,2})(?:\s*-\s*([0-9]{1,2}))?\s*", str(part))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last or isinstance(part, bool):
            raise DataError(f"sessions={sessions!r}: give numbers from 1 on, as in '1-10' or '1,2,5-7'.")
        found.update(range(first, last + 1))
    if not found:
        raise DataError("sessions is empty: give numbers from 1 on, or leave the option out for all.")
    return sorted(found)

"""Tiny subjects in the layout of the Natural Scenes Dataset, in both forms of its betas."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
from nibabel.nifti1 import Nifti1Header
from scipy.io import savemat

from layouts import Sample

GRID = (7, 6, 5)  # x, y, z: all different, so that swapped axes show
SESSIONS = (1, 2, 4)  # the third was not downloaded
TRIALS = 12  # a session
RUNS = (5, 4, 3)
SIDE = 10
NUM_SHARED, NUM_OWN, NUM_PICTURES = 4, 12, 120
OPTIONS = {"licence_accepted": True, "design": "any", "labels": "prf-visualrois"}


class Subject(NamedTuple):
    """What was written, as the tests need it."""

    source: Path
    stored: dict[int, np.ndarray]
    """Session -> int16 (x, y, z, trials)."""
    ids: dict[int, np.ndarray]
    """Session -> 73k ids counted from 0, (trials,)."""
    shared: set[int]
    mask: np.ndarray
    areas: np.ndarray
    ncsnr: np.ndarray
    bricks: np.ndarray
    """Pictures, uint8 (NUM_PICTURES, SIDE, SIDE, 3)."""
    absent: tuple[int, int, int]
    """A voxel of the mask outside the field of view of session 2."""


def make_nifti(folder: Path, rng: np.random.Generator) -> Sample:
    return _sample(make_subject(folder, rng, "nii.gz"))


def make_hdf5(folder: Path, rng: np.random.Generator) -> Sample:
    return _sample(make_subject(folder, rng, "hdf5"))


def _sample(subject: Subject) -> Sample:
    test = sum(int(np.isin(ids, list(subject.shared)).sum()) for ids in subject.ids.values())
    trials = {"train": len(SESSIONS) * TRIALS - test, "test": test}
    return Sample("nsd", subject.source, dict(OPTIONS), trials, int((subject.mask > 0).sum()) - 1)


def make_subject(folder: Path, rng: np.random.Generator, form: str) -> Subject:
    """Writes subject 1 below `folder`; `form` is the suffix of the betas."""
    own = rng.permutation(NUM_PICTURES)[: NUM_SHARED + 8 * NUM_OWN] + 1  # 73k ids from 1
    shared, rest = own[:NUM_SHARED], own[NUM_SHARED:].reshape(8, NUM_OWN)
    subjectim = np.concatenate([np.tile(shared, (8, 1)), rest], axis=1)
    order = rng.permutation(np.repeat(np.arange(1, NUM_SHARED + NUM_OWN + 1), 3))
    seen = subjectim[0][order - 1] - 1
    mask = rng.choice([-1, 0, 1], GRID, p=[0.3, 0.4, 0.3])
    areas = np.where(mask >= 0, rng.integers(0, 8, GRID), -1)
    ncsnr = rng.uniform(0, 2, GRID)
    ncsnr[tuple(np.argwhere(mask > 0)[1])] = np.nan
    absent = tuple(int(n) for n in np.argwhere(mask > 0)[3])
    stored = {session: rng.integers(-3000, 3000, (*GRID, TRIALS)).astype(np.int16) for session in SESSIONS}
    for betas in stored.values():
        betas[mask < 0] = 0
    stored[2][absent] = 0
    bricks = rng.integers(0, 256, (NUM_PICTURES, SIDE, SIDE, 3)).astype(np.uint8)

    write_design(folder, order, subjectim, shared, np.tile(pattern(RUNS), (4, 1, 1)))
    write_tables(folder, seen, set((shared - 1).tolist()))
    write_nifti(roi(folder, "nsdgeneral"), mask.astype(np.float64))
    write_nifti(roi(folder, "prf-visualrois"), areas.astype(np.int16))
    names = folder / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab"
    names.parent.mkdir(parents=True)
    names.write_text("0 Unknown\n1 V1v\n2 V1d\n3 V2v\n4 V2d\n5 V3v\n6 V3d\n7 hV4\n")
    write_nifti(betas_folder(folder) / "ncsnr.nii.gz", ncsnr.astype(np.float32))
    for session, betas in stored.items():
        write_betas(betas_folder(folder) / f"betas_session{session:02d}.{form}", betas)
    write_pictures(folder, bricks)
    ids = {session: seen[(session - 1) * TRIALS : session * TRIALS] for session in SESSIONS}
    return Subject(
        folder,
        stored,
        ids,
        set((shared - 1).tolist()),
        mask,
        areas,
        ncsnr,
        bricks,
        (absent[0], absent[1], absent[2]),
    )


def betas_folder(folder: Path) -> Path:
    return folder / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"


def roi(folder: Path, name: str) -> Path:
    return folder / "nsddata/ppdata/subj01/func1pt8mm/roi" / f"{name}.nii.gz"


def pattern(runs: tuple[int, ...]) -> np.ndarray:
    """stimpattern of a session, (1, runs, slots): each run starts and ends with blank trials."""
    slots = np.zeros((1, len(runs), max(runs) + 2), np.uint8)
    for run, count in enumerate(runs):
        slots[0, run, 1 : count + 1] = 1
    return slots


def write_design(
    folder: Path, order: np.ndarray, subjectim: np.ndarray, shared: np.ndarray, slots: np.ndarray
) -> Path:
    path = folder / "nsddata/experiments/nsd/nsd_expdesign.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "masterordering": order[None].astype(np.float64),
        "subjectim": subjectim.astype(np.float64),
        "sharedix": shared[None].astype(np.float64),
        "stimpattern": slots,
        "basiccnt": np.zeros((3, 40)),
    }
    savemat(path, content, do_compression=True)
    return path


def write_tables(folder: Path, seen: np.ndarray, shared: set[int]) -> None:
    """responses.tsv, whose ids count from 1, and nsd_stim_info_merged.csv, whose ids count from 0."""
    trials = np.arange(len(seen))
    responses = {
        "SUBJECT": 1,
        "SESSION": trials // TRIALS + 1,
        "TRIAL": trials % TRIALS + 1,
        "73KID": seen + 1,
    }
    path = folder / "nsddata/ppdata/subj01/behav/responses.tsv"
    path.parent.mkdir(parents=True)
    pd.DataFrame(responses).to_csv(path, sep="\t", index=False)
    ids = np.arange(NUM_PICTURES)
    info = {
        "cocoId": 500_000 + ids,
        "cocoSplit": "train2017",
        "cropBox": "(0, 0, 0.1, 0.2)",
        "nsdId": ids,
        "BOLD5000": ids % 2 == 0,
        "shared1000": [int(n) in shared for n in ids],
    }
    pd.DataFrame(info).to_csv(folder / "nsddata/experiments/nsd/nsd_stim_info_merged.csv")


def write_pictures(folder: Path, bricks: np.ndarray) -> Path:
    path = folder / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("imgBrick", data=bricks, chunks=(1, *bricks.shape[1:]))
    return path


def write_betas(path: Path, stored: np.ndarray, **header: Any) -> Path:
    """int16 (x, y, z, trials) in the form that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".hdf5":
        return write_nifti(path, stored, **header)
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=stored.T, chunks=(stored.shape[3], 1, 1, 1))
    return path


def write_nifti(path: Path, values: np.ndarray, *, byte_order: str = "<", slope: float = 1.0) -> Path:
    """A NIfTI-1 file as MATLAB's save_nii writes it: scale 1, data from byte 352 on, x fastest."""
    header = Nifti1Header(endianness=byte_order)
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header.set_data_offset(352)
    header["magic"] = b"n+1"
    header["scl_slope"], header["scl_inter"] = slope, 0
    body = values.astype(values.dtype.newbyteorder(byte_order)).tobytes(order="F")
    content = header.binaryblock + bytes(4) + body
    assert len(content) == 352 + math.prod(values.shape) * values.dtype.itemsize
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path

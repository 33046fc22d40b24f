"""fMRIPrep derivatives in miniature, with planted responses: volumes, surfaces or grayordinates.

The response function is written out here, so that nothing of nilearn's is in the truth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import gamma

from layouts import Sample

TR, VOLUMES, START = 2.0, 64, 1.0  # volumes are taken in the middle of their TR
SHAPE, VERTICES = (4, 5, 3), (20, 22)
AFFINE = np.array([[-3.0, 0, 0, 30], [0, 3, 0, -40], [0, 0, 3.5, -10], [0, 0, 0, 1]])
STIMULI = ("cat", "dog", "hat", "jug", "key")
ONSETS, DURATION = 6.0 + 16.0 * np.arange(6), 2.0
NOISE = 0.05  # percent
CONSTANT_POINT = 33
MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]


DERIVED = Path("derivatives/fmriprep/sub-01/func")
RUN1 = DERIVED / "sub-01_task-look_run-1_space-T1w_desc-preproc_bold.nii.gz"
RUN2 = DERIVED / "sub-01_task-look_run-2_space-T1w_desc-preproc_bold.nii.gz"
EVENTS1 = Path("sub-01/func/sub-01_task-look_run-1_events.tsv")
CONFOUNDS1 = DERIVED / "sub-01_task-look_run-1_desc-confounds_timeseries.tsv"


class World(NamedTuple):
    sample: Sample
    betas: np.ndarray
    """Planted percent signal change (12 trials in order, all points)."""
    inside: np.ndarray
    """Points that every run's brain mask has, without the constant one."""


def make(folder: Path, rng: np.random.Generator) -> Sample:
    return make_world(folder, rng).sample


def make_world(folder: Path, rng: np.random.Generator, kind: str = "volume", session: str = "") -> World:
    """Raw data (events, pictures) in `folder`, derivatives in folder/derivatives/fmriprep; two runs of six trials."""
    func = Path("sub-01", *([f"ses-{session}"] if session else []), "func")
    derived = folder / "derivatives" / "fmriprep"
    for place in (folder / func, derived / func, folder / "stimuli" / "pets"):
        place.mkdir(parents=True, exist_ok=True)
    about = {"Name": "Small", "License": "CC0", "DatasetDOI": "doi:10.0/small", "BIDSVersion": "1.8.0"}
    (folder / "dataset_description.json").write_text(json.dumps(about))
    about = {"Name": "fMRIPrep", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.1.0"}]}
    (derived / "dataset_description.json").write_text(json.dumps(about))
    for i, name in enumerate([*STIMULI, "owl"]):
        pixels = np.full((6, 8, 3), 30 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "stimuli" / "pets" / f"{name}.png")
    points = int(np.prod(SHAPE)) if kind == "volume" else sum(VERTICES)
    betas = rng.normal(1.0, 1.0, size=(12, points))
    inside = np.ones(points, dtype=bool)
    inside[CONSTANT_POINT] = False
    for run in (1, 2):
        stem = f"sub-01_{f'ses-{session}_' if session else ''}task-look_run-{run}"
        order = [*rng.permutation(STIMULI), "owl"] if run == 1 else ["owl", *rng.permutation(STIMULI)]
        write_events(folder / func / f"{stem}_events.tsv", order)
        motion = write_confounds(derived / func / f"{stem}_desc-confounds_timeseries.tsv", rng, run)
        bold = 1000 + simulate(rng, betas[6 * run - 6 : 6 * run], motion, run)
        bold[:, CONSTANT_POINT] = 5.0
        inside &= write_series(derived / func / stem, kind, bold, run)
    write_atlas(derived, kind)
    options = {
        "atlas": "derivatives/fmriprep/" + ("atlas.nii.gz" if kind == "volume" else ATLASES[kind]),
        "test": ["pets_owl"],
    }
    sample = Sample("bids", folder, options, {"train": 10, "test": 2}, int(inside.sum()))
    return World(sample, betas, inside)


def simulate(rng: np.random.Generator, betas: np.ndarray, motion: np.ndarray, run: int) -> np.ndarray:
    """Deviations from a baseline of 1000, (volumes, points): responses, motion, drift, noise, an unsteady first volume."""
    times = np.arange(VOLUMES) * TR + START
    responses = np.stack([response(times - onset) for onset in ONSETS], axis=1)
    percent = responses @ betas + NOISE * rng.normal(size=(VOLUMES, betas.shape[1]))
    percent += motion @ rng.normal(0, 0.5, size=(6, betas.shape[1]))
    percent += np.cos(np.pi * np.arange(VOLUMES) / VOLUMES)[:, None] * rng.normal(0, 1, size=betas.shape[1])
    percent[0] += 30.0 if run == 1 else 0.0
    percent -= percent.mean(axis=0)  # so that the baseline is the run's mean
    return 10.0 * percent


def response(times: np.ndarray) -> np.ndarray:
    """To a stimulus at 0 that lasts DURATION: the difference of two gamma densities, area 1, convolved with a boxcar."""
    step = 0.02
    fine = np.arange(0, 32, step)
    kernel = gamma.pdf(fine, 6) - gamma.pdf(fine, 16) / 6
    kernel /= kernel.sum()
    boxcar = np.ones(round(DURATION / step))
    return np.interp(
        times, np.arange(len(fine) + len(boxcar) - 1) * step, np.convolve(kernel, boxcar), left=0, right=0
    )


def write_events(path: Path, order: list[str]) -> None:
    rows = [("0.0", "4", "fixation", "n/a")]
    rows += [
        (f"{t:.1f}", f"{DURATION}", "picture", f"pets/{name}.png")
        for t, name in zip(ONSETS, order, strict=True)
    ]
    rows += [("20.5", "n/a", "button", "n/a")]
    table = pd.DataFrame(rows, columns=["onset", "duration", "trial_type", "stim_file"])
    table.to_csv(path, sep="\t", index=False)


def write_confounds(path: Path, rng: np.random.Generator, run: int) -> np.ndarray:
    """fMRIPrep's columns, and the six motion parameters (volumes, 6) in them."""
    motion = np.cumsum(rng.normal(0, 0.05, size=(VOLUMES, 6)), axis=0)
    table = pd.DataFrame({"csf": rng.normal(700, 5, VOLUMES), "white_matter": rng.normal(600, 5, VOLUMES)})
    table["global_signal"] = rng.normal(500, 5, VOLUMES)
    table["framewise_displacement"] = [np.nan, *rng.uniform(0, 0.3, VOLUMES - 1)]
    for name, values in zip(MOTION, motion.T, strict=True):
        change = np.diff(values, prepend=np.nan)
        table[name], table[f"{name}_derivative1"] = values, change
        table[f"{name}_power2"], table[f"{name}_derivative1_power2"] = values**2, change**2
    for k in (0, 1):
        table[f"cosine{k:02}"] = np.cos(np.pi * (k + 1) * (np.arange(VOLUMES) + 0.5) / VOLUMES)
    if run == 1:
        table["non_steady_state_outlier00"] = (np.arange(VOLUMES) == 0).astype(float)
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    return motion


def write_series(stem: Path, kind: str, bold: np.ndarray, run: int) -> np.ndarray:
    """The BOLD as fMRIPrep names it; returns which points are in the run's brain mask (of surfaces: all)."""
    timing = json.dumps(
        {"RepetitionTime": TR, "StartTime": START, "SliceTimingCorrected": True, "TaskName": "look"}
    )
    bold = bold.astype(np.float32)
    if kind == "volume":
        inside = np.ones(bold.shape[1], dtype=bool)
        inside[[0, run]] = False
        prefix = f"{stem}_space-T1w"
        Path(f"{prefix}_desc-preproc_bold.json").write_text(timing)
        save_volume(Path(f"{prefix}_desc-preproc_bold.nii.gz"), bold.T.reshape(*SHAPE, VOLUMES))
        save_volume(Path(f"{prefix}_desc-brain_mask.nii.gz"), inside.reshape(SHAPE).astype(np.uint8))
        return inside
    if kind == "surface":
        for hemi, part in zip("LR", np.split(bold, [VERTICES[0]], axis=1), strict=True):
            save_gifti(Path(f"{stem}_hemi-{hemi}_space-fsaverage5_bold.func.gii"), list(part))
            Path(f"{stem}_hemi-{hemi}_space-fsaverage5_bold.json").write_text(timing)
    else:
        axes = (nibabel.cifti2.SeriesAxis(0.0, TR, VOLUMES, "SECOND"), brain_models())
        save_cifti(Path(f"{stem}_space-fsLR_den-91k_bold.dtseries.nii"), bold, axes)
        Path(f"{stem}_space-fsLR_den-91k_bold.json").write_text(timing)
    return np.ones(bold.shape[1], dtype=bool)


ATLASES = {"surface": "hemi-{hemi}_atlas.label.gii", "grayordinates": "atlas.dlabel.nii"}
NAMES = {1: "V1", 2: "LO, left"}


def atlas_values(points: int) -> np.ndarray:
    return np.arange(points) % 3


def write_atlas(folder: Path, kind: str) -> None:
    """Regions 0, 1, 2 in turn; named in a table beside, or inside the file where the format has names."""
    if kind == "volume":
        save_volume(
            folder / "atlas.nii.gz", atlas_values(int(np.prod(SHAPE))).reshape(SHAPE).astype(np.int16)
        )
        pd.DataFrame(NAMES.items(), columns=["index", "name"]).to_csv(
            folder / "atlas.tsv", sep="\t", index=False
        )
    elif kind == "surface":
        labels = nibabel.gifti.GiftiLabelTable()
        for key, name in {0: "???", **NAMES}.items():
            labels.labels.append(nibabel.gifti.GiftiLabel(key))
            labels.labels[-1].label = name
        parts = np.split(atlas_values(sum(VERTICES)), [VERTICES[0]])
        for hemi, part in zip("LR", parts, strict=True):
            save_gifti(folder / ATLASES[kind].format(hemi=hemi), [part.astype(np.int32)], labels)
    else:
        table = {0: ("???", (0, 0, 0, 0)), **{key: (name, (1, 0, 0, 1)) for key, name in NAMES.items()}}
        axes = (nibabel.cifti2.LabelAxis(["atlas"], [table]), brain_models())
        save_cifti(folder / ATLASES[kind], atlas_values(sum(VERTICES))[None].astype(np.float32), axes)


def brain_models() -> nibabel.cifti2.BrainModelAxis:
    """20 vertices of the left cortex with a medial wall, and 22 voxels of the left thalamus."""
    cortex = nibabel.cifti2.BrainModelAxis.from_surface(np.arange(3, 23), 32, "CortexLeft")
    voxels = np.stack(np.unravel_index(np.arange(22), (3, 3, 3)), axis=1)
    return cortex + nibabel.cifti2.BrainModelAxis(
        "THALAMUS_LEFT", voxel=voxels, affine=AFFINE, volume_shape=(3, 3, 3)
    )


def save_volume(path: Path, values: np.ndarray) -> None:
    image = nibabel.Nifti1Image(values, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim == 4:
        image.header.set_zooms((3.0, 3.0, 3.5, TR))
    nibabel.save(image, path)


def save_gifti(
    path: Path, arrays: list[np.ndarray], labels: nibabel.gifti.GiftiLabelTable | None = None
) -> None:
    intent = "NIFTI_INTENT_TIME_SERIES" if labels is None else "NIFTI_INTENT_LABEL"
    kind = "NIFTI_TYPE_FLOAT32" if labels is None else "NIFTI_TYPE_INT32"
    data = [nibabel.gifti.GiftiDataArray(array, intent=intent, datatype=kind) for array in arrays]
    nibabel.save(nibabel.gifti.GiftiImage(darrays=data, labeltable=labels), path)


def save_cifti(path: Path, values: np.ndarray, axes: tuple) -> None:
    nibabel.save(nibabel.Cifti2Image(values, header=axes), path)


def change(path, **columns):
    """Overwrites columns of a table: {row: value} or one value for all rows."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for name, values in columns.items():
        if isinstance(values, dict):
            for row, value in values.items():
                table.loc[row, name] = value
        else:
            table[name] = values
    table.to_csv(path, sep="\t", index=False)


def replace_grid(path, shape=SHAPE, affine=AFFINE):
    values = np.random.default_rng(0).normal(1000, 10, size=(*shape, VOLUMES)).astype(np.float32)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], TR))
    nibabel.save(image, path)

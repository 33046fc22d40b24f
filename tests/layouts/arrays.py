"""Folders of plain arrays as a lab exports them: from numpy with pictures, and from MATLAB with labels only."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from layouts import Sample

TRIALS = [("cat", "train"), ("dog", "train"), ("owl", "test"), ("owl", "test"), (None, "unlabelled")]
NUM_VOXELS = 6


def make(folder: Path, rng: np.random.Generator) -> Sample:
    """Big-endian betas.npy, tables, and pictures in three formats, one of them named in stimuli.tsv."""
    (folder / "stimuli" / "more").mkdir(parents=True)
    for file in ("cat.png", "dog.jpg", "more/bird.bmp"):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3)).astype(np.uint8)).save(folder / "stimuli" / file)
    np.save(folder / "betas.npy", rng.normal(size=(len(TRIALS), NUM_VOXELS)).astype(">f8"))
    write(folder / "trials.tsv", ["stimulus_id", "split"], TRIALS)
    stimuli = [("owl", "bird", "more/bird.bmp"), ("cat", "pet", None), ("dog", "pet", None)]
    write(folder / "stimuli.tsv", ["stimulus_id", "label", "file"], stimuli)
    rois = [("V1,VC", 0.5), ("V1,VC", None), *[("LOC", 0.25)] * (NUM_VOXELS - 2)]
    write(folder / "voxels.tsv", ["rois", "noise_ceiling"], rois)
    return Sample(
        "arrays", folder, {"units": "z"}, {"train": 2, "test": 2, "unlabelled": 1}, num_voxels=NUM_VOXELS
    )


def make_mat(folder: Path, rng: np.random.Generator) -> Sample:
    """betas.mat of version 7.3, and labels without pictures."""
    folder.mkdir(parents=True)
    write_mat73(folder / "betas.mat", {"betas": rng.normal(size=(len(TRIALS), NUM_VOXELS))})
    write(folder / "trials.tsv", ["stimulus_id", "split"], TRIALS)
    write(folder / "stimuli.tsv", ["stimulus_id", "label"], [("cat", "pet"), ("dog", "pet"), ("owl", "bird")])
    return Sample("arrays", folder, {}, {"train": 2, "test": 2, "unlabelled": 1}, num_voxels=NUM_VOXELS)


def write(path: Path, columns: list[str], rows: list[tuple]) -> None:
    pd.DataFrame(rows, columns=columns).to_csv(path, sep="\t", index=False, na_rep="n/a")


def write_mat73(path: Path, arrays: dict[str, np.ndarray], **storage: object) -> None:
    """HDF5 behind MATLAB's block of 512 bytes, every array with its axes reversed; compressed unless `storage` differs."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            stored = {"compression": "gzip", **storage}
            data = file.create_dataset(name, data=np.ascontiguousarray(array.T), **stored)
            data.attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("rb+") as file:
        text = (
            b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2024 HDF5 schema 1.00 ."
        )
        file.write(text.ljust(124) + b"\x00\x02IM")

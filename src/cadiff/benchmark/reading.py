"""Trials from disk, timed: batches as phase 1 reads them, from a synthetic dataset in a temporary folder."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from cadiff.benchmark.machine import forget_peak, peak_memory, training_device
from cadiff.benchmark.record import Measurement
from cadiff.contrast.encoder_folder import fit_preprocessor
from cadiff.contrast.trials import TrialPool
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig
from cadiff.data.writer import dataset_writer
from cadiff.training import epoch_batches

CHUNK = 2048


def make_dataset(folder: Path, trials: int, voxels: int, *, stimuli: int = 8, side: int = 8) -> Path:
    """A dataset of random betas, with unlabelled trials and a few pictures."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"rois": ["VC"] * voxels})
    with dataset_writer(folder, name="synthetic", subject="sub-01", voxels=table) as writer:
        for number in range(stimuli):
            picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            writer.add_stimulus(f"picture-{number}", picture, label=f"class-{number}")
        for start in range(0, trials, CHUNK):
            number = np.arange(start, min(start + CHUNK, trials))
            part = pd.DataFrame(
                {
                    "stimulus_id": [f"picture-{n % stimuli}" for n in number],
                    "split": "train",
                    "session": 1,
                    "run": 1,
                    "repeat": 1 + number // stimuli,
                }
            )
            writer.add_trials(rng.standard_normal((len(number), voxels), dtype=np.float32), part)
    return folder


def open_pool(folder: Path, patch_size: int) -> TrialPool:
    """The training trials of a dataset as phase 1 reads them."""
    dataset = BrainDataset.open(folder)
    preprocessor = fit_preprocessor(dataset, PreprocessConfig(), patch_size=patch_size)
    return TrialPool([dataset], [preprocessor], [dataset.rows("train")])


def time_reading(
    pool: TrialPool, batch: int, *, repeats: int = 5, least: float = 0.5
) -> tuple[float, float, float, int]:
    """Median and slowest seconds of a batch over the repeats, those of the very first batch, and batches in a repeat."""
    indices = epoch_batches(len(pool), batch, seed=0)
    step = 0

    def timed(count: int) -> float:
        nonlocal step
        start = time.perf_counter()
        for _ in range(count):
            pool.betas(indices(step))
            step += 1
        return (time.perf_counter() - start) / count

    first = timed(1)
    count = max(1, min(1000, round(least / timed(3))))
    times = [timed(count) for _ in range(repeats)]
    return median(times), max(times), first, count


def measure_reading(
    batch: int,
    voxels: int,
    *,
    trials: int = 10_000,
    patch_size: int = 16,
    repeats: int = 5,
    least: float = 0.5,
) -> Measurement:
    """Times random batches out of the page cache, normalised and brought to the encoder's length."""
    device = training_device()
    with tempfile.TemporaryDirectory() as scratch:
        pool = open_pool(make_dataset(Path(scratch) / "data", trials, voxels), patch_size)
        forget_peak(device)
        middle, slowest, first, count = time_reading(pool, batch, repeats=repeats, least=least)
        memory, reserved = peak_memory(device)
        del pool
    case = f"{trials:,} trials of {voxels:,} voxels, batch {batch}"
    return Measurement(
        "data",
        case,
        batch,
        "fp32",
        False,
        "samples",
        middle,
        slowest,
        first,
        repeats,
        count,
        memory,
        reserved,
    )

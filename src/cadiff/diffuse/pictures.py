"""A folder of reconstructions: which file shows which sample of which stimulus, and the files themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

KIND = "reconstructions"


def sample_table(stimulus_ids: Sequence[str], num_samples: Mapping[str, int]) -> pd.DataFrame:
    """The table of samples.tsv: condition, stimulus_id, sample, file, in the order (condition, trial, sample).

    Args:
        stimulus_ids: (trials,); samples of a stimulus that occurs more than once are numbered on.
        num_samples: condition -> pictures a trial.
    """
    files = {name: re.sub(r"[^\w.-]", "_", name) for name in dict.fromkeys(stimulus_ids)}
    if len(set(files.values())) < len(files):  # ids that differ only in characters a file name cannot have
        files = {name: f"{file}-{i}" for i, (name, file) in enumerate(files.items())}
    rows = []
    for condition, count in num_samples.items():
        drawn: dict[str, int] = {}
        for stimulus_id in stimulus_ids:
            first = drawn.get(stimulus_id, 0)
            drawn[stimulus_id] = first + count
            for sample in range(first, first + count):
                file = f"images/{condition}/{files[stimulus_id]}_{sample}.png"
                rows.append((condition, stimulus_id, sample, file))
    return pd.DataFrame(rows, columns=["condition", "stimulus_id", "sample", "file"])


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Writes one picture uint8 (H, W, 3) as PNG, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, compress_level=1)


def save_pictures(
    folder: Path, pictures: Mapping[str, np.ndarray], stimulus_ids: Sequence[str]
) -> pd.DataFrame:
    """Writes images/<condition>/<stimulus>_<sample>.png and returns the table of them.

    Args:
        folder: an existing folder.
        pictures: condition -> uint8 (trials, samples, H, W, 3).
        stimulus_ids: (trials,), see `sample_table`.
    """
    table = sample_table(stimulus_ids, {name: stack.shape[1] for name, stack in pictures.items()})
    every = (picture for stack in pictures.values() for samples in stack for picture in samples)
    for file, picture in zip(table["file"], every, strict=True):
        save_picture(folder / file, picture)
    return table

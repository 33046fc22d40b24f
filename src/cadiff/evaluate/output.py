"""The tables and facts that an evaluation folder holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cadiff.artifacts import folder_digest, read_json, sha256_file
from cadiff.evaluate.pictures import SAMPLE_COLUMNS, Reconstructions
from cadiff.evaluate.scores import Seen
from cadiff.evaluate.systems import System


def sample_table(system: System, samples: dict[str, np.ndarray], seen: Seen) -> pd.DataFrame:
    """One row a picture: condition, stimulus, sample, file, every metric, the judge's first class."""
    table = system.folder.rows(system.inside).loc[:, list(SAMPLE_COLUMNS)].reset_index(drop=True)
    table["condition"] = system.condition
    table["origin"] = system.origin
    for name, values in samples.items():
        table[name] = values.reshape(-1)
    if seen.logits is not None:
        table["judge_class"] = seen.logits.argmax(axis=1)
    return table


def image_table(systems: Sequence[System], per_image: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """One row a condition and stimulus: every metric, mean over samples. Controls made of pictures have no samples: 0."""
    drawn = {system.condition: system.folder.num_samples(system.inside) for system in systems}
    ids = systems[0].folder.stimulus_ids
    parts = [
        pd.DataFrame({"condition": name, "stimulus_id": ids, "num_samples": drawn.get(name, 0), **scores})
        for name, scores in per_image.items()
    ]
    return pd.concat(parts)


def averaging(folder: Reconstructions) -> str:
    """How many repeats went into a reconstruction, as far as the folder says."""
    settings = folder.about.get("config") or {}
    if "average_repeats" not in settings:
        return "repeats-unstated"
    return "repeats-averaged" if settings["average_repeats"] else "single-trial"


def reading(folder: Reconstructions) -> str:
    """Which reading of the published method made the pictures (docs/protocols.md), as a part of a protocol; "" unstated."""
    name = (folder.about.get("provenance") or {}).get("protocol")
    return f"/{name}-protocol" if name else ""


def read_description(dataset: Path) -> dict[str, Any]:
    """What a dataset says of itself; of a plain folder only its name."""
    path = dataset / "dataset_description.json"
    return read_json(path) if path.is_file() else {"name": dataset.resolve().name}


def description_digest(dataset: Path) -> str:
    """SHA-256 that tells a dataset from a changed one."""
    path = dataset / "dataset_description.json"
    return sha256_file(path) if path.is_file() else folder_digest(dataset)


def relative(folder: Path, out: Path) -> str:
    """Path of a folder as seen from `out`, so that both can move together."""
    return Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Tabs between, six digits, n/a for gaps."""
    table.to_csv(path, sep="\t", index=False, float_format="%.6g", na_rep="n/a", lineterminator="\n")

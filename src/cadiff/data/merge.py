"""Several subjects as one dataset for phase 1, which needs trials and no labels.

Phase 1 (`cadiff contrast`) takes many datasets as they are and normalises each by itself; merging is for numbers of them
that are unwieldy, such as a thousand HCP subjects. What is merged can train an encoder and nothing else: subjects have
different voxels, so beyond the first source voxels correspond by position only, and every trial is `unlabelled`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
from tqdm import tqdm

from cadiff.artifacts import refuse_existing, sha256_file
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.data.writer import CHUNK_ROWS, dataset_writer
from cadiff.errors import ConfigError, DataError

KEPT_COLUMNS = ("session", "run")


class Source(NamedTuple):
    """What is known of a dataset before its betas are read."""

    folder: Path
    name: str
    """Dataset and subject, "HCP sub-100307"."""
    betas_sha256: str
    num_voxels: int
    num_kept: int
    num_test: int
    facts: dict[str, Any]


class TrialRows:
    """Some trials of a dataset as an array (n, voxels) that is read when it is sliced."""

    ndim = 2

    def __init__(self, betas: np.ndarray, rows: np.ndarray) -> None:
        self.betas, self.rows = betas, rows
        self.shape = (len(rows), betas.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice) -> np.ndarray:
        return self.betas[self.rows[chosen]]


def merge(
    sources: Sequence[Path],
    out: Path,
    *,
    length: int | Literal["longest", "shortest"] = "longest",
    normalise: Literal["voxel", "scalar"] = "voxel",
    name: str = "merged",
) -> Path:
    """Makes one dataset of the training and unlabelled trials of several subjects, all of them `unlabelled`.

    Labels and pictures are dropped. Test trials are left out: what is tested later must not be trained on, and a merged
    dataset has no test split to keep them in. The description says how many that were (`note`, `sources`).

    Each subject is z-scored over its own trials, for units and gains differ between subjects and scanners. Where subjects
    have different numbers of voxels, shorter ones are repeated from their start and longer ones cut at their end.

    Args:
        sources: dataset folders, or folders of dataset folders, as an import of many subjects makes.
        out: the dataset folder to make.
        length: voxels of the result: those of the subject with most, with fewest, or a number.
        normalise: z-score each voxel, or all voxels of a subject by one mean and one standard deviation.
        name: name of the result.

    Raises:
        DataError: fewer than two datasets, the same one twice, one that is damaged, or one without a trial to keep.
        ConfigError: a length or normalisation that does not exist.
        ArtifactError: `out` exists.
    """
    if normalise not in ("voxel", "scalar"):
        raise ConfigError(f"normalise={normalise!r}: choose voxel or scalar.")
    if length not in ("longest", "shortest") and (
        isinstance(length, bool) or not isinstance(length, int) or length < 1
    ):
        raise ConfigError(f"length={length!r}: choose longest, shortest or a number of voxels.")
    refuse_existing(out)
    folders = [folder for source in sources for folder in dataset_folders(Path(source))]
    if len(folders) < 2:
        raise DataError(
            f"Merging needs at least two datasets, found {', '.join(map(str, folders)) or 'none'}: name their folders."
        )
    found = [_look_at(folder) for folder in tqdm(folders, unit="dataset", desc="check", disable=None)]
    _refuse_twice(found)
    counts = [source.num_voxels for source in found]
    if length == "longest":
        num_voxels = max(counts)
    else:
        num_voxels = min(counts) if length == "shortest" else int(length)
    voxels = _voxels(found, num_voxels)
    about = _describe(found, num_voxels, normalise)
    with dataset_writer(out, name=name, subject="several", voxels=voxels, description=about) as writer:
        for source in tqdm(found, unit="dataset", desc="merge", disable=None):
            for betas, trials in _pieces(source, num_voxels, normalise):
                writer.add_trials(betas, trials)
    return out


def dataset_folders(folder: Path) -> list[Path]:
    """`folder` when it is a dataset, else the datasets in it, by name.

    Raises:
        DataError: neither.
    """
    if (folder / "dataset_description.json").is_file() or not folder.is_dir():
        return [folder]  # opening says what is wrong with one that is not there
    inside = sorted(
        path.parent for path in folder.glob("*/dataset_description.json") if path.parent.name[0] != "."
    )
    if not inside:
        BrainDataset.open(folder)  # raises
    return inside


def _look_at(folder: Path) -> Source:
    dataset = BrainDataset.open(folder)
    about = dataset.description
    digest = sha256_file(folder / "betas.npy")
    recorded = about.get("sha256", {}).get("betas.npy")
    if recorded is not None and recorded != digest:
        raise DataError(f"{folder / 'betas.npy'} is damaged (checksum differs): import it again.")
    kept, test = _kept(dataset), len(dataset.rows("test"))
    if not len(kept):
        raise DataError(f"{folder} has {test} test trials and no other: there is nothing in it to train on.")
    facts = {key: about[key] for key in ("units", "licence", "citation") if about.get(key)}
    name = f"{about.get('name', folder.name)} {about.get('subject', folder.name)}"
    return Source(folder, name, digest, len(dataset.voxels), len(kept), test, facts)


def _kept(dataset: BrainDataset) -> np.ndarray:
    return np.sort(np.concatenate([dataset.rows("train"), dataset.rows("unlabelled")]))


def _refuse_twice(found: Sequence[Source]) -> None:
    seen: dict[str, Path] = {}
    for source in found:
        other = seen.setdefault(source.betas_sha256, source.folder)
        if other is not source.folder:
            raise DataError(
                f"{source.folder} and {other} hold the same betas, bit for bit: name each subject once. If they are "
                "meant to be two subjects, one was copied by mistake."
            )


def _voxels(found: Sequence[Source], num_voxels: int) -> pd.DataFrame:
    """The voxel table of the sources where all have the same; else nothing but positions."""
    first: pd.DataFrame | None = None
    for source in found:
        table = BrainDataset.open(source.folder).voxels.drop(columns=["voxel", "noise_ceiling"])
        if first is None:
            first = table
        elif not table.equals(first):
            return pd.DataFrame({"rois": [""] * num_voxels})
    assert first is not None
    return first.iloc[np.arange(num_voxels) % len(first)].reset_index(drop=True)


def _describe(found: Sequence[Source], num_voxels: int, normalise: str) -> dict[str, Any]:
    test = sum(source.num_test for source in found)
    scale = "each voxel" if normalise == "voxel" else "all voxels together"
    note = f"Of {len(found)} subjects, {sum(source.num_kept for source in found)} trials were merged as unlabelled."
    if test:
        note += f" {test} test trials were left out: what is tested must not be trained on."
    return {
        "note": note,
        "units": f"z-scored within each subject, {scale}",
        "normalise": normalise,
        "length": num_voxels,
        "length_policy": "shorter subjects repeat from their start, longer ones are cut at their end",
        "licence": "; ".join(_distinct(found, "licence")) or "not stated by the sources",
        "citation": "; ".join(_distinct(found, "citation")) or "not stated by the sources",
        "sources": [
            {
                "name": source.name,
                "betas_sha256": source.betas_sha256,
                "units": source.facts.get("units"),
                "voxels": source.num_voxels,
                "trials": source.num_kept,
                "test_trials_left_out": source.num_test,
            }
            for source in found
        ],
    }


def _distinct(found: Sequence[Source], key: str) -> list[str]:
    return list(dict.fromkeys(str(source.facts[key]) for source in found if key in source.facts))


def _pieces(
    source: Source, num_voxels: int, normalise: Literal["voxel", "scalar"]
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Normalised betas and rows of trials.tsv, a few trials at a time."""
    dataset = BrainDataset.open(source.folder)
    rows = _kept(dataset)
    trials = dataset.trials.iloc[rows]
    table = trials[list(KEPT_COLUMNS)].assign(
        stimulus_id=None, split="unlabelled", repeat=1, subject=source.name, source_trial=trials["trial"]
    )
    betas = TrialRows(dataset.betas, rows)
    try:
        preprocessor = Preprocessor.fit(
            cast(np.ndarray, betas),
            PreprocessConfig(normalise=normalise),
            patch_size=1,
            num_voxels=num_voxels,
        )
    except DataError as error:
        raise DataError(f"{source.folder}: {error}") from None
    for start in range(0, len(rows), CHUNK_ROWS):
        piece = slice(start, start + CHUNK_ROWS)
        yield preprocessor(betas[piece]), table.iloc[piece]

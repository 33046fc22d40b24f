"""Changing a dataset before any stage sees it: ROI choice, z-scores within runs or sessions, reliable voxels only.

`prepare` writes a new dataset and says in its description what it changed. Everything is fitted on training trials only;
the options that do otherwise exist to compare with what others did, and are named so. What happens inside the stages
(scaling by training trials, repeat averages, lengths, sparsification) is in `cadiff.data.preprocess` and needs none of this.

Letters in shapes: n trials, V voxels of the source, K voxels kept, G groups (runs, sessions, or all trials as one).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from cadiff.config import Config
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import TINY_STD, choose_voxels
from cadiff.data.reliability import noise_ceiling, split_half
from cadiff.data.writer import CHUNK_ROWS, copy_stimuli, dataset_writer
from cadiff.errors import DataError
from cadiff.looks import take_over

CHUNK_VOXELS = 512
OFFICIAL_PATCH = 16
LEFT_OUT = "left out"
"""Split of trials that the new dataset does not have."""


class PrepareConfig(Config):
    """What to change."""

    rois: list[str] | None = None
    """Keep voxels in any of these ROIs; nothing keeps all."""
    train_fraction: float | None = Field(default=None, gt=0, le=1)
    """Keep this share of the training stimuli, drawn by seed, with all their trials, for a curve of score against training
    size; those of a smaller share are among those of a larger one. Test and unlabelled trials stay."""
    normalise: Literal["none", "voxel", "scalar", "official_god", "official_bold5000"] = "none"
    """z-score each voxel, or all voxels by one mean and std, fitted on training trials. The official ones repeat the
    released code's mistakes, for comparison: `official_god` leaves test trials as they are, `official_bold5000` fits
    on training and test trials together."""
    within: Literal["all", "session", "run"] = "all"
    """Fit the z-score on all training trials, or on those of each session or run."""
    without_training: Literal["all_training", "own"] = "all_training"
    """For a session or run without training trials: the statistics of all training trials, or of its own trials
    (which are test trials: their labels are not used, but a single new trial could not be normalised so)."""
    noise_ceiling: Literal["keep", "train", "test"] = "keep"
    """Estimate each voxel's single-trial noise ceiling from repeats in this split, or keep the column as it is."""
    min_reliability: float | None = Field(default=None, ge=-1, le=1)
    """Keep voxels whose split-half reliability over repeated training trials is at least this."""
    num_voxels: int | None = Field(default=None, ge=1)
    """Keep this many voxels: those with the highest split-half reliability over repeated training trials."""
    seed: int = 0
    """Of the random halves and of the training stimuli that are kept."""


def prepare(dataset: BrainDataset, out: Path, config: PrepareConfig | None = None) -> Path:
    """Writes a changed copy of a dataset.

    Raises:
        DataError: an unknown ROI, no training trials to fit on, or selection by reliability without repeated training
            trials.
        ArtifactError: `out` exists.
    """
    config = config or PrepareConfig()
    index = choose_voxels(len(dataset.voxels), config.rois, dataset.voxels)
    changes: list[str] = []
    dataset = _fewer_stimuli(dataset, config, changes)
    rows = np.flatnonzero((dataset.trials["split"] != LEFT_OUT).to_numpy())
    gone = set(dataset.trials["stimulus_id"]) - set(dataset.trials["stimulus_id"].iloc[rows])
    if config.rois is not None:
        changes.append(
            f"{len(index)} of {len(dataset.voxels)} voxels kept: those in {', '.join(config.rois)}."
        )
    scaling = _fit(dataset, index, config, changes)
    if config.min_reliability is not None or config.num_voxels is not None:
        scaling = scaling.keep(_reliable(dataset, scaling, config, changes))
    voxels = dataset.voxels.iloc[scaling.voxels].drop(columns="voxel").reset_index(drop=True)
    if config.noise_ceiling != "keep":
        voxels["noise_ceiling"] = _ceilings(dataset, scaling, config.noise_ceiling)
        changes.append(f"Noise ceilings estimated from the repeats of {config.noise_ceiling} trials.")
    about = {
        k: v for k, v in dataset.description.items() if k not in ("sha256", "provenance", "format", "import")
    }
    earlier = about.pop("prepared", [])
    about["prepared"] = [*earlier, {"config": config.model_dump(), "changes": changes}]
    if config.normalise != "none":
        about["units"] = "z"
    name, subject = about.pop("name"), about.pop("subject")
    with dataset_writer(out, name=name, subject=subject, voxels=voxels, description=about) as writer:
        copy_stimuli(dataset, writer, set(dataset.stimuli.index) - gone)
        for some in _chunks(rows, CHUNK_ROWS):
            writer.add_trials(scaling(dataset.betas, some), dataset.trials.iloc[some])
        take_over(dataset.folder, writer.folder)  # test trials stay
    return out


def _fewer_stimuli(dataset: BrainDataset, config: PrepareConfig, changes: list[str]) -> BrainDataset:
    """The dataset with the trials of the training stimuli that go in a split of their own, on which nothing is fitted."""
    if config.train_fraction is None:
        return dataset
    names = np.unique(dataset.stimulus_ids("train"))
    if not len(names):
        raise DataError(f"{dataset.folder} has no training trials to keep a share of.")
    drawn = np.random.default_rng(config.seed).permutation(names)
    gone = set(drawn[max(1, round(config.train_fraction * len(names))) :])
    trials, train = dataset.trials, (dataset.trials["split"] == "train").to_numpy()
    left_out = train & trials["stimulus_id"].isin(gone).to_numpy()
    kept = train & ~left_out
    changes.append(
        f"{int(kept.sum())} of {int(train.sum())} training trials kept, of {len(names) - len(gone)} of {len(names)} stimuli "
        f"(seed {config.seed})."
    )
    fewer = trials.assign(split=trials["split"].mask(left_out, LEFT_OUT))
    return BrainDataset(dataset.folder, dataset.description, fewer, dataset.voxels, dataset.stimuli)


@dataclass(frozen=True, eq=False)
class _Scaling:
    """The z-score of every group, for the K voxels kept; `group` says which group's statistics a trial takes, -1 for none."""

    voxels: np.ndarray  # (K,)
    group: np.ndarray  # (n,)
    means: np.ndarray  # (G, K), each voxel's own
    stds: np.ndarray
    normalise: str

    def keep(self, columns: np.ndarray) -> _Scaling:
        """The z-score for fewer voxels; those that go leave a mean and std of all voxels too."""
        kept = {name: getattr(self, name)[..., columns] for name in ("voxels", "means", "stds")}
        return replace(self, **kept)

    def __call__(
        self, betas: np.ndarray, rows: np.ndarray, columns: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """These rows of all betas (n, V), and of the voxels kept these columns, normalised."""
        mean, std = self._applied
        some = columns if mean.shape[1] > 1 else slice(None)
        group = self.group[rows]
        kept = _float64(betas, rows, self.voxels[columns])
        return (kept - mean[:, some][group]) / std[:, some][group]  # columns first: few groups, many trials

    @cached_property
    def _applied(self) -> tuple[np.ndarray, np.ndarray]:
        """What is subtracted and divided by (G + 1, K), or (G + 1, 1) for one of all voxels; the last changes nothing."""
        mean, std = self.means, self.stds
        if self.normalise != "voxel":
            mean, std = _pool(mean, std, repeat=_official_repeats(mean.shape[1], self.normalise))
        floor = TINY_STD * max(float(np.median(std)), TINY_STD * float(np.abs(mean).max()))
        std = np.where(std <= floor, 1.0, std)
        nothing = np.zeros_like(mean[:1])
        return np.concatenate([mean, nothing]), np.concatenate([std, nothing + 1])


def _fit(dataset: BrainDataset, voxels: np.ndarray, config: PrepareConfig, changes: list[str]) -> _Scaling:
    count = len(dataset.trials)
    if config.normalise == "none":
        no_mean = np.zeros((1, len(voxels)))
        return _Scaling(voxels, np.full(count, -1), no_mean, no_mean + 1, config.normalise)
    train = (dataset.trials["split"] == "train").to_numpy()
    fitted_on = train
    if config.normalise == "official_bold5000":
        fitted_on = train | (dataset.trials["split"] == "test").to_numpy()
    if not fitted_on.any():
        raise DataError(f"{dataset.folder} has no training trials to fit a z-score on.")
    group, source, lacking = _groups(dataset.trials, fitted_on, config)
    means, stds = _moments(dataset.betas, voxels, source, int(group.max()) + 1)
    unscaled = ""
    if config.normalise == "official_god":
        group = np.where(train, group, -1)
        unscaled = "; all other trials left as they are (a mistake of the released code, for comparison only)"
    what = (
        "each voxel by its own mean and std"
        if config.normalise == "voxel"
        else "all voxels by one mean and std"
    )
    where = {"all": "", "session": " of its session", "run": " of its run"}[config.within]
    who = "training and test trials" if config.normalise == "official_bold5000" else "training trials"
    changes.append(f"Betas z-scored, {what} over the {who}{where}{unscaled}.")
    if lacking:
        whose = "their own trials" if config.without_training == "own" else "all training trials"
        changes.append(f"{lacking} {config.within}s without training trials took the statistics of {whose}.")
    return _Scaling(voxels, group, means, stds, config.normalise)


def _groups(
    trials: pd.DataFrame, fitted_on: np.ndarray, config: PrepareConfig
) -> tuple[np.ndarray, np.ndarray, int]:
    """Which statistics each trial takes (n,); to which it contributes (n, 2), -1 for none; groups without training trials.

    Group 0 is all training trials, sessions or runs count from 1.
    """
    everyone = np.where(fitted_on, 0, -1)
    if config.within == "all":
        return np.zeros(len(trials), dtype=int), np.stack([everyone, np.full(len(trials), -1)], axis=1), 0
    columns = ["session"] if config.within == "session" else ["session", "run"]
    number = trials.groupby(columns, sort=True).ngroup().to_numpy() + 1
    has = np.isin(number, number[fitted_on])
    own = config.without_training == "own"
    contributes = np.where(fitted_on | (~has & own), number, -1)
    takes = np.where(has | own, number, 0)
    lacking = set(number[~has & (trials["split"] != LEFT_OUT).to_numpy()])
    return takes, np.stack([everyone, contributes], axis=1), len(lacking)


def _moments(
    betas: np.ndarray, voxels: np.ndarray, source: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population std (G, K) float64 in two passes of bounded memory; groups without trials get 0 and 1."""
    num_groups = max(num_groups, int(source.max()) + 1)
    count = np.zeros((num_groups, 1))
    total = np.zeros((num_groups, len(voxels)))
    squares = np.zeros_like(total)
    for into in (total, squares):
        mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        for rows in _chunks(np.flatnonzero((source >= 0).any(axis=1)), CHUNK_ROWS):
            part = _float64(betas, rows, voxels)
            for group in np.unique(source[rows]):
                if group >= 0:
                    mine = part[(source[rows] == group).any(axis=1)]
                    if into is total:
                        count[group] += len(mine)
                        total[group] += mine.sum(axis=0)
                    else:
                        squares[group] += ((mine - mean[group]) ** 2).sum(axis=0)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    std = np.sqrt(np.divide(squares, count, out=np.ones_like(total), where=count > 0))
    return mean, std


def _pool(mean: np.ndarray, std: np.ndarray, repeat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One mean and std a group (G, 1) of all voxels' values; `repeat` (K,) counts a voxel more than once."""
    weight = repeat / repeat.sum()
    pooled = (mean * weight).sum(axis=1, keepdims=True)
    variance = ((std**2 + (mean - pooled) ** 2) * weight).sum(axis=1, keepdims=True)
    return pooled, np.sqrt(variance)


def _official_repeats(count: int, normalise: str) -> np.ndarray:
    """The released code fits after wrapping to whole patches, a full extra patch where none is missing."""
    if not normalise.startswith("official"):
        return np.ones(count)
    length = count + OFFICIAL_PATCH - count % OFFICIAL_PATCH
    return np.bincount(np.arange(length) % count, minlength=count).astype(float)


def _reliable(
    dataset: BrainDataset, scaling: _Scaling, config: PrepareConfig, changes: list[str]
) -> np.ndarray:
    """Columns of `scaling` that are kept."""
    rows = _repeated(dataset, "train")
    if not len(rows):
        raise DataError(
            f"{dataset.folder} repeats no stimulus in its training trials, so reliable voxels cannot be told without "
            "looking at test trials: choose voxels by ROI instead."
        )
    ids = dataset.trials["stimulus_id"].iloc[rows].astype(str).tolist()
    count = len(scaling.voxels)
    reliability = np.concatenate(
        [
            split_half(scaling(dataset.betas, rows, some), ids, seed=config.seed)[0]
            for some in _chunks(np.arange(count), CHUNK_VOXELS)
        ]
    )
    keep = np.ones(count, dtype=bool)
    if config.min_reliability is not None:
        keep = reliability >= config.min_reliability
    if config.num_voxels is not None:
        ranked = np.argsort(np.where(keep, -reliability, np.inf), kind="stable")
        keep &= np.isin(np.arange(count), ranked[: config.num_voxels])
    if not keep.any():
        raise DataError(
            f"No voxel of {dataset.folder} reaches a split-half reliability of {config.min_reliability:g} over repeated "
            f"training trials (highest: {reliability.max():.2f}): lower min_reliability."
        )
    changes.append(
        f"{int(keep.sum())} of {count} voxels kept by split-half reliability over {len(set(ids))} repeated training "
        f"stimuli (lowest kept: {reliability[keep].min():.2f})."
    )
    return np.flatnonzero(keep)


def _ceilings(dataset: BrainDataset, scaling: _Scaling, split: str) -> np.ndarray:
    rows = _repeated(dataset, split)
    if not len(rows):
        raise DataError(
            f"{dataset.folder} repeats no {split} stimulus: no noise ceiling can be estimated from them."
        )
    ids = dataset.trials["stimulus_id"].iloc[rows].astype(str).tolist()
    columns = np.arange(len(scaling.voxels))
    parts = [
        noise_ceiling(scaling(dataset.betas, rows, some), ids) for some in _chunks(columns, CHUNK_VOXELS)
    ]
    return np.concatenate(parts)


def _repeated(dataset: BrainDataset, split: str) -> np.ndarray:
    """Rows of a split whose stimulus is shown more than once in it."""
    rows = dataset.rows(split)
    return rows[dataset.trials["stimulus_id"].iloc[rows].duplicated(keep=False).to_numpy()]


def _float64(betas: np.ndarray, rows: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """These rows and columns of all betas, which are not gone through one by one where every column is wanted."""
    part = betas[rows] if len(voxels) == betas.shape[1] else betas[np.ix_(rows, voxels)]
    return np.asarray(part, dtype=np.float64)


def _chunks(index: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(index), size):
        yield index[start : start + size]

"""Real fMRI, from time series: the categories of Haxby et al. 2001 decoded from trial-wise betas.

Run: python recipes/haxby.py HAXBY OUT          (about two minutes on one core)

HAXBY holds subject 1 in the layout of OpenfMRI, haxby2001/sub001/BOLD/task001_runNNN, in two reduced versions: one slice
at full resolution (bold_1slice, mask.nii.gz) and the whole brain at 25 mm (bold_25mm, masks/25mm/brain.nii.gz). Twelve
runs of eight blocks, one a category; a block is a trial. The reader `bids` makes the betas, each run by itself.

Decoding leaves one run out. Voxels are z-scored with mean and spread of the training runs; the ridge penalty, and where
said so the estimator and the high-pass filter, are chosen by leaving one training run out in turn. Intervals: bootstrap
over runs. p: the labels are shuffled inside each run and everything is fitted and chosen again.

The events tables were made from labels of volumes that are meant to be classified directly: they follow the blocks by
some seconds, as responses do. `best_shift` measures by how much from all blocks alike, without their categories, and for
each run from the other eleven; results are given with the onsets as they are in the files and with that shift.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pandas as pd

from cadiff.data import glm
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.bids import read_bids
from cadiff.evaluate.statistics import bootstrap_interval

VERSIONS = {
    "one slice": {"bold_name": "bold_1slice", "mask": "mask.nii.gz"},
    "whole brain, 25 mm": {"bold_name": "bold_25mm", "mask": "haxby2001/sub001/masks/25mm/brain.nii.gz"},
}
TR_S, NUM_VOLUMES = 2.5, 121
SHIFTS = tuple(-TR_S * steps for steps in range(-1, 6))
ESTIMATORS: tuple[tuple[Literal["lss", "lsa"], float | None], ...] = (
    ("lss", 128.0),
    ("lss", None),
    ("lsa", 128.0),
    ("lsa", None),
)  # the reader's default first
PENALTIES = np.logspace(-3, 3, 7)  # times the mean eigenvalue of the kernel
SHUFFLES, SEED = 2000, 0


class Ridge:
    """Ridge regression to one column a category. For given betas its predictions are linear in the labels."""

    def __init__(self, candidates: list[np.ndarray], runs: np.ndarray) -> None:
        self.folds = []
        for run in np.unique(runs):
            test, train = np.flatnonzero(runs == run), np.flatnonzero(runs != run)
            outer = np.concatenate([operator(betas[train], betas[test]) for betas in candidates])
            inner = np.zeros((len(outer), len(train), len(train)))
            for held_out in np.unique(runs[train]):
                out = runs[train] == held_out
                parts = [operator(betas[train[~out]], betas[train[out]]) for betas in candidates]
                inner[np.ix_(range(len(outer)), np.flatnonzero(out), np.flatnonzero(~out))] = np.concatenate(
                    parts
                )
            self.folds.append((train, test, outer, inner))

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Whether each trial is read correctly by a model of the other runs, bool (trials,)."""
        columns = np.eye(labels.max() + 1)[labels] - 1 / (labels.max() + 1)
        right = np.zeros(len(labels), dtype=bool)
        for train, test, outer, inner in self.folds:
            quality = ((inner @ columns[train]).argmax(axis=2) == labels[train]).mean(axis=1)
            right[test] = (outer[quality.argmax()] @ columns[train]).argmax(axis=1) == labels[test]
        return right


class NearestMean:
    """The category whose mean pattern over the training runs correlates best: nothing to choose."""

    def __init__(self, candidates: list[np.ndarray], runs: np.ndarray) -> None:
        (betas,), self.folds = candidates, []
        for run in np.unique(runs):
            test, train = np.flatnonzero(runs == run), np.flatnonzero(runs != run)
            self.folds.append((train, test, *scaled(betas[train], betas[test])))

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """As `Ridge`."""
        columns = np.eye(labels.max() + 1)[labels]
        right = np.zeros(len(labels), dtype=bool)
        for train, test, known, new in self.folds:
            means = columns[train].T @ known / columns[train].sum(axis=0)[:, None]
            means, new = (part - part.mean(axis=1, keepdims=True) for part in (means, new))
            scores = new @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
            right[test] = scores.argmax(axis=1) == labels[test]
        return right


def operator(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Matrices (penalties, new, known), the strongest penalty first, from labels of known trials to predictions."""
    known, new = scaled(known, new)
    values, vectors = np.linalg.eigh(known @ known.T)
    shrunk = vectors / (values + PENALTIES[::-1, None, None] * values.mean())
    return new @ known.T @ (shrunk @ vectors.T)


def scaled(known: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, spread = known.mean(axis=0), known.std(axis=0)
    return (known - mean) / spread, (new - mean) / spread


def best_shift(source: Path, bold_name: str, mask: Path) -> float:
    """Seconds to add to onsets so that a response to all blocks alike explains most variance of the voxels in the mask."""
    inside = np.asarray(nibabel.load(mask).dataobj) != 0
    drift = glm.cosine_drift(NUM_VOLUMES, TR_S, 128.0)
    explained = []
    for folder in sorted((source / "haxby2001/sub001/BOLD").iterdir()):
        bold = np.asarray(nibabel.load(folder / f"{bold_name}.nii.gz").dataobj, dtype=float)[inside].T
        bold -= drift @ np.linalg.lstsq(drift, bold, rcond=None)[0]
        events = pd.read_csv(folder / "bold_events.tsv", sep="\t")
        times = np.arange(NUM_VOLUMES) * TR_S
        shares = []
        for shift in SHIFTS:
            onsets, durations = events["onset"].to_numpy() + shift, events["duration"].to_numpy()
            response = glm.trial_regressors(onsets, durations, times).sum(axis=1)[:, 0]
            response -= drift @ np.linalg.lstsq(drift, response, rcond=None)[0]
            shares.append(np.mean((response @ bold) ** 2 / (response @ response) / (bold**2).sum(axis=0)))
        explained.append(shares)
    total = np.sum(explained, axis=0)
    found = {SHIFTS[int(np.argmax(total - run))] for run in np.asarray(explained)}
    if len(found) != 1:
        raise SystemExit(f"{bold_name}: the runs disagree on the shift of onsets: {sorted(found)}.")
    return found.pop()


def import_betas(
    source: Path,
    out: Path,
    version: dict[str, str],
    shift: float,
    method: Literal["lss", "lsa"],
    high_pass_s: float | None,
) -> BrainDataset:
    folder = out / f"{version['bold_name']}-{method}-{high_pass_s or 'mean'}{shift:+g}"
    if not folder.is_dir():
        read_bids(
            source / "haxby2001", folder, layout="openfmri", name="Haxby 2001", bold_name=version["bold_name"],
            mask=source / version["mask"], onset_shift_s=shift, glm=method, high_pass_s=high_pass_s,
        )  # fmt: skip
    return BrainDataset.open(folder)


def shuffle_p(decoder: Ridge | NearestMean, labels: np.ndarray, runs: np.ndarray) -> float:
    """How often shuffled labels are decoded as well as the true ones, these counted in."""
    rng, observed = np.random.default_rng(SEED), decoder(labels).sum()
    rows, hits = [np.flatnonzero(runs == run) for run in np.unique(runs)], 0
    for _ in range(SHUFFLES):
        shuffled = labels.copy()
        for members in rows:
            shuffled[members] = rng.permutation(labels[members])
        hits += decoder(shuffled).sum() >= observed
    return (1 + hits) / (1 + SHUFFLES)


def report(decoder: Ridge | NearestMean, labels: np.ndarray, runs: np.ndarray) -> str:
    right = decoder(labels)
    low, high = bootstrap_interval(
        np.array([right[runs == run].mean() for run in np.unique(runs)]), seed=SEED
    )
    return f"{right.mean():.1%} [{low:.1%}, {high:.1%}] | {shuffle_p(decoder, labels, runs):.4f}"


def main(source: Path, out: Path) -> None:
    print("| betas | onsets | decoder | accuracy [95 %] | p |\n|---|---|---|---|---|")
    for name, version in VERSIONS.items():
        measured = best_shift(source, version["bold_name"], source / version["mask"])
        for shift in (0.0, measured):
            datasets = [import_betas(source, out, version, shift, *estimator) for estimator in ESTIMATORS]
            trials = datasets[0].trials
            runs = trials["run"].to_numpy()
            names, labels = np.unique(trials["stimulus_id"].to_numpy(dtype=str), return_inverse=True)
            if len(labels) != 96 or len(names) != 8:
                raise SystemExit(
                    f"{source}: {len(labels)} trials of {len(names)} categories, expected 96 of 8."
                )
            betas = [np.asarray(data.betas, dtype=float) for data in datasets]
            decoders = {"nearest mean, lss, 128 s": NearestMean(betas[:1], runs)}
            for (method, high_pass_s), values in zip(ESTIMATORS, betas, strict=True):
                title = f"ridge, {method}, {'mean only' if high_pass_s is None else f'{high_pass_s:g} s'}"
                decoders[title] = Ridge([values], runs)
            decoders["ridge, chosen in training runs"] = Ridge(betas, runs)
            for title, decoder in decoders.items():
                row = f"| {name}, {betas[0].shape[1]} voxels | {shift:+g} s | {title}"
                print(f"{row} | {report(decoder, labels, runs)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("haxby", "out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    main(given.haxby, given.out)

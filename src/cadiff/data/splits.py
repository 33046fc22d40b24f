"""Who is trained on and who is tested: leak audit, averages over repeats, validation splits by stimulus or class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cadiff.artifacts import new_folder
from cadiff.data.dataset import BrainDataset
from cadiff.data.writer import CHUNK_ROWS, copy_stimuli, dataset_writer
from cadiff.errors import ConfigError, DataError

Rows = np.ndarray
"""(n,) int64 rows of `BrainDataset.betas` and `.trials`."""


def check_disjoint(ds: BrainDataset) -> None:
    """Refuses a dataset in which a test stimulus is also a training stimulus, by its id or by its image.

    Images are compared by the sha256 of their files, so the same picture under two names is found.
    Raises DataError that names the first such stimulus and counts the rest.
    """
    ids = ds.trials["stimulus_id"]
    train, test = (list(dict.fromkeys(ids.iloc[ds.rows(split)])) for split in ("train", "test"))
    known = set(train)
    shared = [name for name in test if name in known]
    if shared:
        raise DataError(
            f"Test stimulus {shared[0]!r} is also shown in training trials ({len(shared)} such in {ds.folder}). "
            "Move all trials of a stimulus to one split."
        )
    hashes = ds.stimuli["sha256"]
    trained = {str(hashes[name]): name for name in train if name in hashes.index and _known(hashes[name])}
    copies = [
        (name, trained[str(hashes[name])])
        for name in test
        if name in hashes.index and str(hashes[name]) in trained
    ]
    if copies:
        raise DataError(
            f"Test stimulus {copies[0][0]!r} is the same image as training stimulus {copies[0][1]!r} "
            f"({len(copies)} such in {ds.folder}). Leave one of them out."
        )


def check_disjoint_between(datasets: Sequence[BrainDataset]) -> None:
    """Refuses datasets of which one is trained on a picture that another one tests on, by the sha256 of image files.

    Raises DataError that names the first such stimulus and counts the rest.
    """
    for tested in datasets:
        hashes = tested.stimuli["sha256"]
        secret = {str(hashes[name]): name for name in tested.stimulus_ids("test") if _known(hashes[name])}
        for trained in datasets:
            if trained is tested:
                continue
            others = trained.stimuli["sha256"]
            shown = [name for name in trained.stimulus_ids("train") if str(others[name]) in secret]
            if shown:
                raise DataError(
                    f"Test stimulus {secret[str(others[shown[0]])]!r} of {tested.folder} is training stimulus {shown[0]!r} of "
                    f"{trained.folder} ({len(shown)} such): leave those trials out of one of them (cadiff data split)."
                )


def average_repeats(
    ds: BrainDataset, split: str = "test", rows: Rows | None = None
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Averages the trials of each stimulus.

    Gives betas float32 (stimuli, voxels), the stimulus ids in the order of their first trial, and how many trials each
    row averages, int64 (stimuli,). `rows` restricts the trials (for example to one session). Raises DataError when no
    trial is left.
    """
    rows = ds.rows(split) if rows is None else np.asarray(rows)
    if len(rows) == 0:
        raise DataError(f"There is no {split} trial to average in {ds.folder}.")
    groups: dict[str, list[int]] = {}
    for row, name in zip(rows, ds.trials["stimulus_id"].iloc[rows], strict=True):
        groups.setdefault(str(name), []).append(int(row))
    betas = np.stack([ds.betas[members].mean(axis=0, dtype=np.float64) for members in groups.values()])
    return betas.astype(np.float32), list(groups), np.array([len(members) for members in groups.values()])


def split_train(
    source: BrainDataset | Sequence[str],
    fraction: float,
    seed: int,
    by: Literal["stimulus", "class"] = "stimulus",
) -> tuple[Rows, Rows]:
    """Holds out about `fraction` of the training stimuli (or classes) for validation: (rows to fit, rows held out).

    source: a dataset, whose training trials are split; or a group name per row (stimulus ids or labels), and then `by`
    is not looked at. All rows of a group fall on the same side, and both sides get at least one group. Of a dataset, groups
    that show one picture under several names (by the sha256 of its file) are one.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"The validation fraction is {fraction:g}; expected a number between 0 and 1.")
    rows, groups = _grouped(source, by)
    names = _shuffled_names(groups, seed, needed=2)
    held = names[: min(max(round(fraction * len(names)), 1), len(names) - 1)]
    inside = np.isin(groups, held)
    return rows[~inside], rows[inside]


def k_folds(
    source: BrainDataset | Sequence[str],
    num_folds: int,
    seed: int,
    by: Literal["stimulus", "class"] = "stimulus",
) -> list[tuple[Rows, Rows]]:
    """Cross-validation by stimulus or class: `num_folds` pairs (rows to fit, rows held out).

    Every row is held out exactly once; fold sizes in groups differ by at most one. `source` as in `split_train`.
    """
    if num_folds < 2:
        raise ConfigError(f"num_folds={num_folds}; expected at least 2.")
    rows, groups = _grouped(source, by)
    parts = np.array_split(_shuffled_names(groups, seed, needed=num_folds), num_folds)
    return [(rows[~np.isin(groups, part)], rows[np.isin(groups, part)]) for part in parts]


def _grouped(source: BrainDataset | Sequence[str], by: str) -> tuple[Rows, np.ndarray]:
    if isinstance(source, (Sequence, np.ndarray)):
        return np.arange(len(source)), np.asarray(source, dtype=str)
    rows = source.rows("train")
    ids = source.trials["stimulus_id"].iloc[rows]
    names = list(dict.fromkeys(ids))
    if by == "stimulus":
        return rows, _joined({name: str(name) for name in names}, ids, source)
    labels = source.stimuli["label"]
    unlabelled = [name for name in names if not _known(labels[name])]
    if unlabelled:
        raise DataError(
            f"Stimulus {unlabelled[0]!r} has no class label ({len(unlabelled)} such in {source.folder}); "
            "split by stimulus instead."
        )
    return rows, _joined({name: str(labels[name]) for name in names}, ids, source)


def _joined(groups: dict[str, str], ids: Iterable[str], source: BrainDataset) -> np.ndarray:
    """The group of each of `ids`; those that hold one picture under several names are one, called as the first of them."""
    merged: dict[str, str] = {}

    def root(group: str) -> str:
        while group in merged:
            group = merged[group]
        return group

    first: dict[str, str] = {}
    for name, group in groups.items():
        digest = source.stimuli["sha256"].get(name)
        if _known(digest) and (earlier := root(first.setdefault(str(digest), group))) != root(group):
            merged[root(group)] = earlier
    return np.array([root(groups[name]) for name in ids])


def _shuffled_names(groups: np.ndarray, seed: int, needed: int) -> np.ndarray:
    names = np.unique(groups)  # sorted, so that the draw does not depend on the order of trials
    if len(names) < needed:
        raise DataError(f"{len(names)} different stimuli or classes cannot be split in {needed} parts.")
    return np.random.default_rng(seed).permutation(names)


def _known(value: object) -> bool:
    """False for the gaps a table may hold: None, NaN, pandas.NA, empty, n/a."""
    return isinstance(value, str) and value not in ("", "n/a", "nan")


def resplit(dataset: BrainDataset, out: Path, test: Sequence[str], rows: Rows | None = None) -> Path:
    """Writes the labelled trials of a dataset as a new one, with the stimuli `test` as its test split.

    `rows` are the trials to keep, all labelled ones when absent; everything else is as it was. For cross-validation,
    and for holding out a validation split that a stage may look at without touching the real test trials.

    Raises:
        DataError: a stimulus that the dataset does not show.
        ArtifactError: `out` exists.
    """
    labelled = np.flatnonzero((dataset.trials["split"] != "unlabelled").to_numpy())
    rows = labelled if rows is None else np.intersect1d(rows, labelled)
    trials = dataset.trials.iloc[rows].reset_index(drop=True)
    if unknown := sorted(set(test) - set(trials["stimulus_id"])):
        raise DataError(
            f"{dataset.folder} shows no stimulus {unknown[0]!r}, so it cannot be a test stimulus."
        )
    about = {
        key: value
        for key, value in dataset.description.items()
        if key not in {"sha256", "provenance", "format", "import"}
    }
    tested = set(dataset.trials["stimulus_id"][dataset.trials["split"] == "test"])
    is_validation = (dataset.description.get("resplit") or {}).get("out_of") == "train"
    is_validation |= bool(tested) and tested.isdisjoint(trials["stimulus_id"])
    # What the new test stimuli were, for the ledger of looks: training trials of a dataset whose own test trials are left
    # out; any trials of one that has no test split; or trials of both splits, mixed anew.
    out_of = "train" if is_validation else "both" if tested else "untested"
    about["resplit"] = {"test_stimuli": list(test), "out_of": out_of}
    name, subject = about.pop("name"), about.pop("subject")
    trials["split"] = np.where(trials["stimulus_id"].isin(list(test)), "test", "train")
    with dataset_writer(
        out, name=name, subject=subject, voxels=dataset.voxels.drop(columns="voxel"), description=about
    ) as writer:
        copy_stimuli(dataset, writer, set(trials["stimulus_id"]))
        for start in range(0, len(rows), CHUNK_ROWS):
            some = slice(start, start + CHUNK_ROWS)
            writer.add_trials(dataset.betas[rows[some]], trials.iloc[some])
    return out


def write_folds(
    dataset: BrainDataset,
    out: Path,
    num_folds: int,
    *,
    by: Literal["stimulus", "class"] = "stimulus",
    seed: int = 0,
) -> list[Path]:
    """Writes `num_folds` datasets out/fold-1, ...: each training stimulus (or class) is tested in exactly one of them.

    The dataset's own test trials are in none of them, so they stay unseen. All folds appear together or none.
    """
    folds = k_folds(dataset, num_folds, seed, by)
    ids = dataset.trials["stimulus_id"].to_numpy(dtype=str)
    with new_folder(out) as folder:
        for number, (_, held) in enumerate(folds, start=1):
            resplit(dataset, folder / f"fold-{number}", sorted(set(ids[held])), dataset.rows("train"))
    return [out / f"fold-{number}" for number in range(1, num_folds + 1)]

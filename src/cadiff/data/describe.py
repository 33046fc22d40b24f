"""What `cadiff data describe` shows: counts, hashes, noise ceilings, and what looks wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cadiff.data.dataset import SPLITS
from cadiff.data.splits import check_disjoint
from cadiff.errors import DataError

if TYPE_CHECKING:
    from rich.console import Group

    from cadiff.data.dataset import BrainDataset

CHUNK_ROWS = 1024  # betas are memory-mapped and may be larger than memory


def describe(dataset: BrainDataset) -> Group:
    """Tables for a terminal: what the dataset is, trials per split, voxels per ROI, warnings."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    about = dataset.description
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row(
        "dataset", Text(f"{about.get('name', '?')}, {about.get('subject', '?')}  ({dataset.folder})")
    )
    for key in ("title", "snr", "units", "licence", "citation"):
        if about.get(key) is not None:
            facts.add_row(key, Text(str(about[key])))
    facts.add_row("stimuli", Text(_stimuli(dataset)))
    facts.add_row(
        "betas", Text(f"{dataset.betas.shape[0]} trials x {dataset.betas.shape[1]} voxels, float32")
    )
    for file, digest in sorted(about.get("sha256", {}).items()):
        facts.add_row("sha256", Text(f"{digest[:16]}  {file}"))

    trials = Table("split", "trials", "stimuli", "classes", "repeats", "sessions", "runs", title="trials")
    for row in trial_counts(dataset):
        trials.add_row(*map(str, row))

    rois = Table("ROI", "voxels", "noise ceiling: median", "quartiles", "at zero", title="voxels")
    for name, count, ceilings in roi_ceilings(dataset):
        if len(ceilings):
            low, middle, high = np.percentile(ceilings, (25, 50, 75))
            shown = (f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{(ceilings <= 0).mean():.0%}")
        else:
            shown = ("unknown", "", "")
        rois.add_row(name, str(count), *shown)

    found = warnings(dataset)
    told = about.get("notes") or []
    notes = [Text(f"note: {line}") for line in ([told] if isinstance(told, str) else told)]
    lines = notes + [Text(f"warning: {line}", style="yellow") for line in found]
    if not found:
        lines.append(Text("Nothing looks wrong.", style="green"))
    return Group(facts, trials, rois, *lines)


def trial_counts(dataset: BrainDataset) -> list[tuple[str, int, int, int, str, int, int]]:
    """Per split that has trials: (split, trials, stimuli, classes, repeats per stimulus, sessions, runs)."""
    table = []
    for split in SPLITS:
        trials = dataset.trials.iloc[dataset.rows(split)]
        if trials.empty:
            continue
        ids = trials["stimulus_id"].dropna()
        repeats = ids.value_counts()
        span = sorted({int(repeats.min()), int(repeats.max())}) if len(repeats) else []
        labels = dataset.stimuli["label"].reindex(ids.unique()).dropna().nunique()
        runs = len(trials[["session", "run"]].drop_duplicates())
        sessions = int(trials["session"].nunique())
        table.append(
            (split, len(trials), len(repeats), int(labels), " to ".join(map(str, span)), sessions, runs)
        )
    return table


def roi_ceilings(dataset: BrainDataset) -> list[tuple[str, int, np.ndarray]]:
    """Per ROI, and for all voxels: (name, number of voxels, known noise ceilings); a voxel may be in several."""
    ceilings = dataset.voxels["noise_ceiling"].to_numpy(dtype=float)
    members: dict[str, list[int]] = {}
    for i, names in enumerate(dataset.voxels["rois"]):
        for name in filter(None, (part.strip() for part in str(names).split(","))):
            members.setdefault(name, []).append(i)
    groups = [(name, np.array(rows)) for name, rows in members.items()]
    groups.append(("all", np.arange(len(ceilings))))
    return [(name, len(rows), ceilings[rows][np.isfinite(ceilings[rows])]) for name, rows in groups]


def warnings(dataset: BrainDataset) -> list[str]:
    """What a stage would refuse or a reader should know, one sentence each."""
    missing = [split for split in ("train", "test") if not len(dataset.rows(split))]
    needs = {
        "train": "every stage needs them.",
        "test": "`cadiff reconstruct` needs them, and `cadiff data split` holds stimuli out.",
    }
    found = [f"there are no {split} trials: {needs[split]}" for split in missing]
    if len(missing) == 2 and len(dataset.rows("unlabelled")):
        found = ["all trials are unlabelled: they can train phase 1 (`cadiff contrast`) and nothing else."]
    try:
        check_disjoint(dataset)
    except DataError as error:
        found.append(str(error))
    bad, constant = _voxel_health(dataset.betas)
    if bad:
        found.append(
            f"{bad} voxels hold NaN or infinite values: import again without them (--set bad_voxels=drop)."
        )
    if constant:
        found.append(
            f"{constant} voxels never change; they carry nothing and stay at zero after normalisation."
        )
    if unseen := int(dataset.stimuli["file"].isna().sum()):
        found.append(f"of {unseen} stimuli only the label is known: they can be decoded, not reconstructed.")
    pictures = dataset.stimuli["file"].dropna()
    if missing := [s for s, f in pictures.items() if not (dataset.folder / "stimuli" / str(f)).is_file()]:
        found.append(f"{len(missing)} stimuli have no picture in stimuli/ (first: {missing[0]!r}).")
    if dataset.stimuli["label"].isna().any():
        found.append("some stimuli have no class label: label baselines and splits by class cannot use them.")
    again = dataset.trials.duplicated(["split", "stimulus_id"]) & dataset.trials["stimulus_id"].notna()
    by = next((s for s in ("train", "test") if (dataset.trials["split"][again] == s).any()), None)
    if by is not None and dataset.voxels["noise_ceiling"].isna().all():
        found.append(
            "no noise ceiling is known, so averages of repeats cannot be rescaled to single trials: "
            f"`cadiff data prepare --set noise_ceiling={by}` estimates it."
        )
    return found


def _stimuli(dataset: BrainDataset) -> str:
    if not len(dataset.stimuli):
        return "none"
    try:
        first = dataset.image(str(dataset.stimuli.index[0]))
    except DataError:  # `warnings` says so
        return f"{len(dataset.stimuli)} listed"
    return f"{len(dataset.stimuli)} pictures, the first {first.shape[1]} x {first.shape[0]} pixels"


def _voxel_health(betas: np.ndarray) -> tuple[int, int]:
    """How many voxels hold a value that is not finite, and how many finite ones never change."""
    finite = np.ones(betas.shape[1], dtype=bool)
    low, high = np.full(betas.shape[1], np.inf), np.full(betas.shape[1], -np.inf)
    for start in range(0, len(betas), CHUNK_ROWS):
        part = betas[start : start + CHUNK_ROWS]
        finite &= np.isfinite(part).all(axis=0)
        low, high = np.fmin(low, part.min(axis=0)), np.fmax(high, part.max(axis=0))
    return int((~finite).sum()), int((finite & (low == high)).sum())

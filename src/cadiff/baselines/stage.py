"""The table of baselines, and the stage that runs one of them.

A baseline is a class with two functions (see `Baseline`): `fit` sees training trials only, `reconstruct` gets betas. An
oracle looks up the true label of the test stimuli instead; its condition is named so in the folder that it writes.
A new baseline is one new file and one new line in `BASELINES`; anyone's own is named "package.module:Class".
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cadiff.artifacts import new_folder, provenance, refuse_existing, write_json
from cadiff.contrast.trials import dataset_digest
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import refuse_unknown_options
from cadiff.data.splits import average_repeats, check_disjoint
from cadiff.diffuse.controls import derangement
from cadiff.diffuse.pictures import KIND, save_pictures
from cadiff.errors import DataError


class Baseline(Protocol):
    """What a baseline provides. V voxels, m test rows, k samples a row, H x W pixels."""

    @classmethod
    def fit(cls, dataset: BrainDataset, rows: np.ndarray, **options: Any) -> Baseline:
        """Learns from the trials in `rows` of `dataset.betas`, and from no others."""
        ...

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, k, H, W, 3).

        Args:
            betas: (m, V), each row one trial or the average of `repeats` trials.
            stimulus_ids: (m,) what was shown; only oracles may look at it.
            repeats: (m,) how many trials each row averages.
        """
        ...


class BaselineEntry(NamedTuple):
    """One line of the table."""

    target: str
    """Where the class is, as "package.module:Class"; imported when it is used."""
    help: str
    """What it does, in one line."""
    condition: str = "brain"
    """Name of its condition in the folder; anything but `brain` reads no betas, so it has no shuffled control."""


BASELINES: dict[str, BaselineEntry] = {
    "ridge-pixels": BaselineEntry("cadiff.baselines.ridge:RidgePixels", "ridge voxels -> pixels"),
    "ridge-label": BaselineEntry(
        "cadiff.baselines.ridge:RidgeLabel",
        "ridge voxels -> label embedding, norm matched, drawn by the image prior",
    ),
    "retrieval": BaselineEntry(
        "cadiff.baselines.retrieval:Retrieval",
        "picture of the training stimulus with the most similar response",
    ),
    "mean-image": BaselineEntry(
        "cadiff.baselines.retrieval:MeanImage", "mean of the training pictures, no brain", "mean_image"
    ),
    "class-mean": BaselineEntry(
        "cadiff.baselines.retrieval:ClassMean",
        "oracle: mean training picture of the true class",
        "class_mean_oracle",
    ),
    "true-label": BaselineEntry(
        "cadiff.baselines.ridge:TrueLabel", "oracle: the image prior, given the true label", "label_oracle"
    ),
}


def find_baseline(name: str) -> type[Baseline]:
    """A baseline's class by name, or anyone's own as "package.module:Class".

    Raises:
        DataError: no baseline of that name.
    """
    module, _, attribute = (BASELINES[name].target if name in BASELINES else name).partition(":")
    if not attribute:
        known = "; ".join(f"{key} ({entry.help})" for key, entry in BASELINES.items())
        raise DataError(
            f"No baseline {name!r}. There are: {known}; or give your own as 'my_lab.decoders:Linear'."
        )
    try:
        return getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise DataError(f"Baseline {name!r} cannot be found: {error}.") from None


def run_baseline(name: str, dataset: Path, out: Path, /, *, seed: int = 0, **options: Any) -> Path:
    """Fits a baseline on the training trials and reconstructs the test stimuli, repeats averaged.

    Two conditions are written: `brain`, and `shuffled`, the same fit reading the betas of another test stimulus. A
    baseline that reads no betas has one, under its own name.

    Args:
        name: a key of `BASELINES`, or "package.module:Class".
        dataset: dataset folder.
        out: the reconstructions folder to make.
        seed: of the shuffling, and of the baseline's own draws where it has an option `seed`.
        options: of the baseline's `fit`.

    Raises:
        DataError: no such baseline, a leak between the splits, no training or no test trials.
        ConfigError: an option that the baseline does not have.
        ArtifactError: `out` exists.
    """
    cls = find_baseline(name)
    refuse_existing(out)
    refuse_unknown_options(cls.fit, options, what=f"baseline {name!r}", skip=2)
    if "seed" in inspect.signature(cls.fit).parameters:
        options["seed"] = seed
    data = BrainDataset.open(dataset)
    check_disjoint(data)
    rows = data.rows("train")
    if not len(rows):
        raise DataError(f"{dataset} has no training trials: a baseline has nothing to fit.")
    betas, stimulus_ids, repeats = average_repeats(data)
    fitted = cls.fit(data, rows, **options)
    condition = BASELINES[name].condition if name in BASELINES else "brain"
    pictures = {condition: fitted.reconstruct(betas, stimulus_ids=stimulus_ids, repeats=repeats)}
    if condition == "brain":
        other = derangement(stimulus_ids, seed)
        names = [stimulus_ids[i] for i in other]
        pictures["shuffled"] = fitted.reconstruct(betas[other], stimulus_ids=names, repeats=repeats[other])
    learnt = {"trials": len(rows), "stimuli": len(data.stimulus_ids("train"))}
    facts = provenance(inputs={"dataset": dataset_digest(data)}, seed=seed, **learnt)
    settings = {"split": "test", "average_repeats": True, "baseline": name, "options": _plain(options)}
    with new_folder(out) as folder:
        write_json(
            folder / "config.json", {"kind": KIND, "format": 1, "config": settings, "provenance": facts}
        )
        table = save_pictures(folder, pictures, stimulus_ids)
        table.to_csv(folder / "samples.tsv", sep="\t", index=False, lineterminator="\n")
    return out


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON values."""
    return {key: v if isinstance(v, (int, float, bool, type(None))) else str(v) for key, v in options.items()}

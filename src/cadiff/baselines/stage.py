"""The table of baselines, and the stage that runs one of them.

A baseline is a class (see `Baseline`): `fit` sees training trials only, `reconstruct` gets betas. An oracle looks up the
true label of the test stimuli instead; its condition is named so in the folder that it writes. What was fitted is saved beside
the pictures (`State`), so that it can reconstruct another dataset of the same subject.
A new baseline is one new file and one new line in `BASELINES`; anyone's own is named "package.module:Class".
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cadiff.artifacts import folder_digest, new_folder, provenance, refuse_existing, write_json
from cadiff.baselines.fitted import State, load_fitted, save_fitted
from cadiff.contrast.trials import dataset_digest
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import refuse_unknown_options
from cadiff.data.splits import average_repeats, check_disjoint
from cadiff.diffuse.controls import derangement
from cadiff.diffuse.pictures import KIND, save_pictures
from cadiff.encoding.pictures import common_side
from cadiff.errors import ConfigError, DataError


class Baseline(Protocol):
    """What a baseline provides. V voxels, m test rows, k samples a row, H x W pixels."""

    @classmethod
    def fit(cls, dataset: BrainDataset, rows: np.ndarray, **options: Any) -> Baseline:
        """Learns from the trials in `rows` of `dataset.betas`, and from no others.

        An option `work`, where there is one, is a folder to train in: what was cut off there goes on.
        """
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

    def facts(self) -> dict[str, Any]:
        """What was fitted, for the provenance: penalties, held-out scores and the like, as JSON values."""
        ...

    def state(self) -> State:
        """What `from_state` makes the same baseline of: JSON values and tensors."""
        ...

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> Baseline:
        """The inverse of `state`.

        Args:
            state: as saved.
            dataset: whose test trials will be reconstructed; only oracles look at it, for its labels.
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
        "cadiff.baselines.labels:RidgeLabel",
        "ridge voxels -> label embedding, norm matched, drawn by the image prior",
    ),
    "ridge-features": BaselineEntry(
        "cadiff.baselines.features:RidgeFeatures",
        "ridge voxels -> features of the picture, drawn by an image prior that was adapted to them",
    ),
    "ridge-latents": BaselineEntry(
        "cadiff.baselines.ridge:RidgeLatents", "ridge voxels -> latents of the image prior, decoded"
    ),
    "ridge-retrieval": BaselineEntry(
        "cadiff.baselines.ridge:RidgeRetrieval",
        "ridge voxels -> image features; the training picture nearest to them",
    ),
    "bayes": BaselineEntry(
        "cadiff.baselines.bayes:Bayes",
        "pictures weighed by the likelihood of the betas under an encoding model",
    ),
    "bayes-label": BaselineEntry(
        "cadiff.baselines.bayes_label:BayesLabel",
        "the class whose pictures explain the betas best, drawn by the image prior",
    ),
    "retrieval": BaselineEntry(
        "cadiff.baselines.retrieval:Retrieval",
        "picture of the training stimulus with the most similar response",
    ),
    "ic-gan": BaselineEntry(
        "cadiff.baselines.icgan:IcGan",
        "ridge voxels -> instance features, drawn by an instance-conditioned GAN",
    ),
    "ssae": BaselineEntry(
        "cadiff.baselines.ssae.stage:SsAe",
        "self-supervised auto-encoder: encoder and decoder check each other",
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
        "cadiff.baselines.labels:TrueLabel", "oracle: the image prior, given the true label", "label_oracle"
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


def run_baseline(
    name: str,
    dataset: Path,
    out: Path,
    /,
    *,
    seed: int = 0,
    fitted: Path | None = None,
    save_model: bool = True,
    **options: Any,
) -> Path:
    """Fits a baseline on the training trials and reconstructs the test stimuli, repeats averaged.

    Two conditions are written: `brain`, and `shuffled`, the same fit reading the betas of another test stimulus. A
    baseline that reads no betas has one, under its own name. What was fitted is saved as `out`/model.

    Args:
        name: a key of `BASELINES`, or "package.module:Class".
        dataset: dataset folder.
        out: the reconstructions folder to make.
        seed: of the shuffling, and of the baseline's own draws where it has an option `seed`.
        fitted: `out`/model of an earlier run on the same subject: nothing is fitted, its options hold.
        save_model: whether to write `out`/model.
        options: of the baseline's `fit`. One with the parameter `work` is given a folder beside `out`, goes on there after it
            was cut off, and leaves it as `out`/training.

    Raises:
        DataError: no such baseline, a leak between the splits, no training or no test trials, or a fit of another subject.
        ConfigError: an option that the baseline does not have, or options beside `fitted`.
        ArtifactError: `out` exists, or `fitted` is no such folder.
    """
    cls = find_baseline(name)
    refuse_existing(out)
    refuse_unknown_options(cls.fit, options, what=f"baseline {name!r}", skip=2)
    work = out.with_name(f".{out.name}.work")
    data = BrainDataset.open(dataset)
    tested = average_repeats(data)  # refuses a dataset without test trials before minutes of fitting
    learnt: dict[str, Any] = {}
    if fitted is not None:
        if options:
            raise ConfigError(
                f"{next(iter(options))!r} is an option of the fit, and with a fitted baseline ({fitted}) nothing is fitted."
            )
        _refuse_without_state(cls, name)
        state, kept = load_fitted(fitted, name, data)
        baseline = cls.from_state(state, data)
        learnt["fitted_before"] = folder_digest(fitted)
    else:
        check_disjoint(data)
        known = inspect.signature(cls.fit).parameters
        if "seed" in known:
            options["seed"] = seed
        where = {"work": work} if "work" in known else {}
        rows = data.rows("train")
        if not len(rows):
            raise DataError(f"{dataset} has no training trials: a baseline has nothing to fit.")
        if "size" in known and options.get("size") is None:
            side = common_side(data, data.stimulus_ids("train"))
            if side is not None:
                options["size"] = side
                learnt["picture_size"] = (
                    f"{side}, the shorter side of the first training picture, since they differ in size or are no squares"
                )
        baseline, kept = cls.fit(data, rows, **{**where, **options}), _plain(options)
        learnt |= {"training_trials": len(rows), "training_stimuli": len(data.stimulus_ids("train"))}
    if hasattr(baseline, "facts"):
        learnt["fitted"] = baseline.facts()
    facts = provenance(inputs={"dataset": dataset_digest(data)}, seed=seed, **learnt)
    settings = {"split": "test", "average_repeats": True, "baseline": name, "options": kept}
    if warning := learnt.get("fitted", {}).get("warning"):  # pages show the settings
        settings["warning"] = warning
    pictures = _conditions(baseline, name, tested, seed)
    with new_folder(out) as folder:
        write_json(
            folder / "config.json", {"kind": KIND, "format": 1, "config": settings, "provenance": facts}
        )
        table = save_pictures(folder, pictures, tested[1])
        table.to_csv(folder / "samples.tsv", sep="\t", index=False, lineterminator="\n")
        if fitted is None and save_model and hasattr(baseline, "state"):
            about = {"options": kept, "dataset": data, "rows": data.rows("train"), "facts": facts}
            save_fitted(folder / "model", name, baseline.state(), **about)
        if fitted is None and work.is_dir():
            shutil.move(work, folder / "training")
    return out


def _conditions(
    baseline: Baseline, name: str, tested: tuple[np.ndarray, list[str], np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """Condition -> pictures (stimuli, samples, H, W, 3); tested: betas, stimuli, repeats."""
    betas, stimulus_ids, repeats = tested
    condition = BASELINES[name].condition if name in BASELINES else "brain"
    pictures = {condition: baseline.reconstruct(betas, stimulus_ids=stimulus_ids, repeats=repeats)}
    if condition == "brain":
        other = derangement(stimulus_ids, seed)
        names = [stimulus_ids[i] for i in other]
        pictures["shuffled"] = baseline.reconstruct(betas[other], stimulus_ids=names, repeats=repeats[other])
    return pictures


def _refuse_without_state(cls: type[Any], name: str) -> None:
    if not hasattr(cls, "from_state"):
        raise DataError(f"The baseline {name!r} cannot be opened again: it has no `from_state`; fit it anew.")


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON values."""
    plain = (int, float, bool, type(None), list)
    return {key: v if isinstance(v, plain) else str(v) for key, v in options.items()}

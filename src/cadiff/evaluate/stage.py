"""`cadiff evaluate`: a folder of reconstructions and its dataset in, evaluation.json and score tables out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from cadiff.artifacts import (
    folder_digest,
    new_folder,
    provenance,
    read_json,
    refuse_existing,
    sha256_file,
    write_json,
)
from cadiff.config import Config
from cadiff.errors import ConfigError, DataError
from cadiff.evaluate import semantic
from cadiff.evaluate.pictures import (
    SAMPLE_COLUMNS,
    Reconstructions,
    open_reconstructions,
    open_stimuli,
    stimulus_images,
)
from cadiff.evaluate.scores import PairScores, Protocol, Seen, metric_table
from cadiff.evaluate.summary import (
    BRAIN,
    Draws,
    comparisons,
    describe,
    from_the_brain,
    label,
    role,
    summary,
)

FORMAT = 1


class EvaluateConfig(Config):
    """Settings of one evaluation."""

    judge: str | None = "efficientnet-lite2"
    """Classifier that looks at the pictures; null: pixel metrics only (digits and other pictures it never
    learned)."""
    n_way: int = Field(50, ge=2)
    """Classes in one trial of n-way identification, the truth among them."""
    top_k: tuple[int, ...] = (1, 5)
    """Ranks that count as success; the first is the headline."""
    classes: tuple[int, ...] | None = None
    """Restrict truth and distractors to these ImageNet indices; null: all 1,000."""
    monte_carlo_trials: int = Field(0, ge=0)
    """Also run Algorithm 1's random trials this many times an image and report them beside the exact value;
    0: no."""
    num_bootstrap: int = Field(10_000, ge=100)
    """Resamples of the images for an interval, and sign flips for a permutation test."""
    headline: str | None = None
    """Metric that the report leads with; null: n-way top-k with a judge, PCC without."""
    batch_size: int | None = Field(None, ge=1)
    """Pictures that the judge sees at once; null: 64 on a GPU, 8 on a CPU."""
    seed: int = 0
    """Seed of bootstrap, permutations and Monte-Carlo."""


def evaluate(
    config: EvaluateConfig, reconstructions: Path, dataset: Path, out: Path, *, progress: bool = True
) -> Path:
    """Scores every condition of a reconstructions folder against the stimuli that were seen.

    Writes into the new folder `out`:
        evaluation.json    means, intervals, chance, comparisons with the controls, protocol, judge,
        provenance;
                           `inputs` holds the paths of both folders relative to `out`, for the report's
                           pictures
        per_image.tsv      one row a condition and stimulus: every metric, mean over samples
        per_sample.tsv     one row a picture: every metric, and the judge's first class

    The headline of a metric is the mean over samples, then over images, with an interval over images. The
    best of the k samples of every image stands apart as `best_of`; it rises with k for any decoder and
    compares with nothing else.

    Raises:
        ArtifactError: wrong folders, or `out` exists. DataError: pictures missing or unreadable, unequal
            samples. ConfigError: an unknown judge or headline, or an n-way that the judge's classes do not
            allow.
    """
    reconstructions, dataset, out = Path(reconstructions), Path(dataset), Path(out)
    refuse_existing(out)
    metrics = metric_table(config.n_way, config.top_k, config.judge)
    headline = config.headline or next(iter(metrics) if config.judge else iter(["pcc"]))
    if headline not in metrics:
        raise ConfigError(f"evaluate.headline is {headline!r}; there are {', '.join(metrics)}.")
    folder = open_reconstructions(reconstructions)
    stimuli = open_stimuli(dataset)
    if len(folder.stimulus_ids) < 2:
        raise DataError(
            f"{reconstructions} holds one stimulus; intervals and identification need at least two."
        )

    first = folder.images(folder.conditions[0])
    size = (int(first.shape[2]), int(first.shape[3]))
    look = _Judge(config, progress)
    targets = look(stimulus_images(stimuli, folder.stimulus_ids, size))
    draws = Draws(config.num_bootstrap, config.seed)
    protocol = Protocol(config.n_way, config.top_k, np.array(config.classes) if config.classes else None)
    description = read_json(dataset / "dataset_description.json")
    prefix = f"{description.get('name', dataset.name)}/{description.get('subject', 'subject')}"

    conditions: dict[str, Any] = {}
    per_image: dict[str, dict[str, np.ndarray]] = {}
    tables: list[pd.DataFrame] = []
    for condition in folder.conditions:
        images = folder.images(condition)
        if images.shape[2:4] != size:
            raise DataError(
                f"{reconstructions}: {condition} is {images.shape[2:4]} pixels, other conditions {size}."
            )
        n, k = images.shape[:2]
        own = np.repeat(np.arange(n), k)
        seen = look(images.reshape(n * k, *images.shape[2:]))
        pairs = PairScores(seen, targets, protocol)
        samples = {
            name: values.reshape(n, k) for name, values in pairs.against(own).items()
        }  # (images, samples)
        per_image[condition] = {name: values.mean(axis=1) for name, values in samples.items()}
        mispaired = pairs.mispaired(own)
        tail = f"{_averaging(folder)}/mean-of-{k}/{n}-images/{size[1]}px"
        conditions[condition] = {
            "label": label(condition),
            "role": role(condition),
            "num_images": n,
            "num_samples": k,
            "metrics": {
                name: summary(
                    metric, samples[name], mispaired[name], f"{prefix}/{metric.protocol}/{tail}", draws
                )
                for name, metric in metrics.items()
            },
        }
        if config.monte_carlo_trials and seen.logits is not None and targets.logits is not None:
            conditions[condition]["monte_carlo"] = _monte_carlo(
                seen.logits, targets.logits, own, protocol, config
            )
        tables.append(_sample_table(folder, condition, samples, seen))

    primary = BRAIN if BRAIN in conditions else folder.conditions[0]
    rows = comparisons(per_image, metrics, primary, draws)
    evaluation = {
        "kind": "evaluation",
        "format": FORMAT,
        "dataset": {"name": description.get("name"), "subject": description.get("subject")},
        "headline": {"metric": headline, "condition": primary},
        "metrics": {name: describe(metric) for name, metric in metrics.items()},
        "conditions": conditions,
        "comparisons": rows,
        "from_the_brain": from_the_brain(rows),
        "judge": look.about(targets, stimuli, folder.stimulus_ids),
        "pictures": {
            "height": size[0],
            "width": size[1],
            "resizing": "stimuli bicubic, antialiased, to this size",
        },
        "stimuli": {
            "evaluated": len(folder.stimulus_ids),
            "in_test_split": _num_test(dataset),
            "split": (folder.about.get("config") or {}).get("split", "test"),
        },
        "inputs": {
            "reconstructions": _relative(reconstructions, out),
            "dataset": _relative(dataset, out),
            "reconstructions_sha256": folder_digest(reconstructions),
            "dataset_description_sha256": sha256_file(dataset / "dataset_description.json"),
        },
        "config": config.model_dump(mode="json"),
        "provenance": provenance(seed=config.seed),
    }
    with new_folder(out) as temporary:
        write_json(temporary / "evaluation.json", evaluation)
        samples_table = pd.concat(tables)
        _write_table(samples_table, temporary / "per_sample.tsv")
        _write_table(_image_table(folder, per_image), temporary / "per_image.tsv")
    return out


class _Judge:
    """Looks at pictures with the judge of the settings, or not at all."""

    def __init__(self, config: EvaluateConfig, progress: bool) -> None:
        self._config, self._progress = config, progress
        self._classifier: Any = None
        if config.judge is not None:
            from cadiff.vision import load_classifier  # torch loads only when there is a judge

            self._classifier = load_classifier(config.judge)

    def __call__(self, images: np.ndarray) -> Seen:
        if self._classifier is None:
            return Seen(images)
        # Controls often repeat one picture for every stimulus: look once at each.
        flat = images.reshape(len(images), -1)
        _, where, back = np.unique(flat, axis=0, return_index=True, return_inverse=True)
        found = self._classifier.features(
            images[where], ("pooled", "logits"), batch_size=self._config.batch_size, progress=self._progress
        )
        back = back.reshape(-1)
        return Seen(images, found["logits"][back], found["pooled"][back])

    def about(
        self, targets: Seen, stimuli: pd.DataFrame, stimulus_ids: Sequence[str]
    ) -> dict[str, Any] | None:
        """Name, preprocessing, and calibration: does the judge know the stimuli themselves?"""
        if self._classifier is None or targets.logits is None:
            return None
        known = stimuli.loc[list(stimulus_ids), "imagenet_index"]
        rows = np.flatnonzero(known.notna().to_numpy())
        right = int((targets.logits.argmax(axis=1)[rows] == known.iloc[rows].astype(int).to_numpy()).sum())
        classes = self._config.classes
        return {
            "name": self._classifier.name,
            "preprocessing": self._classifier.preprocessing,
            "num_classes": len(set(classes)) if classes else targets.logits.shape[1],
            "truth": "the judge's own arg-max on the stimulus (Algorithm 1)",
            "calibration": {
                "num_labelled": len(rows),
                "num_right": right,
                "accuracy": right / len(rows) if len(rows) else None,
                "num_classes_seen": len(np.unique(targets.logits.argmax(axis=1))),
            },
        }


def _monte_carlo(
    logits: np.ndarray,
    stimulus_logits: np.ndarray,
    own: np.ndarray,
    protocol: Protocol,
    config: EvaluateConfig,
) -> dict[str, float]:
    truth = semantic.truth_classes(stimulus_logits, protocol.classes)[own]
    return {
        f"n_way_top{k}": float(
            semantic.n_way_top_k_monte_carlo(
                logits,
                truth,
                np.random.default_rng(config.seed),
                n=protocol.n_way,
                k=k,
                num_trials=config.monte_carlo_trials,
                classes=protocol.classes,
            ).mean()
        )
        for k in protocol.top_k
    }


def _sample_table(
    folder: Reconstructions, condition: str, samples: dict[str, np.ndarray], seen: Seen
) -> pd.DataFrame:
    table = folder.rows(condition).loc[:, list(SAMPLE_COLUMNS)].reset_index(drop=True)
    for name, values in samples.items():
        table[name] = values.reshape(-1)
    if seen.logits is not None:
        table["judge_class"] = seen.logits.argmax(axis=1)
    return table


def _image_table(folder: Reconstructions, per_image: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    parts = []
    for condition, scores in per_image.items():
        keys = {
            "condition": condition,
            "stimulus_id": folder.stimulus_ids,
            "num_samples": folder.num_samples(condition),
        }
        parts.append(pd.DataFrame({**keys, **scores}))
    return pd.concat(parts)


def _averaging(folder: Reconstructions) -> str:
    """How many repeats went into a reconstruction, as far as the folder says."""
    settings = folder.about.get("config") or {}
    if "average_repeats" not in settings:
        return "repeats-unstated"
    return "repeats-averaged" if settings["average_repeats"] else "single-trial"


def _num_test(dataset: Path) -> int | None:
    """Distinct stimuli of the test split, so that a partial evaluation cannot pass for a whole one."""
    path = dataset / "trials.tsv"
    if not path.is_file():
        return None
    trials = pd.read_csv(path, sep="\t", dtype={"stimulus_id": str}, keep_default_na=False)
    return int(trials.loc[trials["split"] == "test", "stimulus_id"].nunique())


def _relative(folder: Path, out: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()


def _write_table(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, sep="\t", index=False, float_format="%.6g", na_rep="n/a", lineterminator="\n")

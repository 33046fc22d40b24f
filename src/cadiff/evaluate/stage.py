"""`cadiff evaluate`: a folder of reconstructions and its dataset in, evaluation.json and score tables out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
from cadiff.evaluate import evidence, semantic
from cadiff.evaluate.categories import coarse_category
from cadiff.evaluate.controls import PictureControls, mean_picture, same_category, score_picture
from cadiff.evaluate.judging import Judge
from cadiff.evaluate.ledger import Selection, record_look
from cadiff.evaluate.pictures import (
    SAMPLE_COLUMNS,
    Reconstructions,
    open_stimuli,
    stimulus_images,
)
from cadiff.evaluate.scores import Metric, PairScores, Protocol, Seen, metric_table
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
from cadiff.evaluate.systems import System, open_systems

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
    size: int | None = Field(None, ge=2)
    """Resize reconstructions and stimuli to this many pixels square before scoring; null: the reconstructions' size."""
    subset: bool = False
    """Allow folders that show only some of the tested stimuli; the protocol says how many."""
    classes: tuple[int, ...] | None = None
    """Restrict truth and distractors to these ImageNet indices; null: all 1,000."""
    monte_carlo_trials: int = Field(0, ge=0)
    """Also run Algorithm 1's random trials this many times an image and report them beside the exact value;
    0: no."""
    num_bootstrap: int = Field(10_000, ge=100)
    """Resamples of the images for an interval, and sign flips for a permutation test."""
    selected_on: Selection | None = None
    """What the system was chosen by: nothing, validation or test; goes into the stamp beside the ledger's count."""
    headline: str | None = None
    """Metric that the report leads with; null: n-way top-k with a judge, PCC without."""
    batch_size: int | None = Field(None, ge=1)
    """Pictures that the judge sees at once; null: 64 on a GPU, 8 on a CPU."""
    train_pictures: int = Field(200, ge=0)
    """Training pictures, drawn by seed, that the picture controls are made of (mean image, best constant, ...); 0: none."""
    seed: int = 0
    """Seed of bootstrap, permutations, Monte-Carlo and the choice of training pictures."""


def evaluate(
    config: EvaluateConfig,
    reconstructions: Path,
    dataset: Path,
    out: Path,
    *,
    against: Mapping[str, Path] | None = None,
    pattern: str | None = None,
    table: Path | None = None,
    progress: bool = True,
) -> Path:
    """Scores every condition of a folder of reconstructions against the stimuli that were seen.

    Writes into the new folder `out`:
        evaluation.json    means, intervals, chance, comparisons with the controls, protocol, judge, provenance; `inputs`
                           holds the paths of the folders relative to `out`, for the report's pictures
        per_image.tsv      one row a condition and stimulus: every metric, mean over samples
        per_sample.tsv     one row a picture: every metric, and the judge's first class

    The headline of a metric is the mean over samples, then over images, with an interval over images. The best of the k
    samples of every image stands apart as `best_of`; it rises with k for any decoder and compares with nothing else.

    Args:
        config: what is measured, and how.
        reconstructions: a folder of `cadiff reconstruct` or `cadiff baseline`, or anyone's folder of pictures
            (`cadiff.evaluate.folders` says how they are told apart).
        dataset: a dataset folder, or a folder of pictures named after their stimuli.
        out: the folder to make; it must not exist.
        against: further systems by name, compared with the first over the same images; their brain condition counts.
        pattern, table: how the files of plain folders are named.

    Raises:
        ArtifactError: wrong folders, or `out` exists. DataError: pictures missing or unreadable, unequal samples, or
            systems that show other stimuli. ConfigError: an unknown judge or headline, a name that is taken, or an n-way
            that the judge's classes do not allow.
    """
    reconstructions, dataset, out = Path(reconstructions), Path(dataset), Path(out)
    refuse_existing(out)
    metrics = metric_table(config.n_way, config.top_k, config.judge)
    headline = config.headline or next(iter(metrics) if config.judge else iter(["pcc"]))
    if headline not in metrics:
        raise ConfigError(f"evaluate.headline is {headline!r}; there are {', '.join(metrics)}.")
    stimuli = open_stimuli(dataset)
    opened = {"": reconstructions, **{name: Path(folder) for name, folder in (against or {}).items()}}
    systems = open_systems(opened, stimuli, pattern=pattern, table=table, subset=config.subset)
    folder = systems[0].folder
    ids = folder.stimulus_ids
    if len(ids) < 2:
        raise DataError(
            f"{reconstructions} holds one stimulus; intervals and identification need at least two."
        )

    first = systems[0].images(config.size)
    size = (int(first.shape[2]), int(first.shape[3]))
    look = Judge(config.judge, config.classes, batch_size=config.batch_size, progress=progress)
    targets = look(stimulus_images(stimuli, ids, size))
    draws = Draws(config.num_bootstrap, config.seed)
    protocol = Protocol(config.n_way, config.top_k, np.array(config.classes) if config.classes else None)
    description = _description(dataset)
    prefix = f"{description.get('name', dataset.name)}/{description.get('subject', 'subject')}"

    conditions: dict[str, Any] = {}
    per_image: dict[str, dict[str, np.ndarray]] = {}
    tables: list[pd.DataFrame] = []
    primary_seen: Seen | None = None
    seeds: dict[str, Any] = {}
    for system in systems:
        condition = system.condition
        images = system.images(config.size)
        if images.shape[2:4] != size:
            raise DataError(
                f"{system.folder.folder}: {condition} is {images.shape[2:4]} pixels, {systems[0].condition} {size}; to "
                "resize all of them alike, give the side in pixels: --set size=..."
            )
        n, k = images.shape[:2]
        own = np.repeat(np.arange(n), k)
        seen = look(images.reshape(n * k, *images.shape[2:]))
        pairs = PairScores(seen, targets, protocol)
        if condition == BRAIN or primary_seen is None:
            primary_seen = seen
        samples = {
            name: values.reshape(n, k) for name, values in pairs.against(own).items()
        }  # (images, samples)
        per_image[condition] = {name: values.mean(axis=1) for name, values in samples.items()}
        tail = f"{_averaging(system.folder)}/mean-of-{k}/{n}-images/{size[1]}px"
        conditions[condition] = _condition(
            condition, samples, pairs.mispaired(own), metrics, f"{prefix}/{{}}/{tail}", draws
        )
        if config.monte_carlo_trials and seen.logits is not None and targets.logits is not None:
            conditions[condition]["monte_carlo"] = _monte_carlo(
                seen.logits, targets.logits, own, protocol, config
            )
        conditions[condition]["categories"] = evidence.categories(
            seen, targets, per_image[condition][headline], draws
        )
        conditions[condition]["diversity"] = evidence.spread(seen, k)
        if system is systems[0] or condition == BRAIN:
            seeds = evidence.variance(samples)
        tables.append(_sample_table(system, samples, seen))

    for name, scores, mispaired in _picture_controls(
        config, stimuli, size, look, targets, protocol, headline, primary_seen
    ):
        per_image[name] = scores
        tail = f"{len(ids)}-images/{size[1]}px"
        values = {key: value[:, None] for key, value in scores.items()}
        conditions[name] = _condition(name, values, mispaired, metrics, f"{prefix}/{{}}/{tail}", draws)

    digests = {name or BRAIN: folder_digest(path) for name, path in opened.items()}
    look_at_test = record_look(
        dataset, digests, selected_on=config.selected_on, validation="resplit" in description
    )
    primary = BRAIN if BRAIN in conditions else systems[0].condition
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
        "required_images": evidence.images_needed(rows, headline),
        "variance": seeds,
        "variants": folder.about.get("variants") or {},
        "judge": look.about(targets, stimuli, ids),
        "pictures": {
            "height": size[0],
            "width": size[1],
            "resizing": "stimuli bicubic, antialiased, to this size"
            if config.size is None
            else "stimuli and reconstructions bicubic, antialiased, to this size",
        },
        "stimuli": {
            "evaluated": len(ids),
            "in_test_split": int((stimuli["split"] == "test").sum()),
            "split": (folder.about.get("config") or {}).get("split", "test"),
        },
        "integrity": look_at_test.as_json(),
        "inputs": {
            "reconstructions": _relative(reconstructions, out),
            "dataset": _relative(dataset, out),
            "reconstructions_sha256": digests[BRAIN],
            "dataset_description_sha256": _digest_of_description(dataset),
            "against": {
                name: {"folder": _relative(path, out), "sha256": digests[name]}
                for name, path in opened.items()
                if name
            },
        },
        "config": config.model_dump(mode="json"),
        "provenance": provenance(seed=config.seed),
    }
    with new_folder(out) as temporary:
        write_json(temporary / "evaluation.json", evaluation)
        samples_table = pd.concat(tables)
        _write_table(samples_table, temporary / "per_sample.tsv")
        _write_table(_image_table(systems, per_image), temporary / "per_image.tsv")
    return out


def _picture_controls(
    config: EvaluateConfig,
    stimuli: pd.DataFrame,
    size: tuple[int, int],
    look: Judge,
    targets: Seen,
    protocol: Protocol,
    headline: str,
    brain: Seen | None,
) -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, float]]]:
    """(name, scores (n,) by metric, mispaired scores) of the controls that are made of training pictures."""
    known = stimuli[(stimuli["split"] == "train") & stimuli["file"].notna()]
    count = min(config.train_pictures, len(known))
    if count < 2:
        return
    drawn = np.sort(np.random.default_rng(config.seed).permutation(len(known))[:count])
    pictures = stimulus_images(stimuli, [str(known.index[i]) for i in drawn], size)
    controls = PictureControls(look(pictures), targets, protocol)
    anyone = controls.expected()
    mispaired = {name: float(values.mean()) for name, values in anyone.items()}
    mean = score_picture(look(mean_picture(pictures)), targets, protocol)
    yield "mean_image", mean, {name: float(values.mean()) for name, values in mean.items()}
    yield "random_train", anyone, mispaired
    for name, on in (("constant_train", "train"), ("constant_test", "test")):
        scores = controls.constant(headline, on=on)
        yield name, scores, {key: float(values.mean()) for key, values in scores.items()}
    alike = same_category(controls.candidates, targets, coarse_category)
    if alike is not None:
        yield "coarse_category", controls.expected(alike), mispaired
    if brain is not None:
        n = len(targets.images)
        own = np.repeat(np.arange(n), len(brain.images) // n)
        nearest = controls.nearest(brain, own)
        yield "nearest_train", {key: v.reshape(n, -1).mean(axis=1) for key, v in nearest.items()}, mispaired


def _condition(
    name: str,
    samples: Mapping[str, np.ndarray],
    mispaired: Mapping[str, float],
    metrics: Mapping[str, Metric],
    protocol: str,
    draws: Draws,
) -> dict[str, Any]:
    """One condition of evaluation.json; `samples` are (images, samples) by metric, {} in `protocol` is the metric's part."""
    n, k = next(iter(samples.values())).shape
    return {
        "label": label(name),
        "role": role(name),
        "num_images": n,
        "num_samples": k,
        "metrics": {
            key: summary(metric, samples[key], mispaired[key], protocol.format(metric.protocol), draws)
            for key, metric in metrics.items()
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


def _sample_table(system: System, samples: dict[str, np.ndarray], seen: Seen) -> pd.DataFrame:
    table = system.folder.rows(system.inside).loc[:, list(SAMPLE_COLUMNS)].reset_index(drop=True)
    table["condition"] = system.condition
    table["origin"] = system.origin
    for name, values in samples.items():
        table[name] = values.reshape(-1)
    if seen.logits is not None:
        table["judge_class"] = seen.logits.argmax(axis=1)
    return table


def _image_table(systems: Sequence[System], per_image: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    parts = []
    for system in systems:
        keys = {
            "condition": system.condition,
            "stimulus_id": system.folder.stimulus_ids,
            "num_samples": system.folder.num_samples(system.inside),
        }
        parts.append(pd.DataFrame({**keys, **per_image[system.condition]}))
    return pd.concat(parts)


def _averaging(folder: Reconstructions) -> str:
    """How many repeats went into a reconstruction, as far as the folder says."""
    settings = folder.about.get("config") or {}
    if "average_repeats" not in settings:
        return "repeats-unstated"
    return "repeats-averaged" if settings["average_repeats"] else "single-trial"


def _description(dataset: Path) -> dict[str, Any]:
    path = dataset / "dataset_description.json"
    return read_json(path) if path.is_file() else {"name": dataset.resolve().name}


def _digest_of_description(dataset: Path) -> str:
    path = dataset / "dataset_description.json"
    return sha256_file(path) if path.is_file() else folder_digest(dataset)


def _relative(folder: Path, out: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()


def _write_table(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, sep="\t", index=False, float_format="%.6g", na_rep="n/a", lineterminator="\n")

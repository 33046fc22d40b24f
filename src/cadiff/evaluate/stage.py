"""`cadiff evaluate`: a folder of reconstructions and its dataset in, evaluation.json and score tables out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cadiff.artifacts import (
    folder_digest,
    new_folder,
    provenance,
    refuse_existing,
    write_json,
)
from cadiff.errors import ConfigError, DataError
from cadiff.evaluate import evidence, semantic
from cadiff.evaluate.categories import coarse_category
from cadiff.evaluate.controls import PictureControls, mean_picture, same_category, score_picture
from cadiff.evaluate.features import pool_sizes
from cadiff.evaluate.judging import Judge, eye_metrics
from cadiff.evaluate.ledger import record_look
from cadiff.evaluate.output import (
    averaging,
    description_digest,
    image_table,
    read_description,
    relative,
    sample_table,
    write_table,
)
from cadiff.evaluate.pictures import (
    open_stimuli,
    stimulus_images,
)
from cadiff.evaluate.scores import Metric, PairScores, Protocol, Seen, metric_table
from cadiff.evaluate.settings import EvaluateConfig
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
from cadiff.evaluate.systems import open_systems
from cadiff.eyes.names import judge_name

FORMAT = 1


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
    stimuli = open_stimuli(dataset)
    opened = {"": reconstructions, **{name: Path(folder) for name, folder in (against or {}).items()}}
    systems = open_systems(opened, stimuli, pattern=pattern, table=table, subset=config.subset)
    folder = systems[0].folder
    ids = folder.stimulus_ids
    if len(ids) < 2:
        raise DataError(
            f"{reconstructions} holds one stimulus; intervals and identification need at least two."
        )

    pools = pool_sizes(len(ids), config.retrieval_pools)
    metrics = metric_table(
        config.n_way,
        config.top_k,
        judge_name(config.judge) if config.judge else None,
        pools=pools,
        eyes={name: metric for name, (_, _, metric) in eye_metrics(config.eyes).items()},
    )
    headline = config.headline or next(iter(metrics) if config.judge else iter(["pcc"]))
    if headline not in metrics:
        raise ConfigError(f"evaluate.headline is {headline!r}; there are {', '.join(metrics)}.")

    first = systems[0].images(config.size)
    size = (int(first.shape[2]), int(first.shape[3]))
    look = Judge(
        config.judge, config.classes, eyes=config.eyes, batch_size=config.batch_size, progress=progress
    )
    targets = look(stimulus_images(stimuli, ids, size))
    draws = Draws(config.num_bootstrap, config.seed)
    classes = np.array(config.classes) if config.classes else None
    protocol = Protocol(config.n_way, config.top_k, classes, pools if config.judge else ())
    description = read_description(dataset)
    prefix = f"{description.get('name', dataset.name)}/{description.get('subject', 'subject')}"

    conditions: dict[str, Any] = {}
    per_image: dict[str, dict[str, np.ndarray]] = {}
    tables: list[pd.DataFrame] = []
    primary_seen: Seen | None = None
    seeds: dict[str, Any] = {}
    variants: dict[str, Any] = folder.about.get("variants") or {}
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
        tail = f"{averaging(system.folder)}/mean-of-{k}/{n}-images/{size[1]}px"
        conditions[condition] = _condition(
            condition,
            samples,
            pairs.mispaired(own),
            metrics,
            f"{prefix}/{{}}/{tail}",
            draws,
            variants.get(condition) if not system.origin else None,
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
        tables.append(sample_table(system, samples, seen))

    for name, scores, mispaired in _picture_controls(
        config,
        stimuli,
        size,
        look,
        targets,
        protocol,
        headline,
        not metrics[headline].higher_is_better,
        primary_seen,
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
    roles = {name: str(condition["role"]) for name, condition in conditions.items()}
    rows = comparisons(per_image, metrics, primary, draws, roles)
    evaluation = {
        "kind": "evaluation",
        "format": FORMAT,
        "dataset": {"name": description.get("name"), "subject": description.get("subject")},
        "headline": {"metric": headline, "condition": primary},
        "metrics": {name: describe(metric) for name, metric in metrics.items()},
        "conditions": conditions,
        "comparisons": rows,
        "from_the_brain": from_the_brain(rows, roles),
        "required_images": evidence.images_needed(rows, headline),
        "variance": seeds,
        "variants": variants,
        "judge": look.about(targets, stimuli, ids),
        "eyes": look.about_eyes(),
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
            "reconstructions": relative(reconstructions, out),
            "dataset": relative(dataset, out),
            "reconstructions_sha256": digests[BRAIN],
            "dataset_description_sha256": description_digest(dataset),
            "against": {
                name: {"folder": relative(path, out), "sha256": digests[name]}
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
        write_table(samples_table, temporary / "per_sample.tsv")
        write_table(image_table(systems, per_image), temporary / "per_image.tsv")
    return out


def _picture_controls(
    config: EvaluateConfig,
    stimuli: pd.DataFrame,
    size: tuple[int, int],
    look: Judge,
    targets: Seen,
    protocol: Protocol,
    headline: str,
    lowest: bool,
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
        scores = controls.constant(headline, on=on, lowest=lowest)
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
    variant: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One condition of evaluation.json; `samples` are (images, samples) by metric, {} in `protocol` is the metric's part."""
    n, k = next(iter(samples.values())).shape
    return {
        "label": label(name, variant),
        "role": role(name, variant),
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

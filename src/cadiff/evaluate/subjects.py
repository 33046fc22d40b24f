"""Several subjects under one protocol: evaluations in, pooled scores and comparisons out, as JSON values.

Subjects weigh the same, and both they and their images are drawn anew for an interval (`cadiff.evaluate.hierarchy`), so it is
about other people and other images. p values are of sign flips image by image: about these people. With few subjects the
two say different things, and how much people differ is hardly known (`spread_factors`).

Evaluations of one subject whose stimuli do not overlap, such as the folds of a cross-validation, count as one subject.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.evidence import plain
from cadiff.evaluate.hierarchy import (
    HierarchicalInterval,
    ScoreTable,
    hierarchical_bootstrap,
    hierarchical_comparison,
    spread_factors,
)
from cadiff.evaluate.several import (
    Pictures,
    Scored,
    find_pictures,
    refuse_other_protocol,
    refuse_twice,
    stimulus_ids,
    subject_names,
)
from cadiff.evaluate.summary import corrected, from_the_brain
from cadiff.evaluate.variance import variance_components

KIND, FORMAT = "pooled-evaluation", 1


def pool_subjects(parts: Sequence[Scored], *, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Scores pooled over subjects, with intervals over subjects and images, as JSON values.

    Conditions and metrics that every part has are pooled; the rest is named under "left_out". `names` are those of the
    subjects, one a part; by default as the datasets have them.

    Returns a dict of
        subjects       one entry an evaluation: name (the same in folds of one subject), dataset, num_images, num_samples
        metrics        as in evaluation.json
        conditions     name -> label, role, metrics: {metric: mean, ci95 (bootstrap), ci95_t (the one to read for few
                       subjects), subject_means, protocol}
        comparisons    of the headline's condition with every other one: as in evaluation.json, `difference` and `gain` with
                       ci95 and ci95_t, p for these subjects, p_holm, and subject_differences
        from_the_brain the comparison with the strongest control, by metric
        spread         deviation of the subjects' means in the headline, and how little is known of it
        variance       components of the headline, None where subjects have unequal numbers of images or share some only
        shared_images (whether all saw the same), num_shared (images that several saw), num_images, headline, left_out,
        remarks, config

    Raises:
        ConfigError: protocols differ. DataError: two evaluations of the same subject and the same stimuli.
    """
    first = parts[0]
    for other in parts[1:]:
        refuse_other_protocol(first, other)
    names = subject_names(parts) if names is None else list(names)
    if len(names) != len(parts):
        raise ConfigError(f"{len(parts)} evaluations take as many names; {len(names)} were given.")
    refuse_twice(parts, names)
    pictures = find_pictures(parts, names)
    metric, primary = first.scores["headline"]["metric"], first.scores["headline"]["condition"]
    config = {key: first.scores["config"].get(key, 0) for key in ("num_bootstrap", "seed")}
    draws = {"num_draws": config["num_bootstrap"], "seed": config["seed"]}
    tables: dict[tuple[str, str], ScoreTable] = {}
    for condition in first.scores["conditions"]:
        for name in first.scores["metrics"]:
            found = _table(parts, names, pictures.names, condition, name)
            if found is not None:
                tables[condition, name] = found
    kept = list(dict.fromkeys(condition for condition, _ in tables))
    metrics = {name: about for name, about in first.scores["metrics"].items() if (primary, name) in tables}
    if metric not in metrics:
        raise DataError(f"{first.folder} leads with {metric}, which not every image of every subject has.")
    conditions = {
        condition: {
            "label": first.scores["conditions"][condition]["label"],
            "role": first.scores["conditions"][condition]["role"],
            "metrics": {
                name: _summary(
                    hierarchical_bootstrap(tables[condition, name], **draws), parts, condition, name, names
                )
                for name in metrics
                if (condition, name) in tables
            },
        }
        for condition in kept
    }
    roles = {name: str(condition["role"]) for name, condition in conditions.items()}
    rows = _comparisons(tables, metrics, primary, kept, roles, draws)
    spread = conditions[primary]["metrics"][metric]["subject_means"]
    every = {c for part in parts for c in part.scores["conditions"]}
    return {
        "kind": KIND,
        "format": FORMAT,
        "subjects": [_about(part, name) for part, name in zip(parts, names, strict=True)],
        "num_subjects": len(set(names)),
        "num_images": len(np.unique(tables[primary, metric].images)),
        "shared_images": pictures.shared,
        "num_shared": pictures.num if pictures.shared else pictures.num_partly,
        "headline": {"metric": metric, "condition": primary},
        "metrics": metrics,
        "conditions": conditions,
        "comparisons": rows,
        "from_the_brain": from_the_brain(rows, roles),
        "spread": _spread(list(spread.values())),
        "variance": _variance(parts, names, pictures, primary, metric),
        "left_out": sorted(every - set(kept)),
        "remarks": _remarks(parts, pictures),
        "config": config,
    }


def _table(
    parts: Sequence[Scored],
    names: Sequence[str],
    pictures: Sequence[Mapping[str, str]],
    condition: str,
    metric: str,
) -> ScoreTable | None:
    """Scores (mean over samples) of every image of every subject; None where some are missing."""
    values, subjects, images = [], [], []
    for part, name, known in zip(parts, names, pictures, strict=True):
        rows = part.images[part.images["condition"] == condition].set_index("stimulus_id")
        if metric not in rows or set(rows.index) != set(known) or rows[metric].isna().any():
            return None
        values += rows[metric].astype(float).tolist()
        subjects += [name] * len(rows)
        images += [known[str(stimulus_id)] for stimulus_id in rows.index]
    return ScoreTable(np.array(values), np.array(subjects), np.array(images))


def _summary(
    found: HierarchicalInterval, parts: Sequence[Scored], condition: str, metric: str, names: Sequence[str]
) -> dict[str, Any]:
    scores = [part.scores["conditions"][condition]["metrics"][metric] for part in parts]
    own = parts[0].scores["metrics"][metric]["protocol"]
    tail = scores[0]["protocol"].partition(own)[2]
    drawn = sorted({part.scores["conditions"][condition]["num_samples"] for part in parts})
    tail = re.sub(r"/mean-of-\d+/", f"/mean-of-{'-or-'.join(map(str, drawn))}/", tail)
    tail = re.sub(r"/\d+-images/", f"/{found.num_images}-images/", tail)
    sources = "+".join(dict.fromkeys(str(part.scores["dataset"].get("name")) for part in parts))
    return {
        "mean": found.mean,
        "ci95": [found.low, found.high],
        "ci95_t": [found.low_t, found.high_t],
        "subject_means": {name: found.subject_means[name] for name in dict.fromkeys(names)},
        "protocol": f"{sources}/{len(set(names))}-subjects-weighed-alike/{own}{tail}",
        **{key: scores[0][key] for key in ("direction", "chance_kind")},
        "chance": float(np.mean([score["chance"] for score in scores])),
    }


def _comparisons(
    tables: Mapping[tuple[str, str], ScoreTable],
    metrics: Mapping[str, Any],
    primary: str,
    conditions: Sequence[str],
    roles: Mapping[str, str],
    draws: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """As `cadiff.evaluate.summary.comparisons`, subjects a factor; Holm's correction over the same families."""
    rows = []
    for name, about in metrics.items():
        for other in conditions:
            if other == primary or (other, name) not in tables:
                continue
            found = hierarchical_comparison(tables[primary, name], tables[other, name], **draws)
            interval = found.interval
            rows.append(
                {
                    "metric": name,
                    "condition": primary,
                    "control": other,
                    "difference": interval.mean,
                    "ci95": [interval.low, interval.high],
                    "ci95_t": [interval.low_t, interval.high_t],
                    "gain": interval.mean if about["direction"] == "higher" else -interval.mean,
                    "p": found.p,
                    "exact": found.exact,
                    "subject_differences": interval.subject_means,
                }
            )
    return corrected(rows, roles)


def _spread(means: Sequence[float]) -> dict[str, Any] | None:
    """Deviation of the subjects' means and its 95 % interval; None for one subject. It holds what images add by chance."""
    if len(means) < 2:
        return None
    sd, (low, high) = float(np.std(means, ddof=1)), spread_factors(len(means))
    return {"sd": sd, "ci95": [low * sd, high * sd], "factors": [low, high]}


def _variance(
    parts: Sequence[Scored],
    names: Sequence[str],
    pictures: Pictures,
    condition: str,
    metric: str,
) -> dict[str, Any] | None:
    """Components over subjects, images and samples; None where the table is not complete."""
    samples = [part.samples[part.samples["condition"] == condition] for part in parts]
    if len(set(names)) < len(parts) or any(len(rows) == 0 or metric not in rows for rows in samples):
        return None
    if pictures.num_partly:  # neither crossed nor nested
        return None
    number = pd.concat([rows.groupby("stimulus_id").cumcount() for rows in samples]).to_numpy()
    subjects = np.repeat(names, [len(rows) for rows in samples])
    images = [
        known[str(s)]
        for rows, known in zip(samples, pictures.names, strict=True)
        for s in rows["stimulus_id"]
    ]
    values = pd.concat([rows[metric].astype(float) for rows in samples]).to_numpy()
    try:
        found = variance_components(
            ScoreTable(values, subjects, np.array(images), number), shared_images=pictures.shared
        )
    except DataError:  # unequal numbers of images or samples
        return None
    return plain(asdict(found))


def _about(part: Scored, name: str) -> dict[str, Any]:
    scores, primary = part.scores, part.scores["headline"]["condition"]
    integrity = scores.get("integrity") or {}
    return {
        "name": name,
        "dataset": scores["dataset"].get("name"),
        "evaluation": part.folder.as_posix(),
        "num_images": len(stimulus_ids(part)),
        "num_samples": scores["conditions"][primary]["num_samples"],
        "reconstructions_sha256": scores["inputs"]["reconstructions_sha256"],
        "selected_on": integrity.get("selected_on"),
        "stamp": integrity.get("stamp"),
    }


def _remarks(parts: Sequence[Scored], pictures: Pictures) -> list[str]:
    """What a reader should know before quoting, in sentences."""
    found, primary = [], parts[0].scores["headline"]["condition"]
    if pictures.num_partly:
        found.append(
            f"{pictures.num_partly} of {pictures.num} images were seen by several subjects, who did not all see the same ones: "
            "such an image is drawn anew, and changes sign, for everybody who saw it at once."
        )
    if any(part.scores["dataset"].get("subject") is None for part in parts):
        found.append(
            "Not every evaluation says whose brain it was; a dataset without a subject counts as one person."
        )
    if len({part.scores["dataset"].get("name") for part in parts}) > 1:
        found.append(
            "The subjects come from several datasets, so their differences are also those of scanners and stimuli."
        )
    if len({part.scores["conditions"][primary]["num_samples"] for part in parts}) > 1:
        found.append(
            "Subjects have unequal numbers of samples an image: means over more samples are steadier."
        )
    there = [part.scores["stimuli"].get("training_pictures") for part in parts]
    asked = [part.scores["config"].get("train_pictures") for part in parts]
    if (
        len(set(asked if None in there else there)) > 1
    ):  # records before 2026-11-23 say only what was asked for
        found.append("Controls made of training pictures are made of unequal numbers of them.")
    if any((part.scores.get("integrity") or {}).get("selected_on") == "test" for part in parts):
        found.append("At least one system was selected on its test set, which flatters it.")
    said = {warning for part in parts for warning in (part.scores.get("warnings") or {}).items()}
    return found + [f"{name}: {text.rstrip('.')}." for name, text in sorted(said)]

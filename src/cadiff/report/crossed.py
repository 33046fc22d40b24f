"""Several systems x several subjects x several seeds: evaluations in, pooled scores and paired differences out, as JSON values.

Seeds of one system and subject are averaged picture by picture: they are not people. Subjects weigh the same; intervals are
for other subjects and other images (`cadiff.evaluate.hierarchy`), for other images alone where there is one subject. p values
flip signs image by image, in all who saw it at once, Holm-corrected over the pairs of a metric. Two systems are compared on the
subjects and images that both have. What other seeds would give is shown beside it, seed by seed, and is in no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from cadiff.errors import ConfigError
from cadiff.evaluate.hierarchy import ScoreTable, hierarchical_bootstrap, hierarchical_comparison
from cadiff.evaluate.several import find_pictures, refuse_other_protocol
from cadiff.evaluate.statistics import holm
from cadiff.report.crossed_order import mean_of, published_order
from cadiff.report.inputs import Evaluated

KIND, FORMAT = "sweep-results", 1
TOLD = ("ceiling", "oracle")
"""Roles of conditions that are told something about the stimulus."""
SUBJECTS, IMAGES, SEEDS = range(3)


@dataclass(frozen=True)
class Measured:
    """One evaluation of a table: a system on a subject, trained with a seed."""

    subject: str
    seed: int
    evaluated: Evaluated


@dataclass
class System:
    """One row of a table."""

    name: str
    measured: list[Measured] = field(default_factory=list)
    line: str = ""
    """Systems of one line make one curve."""
    x: float | None = None
    """Its place on the curve."""
    published: Mapping[str, float] = field(default_factory=dict)
    """By subject; under "" for all of them together."""
    failures: list[str] = field(default_factory=list)
    """Why runs of it are missing, in sentences."""


Rows = tuple[list[float], list[str], list[str]]


class Scores:
    """Every system's scores, picture by picture."""

    def __init__(self, systems: Sequence[System]) -> None:
        flat = [(system, one) for system in systems for one in system.measured]
        found = find_pictures([one.evaluated for _, one in flat], [one.subject for _, one in flat])
        self._pictures = {id(one): names for (_, one), names in zip(flat, found.names, strict=True)}

    def rows(self, one: Measured, condition: str, metric: str) -> Rows | None:
        """Scores, subjects and pictures of one evaluation; None where it lacks some."""
        values = one.evaluated.values(condition, metric)
        names = self._pictures[id(one)]
        if values is None or set(values.index) != set(names):
            return None
        return values.tolist(), [one.subject] * len(values), [names[str(s)] for s in values.index]

    def table(self, measured: Sequence[Measured], condition: str | None, metric: str) -> ScoreTable | None:
        """Of several evaluations; condition None is what each is about. None where one of them lacks some."""
        columns: Rows = ([], [], [])
        for one in measured:
            rows = self.rows(one, condition or one.evaluated.primary, metric)
            if rows is None:
                return None
            for column, more in zip(columns, rows, strict=True):
                column.extend(more)  # pyright: ignore[reportArgumentType]
        return (
            ScoreTable(np.array(columns[0]), np.array(columns[1]), np.array(columns[2]))
            if columns[0]
            else None
        )


def cross(systems: Sequence[System], *, reference: str | None = None) -> dict[str, Any]:
    """Pools every system over its subjects and seeds, and compares the systems pair by pair.

    Evaluations that were made by other rules than the first one are left out; their system's `failures` say why.

    Args:
        systems: rows of the table, in its order; those without any evaluation are listed with their failures.
        reference: the system that all others are compared with; None: every pair.

    Returns a dict of
        systems       name, num_cells, subjects, seeds, x, line, published, failures, warnings, metrics {metric: mean, ci95,
                      ci95_t, subject_means, seed_means, sd_over_seeds, num_images, protocol, ...}, from_the_brain (of the
                      headline)
        comparisons   first, second (the reference, where there is one), metric, difference (first minus second), gain
                      (positive favours the first), ci95, ci95_t, p, p_holm, subject_differences, seed_differences, num_images
        not_compared  pairs that share no image
        order         of the published numbers, see `published_order`; None with fewer than three
        headline, metrics, reference, config

    Raises:
        ConfigError: no evaluation at all.
    """
    _drop_others(systems)
    parts = [one.evaluated for system in systems for one in system.measured]
    if not parts:
        raise ConfigError("No run of this table has come to an evaluation, so there is nothing to compare.")
    first, scores = parts[0], Scores(systems)
    metrics = {name: about for part in reversed(parts) for name, about in part.scores["metrics"].items()}
    metrics = {
        name: metrics[name]
        for name in (*first.scores["metrics"], *(m for m in metrics if m not in first.scores["metrics"]))
    }
    draws = {
        "num_draws": first.scores["config"]["num_bootstrap"],
        "seed": first.scores["config"].get("seed", 0),
    }
    present = [system for system in systems if system.measured]
    described = [_described(system, scores, metrics, draws) for system in systems]
    brains = _from_the_brain(present, scores, first.metric, metrics[first.metric], draws)
    compared, apart = _compared(present, scores, metrics, reference, draws)
    return {
        "kind": KIND,
        "format": FORMAT,
        "headline": {"metric": first.metric},
        "reference": reference,
        "metrics": metrics,
        "systems": [{**about, "from_the_brain": brains.get(about["name"])} for about in described],
        "comparisons": compared,
        "not_compared": apart,
        "order": published_order(
            present, scores, first.metric, higher=_sign(metrics[first.metric]) > 0, **draws
        ),
        "config": {"num_bootstrap": draws["num_draws"], "seed": draws["seed"]},
    }


def _drop_others(systems: Sequence[System]) -> None:
    first = next((one.evaluated for system in systems for one in system.measured), None)
    for system in systems if first else ():
        for one in list(system.measured):
            try:
                refuse_other_protocol(first, one.evaluated)  # pyright: ignore[reportArgumentType]
            except ConfigError as error:
                system.measured.remove(one)
                system.failures.append(f"{one.subject}, seed {one.seed}: not comparable, {error}")


def _sign(about: Mapping[str, Any]) -> int:
    return 1 if about["direction"] == "higher" else -1


def _interval(table: ScoreTable, draws: Mapping[str, Any]) -> dict[str, Any]:
    found = hierarchical_bootstrap(table, **draws)
    return {
        "mean": found.mean,
        "ci95": [found.low, found.high],
        "ci95_t": [found.low_t, found.high_t],
        "subject_means": found.subject_means,
        "num_images": found.num_images,
    }


def _by_seed(measured: Sequence[Measured]) -> dict[int, list[Measured]]:
    found: dict[int, list[Measured]] = {}
    for one in measured:
        found.setdefault(one.seed, []).append(one)
    return dict(sorted(found.items()))


def _described(
    system: System, scores: Scores, metrics: Mapping[str, Any], draws: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seeds, subjects = _by_seed(system.measured), list(dict.fromkeys(one.subject for one in system.measured))
    whole = [members for members in seeds.values() if {one.subject for one in members} == set(subjects)]
    for metric in metrics if system.measured else ():
        table = scores.table(system.measured, None, metric)
        if table is None:
            continue
        one = system.measured[0].evaluated
        score = one.scores["conditions"][one.primary]["metrics"][metric]
        means = {
            str(members[0].seed): mean_of(scores.table(members, None, metric))  # pyright: ignore[reportArgumentType]
            for members in whole
        }
        found[metric] = {
            **_interval(table, draws),
            "seed_means": means,
            "sd_over_seeds": float(np.std(list(means.values()), ddof=1)) if len(means) > 1 else None,
            "protocol": f"{score['protocol']}/{len(subjects)}-subjects-weighed-alike/mean-of-{len(seeds)}-seeds",
            "chance": score["chance"],
            "chance_kind": score["chance_kind"],
        }
    return {
        "name": system.name,
        "line": system.line or system.name,
        "x": system.x,
        "published": dict(system.published),
        "num_cells": len(system.measured),
        "subjects": subjects,
        "seeds": list(seeds),
        "failures": list(system.failures),
        "told": any(_role(one.evaluated) in TOLD for one in system.measured),
        "warnings": sorted({text for one in system.measured if (text := _warning(one.evaluated))}),
        "metrics": found,
    }


def _role(evaluated: Evaluated) -> str:
    return evaluated.scores["conditions"][evaluated.primary]["role"]


def _warning(evaluated: Evaluated) -> str | None:
    return (evaluated.scores.get("warnings") or {}).get(evaluated.primary)


def _from_the_brain(
    systems: Sequence[System], scores: Scores, metric: str, about: Mapping[str, Any], draws: Mapping[str, Any]
) -> dict[str, Any]:
    """By system: its headline minus that of its strongest control, pooled; Holm's correction over the systems."""
    found: dict[str, Any] = {}
    for system in systems:
        own = scores.table(system.measured, None, metric)
        rows = []
        for name, condition in system.measured[0].evaluated.scores["conditions"].items():
            if condition["role"] != "control" or own is None:
                continue
            if any(name not in one.evaluated.scores["conditions"] for one in system.measured):
                continue
            table = scores.table(system.measured, name, metric)
            if table is not None:
                rows.append(
                    {"control": name, "label": condition["label"], **_difference(own, table, about, draws)}
                )
        if rows:
            found[system.name] = min(rows, key=lambda row: row["gain"])
    adjusted = holm(np.array([row["p"] for row in found.values()])) if found else []
    for row, p in zip(found.values(), adjusted, strict=True):
        row["p_holm"] = float(p)
    return found


def _difference(
    first: ScoreTable, second: ScoreTable, about: Mapping[str, Any], draws: Mapping[str, Any]
) -> dict[str, Any]:
    compared = hierarchical_comparison(first, second, **draws)
    interval = compared.interval
    return {
        "difference": interval.mean,
        "gain": _sign(about) * interval.mean,
        "ci95": [interval.low, interval.high],
        "ci95_t": [interval.low_t, interval.high_t],
        "p": compared.p,
        "exact": compared.exact,
        "subject_differences": interval.subject_means,
        "num_images": interval.num_images,
    }


def _common(first: ScoreTable, second: ScoreTable) -> tuple[ScoreTable, ScoreTable] | None:
    """Both on the subjects and images that both have; None where there are fewer than two."""
    here, there = ([*zip(t.subjects, t.images, strict=True)] for t in (first, second))
    both = set(here) & set(there)
    if len(both) < 2:
        return None
    kept = []
    for table, keys in ((first, here), (second, there)):
        rows = np.array([key in both for key in keys])
        kept.append(ScoreTable(table.values[rows], table.subjects[rows], table.images[rows]))
    return kept[0], kept[1]


def _compared(
    systems: Sequence[System],
    scores: Scores,
    metrics: Mapping[str, Any],
    reference: str | None,
    draws: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Every pair, or every system against the reference, by metric; and the pairs that cannot be."""
    base = next((system for system in systems if system.name == reference), None)
    pairs = [(o, base) for o in systems if o is not base] if base else list(combinations(systems, 2))
    rows: list[dict[str, Any]] = []
    apart: list[tuple[str, str]] = []
    for metric, about in metrics.items():
        family = []
        for one, other in pairs:
            tables = [scores.table(system.measured, None, metric) for system in (one, other)]
            both = _common(tables[0], tables[1]) if tables[0] and tables[1] else None
            if both is None:
                apart += [(one.name, other.name)] if tables[0] and tables[1] else []
                continue
            seeds = _seed_differences(one, other, scores, metric)
            found = {
                "first": one.name,
                "second": other.name,
                "metric": metric,
                **_difference(*both, about, draws),
            }
            family.append({**found, "seed_differences": seeds})
        adjusted = holm(np.array([row["p"] for row in family])) if family else []
        rows += [{**row, "p_holm": float(p)} for row, p in zip(family, adjusted, strict=True)]
    return rows, list(dict.fromkeys(apart))


def _seed_differences(one: System, other: System, scores: Scores, metric: str) -> dict[str, float]:
    """First minus second with the same seed in both, on the images that both have."""
    here, there = _by_seed(one.measured), _by_seed(other.measured)
    found = {}
    for seed in here:
        tables = [scores.table(members.get(seed, []), None, metric) for members in (here, there)]
        both = _common(tables[0], tables[1]) if tables[0] and tables[1] else None
        if both is not None:
            found[str(seed)] = mean_of(both[0]) - mean_of(both[1])
    return found

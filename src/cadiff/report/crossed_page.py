"""The page of a sweep: which row is ahead, by how much, in which subjects and seeds; pictures of all rows side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.artifacts import refuse_existing
from cadiff.evaluate.hierarchy import FEW_SUBJECTS
from cadiff.report import facts
from cadiff.report.charts import Points, line_chart
from cadiff.report.crossed import Measured, System
from cadiff.report.figures import Scale, axis, picture_uri, score_ticks, tick_texts
from cadiff.report.pooled_charts import spread_row
from cadiff.report.render import write_page

KINDS = 6
"""Colours of systems."""
NUM_STIMULI = 16
"""Stimuli of the gallery over all subjects, each subject's drawn by seed."""


def write_crossed(
    crossed: Mapping[str, Any],
    systems: Sequence[System],
    page: Path,
    *,
    title: str,
    source: str | None = None,
    x_label: str | None = None,
    remarks: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Writes the page about what `cross` found of these systems.

    Args:
        title, source: of the table; source is where published numbers are from.
        x_label: of the learning curve, which is drawn where systems have an x.
        remarks: what is to be said before the numbers.
        seed: of the stimuli in the gallery.

    Raises:
        ArtifactError: the page exists, or pictures are gone since they were scored.
    """
    refuse_existing(page)
    first = next(one.evaluated for system in systems for one in system.measured)
    metric = crossed["headline"]["metric"]
    about = crossed["metrics"][metric]
    rows = [{**found, "kind": f"s{i % KINDS}"} for i, found in enumerate(crossed["systems"])]
    there = [row for row in rows if metric in row["metrics"]]
    subjects = list(dict.fromkeys(name for row in there for name in row["subjects"]))
    context = {
        "title": title or "A table of runs",
        "source": source,
        "crossed": crossed,
        "scores": first.scores,
        "created": "",
        "about": about,
        "percent": about["percent"],
        "subjects": subjects,
        "seeds": sorted({seed for row in there for seed in row["seeds"]}),
        "num_cells": sum(row["num_cells"] for row in rows),
        "rows": rows,
        "verdict": _verdict(crossed, there),
        "remarks": [*remarks, *_remarks(crossed, there, subjects)],
        "strip": _strip(there, metric, about),
        "best": _best(crossed, there),
        "pairs": [
            _pairs(crossed, name) for name in sorted(crossed["metrics"], key=lambda name: name != metric)
        ],
        "order": crossed["order"],
        "curve": _curve(there, metric, about, x_label),
        "gallery": _gallery(systems, metric, subjects, seed),
        "protocols": [row["metrics"][metric]["protocol"] for row in there],
        "statistics": _statistics(crossed, subjects),
        "smooth": first.scores["pictures"]["width"] >= 48,
        "seed": seed,
    }
    return write_page("crossed.html.j2", context, page)


def is_shown(row: Mapping[str, Any]) -> bool:
    """Whether a difference between two systems is shown, for these subjects."""
    return row["p_holm"] < facts.ALPHA


def _verdict(crossed: Mapping[str, Any], there: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which row leads, and whether it is shown to be ahead of the reference, or of the next one.

    Rows that are told something about the stimulus do not compete, where others do.
    """
    there = [row for row in there if not row.get("told")] or there
    metric = crossed["headline"]["metric"]
    about = crossed["metrics"][metric]
    sign = 1 if about["direction"] == "higher" else -1
    order = [row["name"] for row in sorted(there, key=lambda row: -sign * row["metrics"][metric]["mean"])]
    score = facts.number(
        next(row for row in there if row["name"] == order[0])["metrics"][metric]["mean"], about["percent"]
    )
    if len(order) < 2:
        return {
            "ahead": False,
            "sentence": f"{order[0]}: {about['label']} {score}; nothing to compare it with.",
        }
    other = crossed["reference"] if crossed["reference"] in order[1:] else order[1]
    pairs = [row for row in crossed["comparisons"] if row["metric"] == metric]
    row = next((r for r in pairs if {r["first"], r["second"]} == {order[0], other}), None)
    if row is None and crossed["reference"] == order[0]:
        row = next((r for r in pairs if r["first"] == order[1]), None)
    if row is None:
        return {
            "ahead": False,
            "sentence": f"{order[0]} has the best {about['label']}, {score}; not compared with {other}.",
        }
    turned = 1 if row["first"] == order[0] else -1
    ends = sorted(turned * end for end in row["ci95_t"])
    ahead = is_shown(row) and turned * row["gain"] > 0
    claim = "is ahead of" if ahead else "has the best score, but is not shown to be ahead of"
    gain = facts.points(facts.number(turned * row["difference"], about["percent"], signed=True))
    return {
        "ahead": ahead,
        "sentence": (
            f"{order[0]} {claim} {other}: {about['label']} {score}, {gain} (95 % interval "
            f"{facts.points(facts.interval(ends, about['percent'], signed=True))}; sign flips over images, Holm-corrected "
            f"{facts.p_text(row['p_holm'])})."
        ),
    }


def _remarks(
    crossed: Mapping[str, Any], there: Sequence[Mapping[str, Any]], subjects: Sequence[str]
) -> list[str]:
    found = []
    missing = [row["name"] for row in crossed["systems"] if row["failures"]]
    if missing:
        found.append(f"Runs are missing in {', '.join(missing)}; the table of all the numbers says why.")
    found += [f"{row['name']}: {text.rstrip('.')}." for row in there for text in row["warnings"]]
    if uneven := [row["name"] for row in there if set(row["subjects"]) != set(subjects)]:
        found.append(
            f"Not every row has every subject ({', '.join(uneven)}): means over other subjects are not comparable; pairs are "
            "compared on the subjects that both have."
        )
    if max((len(row["seeds"]) for row in there), default=1) == 1:
        found.append(
            "One seed a row: what another training run would give is not known, and no interval here covers it."
        )
    if crossed["not_compared"]:
        pairs = ", ".join(f"{first} and {second}" for first, second in crossed["not_compared"])
        found.append(f"Not on the same images, and so not compared: {pairs}.")
    if 1 < len(subjects) < FEW_SUBJECTS:
        found.append(
            f"{len(subjects)} subjects: the bootstrap (bars) is too narrow where people differ; read the t interval (caps)."
        )
    return found


def _strip(there: Sequence[Mapping[str, Any]], metric: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The headline of every row, pooled; rings are subjects, or seeds where there is one subject."""
    percent = about["percent"]
    found = [row["metrics"][metric] for row in there]
    rings = [_rings(score) for score in found]
    ends = [
        v for score, ring in zip(found, rings, strict=True) for v in (*score["ci95"], *score["ci95_t"], *ring)
    ]
    ticks = score_ticks([min(max(end, 0.0), 1.0) for end in ends] if percent else ends, percent)
    scale, shown = Scale(ticks), []
    for row, score, ring in zip(there, found, rings, strict=True):
        title = f"{row['name']}: {facts.number(score['mean'], percent)}. {score['protocol']}"
        drawn = spread_row(
            scale,
            score["mean"],
            score["ci95"],
            score["ci95_t"],
            ring,
            kind=row["kind"],
            title=title,
            guide=found[0]["mean"],
        )
        shown.append({"row": row, "score": score, "svg": drawn})
    return {"rows": shown, "axis": axis(scale, tick_texts(ticks, percent), about["label"])}


def _rings(score: Mapping[str, Any]) -> list[float]:
    subjects, seeds = list(score["subject_means"].values()), list(score["seed_means"].values())
    return subjects if len(subjects) > 1 else seeds if len(seeds) > 1 else []


def _best(crossed: Mapping[str, Any], there: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for metric, about in crossed["metrics"].items():
        means = [row["metrics"][metric]["mean"] for row in there if metric in row["metrics"]]
        found[metric] = max(means) if about["direction"] == "higher" else min(means)
    return found


def _pairs(crossed: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Differences of one metric around 0."""
    about = crossed["metrics"][metric]
    rows = [row for row in crossed["comparisons"] if row["metric"] == metric]
    rings = [list(_several(row)[1].values()) for row in rows]
    ends = [v for row, ring in zip(rows, rings, strict=True) for v in (*row["ci95"], *row["ci95_t"], *ring)]
    ticks = score_ticks(ends, percent=False)
    scale, shown = Scale(ticks), []
    sign = 1 if about["direction"] == "higher" else -1
    for row, ring in zip(rows, rings, strict=True):
        kind = "control" if not is_shown(row) else "brain" if row["gain"] > 0 else "attack"
        difference = facts.number(row["difference"], about["percent"], signed=True)
        drawn = spread_row(
            scale, row["difference"], row["ci95"], row["ci95_t"], ring, kind=kind, height=38, guide=0.0,
            title=f"{row['first']} minus {row['second']}: {difference}",
        )  # fmt: skip
        told = []
        for what, values in (("subject", row["subject_differences"]), ("seed", row["seed_differences"])):
            if len(values) > 1:
                ahead = sum(sign * value > 0 for value in values.values())
                told.append(f"{ahead} of {facts.plural(len(values), what)}")
        shown.append(
            {
                "row": row,
                "svg": drawn,
                "told": f"ahead in {', '.join(told)}" if told else "",
                "shown": is_shown(row),
            }
        )
    labels = tick_texts(ticks, about["percent"])
    if about["percent"]:
        labels[-1] = labels[-1].removesuffix(" %") + " points"
    return {"about": about, "rows": shown, "axis": axis(scale, labels, "Difference")}


def _several(row: Mapping[str, Any]) -> tuple[str, Mapping[str, float]]:
    for what in ("subject", "seed"):
        if len(row[f"{what}_differences"]) > 1:
            return what, row[f"{what}_differences"]
    return "", {}


def _curve(
    there: Sequence[Mapping[str, Any]], metric: str, about: Mapping[str, Any], label: str | None
) -> dict[str, Any] | None:
    """The headline against a column of the table, a line a family of rows; None unless some line has two places."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in there:
        if row["x"] is not None and row["x"] > 0:
            lines.setdefault(row["line"], []).append(row)
    if not any(len({row["x"] for row in members}) > 1 for members in lines.values()):
        return None
    drawn, ends = [], []
    for i, (name, members) in enumerate(lines.items()):
        members = sorted(members, key=lambda row: row["x"])
        found = [row["metrics"][metric] for row in members]
        titles = [
            f"{row['name']}: {facts.number(score['mean'], about['percent'])}, 95 % interval "
            f"{facts.interval(score['ci95'], about['percent'])}. {score['protocol']}"
            for row, score in zip(members, found, strict=True)
        ]
        lows, highs = ([score["ci95"][end] for score in found] for end in (0, 1))
        drawn.append(
            Points(
                f"s{i % KINDS}",
                name,
                [row["x"] for row in members],
                [s["mean"] for s in found],
                lows,
                highs,
                titles,
            )
        )
        ends += [*lows, *highs]
    ticks, axis_name = score_ticks(ends, about["percent"], 5), label or "x"
    svg = line_chart(
        drawn,
        ticks,
        tick_texts(ticks, about["percent"]),
        title=f"{about['label']} against {axis_name}",
        x_name=f"{axis_name} (logarithmic)",
    )
    return {"svg": svg, "label": axis_name, "lines": [(points.kind, points.name) for points in drawn]}


def _gallery(systems: Sequence[System], metric: str, subjects: Sequence[str], seed: int) -> dict[str, Any]:
    """The same stimuli for all rows, drawn by seed; a subject a group, and each row's first seed."""
    groups = []
    each = max(1, NUM_STIMULI // max(1, len(subjects)))
    for number, subject in enumerate(subjects):
        shown: list[tuple[int, System, Measured]] = []
        for i, system in enumerate(systems):
            own = [one for one in system.measured if one.subject == subject]
            if own:
                shown.append((i, system, min(own, key=lambda one: one.seed)))
        ids = set.intersection(*(set(one.evaluated.stimulus_ids) for _, _, one in shown)) if shown else set()
        drawn = np.random.default_rng([seed, number]).permutation(sorted(ids))[:each]
        rows = []
        for stimulus_id in map(str, drawn):
            cells = []
            for i, system, one in shown:
                found = one.evaluated.rows(one.evaluated.primary, stimulus_id).iloc[0]
                uri = picture_uri(one.evaluated.picture(found))
                cells.append(
                    {"name": system.name, "kind": f"s{i % KINDS}", "uri": uri, "score": float(found[metric])}
                )
            stimulus = picture_uri(shown[0][2].evaluated.stimulus(stimulus_id))
            rows.append({"id": stimulus_id, "stimulus": stimulus, "cells": cells})
        if rows:
            groups.append({"name": subject, "rows": rows, "columns": len(shown) + 1})
    return {"groups": groups}


def _statistics(crossed: Mapping[str, Any], subjects: Sequence[str]) -> str:
    """How intervals and p values were made, in words."""
    draws = f"{crossed['config']['num_bootstrap']:,}"
    if len(subjects) > 1:
        how = (
            f"Subjects weigh the same. Bootstrap: subjects and images are drawn anew, {draws} times, an image for everybody who "
            "saw it at once; percentiles. t interval: of subjects and shared images as random effects (Satterthwaite)."
        )
    else:
        how = f"One subject: the bootstrap (BCa, {draws} draws) and the t interval are over images and say nothing about people."
    family = "against the reference" if crossed["reference"] else "of rows"
    return (
        f"Samples, then seeds of one row and subject are averaged image by image. {how} Tests: paired differences change sign "
        f"image by image, in all subjects who saw it at once, Holm-corrected over the pairs {family} of a metric; they are about "
        "these subjects and these training runs."
    )

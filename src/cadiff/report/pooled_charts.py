"""Charts and tables of pooled subjects, from what `cadiff.evaluate.subjects.pool_subjects` finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from cadiff.report import facts
from cadiff.report.charts import bar_row, interval_row
from cadiff.report.conditions import GROUPS, VARIANTS, meaning
from cadiff.report.figures import Scale, axis, drawing, line, score_ticks, tick_texts
from cadiff.report.inputs import Evaluated
from cadiff.report.trust import EFFECTS


def gain_interval(row: Mapping[str, Any], key: str) -> tuple[float, float]:
    """An interval of a comparison's gain, "ci95" or "ci95_t": turned round where lower is better."""
    low, high = row[key]
    return (low, high) if row["gain"] == row["difference"] else (-high, -low)


def is_shown(row: Mapping[str, Any]) -> bool:
    """Whether a gain is shown for these subjects."""
    return row["p_holm"] < facts.ALPHA and row["gain"] > 0


def strip(pooled: dict[str, Any], parts: Sequence[Evaluated]) -> dict[str, Any]:
    """The headline of every condition by role, pooled, with the mean of every subject."""
    metric, primary = pooled["headline"]["metric"], pooled["headline"]["condition"]
    about = pooled["metrics"][metric]
    percent = about["percent"]
    found = {name: c["metrics"][metric] for name, c in pooled["conditions"].items() if metric in c["metrics"]}
    ends = [v for s in found.values() for v in (*s["ci95_t"], *s["ci95"], *s["subject_means"].values())]
    ticks = score_ticks(_inside(ends, percent), percent)
    scale, shown = Scale(ticks), []
    strongest = (pooled["from_the_brain"].get(metric) or {}).get("control")
    against = {row["control"]: row for row in pooled["comparisons"] if row["metric"] == metric}
    for group, names in _grouped(pooled, metric):
        rows = []
        for name in names:
            score, label = found[name], pooled["conditions"][name]["label"]
            title = (
                f"{label}: {facts.number(score['mean'], percent)}, t interval {facts.interval(score['ci95_t'], percent)}, "
                f"bootstrap {facts.interval(score['ci95'], percent)}. {score['protocol']}"
            )
            drawn = spread_row(
                scale,
                score["mean"],
                score["ci95"],
                score["ci95_t"],
                list(score["subject_means"].values()),
                kind=group.kind,
                title=title,
                guide=found[primary]["mean"],
            )
            rows.append(
                {
                    "label": label,
                    "meaning": meaning(parts[0], name, group),
                    "strongest": name == strongest,
                    "svg": drawn,
                    "score": score,
                    "row": against.get(name),
                }
            )
        shown.append({"group": group, "rows": rows})
    return {"groups": shown, "axis": axis(scale, tick_texts(ticks, percent), about["label"])}


def _grouped(pooled: Mapping[str, Any], metric: str) -> list[tuple[Any, list[str]]]:
    """The conditions that have the metric by role, the best first in each."""
    sign = -1 if pooled["metrics"][metric]["direction"] == "higher" else 1
    members: dict[str, list[str]] = {group.kind: [] for group in (*GROUPS, VARIANTS)}
    for name, condition in pooled["conditions"].items():
        kind = condition["role"] if condition["role"] in members else "rival"
        if name == pooled["headline"]["condition"]:
            kind = "brain"
        elif kind == "brain":
            kind = "rival"
        if metric in condition["metrics"]:
            members[kind].append(name)

    def strength(name: str) -> float:
        return sign * pooled["conditions"][name]["metrics"][metric]["mean"]

    found = [(group, sorted(members[group.kind], key=strength)) for group in (*GROUPS, VARIANTS)]
    return [(group, names) for group, names in found if names]


def each(pooled: dict[str, Any], parts: Sequence[Evaluated], row: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every evaluation on its own: its score with its interval over images, and the control that is strongest pooled."""
    metric, primary = pooled["headline"]["metric"], pooled["headline"]["condition"]
    about = pooled["metrics"][metric]
    percent = about["percent"]
    scores = [part.scores["conditions"][primary]["metrics"][metric] for part in parts]
    controls = [
        part.scores["conditions"][row["control"]]["metrics"][metric] if row else None for part in parts
    ]
    ends = [v for s in scores for v in s["ci95"]] + [c["mean"] for c in controls if c]
    ticks = score_ticks(ends, percent)
    scale, rows = Scale(ticks), []
    for part, entry, score, control in zip(parts, pooled["subjects"], scores, controls, strict=True):
        own = next(
            (
                r
                for r in part.scores["comparisons"]
                if row and (r["metric"], r["control"]) == (metric, row["control"])
            ),
            None,
        )
        title = (
            f"{entry['name']}: {facts.number(score['mean'], percent)}, 95 % interval over images "
            f"{facts.interval(score['ci95'], percent)}. {score['protocol']}"
        )
        drawn = interval_row(
            scale,
            score["mean"],
            score["ci95"],
            kind="brain",
            title=title,
            mispaired=control["mean"] if control else None,
            guide=pooled["conditions"][primary]["metrics"][metric]["mean"],
            height=40,
        )
        rows.append({"about": entry, "svg": drawn, "score": score, "row": own})
    label = pooled["conditions"][row["control"]]["label"] if row else None
    return {"rows": rows, "axis": axis(scale, tick_texts(ticks, percent), about["label"]), "control": label}


def table(pooled: dict[str, Any]) -> dict[str, Any]:
    """Rows are conditions by role, columns metrics; then what comes from the brain."""
    groups = [
        {
            "group": group,
            "rows": [
                {
                    "label": pooled["conditions"][name]["label"],
                    "cells": [
                        (about, pooled["conditions"][name]["metrics"].get(metric))
                        for metric, about in pooled["metrics"].items()
                    ],
                }
                for name in names
            ],
        }
        for group, names in _grouped(pooled, pooled["headline"]["metric"])
    ]
    gains = []
    for metric, about in pooled["metrics"].items():
        row = pooled["from_the_brain"].get(metric)
        label = pooled["conditions"][row["control"]]["label"] if row else None
        gains.append({"about": about, "row": row, "control": label, "shown": bool(row) and is_shown(row)})
    return {"groups": groups, "gains": gains}


def pairs(pooled: dict[str, Any], metric: str) -> dict[str, Any]:
    """Differences of one metric, the brain minus every other condition, each subject a dot."""
    about, percent = pooled["metrics"][metric], pooled["metrics"][metric]["percent"]
    rows = [row for row in pooled["comparisons"] if row["metric"] == metric]
    ends = [v for r in rows for v in (*r["ci95_t"], *r["ci95"], *r["subject_differences"].values())]
    ticks = score_ticks(ends, percent=False)
    scale, shown = Scale(ticks), []
    for row in rows:
        other = pooled["conditions"][row["control"]]["label"]
        differences = list(row["subject_differences"].values())
        sign = 1 if about["direction"] == "higher" else -1
        drawn = spread_row(
            scale,
            row["difference"],
            row["ci95"],
            row["ci95_t"],
            differences,
            kind="brain" if row["p_holm"] < facts.ALPHA else "control",
            title=f"Brain minus {other}: {facts.number(row['difference'], percent, signed=True)}",
            guide=0.0,
            height=38,
        )
        ahead = sum(sign * d > 0 for d in differences)
        shown.append({"row": row, "other": other, "svg": drawn, "ahead": ahead})
    labels = tick_texts(ticks, percent)
    if percent:
        labels[-1] = labels[-1].removesuffix(" %") + " points"
    return {"about": about, "rows": shown, "axis": axis(scale, labels, "Difference")}


def variance(pooled: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the variance of the headline is: subjects, images, samples; None where it could not be told apart."""
    found = pooled["variance"]
    if found is None:
        return None
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    scale, rows, total = Scale(ticks), [], sum(found["of_the_mean"].values())
    for name, share in found["shares"].items():
        title = f"{name}: {100 * share:.1f} % of the variance of one picture's score"
        drawn = bar_row(scale, share, kind="brain", title=title, height=38)
        of_the_mean = found["of_the_mean"][name] / total if total else 0.0
        about = {"name": name, "meaning": EFFECTS.get(name, ""), "share": share, "of_the_mean": of_the_mean}
        rows.append({**about, "svg": drawn})
    return {"rows": rows, "axis": axis(scale, tick_texts(ticks, True), "Share")}


def _inside(ends: Sequence[float], percent: bool) -> list[float]:
    """Ends of intervals that a share of images can have; a t interval of two subjects may leave 0 to 100 % far behind."""
    return [min(max(end, 0.0), 1.0) for end in ends] if percent else list(ends)


def spread_row(
    scale: Scale,
    mean: float,
    interval: Sequence[float],
    interval_t: Sequence[float],
    subjects: Sequence[float],
    *,
    kind: str,
    title: str,
    guide: float,
    height: int = 46,
) -> Markup:
    """A dot with the bootstrap's interval as a bar and the t interval as a thin line; a ring for every subject."""
    middle = height / 2
    parts = [line(scale(t), 0, scale(t), height, "grid") for t in scale.ticks]
    parts.append(line(scale(guide), 0, scale(guide), height, "guide"))
    low, high = (scale(end) for end in interval_t)
    parts.append(line(low, middle, high, middle, "reach"))
    parts += [line(end, middle - 5, end, middle + 5, "cap") for end in (low, high)]
    parts.append(line(scale(interval[0]), middle, scale(interval[1]), middle, "bar"))
    parts += [
        f'<circle class="one" cx="{scale(value):.2f}%" cy="{middle + 11:g}" r="3"/>' for value in subjects
    ]
    parts.append(f'<circle class="dot" cx="{scale(mean):.2f}%" cy="{middle:g}" r="6.5"/>')
    return drawing(parts, height, f"interval {kind}", title)

"""The page of a trace: the verdict, a chart a target with the stations down the page, steps, all numbers, how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cadiff.report import facts
from cadiff.report.charts import interval_row
from cadiff.report.figures import Scale, axis, score_ticks, tick_texts
from cadiff.report.render import write_page
from cadiff.trace.stations import BETAS, RANDOM, START
from cadiff.trace.verdict import METRIC

KIND = {
    BETAS: "ceiling",
    RANDOM: "control",
    START: "rival",
    "label_oracle": "oracle",
    "autoencoded": "ceiling",
    "prior_only": "control",
}
"""Station -> CSS class; the others are the brain's."""


def write_trace_page(record: Mapping[str, Any], page: Path) -> Path:
    """Writes the page about a trace.json.

    Raises:
        ArtifactError: the page exists.
    """
    provenance = record["provenance"]
    context: dict[str, Any] = {
        "trace": record,
        "created": str(provenance["created"])[:16].replace("T", " "),
        "subject": " / ".join(str(v) for v in (record["dataset"]["name"], record["dataset"]["subject"]) if v),
        "charts": [_chart(record, target) for target in record["targets"]],
        "numbers": _numbers(record),
        "steps": [_steps(record, target) for target in record["targets"]],
        "drawn": any(about["probe"] is None for about in record["stations"].values()),
        "started": START in record["stations"],
    }
    return write_page("trace.html.j2", context, page)


def _chart(record: Mapping[str, Any], target: str) -> dict[str, Any]:
    """The stations of one target on one scale: those that are read out, then the pictures."""
    found = {name: scores[METRIC] for name, scores in record["scores"][target].items()}
    chance = record["metrics"][METRIC]["chance"]
    ends = [end for score in found.values() for end in score["ci95"]]
    low = min(0.1 * int(10 * min(*ends, chance) + 1e-9), 0.4)
    ticks = [tick for tick in score_ticks([*ends, 1.0], True, 11) if tick > low - 1e-9]
    scale = Scale(ticks)
    minus = {row["first"]: row for row in record["differences"][target][METRIC]["over_betas"]}
    rows = []
    for name, score in found.items():
        about = record["stations"][name]
        title = f"{about['label']}: {facts.number(score['mean'], True)}, 95 % interval {facts.interval(score['ci95'], True)}"
        kind = KIND.get(name.removesuffix("_averaged"), "brain")
        drawn = interval_row(
            scale,
            score["mean"],
            score["ci95"],
            kind=kind,
            title=title,
            chance=chance,
            guide=found[BETAS]["mean"],
        )
        rows.append(
            {
                "about": about,
                "width": _width(about),
                "kind": kind,
                "svg": drawn,
                "score": score,
                "minus": minus.get(name),
            }
        )
    groups = [
        {"title": title, "rows": part}
        for title, part in (
            ("Read out", [row for row in rows if row["about"]["probe"]]),
            ("Drawn, without a read-out", [row for row in rows if not row["about"]["probe"]]),
        )
        if part
    ]
    label = record["targets"][target]["label"]
    return {
        "label": label,
        "name": target,
        "about": record["targets"][target],
        "groups": groups,
        "axis": axis(scale, tick_texts(ticks, True), "Two-way identification"),
    }


def _width(about: Mapping[str, Any]) -> str:
    """17,920 numbers (140 x 128)."""
    sides = " × ".join(str(size) for size in about["shape"])
    inside = f" ({sides})" if len(about["shape"]) > 1 else ""
    return facts.plural(about["numbers"], "number") + inside


def _steps(record: Mapping[str, Any], target: str) -> dict[str, Any]:
    """What each step of the way to the picture loses, and what training and the encoder add."""
    told = record["differences"][target][METRIC]
    labels = {name: about["label"] for name, about in record["stations"].items()}

    def rows(kind: str) -> list[dict[str, Any]]:
        return [
            {**row, "first": labels[row["first"]], "second": labels[row["second"]], "shown": _is_shown(row)}
            for row in told[kind]
        ]

    return {
        "label": record["targets"][target]["label"],
        "steps": rows("steps"),
        "over_random": rows("over_random"),
        "over_start": rows("over_start"),
    }


def _is_shown(row: Mapping[str, Any]) -> bool:
    low, high = row["ci95"]
    return row["p_holm"] < facts.ALPHA and not low <= 0 <= high


def _numbers(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows are stations, columns both metrics of every target and the read-out's share of held-out variance."""
    rows = []
    for name, about in record["stations"].items():
        cells = []
        for target, scores in record["scores"].items():
            share = about["probe"] and about["probe"]["held_out_explained"][target]
            cells.append({"scores": scores[name], "explained": share})
        rows.append({"about": about, "width": _width(about), "cells": cells})
    return rows

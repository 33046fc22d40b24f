"""`cadiff report A B ...`: several systems on the same stimuli, on one page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError
from cadiff.evaluate.several import are_subjects
from cadiff.evaluate.statistics import Comparison, holm
from cadiff.evaluate.statistics import compare as compare_scores
from cadiff.report import facts
from cadiff.report.charts import interval_row
from cadiff.report.figures import Scale, axis, picture_uri, score_ticks, tick_texts
from cadiff.report.inputs import open_evaluated
from cadiff.report.pooled import write_pooled
from cadiff.report.render import page_path, write_page
from cadiff.report.systems import System, differences_to_mind, shared_metrics, systems_of
from cadiff.report.training_size import training_curve

NUM_APART, NUM_RANDOM = 4, 12
"""Stimuli of the gallery: those on which the systems differ most, and those drawn by seed."""
KINDS = 6
"""Colours of systems."""


def compare(
    evaluations: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    json: Path | None = None,
    seed: int = 0,
) -> Path:
    """Writes one page about several evaluations and returns its path.

    Evaluations of several subjects, or of stimuli that no two share, are pooled (`cadiff.report.pooled`). Of systems on
    the same stimuli the page shows all in one table and one strip, every pair's paired difference with interval and
    Holm-corrected p, the score against training size where that differs, and a gallery with all systems in one row a
    stimulus. Folders that an evaluation was made `against` are systems too.

    Args:
        evaluations: folders of `evaluate`. out: a path that ends in .html, or a folder in which report.html is made.
        names: of the systems or subjects, one an evaluation; by default those of the folders or datasets.
        json: where to write the pooled numbers too; only where subjects are pooled.
        seed: of the stimuli in the gallery.

    Raises:
        ArtifactError: not evaluations, the page exists, or pictures are gone or changed since they were scored.
        DataError: stimuli differ, or a subject and its stimuli come twice. ConfigError: protocols differ, fewer than two
            systems, or names that do not fit.
    """
    page = page_path(Path(out))
    opened = [open_evaluated(Path(folder)) for folder in evaluations]
    if are_subjects(opened):
        return write_pooled(opened, page, names=names, json=json, seed=seed)
    if json is not None:
        raise ConfigError(
            "--json is for several subjects pooled; these evaluations are of one and the same stimuli, and their numbers are "
            "in the evaluation.json of each."
        )
    systems = systems_of(opened, names)
    first = systems[0].evaluated
    metrics, pairs = shared_metrics(systems), _pairs(systems)
    percent = first.scores["metrics"][first.metric]["percent"]
    looks = {id(s.evaluated): (s.name, s.evaluated.scores.get("integrity")) for s in systems if s.is_primary}
    context: dict[str, Any] = {
        "scores": first.scores,
        "created": "",
        "about": first.scores["metrics"][first.metric],
        "percent": percent,
        "n": len(first.stimulus_ids),
        "systems": [_described(system, i) for i, system in enumerate(systems)],
        "verdict": _verdict(systems, pairs[first.metric]),
        "remarks": differences_to_mind(systems),
        "strip": _strip(systems),
        "table": _table(systems, metrics),
        "pairs": [_pair_chart(first.scores["metrics"][metric], rows) for metric, rows in pairs.items()],
        "num_pairs": len(pairs[first.metric]),
        "curve": training_curve(systems, KINDS),
        "gallery": _gallery(systems, seed),
        "looks": list(looks.values()),
        "protocols": [first.scores["metrics"][metric]["protocol"] for metric in metrics],
        "smooth": first.scores["pictures"]["width"] >= 48,
        "seed": seed,
    }
    return write_page("compare.html.j2", context, page)


def _described(system: System, i: int) -> dict[str, Any]:
    scores = system.evaluated.scores
    subject = " / ".join(
        str(v) for v in (scores["dataset"].get("name"), scores["dataset"].get("subject")) if v
    )
    return {
        "name": system.name,
        "kind": f"s{i % KINDS}",
        "subject": subject,
        "samples": system.scores["num_samples"],
        "trials": system.training_trials,
        "digest": system.digest,
        "protocol": system.scores["metrics"][system.evaluated.metric]["protocol"],
        "judge": (scores.get("judge") or {}).get("name"),
        "created": str(scores["provenance"].get("created", "?"))[:16].replace("T", " "),
        "command": scores["provenance"].get("command", "?"),
        "version": (scores["provenance"].get("versions") or {}).get("cadiff", "?"),
    }


def _pairs(systems: Sequence[System]) -> dict[str, list[dict[str, Any]]]:
    """Every pair of systems by metric, the headline first; Holm's correction over the pairs of a metric."""
    first = systems[0].evaluated
    config = first.scores["config"]
    found: dict[str, list[dict[str, Any]]] = {}
    for metric in sorted(shared_metrics(systems), key=lambda name: name != first.metric):
        values = [system.values(metric, first.stimulus_ids) for system in systems]
        rows = []
        for i, k in combinations(range(len(systems)), 2):
            result = compare_scores(
                values[i], values[k], num_draws=config["num_bootstrap"], seed=config.get("seed", 0)
            )
            rows.append({"first": systems[i].name, "second": systems[k].name, "result": result})
        adjusted = holm(np.array([row["result"].p for row in rows]))
        found[metric] = [{**row, "p_holm": float(p)} for row, p in zip(rows, adjusted, strict=True)]
    return found


def _verdict(systems: Sequence[System], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Which system leads by the headline, and whether it is shown to lead the next one."""
    metric = systems[0].evaluated.metric
    about = systems[0].evaluated.scores["metrics"][metric]
    sign = 1 if about["direction"] == "higher" else -1
    order = sorted(systems, key=lambda s: -sign * s.scores["metrics"][metric]["mean"])
    best, next_one = order[0].name, order[1].name
    row = next(row for row in rows if {row["first"], row["second"]} == {best, next_one})
    result: Comparison = row["result"]
    low, high = (result.low, result.high) if row["first"] == best else (-result.high, -result.low)
    difference = result.difference if row["first"] == best else -result.difference
    ahead = (low if sign > 0 else -high) > 0 and row["p_holm"] < facts.ALPHA
    score = facts.number(order[0].scores["metrics"][metric]["mean"], about["percent"])
    gain = facts.points(facts.number(difference, about["percent"], signed=True))
    ends = facts.points(facts.interval((low, high), about["percent"], signed=True))
    claim = "is ahead of" if ahead else "has the best score, but is not shown to be ahead of"
    sentence = (
        f"{best} {claim} {next_one}: {about['label']} {score}, {gain} (95 % interval {ends}; paired permutation over images, "
        f"Holm-corrected {facts.p_text(row['p_holm'])})."
    )
    return {"ahead": ahead, "sentence": sentence}


def _strip(systems: Sequence[System]) -> dict[str, Any]:
    """The headline of every system on one scale, with its own strongest control."""
    metric = systems[0].evaluated.metric
    about = systems[0].evaluated.scores["metrics"][metric]
    percent, rows = about["percent"], []
    controls = [_strongest_control(system, metric) for system in systems]
    found = [system.scores["metrics"][metric] for system in systems]
    ends = [v for s in found for v in (*s["ci95"], s["mean"])] + [c["score"]["mean"] for c in controls if c]
    ticks = score_ticks(ends, percent)
    scale = Scale(ticks)
    for i, (system, score, control) in enumerate(zip(systems, found, controls, strict=True)):
        title = (
            f"{system.name}: {facts.number(score['mean'], percent)}, 95 % interval "
            f"{facts.interval(score['ci95'], percent)}. {score['protocol']}"
        )
        drawn = interval_row(
            scale,
            score["mean"],
            score["ci95"],
            kind=f"s{i % KINDS}",
            title=title,
            mispaired=control["score"]["mean"] if control else None,
        )
        rows.append({"system": _described(system, i), "score": score, "svg": drawn, "control": control})
    return {"rows": rows, "axis": axis(scale, tick_texts(ticks, percent), about["label"])}


def _strongest_control(system: System, metric: str) -> dict[str, Any] | None:
    scores = system.evaluated.scores
    row = scores["from_the_brain"].get(metric) if system.is_primary else None
    if row is None:
        return None
    condition = scores["conditions"][row["control"]]
    return {
        "label": condition["label"],
        "score": condition["metrics"][metric],
        "row": row,
        "shown": facts.is_clear(row),
    }


def _table(systems: Sequence[System], metrics: Sequence[str]) -> dict[str, Any]:
    """Rows are systems, columns metrics; the best of a column is marked."""
    columns = [systems[0].evaluated.scores["metrics"][metric] for metric in metrics]
    rows = []
    for i, system in enumerate(systems):
        cells = []
        for metric, about in zip(metrics, columns, strict=True):
            means = [s.scores["metrics"][metric]["mean"] for s in systems]
            best = max(means) if about["direction"] == "higher" else min(means)
            score = system.scores["metrics"][metric]
            control = _strongest_control(system, metric)
            cells.append({"score": score, "about": about, "best": score["mean"] == best, "control": control})
        rows.append({"system": _described(system, i), "cells": cells})
    return {
        "columns": columns,
        "rows": rows,
        "controls": any(c["control"] for row in rows for c in row["cells"]),
    }


def _pair_chart(about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Differences of one metric around 0, first minus second."""
    ends = [v for row in rows for v in (row["result"].low, row["result"].high)]
    ticks = score_ticks(ends, percent=False)
    scale, shown = Scale(ticks), []
    for row in rows:
        result: Comparison = row["result"]
        clear = row["p_holm"] < facts.ALPHA and not result.low <= 0 <= result.high
        better = (result.difference > 0) == (about["direction"] == "higher")
        title = f"{row['first']} minus {row['second']}: {facts.number(result.difference, about['percent'], signed=True)}"
        drawn = interval_row(
            scale,
            result.difference,
            (result.low, result.high),
            kind="brain" if clear else "control",
            title=title,
            guide=0.0,
            height=38,
        )
        size = "" if not np.isfinite(result.effect_size) else f"{result.effect_size:+.2f}".replace("-", "−")
        ahead = row["first"] if better else row["second"]
        shown.append({**row, "svg": drawn, "shown": clear, "ahead": ahead, "effect": size})
    labels = tick_texts(ticks, about["percent"])
    if about["percent"]:
        labels[-1] = labels[-1].removesuffix(" %") + " points"
    return {"about": about, "rows": shown, "axis": axis(scale, labels, "Difference")}


def _gallery(systems: Sequence[System], seed: int) -> list[dict[str, Any]]:
    """All systems in one row a stimulus: where they differ most, then a random choice."""
    first = systems[0].evaluated
    ids = np.array(first.stimulus_ids)
    values = np.stack([system.values(first.metric, ids.tolist()) for system in systems])
    apart = [str(s) for s in ids[np.argsort(-np.ptp(values, axis=0), kind="stable")][:NUM_APART]]
    drawn = [str(s) for s in np.random.default_rng(seed).permutation(ids)]
    others = [s for s in drawn if s not in apart][:NUM_RANDOM]
    names = facts.shipped_names()

    def row(stimulus_id: str) -> dict[str, Any]:
        given = first.stimuli.at[stimulus_id, "label"]
        name = names.get(given, given).split(",")[0] if isinstance(given, str) else stimulus_id
        cells = []
        for i, system in enumerate(systems):
            rows = system.evaluated.rows(system.condition, stimulus_id)
            cells.append(
                {
                    "name": system.name,
                    "kind": f"s{i % KINDS}",
                    "uri": picture_uri(system.evaluated.picture(rows.iloc[0])),
                    "score": float(rows.iloc[0][first.metric]),
                    "mean": float(rows[first.metric].astype(float).mean()),
                }
            )
        return {
            "id": stimulus_id,
            "name": name,
            "stimulus": picture_uri(first.stimulus(stimulus_id)),
            "cells": cells,
        }

    groups = [
        {"title": "Where the systems differ most", "rows": [row(s) for s in apart]},
        {"title": f"Drawn at random (seed {seed})", "rows": [row(s) for s in others]},
    ]
    return [group for group in groups if group["rows"]]

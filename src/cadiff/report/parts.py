"""Where in the brain, and from how much of it: the score against repeats averaged, one ROI alone, one ROI left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from cadiff.report import facts
from cadiff.report.charts import Band, Points, bar_row, line_chart
from cadiff.report.figures import Scale, axis, picture_uri, score_ticks, tick_texts
from cadiff.report.inputs import Evaluated

NUM_EXAMPLES = 4
"""Stimuli whose pictures stand under the curve."""


def repeats_curve(evaluated: Evaluated, seed: int) -> dict[str, Any] | None:
    """The headline score against the number of presentations averaged; None without such conditions."""
    scores, metric = evaluated.scores, evaluated.metric
    about = scores["metrics"][metric]
    counts = {
        int(variant["value"]): name
        for name, variant in evaluated.variants.items()
        if variant["kind"] == "repeats" and metric in scores["conditions"][name]["metrics"]
    }
    if not counts:
        return None
    if evaluated.repeats:
        counts[evaluated.repeats] = evaluated.primary
    order = sorted(counts)
    found = [scores["conditions"][counts[count]]["metrics"][metric] for count in order]
    titles = [
        f"{facts.plural(count, 'repeat')}: {facts.number(score['mean'], about['percent'])}, 95 % interval "
        f"{facts.interval(score['ci95'], about['percent'])}. {score['protocol']}"
        for count, score in zip(order, found, strict=True)
    ]
    lows, highs = ([score["ci95"][end] for score in found] for end in (0, 1))
    points = Points("brain", "Brain", order, [score["mean"] for score in found], lows, highs, titles)
    bands = []
    strongest = scores["from_the_brain"].get(metric)
    if strongest:
        control = scores["conditions"][strongest["control"]]
        score = control["metrics"][metric]
        low, high = score.get("ci95") or (score["mean"], score["mean"])
        bands.append(Band("control", control["label"], score["mean"], low, high))
    ends = [*lows, *highs, *(value for band in bands for value in (band.low, band.high))]
    ticks = score_ticks(ends, about["percent"], 5)
    drawn = line_chart(
        [points],
        ticks,
        tick_texts(ticks, about["percent"]),
        title=f"{about['label']} against the number of presentations averaged",
        x_name="presentations averaged (logarithmic)",
        bands=bands,
    )
    return {
        "svg": drawn,
        "control": bands[0].name if bands else None,
        "examples": _examples(evaluated, {count: counts[count] for count in order}, seed),
    }


def roi_bars(evaluated: Evaluated) -> dict[str, Any] | None:
    """One ROI alone and the brain without it, beside the whole brain; None without such conditions."""
    scores, metric = evaluated.scores, evaluated.metric
    about = scores["metrics"][metric]
    rois: dict[str, dict[str, str]] = {}
    for name, variant in evaluated.variants.items():
        if variant["kind"] in ("only_roi", "without_roi") and metric in scores["conditions"][name]["metrics"]:
            rois.setdefault(str(variant["value"]), {})[variant["kind"]] = name
    if not rois:
        return None
    full = scores["conditions"][evaluated.primary]["metrics"][metric]
    strongest = scores["from_the_brain"].get(metric)
    control = scores["conditions"][strongest["control"]]["metrics"][metric] if strongest else None
    against = {row["control"]: row for row in scores["comparisons"] if row["metric"] == metric}
    found = [
        scores["conditions"][name]["metrics"][metric] for pair in rois.values() for name in pair.values()
    ]
    ends = [v for score in (*found, full) for v in score["ci95"]]
    ticks = score_ticks(ends, about["percent"])
    scale = Scale(ticks)
    guides = [("guide", full["mean"])] + ([("level", control["mean"])] if control else [])
    rows = []
    for roi, pair in rois.items():
        bars = []
        for kind, name in sorted(pair.items()):
            score = scores["conditions"][name]["metrics"][metric]
            title = "only" if kind == "only_roi" else "without"
            spoken = (
                f"{title} {roi}: {facts.number(score['mean'], about['percent'])}, 95 % interval "
                f"{facts.interval(score['ci95'], about['percent'])}. {score['protocol']}"
            )
            drawn = bar_row(
                scale,
                score["mean"],
                kind=kind,
                title=spoken,
                interval=score["ci95"],
                guides=guides,
                height=36,
            )
            voxels = evaluated.variants[name].get("num_voxels")
            bars.append(
                {"what": title, "svg": drawn, "score": score, "row": against.get(name), "voxels": voxels}
            )
        rows.append({"roi": roi, "bars": bars})
    return {
        "rows": rows,
        "axis": axis(scale, tick_texts(ticks, about["percent"]), about["label"]),
        "full": full,
        "control": scores["conditions"][strongest["control"]]["label"] if strongest else None,
    }


def _examples(evaluated: Evaluated, counts: dict[int, str], seed: int) -> dict[str, Any]:
    """The first picture of some stimuli, drawn by seed, at every number of repeats."""
    drawn = np.random.default_rng(seed).permutation(np.array(evaluated.stimulus_ids))[:NUM_EXAMPLES]
    rows = []
    for stimulus_id in map(str, drawn):
        pictures = [evaluated.rows(name, stimulus_id).head(1) for name in counts.values()]
        rows.append(
            {
                "id": stimulus_id,
                "stimulus": picture_uri(evaluated.stimulus(stimulus_id)),
                "pictures": [picture_uri(evaluated.picture(rows.iloc[0])) for rows in pictures if len(rows)],
            }
        )
    return {"counts": list(counts), "rows": rows}

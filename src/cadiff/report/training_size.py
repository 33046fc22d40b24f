"""Score against training size: what more trials of the same kind would bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cadiff.report import facts
from cadiff.report.charts import Points, line_chart
from cadiff.report.figures import score_ticks, tick_texts
from cadiff.report.systems import System


def training_curve(systems: Sequence[System], kinds: int) -> dict[str, Any] | None:
    """The headline against trials in training, a line a method; None unless some method was trained on several sizes."""
    first = systems[0].evaluated
    about = first.scores["metrics"][first.metric]
    methods: dict[str, list[System]] = {}
    for system in systems:
        if system.training_trials:
            methods.setdefault(system.method, []).append(system)
    if not any(len({s.training_trials for s in members}) > 1 for members in methods.values()):
        return None
    lines, ends = [], []
    for i, (method, members) in enumerate(methods.items()):
        members.sort(key=lambda s: s.training_trials or 0)
        found = [s.scores["metrics"][first.metric] for s in members]
        titles = [
            f"{s.name}: {facts.number(score['mean'], about['percent'])}, {s.training_trials:,} trials. {score['protocol']}"
            for s, score in zip(members, found, strict=True)
        ]
        lows, highs = ([score["ci95"][end] for score in found] for end in (0, 1))
        sizes = [float(s.training_trials or 0) for s in members]
        means = [score["mean"] for score in found]
        lines.append(Points(f"s{i % kinds}", method, sizes, means, lows, highs, titles))
        ends += [*lows, *highs]
    ticks = score_ticks(ends, about["percent"], 5)
    drawn = line_chart(
        lines,
        ticks,
        tick_texts(ticks, about["percent"]),
        title=f"{about['label']} against trials in training",
        x_name="trials in training (logarithmic)",
    )
    return {"svg": drawn, "methods": [(line.kind, line.name) for line in lines]}

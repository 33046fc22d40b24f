"""Can I trust it: kinds of pictures that carry the score, seeds as a factor, how many images the question needs.

Every part is there only when the evaluation holds its key:

    conditions[name]["categories"]   {"bias": CategoryBias, "scores": [CategoryScore, ...]} as dicts, or None
    conditions[name]["diversity"]    {"pixels": 1 - correlation between samples of a stimulus, "features": ...}, or None
    variance                         {metric: VarianceComponents as a dict}
    required_images                  {control: {"for_this_difference", "detectable_with_these", "power", "alpha"}}
    integrity["overlap"]             test pictures met in training, of `cadiff.evaluate.overlap`; None where training is unknown
    sets                             distances between sets of pictures, of `cadiff.evaluate.sets`, or None
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cadiff.evaluate.categories import COARSE_CATEGORIES, coarse_category
from cadiff.evaluate.names import class_names
from cadiff.report import facts
from cadiff.report.charts import bar_row, interval_row
from cadiff.report.conditions import grouped, label
from cadiff.report.figures import Scale, axis, picture_uri, score_ticks, tick_texts
from cadiff.report.inputs import Evaluated

MOST_PAIRS = 6
"""Pairs of a test and a training picture that are shown."""
FEWEST_STIMULI = 10
"""Distances between sets of fewer stimuli say next to nothing and are left to evaluation.json."""
MOST_SEEDS = 30
"""Dots of single samples that are told apart."""
EFFECTS = {
    "image": "which picture was seen",
    "seed": "the seed: the same shift for every picture",
    "residual": "noise of single samples, and whatever else",
    "subject": "whose brain it was",
    "subject x image": "pictures that are easy for one person only",
    "subject x seed": "seeds that suit one person only",
}


def overlap(evaluated: Evaluated) -> dict[str, Any] | None:
    """Were test pictures met in training: one sentence, the headline without them, and some of the pairs; None where nobody
    asked."""
    integrity = evaluated.scores.get("integrity") or {}
    if "overlap" not in integrity or evaluated.scores["stimuli"].get("split", "test") != "test":
        return None
    found = integrity["overlap"]
    if found is None:
        told = "No training stimuli are known here, so nothing could be compared with the test pictures."
        return {"sentence": told, "met": False, "left": None, "pairs": [], "hidden": 0}
    there = [
        pair
        for pair in found["pairs"]
        if all(Path(str(evaluated.stimuli.at[pair[side], "path"])).is_file() for side in ("test", "train"))
    ]
    shown = [
        {**pair, "pictures": [picture_uri(evaluated.stimulus(pair[side])) for side in ("test", "train")]}
        for pair in there[:MOST_PAIRS]
    ]
    return {
        "sentence": found["sentence"],
        "met": bool(found["affected"]),
        "left": found["headline_without"],
        "control": label(evaluated, found["headline_without"]["control"])
        if (found["headline_without"] or {}).get("control")
        else None,
        "pairs": shown,
        "hidden": len(found["pairs"]) - len(shown),
    }


def sets(evaluated: Evaluated) -> dict[str, Any] | None:
    """The kernel distance of every condition's pictures to the stimuli, and the spread of samples; the Fréchet distance only
    where there are more pictures than features."""
    found = evaluated.scores.get("sets")
    if not found or evaluated.scores["stimuli"]["evaluated"] < FEWEST_STIMULI:
        return None
    rows = []
    for group, names in grouped(evaluated):
        for name in names:
            if name in found["conditions"]:
                about = {"label": label(evaluated, name), "group": group}
                rows.append({**about, "of": found["conditions"][name]})
    some = next(iter(rows[0]["of"][space]["frechet"] for space in found["spaces"]))
    deficient = any(
        row["of"][space]["frechet"]["rank_deficient"] for row in rows for space in found["spaces"]
    )
    counts = {row["of"][space]["frechet"]["num_pictures"] for row in rows for space in found["spaces"]}
    return {
        "rows": rows,
        "spaces": found["spaces"],
        "frechet": not deficient and len(counts) == 1,
        "deficient": deficient,
        "dimension": some["dimension"],
        "stimuli": some["num_targets"],
        "diversity": any(row["of"]["relative_diversity"] for row in rows),
    }


def category_bias(evaluated: Evaluated) -> dict[str, Any] | None:
    """Which classes the judge takes the pictures of every condition for, and how far samples of one stimulus differ."""
    rows = []
    for group, names in grouped(evaluated):
        for name in names:
            condition = evaluated.scores["conditions"][name]
            found = condition.get("categories")
            if found:
                bias = found["bias"]
                common = class_name(evaluated, bias["reconstructions"]["commonest"])
                spread = (condition.get("diversity") or {}).get("features")
                about = {"label": label(evaluated, name), "group": group, "bias": bias, "common": common}
                rows.append({**about, "spread": spread})
    if not rows:
        return None
    stimuli = rows[0]["bias"]["stimuli"]
    return {"rows": rows, "stimuli": stimuli, "common": class_name(evaluated, stimuli["commonest"])}


def class_name(evaluated: Evaluated, index: int) -> str:
    """A judge's class for people: its name as the evaluation has it, else its number and coarse category."""
    known = (evaluated.scores.get("judge") or {}).get("class_names")
    if known is None:  # older evaluations
        known = class_names([index], None, True, evaluated.stimuli)
        known = {str(number): name for number, name in known.items()}
    if str(index) in known:
        return known[str(index)]
    return f"class {index} ({list(COARSE_CATEGORIES)[int(coarse_category(np.array(index)))]})"


def category_scores(evaluated: Evaluated) -> dict[str, Any] | None:
    """The headline score by coarse category of the stimulus, the brain beside the strongest control that was drawn."""
    conditions = evaluated.scores["conditions"]

    def of(name: str) -> list[dict[str, Any]]:
        return (conditions[name].get("categories") or {}).get("scores") or []

    rows = of(evaluated.primary)
    if not rows:
        return None
    controls = [names for group, names in grouped(evaluated) if group.kind == "control"]
    # the strongest of those that are pictures of their own; the others have no categories
    strongest = next((name for name in (controls[0] if controls else []) if of(name)), None)
    control = {row["category"]: row for row in of(strongest)} if strongest else {}
    percent = evaluated.scores["metrics"][evaluated.metric]["percent"]
    everything = [*rows, *control.values()]
    ends = [row[key] for row in everything for key in ("mean", "low", "high") if row[key] is not None]
    ticks = score_ticks(ends, percent)
    scale, shown = Scale(ticks), []
    mean = conditions[evaluated.primary]["metrics"][evaluated.metric]["mean"]
    for row in rows:
        ends = None if row["low"] is None else (row["low"], row["high"])
        other = control.get(row["category"])
        title = f"{row['category']}: {facts.number(row['mean'], percent)}, {facts.plural(row['num_images'], 'image')}"
        drawn = interval_row(
            scale,
            row["mean"],
            ends,
            kind="brain",
            title=title,
            guide=mean,
            mispaired=other["mean"] if other else None,
            height=34,
        )
        shown.append({**row, "svg": drawn, "ends": ends, "control": other})
    name = conditions[strongest]["label"] if strongest else None
    return {"rows": shown, "axis": axis(scale, tick_texts(ticks, percent), "Score"), "control": name}


def seeds(evaluated: Evaluated) -> dict[str, Any] | None:
    """The score of every sample number on its own, and where the variance comes from; None for one sample an image."""
    condition = evaluated.scores["conditions"][evaluated.primary]
    if condition["num_samples"] < 2:
        return None
    rows = evaluated.samples[evaluated.samples["condition"] == evaluated.primary]
    by_sample = rows.groupby("sample")[evaluated.metric].mean().astype(float)
    about = evaluated.scores["metrics"][evaluated.metric]
    return {
        "means": [(int(str(sample)), float(mean)) for sample, mean in by_sample.items()][:MOST_SEEDS],
        "low": float(by_sample.min()),
        "high": float(by_sample.max()),
        "about": about,
        "score": condition["metrics"][evaluated.metric],
        "spread": condition.get("diversity"),
        "components": _components(evaluated),
    }


def _components(evaluated: Evaluated) -> dict[str, Any] | None:
    found = (evaluated.scores.get("variance") or {}).get(evaluated.metric)
    if found is None:
        return None
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    scale, rows = Scale(ticks), []
    total = sum(found["of_the_mean"].values())
    for name, share in found["shares"].items():
        title = f"{name}: {100 * share:.1f} % of the variance of one picture's score"
        drawn = bar_row(scale, share, kind="brain", title=title, height=38)
        of_the_mean = found["of_the_mean"][name] / total if total else 0.0
        about = EFFECTS.get(name, "")
        rows.append(
            {"name": name, "meaning": about, "svg": drawn, "share": share, "of_the_mean": of_the_mean}
        )
    labels = tick_texts(ticks, True)
    return {"rows": rows, "axis": axis(scale, labels, "Share"), "seed": found.get("another_seed")}


def required(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Test images that a study would need to find the headline's difference seen here, by condition it is compared with;
    parts of the brain are left out."""
    scores, metric = evaluated.scores, evaluated.metric
    found = scores.get("required_images") or {}
    against = {row["control"]: row for row in scores["comparisons"] if row["metric"] == metric}
    strongest = (scores["from_the_brain"].get(metric) or {}).get("control")
    rows = []
    for group, names in grouped(evaluated):
        for name in names:
            if name in found and name in against:
                plan, row = found[name], against[name]
                needed = plan["for_this_difference"]
                enough = needed is not None and needed <= row["n"]
                about = {"label": label(evaluated, name), "group": group, "strongest": name == strongest}
                rows.append({**about, "plan": plan, "row": row, "enough": enough})
    return rows

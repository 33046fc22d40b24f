"""Compared with what: every condition with its role and meaning, the strip, the share of the brain, the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cadiff.evaluate import summary
from cadiff.evaluate.controls import SSIM_CANDIDATES
from cadiff.report import facts
from cadiff.report.charts import interval_row, shares
from cadiff.report.figures import Scale, axis, score_ticks, tick_texts
from cadiff.report.inputs import Evaluated


class Group(NamedTuple):
    """Conditions that play one part."""

    kind: str
    """CSS class; also the role in evaluation.json, but for rivals, who may be called "other"."""
    title: str
    meaning: str


GROUPS = (
    Group("brain", "Brain", "the system that this page is about"),
    Group("rival", "Rivals", "other decoders of the same responses"),
    Group("control", "Controls", "need no brain that saw the stimulus"),
    Group("attack", "Attack", "a control that looked at the test set"),
    Group("oracle", "Oracles", "are told something about the stimulus"),
    Group("ceiling", "Ceilings", "all that the generator could do, or this system without noise"),
)
VARIANTS = Group("variant", "Parts of the brain", "the same system, told less")
MEANINGS = {
    "prior_only": "the same generator and noise without a brain: what it draws unasked",
    "shuffled": "the same system, shown the responses to another image",
    "permutation": "the brain's own pictures, each given to another stimulus: exact mean over all wrong pairs, for SSIM "
    "over some",
    "mean_image": "the mean of {count} training pictures for every stimulus",
    "random_train": "a training picture drawn at random; exact mean over {count}, for SSIM over {ssim} of them",
    "constant_train": "one training picture for every stimulus, the best one on other training pictures",
    "constant_test": "one training picture for every stimulus, the best one on the test set: how far the metric can be gamed",
    "coarse_category": "any training picture of the right one among nine coarse categories: how far a rough idea gets",
    "class_mean": "the mean of all training pictures of the true class: how far the class name gets without any detail",
    "nearest_train": "the training picture most like each reconstruction, instead of it: a drawing that adds nothing "
    "scores no more",
    "label_oracle": "the generator is told the true category: what it draws from a perfect label",
    "autoencoded": "what the generator's auto-encoder leaves of the picture that was seen, nothing drawn at all",
    "noise_free": "the same system, shown the simulated responses without their noise",
}


def grouped(evaluated: Evaluated, *, variants: bool = False) -> list[tuple[Group, list[str]]]:
    """The conditions by role, the best first in each; without parts of the brain unless asked for."""
    scores, primary = evaluated.scores, evaluated.primary
    metric = evaluated.metric
    sign = -1 if scores["metrics"][metric]["direction"] == "higher" else 1
    members: dict[str, list[str]] = {group.kind: [] for group in (*GROUPS, VARIANTS)}
    for name, condition in scores["conditions"].items():
        kind = condition["role"] if condition["role"] in members else "rival"
        if name == primary:
            kind = "brain"
        elif name in evaluated.variants:
            kind = "variant"
        elif kind == "brain":
            kind = "rival"
        members[kind].append(name)

    def strength(name: str) -> float:
        score = scores["conditions"][name]["metrics"].get(metric)
        return sign * score["mean"] if score else 0.0

    found = [(group, sorted(members[group.kind], key=strength)) for group in GROUPS]
    if variants:
        found.append((VARIANTS, members["variant"]))
    return [(group, names) for group, names in found if names]


def label(evaluated: Evaluated, name: str) -> str:
    """A condition's name for people."""
    about = evaluated.variants.get(name)
    if about is None:
        return evaluated.scores["conditions"][name]["label"]
    if about["kind"] == "repeats":
        return facts.plural(int(about["value"]), "repeat")
    return f"{'Only' if about['kind'] == 'only_roi' else 'Without'} {about['value']}"


def meaning(evaluated: Evaluated, name: str, group: Group) -> str:
    """One line on what a condition is."""
    if name in evaluated.scores["inputs"].get("against", {}):
        return "another folder of reconstructions of the same stimuli"
    if group.kind == "brain":
        drawn = facts.plural(evaluated.scores["conditions"][name]["num_samples"], "picture")
        repeats = evaluated.repeats
        mean = f", the mean of {facts.plural(repeats, 'presentation')}" if repeats and repeats > 1 else ""
        return f"{drawn} drawn from the responses to each stimulus{mean}"
    there = evaluated.scores["stimuli"].get("training_pictures")
    count = int(evaluated.scores["config"].get("train_pictures") or 0) if there is None else there
    most = "at most " if there is None else ""  # records before 2026-11-23 say only what was asked for
    return MEANINGS.get(name, "").format(count=f"{most}{count:,}", ssim=min(count, SSIM_CANDIDATES))


def strip(evaluated: Evaluated) -> dict[str, Any]:
    """The headline metric of every condition as dots with intervals on one scale, by role."""
    scores, metric = evaluated.scores, evaluated.metric
    about = scores["metrics"][metric]
    percent = about["percent"]
    groups = grouped(evaluated)
    found = {
        name: scores["conditions"][name]["metrics"][metric]
        for _, names in groups
        for name in names
        if metric in scores["conditions"][name]["metrics"]
    }
    ends = [
        v for s in found.values() for v in (*(s.get("ci95") or ()), s["mean"], s["chance"], s["mispaired"])
    ]
    ticks = score_ticks(ends, percent)
    scale = Scale(ticks)
    strongest = (scores["from_the_brain"].get(metric) or {}).get("control")
    against = {row["control"]: row for row in scores["comparisons"] if row["metric"] == metric}
    shown = []
    for group, names in groups:
        rows = []
        for name in names:
            if name not in found:
                continue
            score, title = found[name], label(evaluated, name)
            spoken = (
                f"{title}: {facts.number(score['mean'], percent)}, 95 % interval "
                f"{facts.interval(score.get('ci95'), percent)}. {score['protocol']}"
            )
            drawn = interval_row(
                scale,
                score["mean"],
                score.get("ci95"),
                kind=group.kind,
                title=spoken,
                chance=score["chance"] if score["chance_kind"] == "nominal" else None,
                mispaired=score["mispaired"],
                guide=found[evaluated.primary]["mean"],
                height=44,
            )
            rows.append(
                {
                    "label": title,
                    "meaning": meaning(evaluated, name, group),
                    "strongest": name == strongest,
                    "svg": drawn,
                    "score": score,
                    "row": against.get(name),
                }
            )
        if rows:
            shown.append({"group": group, "rows": rows})
    nominal = found[evaluated.primary]["chance_kind"] == "nominal"
    return {
        "groups": shown,
        "axis": axis(scale, tick_texts(ticks, percent), about["label"]),
        "nominal": nominal,
    }


def absent(evaluated: Evaluated) -> list[tuple[str, str]]:
    """(name for people, why) of controls that this evaluation could not make."""
    names = {"training_pictures": "Controls made of training pictures"}
    found = evaluated.scores.get("absent") or {}
    return [(names.get(name) or summary.label(name), why) for name, why in found.items()]


def brain_share(evaluated: Evaluated) -> dict[str, Any] | None:
    """The headline score in two pieces: what the strongest control reaches, and what the brain adds; None without a
    control. Beside it every metric's gain in deviations of the per-image difference, so that metrics compare."""
    scores, metric = evaluated.scores, evaluated.metric
    row, about = scores["from_the_brain"].get(metric), scores["metrics"][metric]
    if row is None:
        return None
    brain = scores["conditions"][evaluated.primary]["metrics"][metric]
    control = scores["conditions"][row["control"]]["metrics"][metric]
    return {
        "row": row,
        "gain_interval": facts.gain_interval(row),
        "shown": facts.is_clear(row),
        "control": scores["conditions"][row["control"]]["label"],
        "control_score": control,
        "score": brain,
        "svg": _pieces(evaluated, row, about, brain, control),
        "effects": _effects(evaluated),
    }


def _pieces(
    evaluated: Evaluated,
    row: Mapping[str, Any],
    about: Mapping[str, Any],
    brain: Mapping[str, Any],
    control: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The bar of a score of which more is better; None for others, whose pieces would not add up from 0."""
    if about["direction"] != "higher" or min(brain["mean"], control["mean"]) < 0:
        return None
    ceilings = [
        condition["metrics"][evaluated.metric]
        for condition in evaluated.scores["conditions"].values()
        if condition["role"] == "ceiling" and evaluated.metric in condition["metrics"]
    ]
    ceiling = max((score["mean"] for score in ceilings), default=None)
    low, high = (control["mean"] + end for end in facts.gain_interval(row))
    ticks = score_ticks([low, high, brain["mean"], control["mean"], ceiling or 0.0], about["percent"])
    pieces = [("control", 0.0, min(control["mean"], brain["mean"]))]
    if brain["mean"] > control["mean"]:
        pieces.append(("brain", control["mean"], brain["mean"]))
    else:
        pieces.append(("lost", brain["mean"], control["mean"]))
    if ceiling is not None and ceiling > max(brain["mean"], control["mean"]):
        pieces.append(("ceiling", max(brain["mean"], control["mean"]), ceiling))
    else:
        ceiling = None
    scale = Scale(ticks)
    title = f"{about['label']} in pieces: without a brain, from the brain, up to the ceiling"
    return {
        "bar": shares(scale, pieces, (low, high), title),
        "axis": axis(scale, tick_texts(ticks, about["percent"]), about["label"]),
        "ceiling": ceiling,
    }


def _effects(evaluated: Evaluated) -> dict[str, Any] | None:
    """Gain over the strongest control by metric, in standard deviations of its per-image difference (Cohen's d_z)."""
    rows = []
    for name, row in evaluated.scores["from_the_brain"].items():
        size = row.get("effect_size")
        if not size:  # no spread over images, or no difference: nothing to scale by
            continue
        sd = abs(row["difference"] / size)
        low, high = (end / sd for end in facts.gain_interval(row))
        rows.append((name, row, row["gain"] / sd, low, high))
    if not rows:
        return None
    ends = [value for *_, low, high in rows for value in (low, high)]
    ticks = score_ticks(ends, percent=False)
    scale = Scale(ticks)
    shown = []
    for name, row, size, low, high in rows:
        about = evaluated.scores["metrics"][name]
        kind = "brain" if facts.is_clear(row) else "control"
        title = f"{about['label']}: d {size:.2f}, 95 % interval {low:.2f} to {high:.2f}"
        drawn = interval_row(scale, size, (low, high), kind=kind, title=title, guide=0.0, height=42)
        control = evaluated.scores["conditions"][row["control"]]["label"]
        shown.append({"about": about, "row": row, "control": control, "svg": drawn, "size": size})
    return {"rows": shown, "axis": axis(scale, tick_texts(ticks, False), "Effect size")}


def table(evaluated: Evaluated) -> dict[str, Any]:
    """Rows are conditions by role, columns are metrics; then chance, wrong stimuli, and what comes from the brain."""
    scores = evaluated.scores
    metrics = scores["metrics"]
    best = {
        name: (max if about["direction"] == "higher" else min)(
            condition["metrics"][name]["mean"]
            for key, condition in scores["conditions"].items()
            if name in condition["metrics"]
            and (key == evaluated.primary or condition["role"] in ("other", "rival"))
            and key not in evaluated.variants
        )
        for name, about in metrics.items()
        if name in scores["conditions"][evaluated.primary]["metrics"]
    }
    groups = []
    for group, names in grouped(evaluated, variants=True):
        rows = []
        for name in names:
            own = scores["conditions"][name]["metrics"]
            cells = [
                {
                    "score": own.get(metric),
                    "about": about,
                    "best": group.kind in ("brain", "rival")
                    and metric in own
                    and own[metric]["mean"] == best.get(metric),
                }
                for metric, about in metrics.items()
            ]
            rows.append({"label": label(evaluated, name), "cells": cells})
        groups.append({"group": group, "rows": rows})
    gains = []
    for metric, about in metrics.items():
        row = scores["from_the_brain"].get(metric)
        control = scores["conditions"][row["control"]]["label"] if row else None
        gains.append(
            {"about": about, "row": row, "control": control, "shown": bool(row) and facts.is_clear(row)}
        )
    rivals = sum(len(names) for group, names in grouped(evaluated) if group.kind in ("brain", "rival"))
    return {"groups": groups, "gains": gains, "marks_best": rivals > 1}


def best_of(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Mean, best sample of every image and best run of every condition that has several samples."""
    rows = []
    for group, names in grouped(evaluated):
        for name in names:
            condition = evaluated.scores["conditions"][name]
            score = condition["metrics"].get(evaluated.metric, {})
            if condition["num_samples"] > 1 and "best_of" in score:
                rows.append(
                    {
                        "label": label(evaluated, name),
                        "group": group,
                        "k": condition["num_samples"],
                        "score": score,
                    }
                )
    return rows

"""What the pages say in words: numbers, intervals, p values, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cadiff.evaluate.names import shipped_names as shipped_names

ALPHA = 0.05


def number(value: float | None, percent: bool, *, signed: bool = False) -> str:
    """A score or a difference for people: 12.3 % or 0.123."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.1f} %" if percent else f"{value:{sign}.3f}"
    return text.replace("-", "−")


def interval(ends: Sequence[float] | None, percent: bool, *, signed: bool = False) -> str:
    """Both ends of an interval, the unit once."""
    if ends is None:
        return "no interval"
    low, high = (number(end, percent, signed=signed) for end in ends)
    return f"{low.removesuffix(' %')} to {high}"


def points(text: str) -> str:
    """A difference of percentages is in points."""
    return text.replace(" %", " points")


def p_text(p: float) -> str:
    """A p value with the digits it deserves."""
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.01 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def plural(count: int, word: str) -> str:
    """1 image, 2 images, 1,200 images."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def capital(text: str) -> str:
    """The first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def stamp(evaluation: Mapping[str, Any]) -> str:
    """What a protocol string ends in, so that it says how often the test set was looked at and what chose the system: for
    example "/look-3/selected-on-validation"; empty where looks were not counted."""
    integrity = evaluation.get("integrity")
    if integrity is None:
        return ""
    chosen = integrity["selected_on"] or "undeclared"
    look = f"/look-{integrity['looks_before'] + 1}" if integrity["kept"] else ""
    return f"{look}/selected-on-{chosen}"


def gain_interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a comparison's gain: that of the difference, turned round where lower is better."""
    low, high = row["ci95"]
    return (low, high) if row["gain"] == row["difference"] else (-high, -low)


def is_clear(row: Mapping[str, Any]) -> bool:
    """Whether a comparison shows a gain: an interval above 0 and a corrected p below `ALPHA`."""
    return row["p_holm"] < ALPHA and gain_interval(row)[0] > 0


def verdict(evaluation: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether the headline beats the strongest control, and one sentence that says so; None without any
    control."""
    metric = evaluation["headline"]["metric"]
    about = evaluation["metrics"][metric]
    best = evaluation["from_the_brain"].get(metric)
    if best is None:
        return (
            None,
            "No control was drawn, so nothing here shows that the brain, not the prior, made these pictures.",
        )
    name = evaluation["conditions"][best["control"]]["label"]
    name = name[:1].lower() + name[1:]
    gain = points(number(best["gain"], about["percent"], signed=True))
    ends = points(interval(gain_interval(best), about["percent"]))
    tail = (
        f"{gain} over the strongest control, {name} (95 % interval {ends}; "
        f"paired permutation over images, Holm-corrected {p_text(best['p_holm'])})."
    )
    if is_clear(best):
        return True, f"The pictures follow the brain: {tail}"
    return False, f"Not shown that the pictures follow the brain: {tail}"


def other_metrics(evaluation: Mapping[str, Any]) -> str:
    """What the metrics beside the headline say about the strongest control, in a sentence; empty without any."""
    above, below, open_ones = [], [], []
    for name, row in evaluation["from_the_brain"].items():
        if name == evaluation["headline"]["metric"]:
            continue
        label = evaluation["metrics"][name]["label"].replace(",", "")  # commas part the list
        if is_clear(row):
            above.append(label)
        elif row["p_holm"] < ALPHA and gain_interval(row)[1] < 0:
            below.append(label)
        else:
            open_ones.append(label)
    told = (("above it", above), ("below it", below), ("no difference shown", open_ones))
    parts = [f"{what}: {', '.join(labels)}" for what, labels in told if labels]
    return f"By other metrics, each against its strongest control: {'; '.join(parts)}." if parts else ""

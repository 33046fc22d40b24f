"""What the paired tests allow to say of a trace, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cadiff.report import facts
from cadiff.trace.scores import METRICS, Difference

METRIC = "two_way"
"""What the sentence is about."""


def verdict(
    labels: Mapping[str, str],
    means: Mapping[str, float],
    steps: Sequence[Difference],
    over_random: Sequence[Difference],
    over_betas: Sequence[Difference],
) -> str:
    """Where the largest loss is, and whether trained tokens are above those of a random encoder, and above the betas.

    Args:
        labels: station -> its name for people. means: station -> mean score.
        steps: each station of the way to the picture minus the one before it.
        over_random, over_betas: stations of trained tokens minus the random encoder's, and minus the betas.
    """
    return f"{_loss(labels, means, steps)}; {_trained(labels, over_random, over_betas)}."


def _loss(labels: Mapping[str, str], means: Mapping[str, float], steps: Sequence[Difference]) -> str:
    worst = min(steps, key=lambda step: step.difference)
    way = f"from {_name(labels, worst.second)} to {_name(labels, worst.first)}"
    low, high = (facts.points(facts.number(end, True, signed=True)) for end in worst.ci95)
    told = f"95 % interval {low.removesuffix(' points')} to {high}, {facts.p_text(worst.p_holm)}"
    size = facts.points(facts.number(worst.difference, True, signed=True))
    if worst.shown >= 0:
        return f"No step on the way is shown to lose anything (the lowest, {way}: {size}, {told})"
    ends = f"{facts.number(means[worst.second], True)} to {facts.number(means[worst.first], True)}"
    return f"The largest loss is {way}: {size} of {METRICS[METRIC]['label'].lower()}, {ends} ({told})"


def _trained(
    labels: Mapping[str, str], over_random: Sequence[Difference], over_betas: Sequence[Difference]
) -> str:
    above = {
        "a random encoder's": [row for row in over_random if row.shown > 0],
        "the betas": [row for row in over_betas if row.shown > 0],
    }
    parts = [
        f"{_list([_name(labels, row.first) for row in rows])} are shown to be above {what}"
        for what, rows in above.items()
        if rows
    ]
    if none := [what for what, rows in above.items() if not rows]:
        whose = "the tuned tokens are not" if len(over_random) == 1 else "none of the trained tokens is"
        parts.append(f"{whose} shown to be above {' or '.join(none)}")
    if below := [_name(labels, row.first) for row in over_betas if row.shown < 0]:
        parts.append(f"{_list(below)} are shown to be below the betas")
    return ", ".join(parts)


def _name(labels: Mapping[str, str], station: str) -> str:
    label = labels[station]
    return label[:1].lower() + label[1:]


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

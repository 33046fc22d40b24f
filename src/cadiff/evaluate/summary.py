"""Scores of images -> means, intervals, chance levels and paired comparisons, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cadiff.evaluate.metrics import Metric
from cadiff.evaluate.statistics import bootstrap_interval, compare, holm

BRAIN = "brain"
CONDITIONS = {
    BRAIN: ("Brain", "brain"),
    "prior_only": ("Prior only", "control"),
    "shuffled": ("Shuffled brain", "control"),
    "label_oracle": ("True label (oracle)", "ceiling"),
    "autoencoded": ("Auto-encoded stimulus", "ceiling"),
    "noise_free": ("Noise-free responses (simulated)", "ceiling"),
    "permutation": ("Random pairing", "control"),
    "mean_image": ("Mean training picture", "control"),
    "random_train": ("Random training picture", "control"),
    "constant_train": ("Best constant, chosen on training", "control"),
    "constant_test": ("Best constant, chosen on test (attack)", "attack"),
    "coarse_category": ("Knows one of nine categories (oracle)", "oracle"),
    "class_mean": ("Mean training picture of its class (oracle)", "oracle"),
    "class_mean_oracle": ("Mean training picture of its class (oracle)", "oracle"),
    "nearest_train": ("Training picture nearest to the reconstruction", "rival"),
}
"""Known conditions: name for people, and role. Any other condition is a system of its own, role "other"."""
FAMILIES = (("brain", "control", "attack", "rival", "other"), ("oracle", "ceiling"), ("variant",))
"""Roles that are corrected together for the number of comparisons."""


def label(condition: str, variant: Mapping[str, Any] | None = None) -> str:
    """A condition's name for people; `variant` is what the reconstructions say of one."""
    if variant:
        value, plural = variant["value"], "" if variant["value"] == 1 else "s"
        words = {
            "repeats": f"{value} repeat{plural}",
            "only_roi": f"only {value}",
            "without_roi": f"without {value}",
        }
        return words.get(variant["kind"], condition)
    return CONDITIONS.get(condition, (condition.replace("_", " ").capitalize(), ""))[0]


def role(condition: str, variant: Mapping[str, Any] | None = None) -> str:
    """What a condition is for.

    "brain"; "control" needs no brain; "attack" is a control that was chosen on the test set; "oracle" is told something
    about the stimulus; "ceiling" is all that the generator could do; "rival" is another system; "variant" is the system
    itself with less to go by; "other" is whatever else the folder holds.
    """
    if variant:
        return "variant"
    return CONDITIONS.get(condition, ("", "other"))[1]


@dataclass(frozen=True)
class Draws:
    """How often images are resampled, and the seed."""

    num: int
    seed: int


def summary(
    metric: Metric, samples: np.ndarray, mispaired: float, protocol: str, draws: Draws
) -> dict[str, Any]:
    """One metric of one condition; `samples` (images, samples)."""
    values = samples.mean(axis=1)
    best = samples.max(axis=1) if metric.higher_is_better else samples.min(axis=1)
    runs = samples.mean(axis=0)
    k = samples.shape[1]
    return {
        "mean": float(values.mean()),
        "ci95": _interval(values, draws),
        "sd_over_images": float(values.std(ddof=1)),
        "chance": mispaired if metric.chance is None else metric.chance,
        "chance_kind": "mispaired" if metric.chance is None else "nominal",
        "mispaired": mispaired,
        "n": len(values),
        "direction": "higher" if metric.higher_is_better else "lower",
        "protocol": protocol,
        "best_of": {
            "mean": float(best.mean()),
            "ci95": _interval(best, draws),
            "protocol": protocol.replace(f"mean-of-{k}", f"best-of-{k}-per-image"),
        },
        "best_run": {
            "mean": float(runs.max() if metric.higher_is_better else runs.min()),
            "protocol": protocol.replace(f"mean-of-{k}", f"best-of-{k}-runs"),
        },
    }


def _interval(values: np.ndarray, draws: Draws) -> list[float]:
    return list(bootstrap_interval(values, num_draws=draws.num, seed=draws.seed))


def comparisons(
    per_image: dict[str, dict[str, np.ndarray]],
    metrics: dict[str, Metric],
    primary: str,
    draws: Draws,
    roles: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The primary condition against every other one, for every metric.

    Holm's correction runs over what claims to be beaten: per metric, all controls, attacks and rivals together. Oracles and
    ceilings, which are told something about the stimulus, are a family of their own, and so are variants of the system
    itself (fewer repeats, some ROIs).

    A condition that has no such score takes no part: one picture for every stimulus cannot be retrieved.

    `difference` is primary minus other in the metric's own units; `gain` is the same with the sign turned
    where lower is better, so a positive gain always favours the primary condition.
    """
    rows = []
    for name, metric in metrics.items():
        for control in per_image:
            if control == primary or any(name not in per_image[one] for one in (primary, control)):
                continue
            found = compare(
                per_image[primary][name],
                per_image[control][name],
                num_draws=draws.num,
                seed=draws.seed,
            )
            values = {key: _json_number(value) for key, value in asdict(found).items()}
            interval = [values.pop("low"), values.pop("high")]
            gain = found.difference if metric.higher_is_better else -found.difference
            row = {"metric": name, "condition": primary, "control": control, **values}
            rows.append({**row, "ci95": interval, "gain": gain})
    return corrected(rows, roles)


def corrected(rows: list[dict[str, Any]], roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows with `p_holm`: Holm's correction within each metric and family of roles (`FAMILIES`)."""
    for name in {row["metric"] for row in rows}:
        for members in FAMILIES:
            family = [r for r in rows if r["metric"] == name and roles[r["control"]] in members]
            adjusted = holm(np.array([row["p"] for row in family])) if family else []
            for row, p in zip(family, adjusted, strict=True):
                row["p_holm"] = float(p)
    return rows


def from_the_brain(rows: list[dict[str, Any]], roles: Mapping[str, str]) -> dict[str, Any]:
    """Per metric the comparison with the strongest control: what the brain adds beyond what needs no brain.

    `rows` are those of `comparisons`. Conditions that are no controls, such as an oracle, take no part.
    """
    result: dict[str, Any] = {}
    for row in rows:
        if roles[row["control"]] == "control":
            best = result.get(row["metric"])
            if best is None or row["gain"] < best["gain"]:
                result[row["metric"]] = row
    return result


def describe(metric: Metric) -> dict[str, Any]:
    """What a reader of evaluation.json needs to know about a metric."""
    return {
        "label": metric.label,
        "direction": "higher" if metric.higher_is_better else "lower",
        "percent": metric.percent,
        "protocol": metric.protocol,
        "needs_judge": metric.needs_judge,
        "meaning": metric.meaning,
    }


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

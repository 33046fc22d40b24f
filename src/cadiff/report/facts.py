"""What the page says in words: numbers, the verdict, facts about the data, the run card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from cadiff.artifacts import read_json
from cadiff.data.dataset import BrainDataset

ALPHA = 0.05


def number(value: float | None, percent: bool, *, signed: bool = False) -> str:
    """A score or a difference for people: 12.3 % or 0.123."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.1f} %" if percent else f"{value:{sign}.3f}"
    return text.replace("-", "−")


def interval(ends: Sequence[float], percent: bool, *, signed: bool = False) -> str:
    """Both ends of an interval, the unit once."""
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
    name = evaluation["conditions"][best["control"]]["label"].lower()
    low, high = best["ci95"] if best["gain"] == best["difference"] else [-v for v in reversed(best["ci95"])]
    gain = points(number(best["gain"], about["percent"], signed=True))
    ends = points(interval((low, high), about["percent"]))
    tail = (
        f"{gain} over the strongest control, {name} (95 % interval {ends}; "
        f"paired permutation over images, Holm-corrected {p_text(best['p_holm'])})."
    )
    if best["p_holm"] < ALPHA and low > 0:
        return True, f"The pictures follow the brain: {tail}"
    return False, f"Not shown that the pictures follow the brain: {tail}"


def data_facts(dataset: BrainDataset) -> list[tuple[str, str]]:
    """(name, value) pairs about the subject and the stimuli."""
    about, trials, voxels = dataset.description, dataset.trials, dataset.voxels
    facts = [
        ("Dataset", str(about.get("name", dataset.folder.name))),
        ("Subject", str(about.get("subject", "?"))),
    ]
    if about.get("simulated"):
        facts.append(("Brain", f"simulated, preset “{about.get('preset', '?')}”"))
    if about.get("snr") is not None:
        facts.append(("Single-trial SNR", f"{about['snr']:g} (signal sd / noise sd, mean over voxels)"))
    if about.get("design"):
        facts.append(("Design", str(about["design"])))
    for split, name in (("train", "Training"), ("test", "Test"), ("unlabelled", "Unlabelled")):
        rows = trials[trials["split"] == split]
        if len(rows):
            shown = "" if split == "unlabelled" else f" of {rows['stimulus_id'].nunique():,} stimuli"
            facts.append((name, f"{len(rows):,} trials{shown}"))
    rois = sorted({roi for names in voxels["rois"] for roi in str(names).split(",") if roi})
    facts.append(("Voxels", f"{len(voxels):,}" + (f" in {', '.join(rois)}" if rois else "")))
    ceiling = voxels["noise_ceiling"].dropna()
    if len(ceiling):
        facts.append(
            ("Noise ceiling", f"median {ceiling.median():.3f}, 95th percentile {ceiling.quantile(0.95):.3f}")
        )
    if about.get("units"):
        facts.append(("Units", str(about["units"])))
    if about.get("stimuli"):
        facts.append(("Stimuli", str(about["stimuli"])))
    for key in ("licence", "citation"):
        if about.get(key):
            facts.append((key.capitalize(), str(about[key])))
    return facts


def shipped_names() -> dict[str, str]:
    """WordNet id -> name of the classes that the shipped prior was trained on."""
    asset = resources.files("cadiff") / "assets" / "prior" / "prior.json"
    if not asset.is_file():
        return {}
    prior = json.loads(asset.read_text())
    return dict(zip(prior["classes"], prior.get("names", prior["classes"]), strict=False))


def run_card(
    evaluation: Mapping[str, Any], about: Mapping[str, Any], runs: Sequence[Path]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of (name, value): how pictures were drawn and scored, with which versions, from which
    bytes."""
    card = [("Evaluation", _flat(evaluation["config"]))]
    card.append(("Reconstruction", _flat(about.get("config") or {})))
    for run in runs:
        record = read_json(run / "run.json")
        fields = _flat({"status": record.get("status"), **record.get("config", {}).get("fit", {})})
        card.append((f"Training: {record.get('stage', run.name)}", fields))
    provenance = evaluation["provenance"]
    made = [("created", provenance.get("created", "?")), ("command", provenance.get("command", "?"))]
    card.append(("Versions", [*made, *_flat(provenance.get("versions", {}))]))
    inputs = {key: value for key, value in evaluation["inputs"].items() if key.endswith("sha256")}
    digests = {**inputs, **(about.get("provenance", {}).get("inputs") or {})}
    card.append(
        ("Digests (SHA-256)", [(key.removesuffix("_sha256"), str(value)) for key, value in digests.items()])
    )
    return [(title, fields) for title, fields in card if fields]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = (
                ", ".join(map(str, value))
                if isinstance(value, list)
                else "–"
                if value is None
                else str(value)
            )
            rows.append((f"{prefix}{key}", text))
    return rows

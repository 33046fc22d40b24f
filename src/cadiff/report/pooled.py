"""`cadiff report SUB1 SUB2 ...`: several subjects pooled, on one page that stands alone; and the numbers as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.artifacts import provenance, refuse_existing, write_json
from cadiff.evaluate.hierarchy import FEW_SUBJECTS
from cadiff.evaluate.subjects import pool_subjects
from cadiff.report import facts
from cadiff.report import pooled_charts as charts
from cadiff.report.figures import picture_uri
from cadiff.report.inputs import Evaluated
from cadiff.report.render import write_page

NUM_PICTURES = 24
"""Stimuli of the gallery over all subjects, each subject's drawn by seed."""
MOST_EACH = 6


def write_pooled(
    parts: Sequence[Evaluated],
    page: Path,
    *,
    names: Sequence[str] | None = None,
    json: Path | None = None,
    seed: int = 0,
) -> Path:
    """Writes the page about several subjects, and what `pool_subjects` finds as JSON where asked for.

    Raises:
        ConfigError: protocols differ. DataError: two evaluations of the same subject and stimuli.
        ArtifactError: `json` exists.
    """
    if json is not None:
        refuse_existing(json)
    pooled = pool_subjects(parts, names=names)
    if json is not None:
        write_json(json, {**pooled, "provenance": provenance()})
    return write_page("pooled.html.j2", _context(pooled, parts, seed), page)


def _context(pooled: dict[str, Any], parts: Sequence[Evaluated], seed: int) -> dict[str, Any]:
    metric, primary = pooled["headline"]["metric"], pooled["headline"]["condition"]
    about = pooled["metrics"][metric]
    row = pooled["from_the_brain"].get(metric)
    return {
        "pooled": pooled,
        "scores": parts[0].scores,
        "created": "",
        "about": about,
        "percent": about["percent"],
        "headline": pooled["conditions"][primary]["metrics"][metric],
        "verdict": _verdict(pooled, row),
        "others": facts.other_metrics(pooled),
        "few": _few(pooled),
        "strip": charts.strip(pooled, parts),
        "each": charts.each(pooled, parts, row),
        "table": charts.table(pooled),
        "pairs": [
            charts.pairs(pooled, name) for name in sorted(pooled["metrics"], key=lambda name: name != metric)
        ],
        "variance": charts.variance(pooled),
        "gallery": _gallery(pooled, parts, seed),
        "card": [_card(part, entry) for part, entry in zip(parts, pooled["subjects"], strict=True)],
        "protocols": [score["protocol"] for score in pooled["conditions"][primary]["metrics"].values()],
        "statistics": _statistics(pooled),
        "smooth": parts[0].scores["pictures"]["width"] >= 48,
        "seed": seed,
    }


def _verdict(pooled: Mapping[str, Any], row: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is shown of these subjects, and what of people, in a sentence each."""
    count = pooled["num_subjects"]
    who = "this subject" if count == 1 else f"these {facts.plural(count, 'subject')}"
    if row is None:
        return {
            "shown": False,
            "here": "No control is in all evaluations, so nothing here shows that the brain, not the prior, made these pictures.",
            "people": "",
        }
    percent = pooled["metrics"][row["metric"]]["percent"]
    name = pooled["conditions"][row["control"]]["label"]
    gain = facts.points(facts.number(row["gain"], percent, signed=True))
    low, high = charts.gain_interval(row, "ci95_t")
    ends = facts.points(facts.interval((low, high), percent, signed=True))
    shown = charts.is_shown(row)
    here = (
        f"{f'In {who} the' if shown else f'Not shown that in {who} the'} pictures follow the brain: {gain} over the strongest "
        f"control, {name[:1].lower() + name[1:]} (sign flips image by image, Holm-corrected {facts.p_text(row['p_holm'])})."
    )
    if count == 1:
        people = "Nothing is known about other people: images alone were drawn anew for the intervals."
    elif low > 0:
        people = f"For other people and other images the gain lies between {ends} (95 % t interval over {count} subjects)."
    else:
        people = (
            f"For other people nothing is shown: the 95 % t interval over {count} subjects runs from {ends}."
        )
    return {"shown": shown, "here": here, "people": people}


def _few(pooled: Mapping[str, Any]) -> str | None:
    """How little so few subjects tell about people; None where they are many."""
    count, spread = pooled["num_subjects"], pooled["spread"]
    if spread is None or count >= FEW_SUBJECTS:
        return None
    low, high = spread["factors"]
    return (
        f"How much people differ is hardly known from {count} subjects: their true spread may be {low:.2f} to {high:.1f} times "
        "the one seen here. The bootstrap (bars) cannot draw a person whom it has not met, and is too narrow where people "
        "differ: read the t interval (between the caps)."
    )


def _gallery(pooled: Mapping[str, Any], parts: Sequence[Evaluated], seed: int) -> dict[str, Any]:
    """Stimuli of every subject, drawn by seed: what was seen, and the first sample of the brain."""
    primary, metric = pooled["headline"]["condition"], pooled["headline"]["metric"]
    each = max(1, min(MOST_EACH, NUM_PICTURES // len(parts)))
    groups = []
    for number, (part, entry) in enumerate(zip(parts, pooled["subjects"], strict=True)):
        drawn = np.random.default_rng([seed, number]).permutation(np.array(part.stimulus_ids))[:each]
        items = []
        for stimulus_id in map(str, drawn):
            row = part.rows(primary, stimulus_id).iloc[0]
            seen, made = picture_uri(part.stimulus(stimulus_id)), picture_uri(part.picture(row))
            items.append({"id": stimulus_id, "seen": seen, "drawn": made, "score": float(row[metric])})
        groups.append({"name": entry["name"], "pictures": items})
    return {"groups": groups, "each": each}


def _card(part: Evaluated, entry: Mapping[str, Any]) -> dict[str, Any]:
    made = part.scores["provenance"]
    return {
        **entry,
        "scored": str(made.get("created", "?"))[:16].replace("T", " "),
        "command": made.get("command", "?"),
        "version": (made.get("versions") or {}).get("cadiff", "?"),
        "judge": (part.scores.get("judge") or {}).get("name"),
    }


def _statistics(pooled: Mapping[str, Any]) -> str:
    """How intervals and p values were made, in words."""
    images = "images for all of them at once" if pooled["shared_images"] else "then the images of each"
    effects = "the subjects' means"
    if pooled["num_shared"]:
        effects = "subjects and the images that several of them saw as random effects (Satterthwaite)"
        if not pooled["shared_images"]:
            images = "then their images, one that several saw for all of these at once"
    return (
        f"Subjects weigh the same. Bootstrap: subjects are drawn anew, {images}, {pooled['config']['num_bootstrap']:,} times; "
        f"percentiles. t interval: of {effects}. Tests: differences change sign image by image, in everybody who saw it at once, "
        "Holm-corrected; they are about these subjects."
    )

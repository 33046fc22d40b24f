"""`cadiff report`: one HTML page that stands alone, from an evaluation folder and what it points to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from cadiff import __version__
from cadiff.artifacts import atomic_path, folder_digest, read_json, refuse_existing
from cadiff.data.dataset import BrainDataset
from cadiff.errors import ArtifactError
from cadiff.report import facts, figures
from cadiff.report.gallery import MAX_BRAIN, MAX_CONTROL, Gallery
from cadiff.report.notes import notes

STAGES = ("prior", "contrast", "attend", "diffuse")


def report(
    evaluation: Path,
    out: Path,
    *,
    runs: Sequence[Path] | None = None,
    reconstructions: Path | None = None,
    dataset: Path | None = None,
    seed: int = 0,
) -> Path:
    """Writes the page and returns its path.

    Args:
        evaluation: folder of `evaluate`. It records where reconstructions and dataset lie, relative to
            itself. out: a path that ends in .html, or a folder in which report.html is made. runs: folders of
            training stages whose curves are shown; default: those beside the evaluation. reconstructions,
            dataset: their folders, where they were moved since. seed: of the random choice of stimuli in the
            gallery.

    Raises:
        ArtifactError: not an evaluation, the page exists, or the pictures are gone or changed since they were
            scored.
    """
    evaluation, out = Path(evaluation), Path(out)
    page = out if out.suffix == ".html" else out / "report.html"
    refuse_existing(page)
    scores = read_json(evaluation / "evaluation.json")
    if scores.get("kind") != "evaluation":
        raise ArtifactError(f"{evaluation} holds no evaluation; make one with `cadiff evaluate`.")
    pictures = _locate(evaluation, scores, "reconstructions", reconstructions)
    if folder_digest(pictures) != scores["inputs"]["reconstructions_sha256"]:
        raise ArtifactError(f"{pictures} has changed since it was scored: evaluate it again.")
    folders = {"": pictures}
    for name, rival in scores["inputs"].get("against", {}).items():
        folders[name] = (evaluation / rival["folder"]).resolve()
        if not folders[name].is_dir() or folder_digest(folders[name]) != rival["sha256"]:
            raise ArtifactError(
                f"{folders[name]} ({name}) is gone or has changed since it was scored: evaluate it again."
            )
    subject = BrainDataset.open(_locate(evaluation, scores, "dataset", dataset))
    curves = _find_runs(evaluation) if runs is None else [Path(run) for run in runs]
    gallery = Gallery(scores, folders, subject, _tables(evaluation), seed)
    about = read_json(pictures / "config.json")
    shows, sentence = facts.verdict(scores)
    context = {
        "version": __version__,
        "scores": scores,
        "simulated": bool(subject.description.get("simulated")),
        "subject": scores["dataset"].get("subject") or "one subject",
        "dataset_name": scores["dataset"].get("name") or subject.folder.name,
        "created": str(scores["provenance"].get("created", ""))[:10],
        "shows": shows,
        "verdict": sentence,
        "headline": _headline(scores),
        "chart": _chart(scores),
        "first": gallery.first(),
        "notes": notes(scores, subject),
        "table": _table(scores),
        "per_image": gallery.chart(),
        "groups": gallery.groups(),
        "data_facts": facts.data_facts(subject),
        "curves": _curves(curves),
        "card": facts.run_card(scores, about, curves),
        "protocol": scores["conditions"][scores["headline"]["condition"]]["metrics"],
        "smooth": scores["pictures"]["width"] >= 48,
        "seed": seed,
        "max_brain": MAX_BRAIN,
        "max_control": MAX_CONTROL,
    }
    template = (resources.files("cadiff") / "report" / "page.html.j2").read_text(encoding="utf-8")
    engine = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters["number"] = facts.number
    engine.filters["interval"] = facts.interval
    engine.filters["points"] = facts.points
    engine.filters["p_text"] = facts.p_text
    html = engine.from_string(template).render(context)
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def _locate(evaluation: Path, scores: Mapping[str, Any], name: str, given: Path | None) -> Path:
    folder = Path(given) if given is not None else (evaluation / scores["inputs"][name]).resolve()
    if not folder.is_dir():
        raise ArtifactError(
            f"The {name} that {evaluation} scored are not at {folder}: "
            f"move them back, or name their folder ({name}=...)."
        )
    return folder


def _tables(evaluation: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """per_image.tsv and per_sample.tsv."""
    text = {"condition": str, "stimulus_id": str, "file": str, "origin": str}
    options: dict[str, Any] = {"sep": "\t", "dtype": text, "keep_default_na": False, "na_values": ["n/a"]}
    for name in ("per_image.tsv", "per_sample.tsv"):
        if not (evaluation / name).is_file():
            raise ArtifactError(f"{evaluation} lacks {name}: evaluate again.")
    images, samples = (
        pd.read_csv(evaluation / name, **options) for name in ("per_image.tsv", "per_sample.tsv")
    )
    return images, samples.fillna({"origin": ""}) if "origin" in samples else samples.assign(origin="")


def _find_runs(evaluation: Path) -> list[Path]:
    """Training runs beside the evaluation, in the order of the stages."""
    folders = [f for f in sorted(evaluation.resolve().parent.iterdir()) if (f / "log.jsonl").is_file()]
    stages = {f: str(read_json(f / "run.json").get("stage")) for f in folders if (f / "run.json").is_file()}
    known = [f for f in stages if stages[f] in STAGES]
    return sorted(known, key=lambda f: (STAGES.index(stages[f]), f.name))


def _headline(scores: Mapping[str, Any]) -> dict[str, Any]:
    metric, condition = scores["headline"]["metric"], scores["headline"]["condition"]
    return {
        "about": scores["metrics"][metric],
        "score": scores["conditions"][condition]["metrics"][metric],
        "condition": scores["conditions"][condition],
    }


def _chart(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The headline metric of every condition as dots with intervals on one scale."""
    metric = scores["headline"]["metric"]
    about = scores["metrics"][metric]
    found = {name: condition["metrics"][metric] for name, condition in scores["conditions"].items()}
    ends = [
        value for score in found.values() for value in (*score["ci95"], score["chance"], score["mispaired"])
    ]
    floor = 0.0 if about["percent"] else min(0.0, *ends)
    ticks = figures.nice_ticks(floor, max(ends), 6)
    if about["percent"]:
        ticks = [t for t in ticks if t <= 1.0 + 1e-9]
    scale = figures.Scale(ticks)
    rows = []
    for name, score in found.items():
        condition = scores["conditions"][name]
        mean, (low, high) = score["mean"], score["ci95"]
        percent = about["percent"]
        interval = facts.interval((low, high), percent)
        drawn = figures.interval_row(
            scale,
            mean,
            score["ci95"],
            kind=condition["role"],
            title=f"{condition['label']}: {facts.number(mean, percent)}, 95 % interval {interval}",
            chance=score["chance"] if score["chance_kind"] == "nominal" else None,
            mispaired=score["mispaired"],
        )
        value = facts.number(mean, percent)
        rows.append({"label": condition["label"], "svg": drawn, "value": value, "interval": interval})
    texts = [f"{100 * t:g} %" if about["percent"] else f"{t:g}" for t in ticks]
    nominal = found[scores["headline"]["condition"]]["chance_kind"] == "nominal"
    return {"rows": rows, "axis": figures.axis(scale, texts, about["label"]), "nominal": nominal}


def _table(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric: every condition, then the gain over the strongest control."""
    rows = []
    for name, about in scores["metrics"].items():
        cells = [condition["metrics"][name] for condition in scores["conditions"].values()]
        gain = scores["from_the_brain"].get(name)
        control = scores["conditions"][gain["control"]]["label"] if gain else None
        clear = bool(gain) and gain["p_holm"] < facts.ALPHA and gain["gain"] > 0
        rows.append({"about": about, "cells": cells, "gain": gain, "control": control, "clear": clear})
    return rows


def _curves(runs: Sequence[Path]) -> list[dict[str, Any]]:
    found = []
    for run in runs:
        path = run / "log.jsonl"
        if not path.is_file():
            raise ArtifactError(f"{run} has no log.jsonl, so it is no training run to draw a curve of.")
        records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        points = [
            (r["step"], r["loss"]) for r in records if "step" in r and "loss" in r and np.isfinite(r["loss"])
        ]
        if len(points) < 2:
            continue
        steps, losses = zip(*points, strict=True)
        name = (
            read_json(run / "run.json").get("stage", run.name) if (run / "run.json").is_file() else run.name
        )
        wide = min(losses) > 0 and max(losses) / min(losses) > 30
        drawn = figures.curve(steps, losses, title=f"Training loss of {name}", log=wide)
        found.append({"name": name, "svg": drawn, "log": wide, "last": losses[-1], "steps": steps[-1]})
    return found

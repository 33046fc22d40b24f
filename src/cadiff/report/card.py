"""Where the numbers come from: facts about the data, the run card, the ledger of looks, training curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.artifacts import read_json
from cadiff.data.dataset import BrainDataset
from cadiff.errors import ArtifactError
from cadiff.looks import NAME, read_ledger
from cadiff.report.charts import loss_curve
from cadiff.report.inputs import Evaluated

STAGES = ("prior", "contrast", "attend", "diffuse")
LAST_LOOKS = 12
"""Lines of the ledger that are shown."""
Fields = list[tuple[str, str]]


def data_facts(evaluated: Evaluated) -> Fields:
    """(name, value) pairs about the subject and the stimuli."""
    if evaluated.subject is None:
        shown = (
            f"{len(evaluated.stimuli):,} pictures in a folder; nothing is known about the brain data behind"
        )
        return [("Stimuli", shown)]
    return _subject_facts(evaluated.subject)


def _subject_facts(dataset: BrainDataset) -> Fields:
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


def run_card(evaluated: Evaluated, runs: Sequence[Path]) -> list[tuple[str, Fields]]:
    """Titled lists of (name, value): how pictures were drawn and scored, with which versions and seeds, from which
    bytes."""
    scores, about = evaluated.scores, evaluated.about
    card = [("Evaluation", _flat(scores["config"])), ("Reconstruction", _flat(about.get("config") or {}))]
    weights: dict[str, Any] = {}
    for run in runs:
        record = read_json(run / "run.json")
        stage = record.get("stage", run.name)
        fields = _flat({"status": record.get("status"), **record.get("config", {}).get("fit", {})})
        card.append((f"Training: {stage}", fields))
        weights.update({f"{stage}: {name}": digest for name, digest in (record.get("inputs") or {}).items()})
    for title, record in (("Scored with", scores["provenance"]), ("Drawn with", about.get("provenance", {}))):
        made = [(key, str(record[key])) for key in ("created", "command") if key in record]
        card.append((title, [*made, *_flat(record.get("versions", {}))]))
    inputs = {key: value for key, value in scores["inputs"].items() if key.endswith("sha256")}
    rivals = {name: rival["sha256"] for name, rival in scores["inputs"].get("against", {}).items()}
    drawn = {
        f"drawn from {key}": value for key, value in (about.get("provenance", {}).get("inputs") or {}).items()
    }
    card.append(
        (
            "Digests (SHA-256)",
            [
                (key.removesuffix("_sha256"), str(v))
                for key, v in {**inputs, **rivals, **drawn, **weights}.items()
            ],
        )
    )
    return [(title, fields) for title, fields in card if fields]


def ledger(evaluated: Evaluated) -> dict[str, Any] | None:
    """The looks at this test split that are on record beside the data, the last ones first; None without a ledger."""
    looks, intact = read_ledger(evaluated.dataset / NAME)
    if not looks:
        return None
    own = evaluated.scores["inputs"]["reconstructions_sha256"]
    rows = [
        {
            "look": look.get("look", "?"),
            "time": str(look.get("time", "?"))[:16].replace("T", " "),
            "systems": [f"{name} {str(digest)[:8]}" for name, digest in look["systems"].items()],
            "own": own in look["systems"].values(),
        }
        for look in reversed(looks)
    ]
    systems = {digest for look in looks for digest in look["systems"].values()}
    return {
        "rows": rows[:LAST_LOOKS],
        "hidden": max(len(rows) - LAST_LOOKS, 0),
        "count": len(rows),
        "systems": len(systems),
        "intact": intact,
    }


def find_runs(evaluation: Path) -> list[Path]:
    """Training runs beside the evaluation, in the order of the stages."""
    folders = [f for f in sorted(evaluation.resolve().parent.iterdir()) if (f / "log.jsonl").is_file()]
    stages = {f: str(read_json(f / "run.json").get("stage")) for f in folders if (f / "run.json").is_file()}
    known = [f for f in stages if stages[f] in STAGES]
    return sorted(known, key=lambda f: (STAGES.index(stages[f]), f.name))


def loss_curves(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The loss of every training run against its steps."""
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
        drawn = loss_curve(steps, losses, title=f"Training loss of {name}", log=wide)
        found.append({"name": name, "svg": drawn, "log": wide, "last": losses[-1], "steps": steps[-1]})
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Fields:
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
            continue
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows.append((f"{prefix}{key}", "–" if value is None or text == "" else text))
    return rows

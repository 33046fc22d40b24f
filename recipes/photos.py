"""Real photos, simulated subjects: the photo table of docs/results.md.

Run: python recipes/photos.py PHOTOS OUT [--snr 0.25 0.7] [--subjects 1 2 3]     (about 10 minutes a run on two cores)

PHOTOS is a folder of class folders that the image prior was not trained on (the validation photos of Tiny ImageNet for
the shipped one). Subjects have their own test classes, photos, voxels and noise (the seed is the subject's number).
Every run is the preset `photos`, plus the baseline ridge-label with the same noise, steps and guidance. For every SNR the
subjects are pooled: a page and its numbers in OUT, and the table below the runs. Restarts skip what is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cadiff.artifacts import read_json
from cadiff.baselines import run_baseline
from cadiff.evaluate import evaluate
from cadiff.experiments import run_experiment, stage_config
from cadiff.report import compare

METRICS = ("n_way_top1", "n_way_top5", "two_way_features", "pcc")
RIVALS = ("prior_only", "shuffled", "ridge_label")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.25, 0.7])
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    if len(options.subjects) < 2:
        parser.error("--subjects: two or more are pooled; for one, `cadiff run photos`")
    for snr in options.snr:
        scored = [run(options.photos.resolve(), options.out, snr, number) for number in options.subjects]
        name = f"snr-{snr:g}-subjects-{'-'.join(map(str, options.subjects))}"
        page, numbers = options.out / f"{name}.html", options.out / f"{name}.json"
        if not numbers.is_file() or not page.is_file():
            for half in (page, numbers):
                half.unlink(missing_ok=True)
            compare(scored, page, json=numbers)
        print_table(snr, read_json(numbers))


def run(photos: Path, out: Path, snr: float, subject: int) -> Path:
    """The evaluation of one subject: the preset's conditions, and the ridge rival beside them."""
    folder = out / f"snr-{snr:g}-sub-{subject:02d}"
    values = {"images": photos, "snr": snr, "subject": subject, "seed": subject}
    overrides = [f"simulate.{key}={value}" for key, value in values.items()]
    print(f"SNR {snr:g}, subject {subject}", flush=True)
    run_experiment("photos", folder, overrides=overrides, resume=(folder / "experiment.json").is_file())
    ridge, scored = folder / "ridge-label", folder / "evaluation-with-ridge"
    if not ridge.is_dir():
        drawing = stage_config("reconstruct", "photos")
        same = ("num_images_per_trial", "num_inference_steps", "guidance_scale", "scheduler", "seed")
        settings = {name: getattr(drawing, name) for name in same}
        run_baseline("ridge-label", folder / "subject", ridge, **settings)
    if not scored.is_dir():
        evaluate(
            stage_config("evaluate", "photos"),
            folder / "reconstructions",
            folder / "subject",
            scored,
            against={"ridge_label": ridge},
        )
    return scored


def print_table(snr: float, pooled: Mapping[str, Any]) -> None:
    """Mean of the subjects' means [t interval over subjects] {hierarchical bootstrap}, and the brain minus its rivals."""
    print(f"\nSNR {snr:g}, {pooled['num_subjects']} subjects, {pooled['num_images']} different images")
    for condition in ("brain", *RIVALS, "label_oracle"):
        scores = pooled["conditions"][condition]["metrics"]
        print(f"| {condition} | {' | '.join(_cell(scores[m], scores[m]['mean'], '') for m in METRICS)} |")
    for rival in RIVALS:
        rows = {row["metric"]: row for row in pooled["comparisons"] if row["control"] == rival}
        cells = [f"{_cell(rows[m], rows[m]['difference'], '+')}, p {rows[m]['p']:.4f}" for m in METRICS]
        print(f"| brain - {rival} | {' | '.join(cells)} |", flush=True)


def _cell(score: Mapping[str, Any], value: float, sign: str) -> str:
    t, bootstrap = (", ".join(f"{end:{sign}.3f}" for end in score[key]) for key in ("ci95_t", "ci95"))
    return f"{value:{sign}.3f} [{t}] {{{bootstrap}}}"


if __name__ == "__main__":
    main()

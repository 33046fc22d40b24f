"""Real photos, simulated subjects: the photo table of docs/results.md.

Run: python recipes/photos.py PHOTOS OUT [--snr 0.25 0.7] [--subjects 1 2 3]     (about 10 minutes a run on two cores)

PHOTOS is a folder of class folders that the image prior was not trained on (the validation photos of Tiny ImageNet for
the shipped one). Subjects have their own test classes, photos, voxels and noise (the seed is the subject's number).
Every run is the preset `photos`, plus the baseline ridge-label with the same noise, steps and guidance. Scores are
pooled over subjects; p values are of paired permutations over images. Restarts skip what is done.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from cadiff.baselines import run_baseline
from cadiff.evaluate.stage import evaluate
from cadiff.evaluate.statistics import bootstrap_interval, compare
from cadiff.experiments import run_experiment, stage_config

METRICS = ("n_way_top1", "n_way_top5", "two_way_features", "pcc")
RIVALS = ("prior_only", "shuffled", "ridge_label")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.25, 0.7])
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    for snr in options.snr:
        parts = [run(options.photos.resolve(), options.out, snr, number) for number in options.subjects]
        print_table(snr, pd.concat(parts))


def run(photos: Path, out: Path, snr: float, subject: int) -> pd.DataFrame:
    """Per-image scores of one subject: columns subject, stimulus_id, condition and one a metric."""
    folder = out / f"snr-{snr:g}-sub-{subject:02d}"
    values = {"images": photos, "snr": snr, "subject": subject, "seed": subject}
    overrides = [f"simulate.{key}={value}" for key, value in values.items()]
    print(f"SNR {snr:g}, subject {subject}", flush=True)
    run_experiment("photos", folder, overrides=overrides, resume=(folder / "experiment.json").is_file())
    ridge, scored = folder / "ridge-label", folder / "ridge-label-evaluation"
    if not ridge.is_dir():
        drawing = stage_config("reconstruct", "photos")
        same = ("num_images_per_trial", "num_inference_steps", "guidance_scale", "scheduler", "seed")
        settings = {name: getattr(drawing, name) for name in same}
        run_baseline("ridge-label", folder / "subject", ridge, **settings)
    if not scored.is_dir():
        evaluate(stage_config("evaluate", "photos"), ridge, folder / "subject", scored)
    own = scores(folder / "evaluation")
    rival = scores(scored)
    rival = rival[rival["condition"] == "brain"].assign(condition="ridge_label")
    return pd.concat([own, rival]).assign(subject=subject)


def scores(evaluation: Path) -> pd.DataFrame:
    """The per-image table of an evaluation folder, mean over samples."""
    return pd.read_csv(evaluation / "per_image.tsv", sep="\t", dtype={"stimulus_id": str})


def print_table(snr: float, table: pd.DataFrame) -> None:
    wide = {m: table.pivot(index=["subject", "stimulus_id"], columns="condition", values=m) for m in METRICS}
    print(f"\nSNR {snr:g}, {table['subject'].nunique()} subjects, {len(wide[METRICS[0]])} images")
    for condition in ("brain", *RIVALS, "label_oracle"):
        cells = []
        for metric in METRICS:
            values = wide[metric][condition].to_numpy()
            low, high = bootstrap_interval(values)
            cells.append(f"{values.mean():.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {condition} | {' | '.join(cells)} |")
    for rival in RIVALS:
        found = {m: compare(wide[m]["brain"].to_numpy(), wide[m][rival].to_numpy()) for m in METRICS}
        cells = [f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], p {c.p:.4f}" for c in found.values()]
        print(f"| brain - {rival} | {' | '.join(cells)} |")
    print(json.dumps({"subjects": sorted(int(s) for s in np.unique(table["subject"]))}), flush=True)


if __name__ == "__main__":
    main()

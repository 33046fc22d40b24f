"""How few steps are enough? Pictures of every solver and number of steps against 250 PLMS steps from the same noise.

Run: python benchmarks/solver_quality.py --out solvers [--prior shipped | --pipeline runs/x/diffuse/pipeline] [--pictures 2000]
     [--steps 5,10,20] [--solvers dpm++,ddim] [--batch 100] [--guidance 2] [--images FOLDER] [--lpips FILE]

Every class of the prior is drawn equally often by its label. Measured for each solver and number of steps: PSNR to the picture of
the 250 steps (at most 60 dB a picture), LPIPS where a file of its weights is given (docs/judges.md), the squared Fréchet distance
of the judge's pooled features to real pictures (those shipped, or of a folder CLASS/picture.jpg; it falls with their number, so
compare within one table only), the judge's top-1 among the prior's classes, and seconds a picture without decoding.
Writes OUT/solvers.json after every row and OUT/solvers.html, a chart of each; prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadiff.artifacts import atomic_path, write_json
from cadiff.data.stimulus_sets import load_stimuli
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.pipeline import open_pipeline, to_uint8
from cadiff.diffuse.sampling import SCHEDULERS, denoise, make_scheduler, sample_noise
from cadiff.evaluate.features import frechet_distance
from cadiff.evaluate.statistics import bootstrap_interval
from cadiff.eyes import load_lpips
from cadiff.heap import keep_freed_memory
from cadiff.plan.machines import device_name, synchronise
from cadiff.priors.load import decode, load_prior
from cadiff.report.charts import Band, Points, line_chart
from cadiff.report.figures import score_ticks, tick_texts
from cadiff.vision import load_classifier

REFERENCE = ("pndm", 250)
STEPS = (5, 10, 15, 20, 25, 30, 50, 100)
SHARPEST = 60.0
"""dB; equal pictures have no finite PSNR."""
CHARTS = {
    "psnr": ("PSNR to the picture of 250 PLMS steps, dB (higher: the same picture)", False),
    "lpips": ("LPIPS to the picture of 250 PLMS steps (lower: the same picture)", False),
    "frechet": ("Fréchet distance of judge features to real pictures (lower is better)", False),
    "accuracy": ("Judge's top-1 among the prior's classes (higher is better)", True),
    "seconds": ("Seconds a picture, decoding apart", False),
}


class Model:
    """A prior or a tuned pipeline, drawn from by label."""

    def __init__(self, prior: str, pipeline: Path | None, device: torch.device) -> None:
        if pipeline is None:
            found = load_prior(prior)
            if found.label_embedding is None or found.null_label is None:
                raise SystemExit("error: this prior has no label table with a null label to draw from")
            self.unet, self.vqvae, self.scaling = found.unet, found.vqvae, found.scaling_factor
            self.schedule, self.latent_shape = found.scheduler.config, found.latent_shape
            self.null_row, self.index = found.null_label, found.imagenet_index
            self.table = found.label_embedding.float().to(device)
            self.time_dim, self.pipe = found.time_dim, None
        else:
            self.pipe = open_pipeline(pipeline)
            self.unet, self.vqvae = self.pipe.unet, self.pipe.vqvae
            self.scaling, self.schedule = self.vqvae.config["scaling_factor"], self.pipe.scheduler.config
            self.latent_shape = self.pipe.latent_shape
            labels = self.pipe.conditioner.config["labels"]
            if labels is None:
                raise SystemExit("error: this pipeline has no label table to draw from")
            self.index = labels["imagenet_index"]
        for part in (self.unet, self.vqvae):
            part.to(device=device, memory_format=torch.channels_last)

    def condition(self, rows: Sequence[int]) -> Condition:
        """What draws pictures of these classes."""
        if self.pipe is not None:
            return self.pipe.conditioner.label_condition(rows)
        context = self.table[torch.as_tensor(rows, device=self.table.device)][:, None]
        return Condition(context, torch.zeros(len(context), self.time_dim, device=self.table.device))

    def null(self, count: int) -> Condition:
        """What stands for "no class"."""
        return (
            self.pipe.conditioner.null(count)
            if self.pipe is not None
            else self.condition([self.null_row] * count)
        )


@torch.no_grad()
def draw(model: Model, labels: np.ndarray, solver: str, steps: int, options: Any) -> tuple[np.ndarray, float]:
    """Pictures uint8 (n, H, W, 3), one a label, and seconds a picture without decoding."""
    device, pieces, seconds = model.unet.device, [], 0.0
    for start in range(0, len(labels), options.batch):
        rows = labels[start : start + options.batch]
        places = range(start, start + len(rows))
        noise = torch.stack([sample_noise(i, 0, model.latent_shape, options.seed) for i in places]).to(device)
        synchronise(device)
        began = time.perf_counter()
        latents = denoise(
            model.unet,
            make_scheduler(solver, model.schedule),
            noise,
            model.condition(rows.tolist()),
            num_inference_steps=steps,
            guidance_scale=options.guidance,
            null=model.null(len(rows)),
            precision=options.precision,
        )
        synchronise(device)
        seconds += time.perf_counter() - began
        pieces.append(to_uint8(decode(model.vqvae, latents, model.scaling)))
    return np.concatenate(pieces), seconds / len(labels)


def psnr(pictures: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """dB of each picture."""
    error = ((pictures.astype(np.float64) - reference) ** 2).mean((1, 2, 3))
    return np.minimum(10 * np.log10(255**2 / np.maximum(error, 1e-12)), SHARPEST)


def measured(values: np.ndarray, seed: int) -> dict[str, float]:
    """Mean with its bootstrap interval over pictures."""
    low, high = bootstrap_interval(values, seed=seed)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def rows(model: Model, labels: np.ndarray, real: np.ndarray, options: Any) -> Iterator[dict[str, Any]]:
    """One row a solver and number of steps, the reference first."""
    judge = None if options.judge == "none" else load_classifier(options.judge)
    lpips = load_lpips(options.lpips) if options.lpips else None
    index = np.asarray(model.index)
    real_features = None if judge is None else judge.features(real, ("pooled",))["pooled"]
    reference = None
    plan = [REFERENCE, *((solver, steps) for solver in options.solvers for steps in options.steps)]
    for solver, steps in plan:
        pictures, seconds = draw(model, labels, solver, steps, options)
        reference = pictures if reference is None else reference
        row: dict[str, Any] = {
            "solver": solver,
            "steps": steps,
            "psnr": measured(psnr(pictures, reference), options.seed),
            "seconds": {"mean": seconds},
        }
        if judge is not None and real_features is not None:
            seen = judge.features(pictures, ("pooled", "logits"))
            right = index[seen["logits"][:, index].argmax(1)] == index[labels]
            row["frechet"] = {"mean": frechet_distance(seen["pooled"], real_features).distance}
            row["accuracy"] = measured(right.astype(float), options.seed)
        if lpips is not None:
            row["lpips"] = measured(lpips.distances(pictures, reference), options.seed)
        yield row


def real_pictures(folder: Path | None, size: int, count: int, seed: int) -> np.ndarray:
    """So many real pictures (all where there are fewer), uint8 (n, S, S, 3)."""
    stimuli = load_stimuli(folder)
    names = stimuli.table["stimulus_id"].to_numpy()
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    return stimuli.images([str(names[i]) for i in chosen], size)


def line(row: dict[str, Any]) -> str:
    """A row in Markdown."""
    frechet = f"{row['frechet']['mean']:.1f}" if "frechet" in row else ""
    shown = [
        row["solver"],
        str(row["steps"]),
        interval(row["psnr"], 1),
        interval(row.get("lpips"), 3),
        frechet,
    ]
    shown += [interval(row.get("accuracy"), 1, 100), f"{row['seconds']['mean']:.3g}"]
    return f"| {' | '.join(shown)} |"


def interval(found: dict[str, float] | None, digits: int, factor: float = 1.0) -> str:
    """Mean and ends of the interval."""
    if found is None:
        return ""
    return "{0:.{3}f} ({1:.{3}f} to {2:.{3}f})".format(
        *(factor * found[k] for k in ("mean", "low", "high")), digits
    )


def chart(record: dict[str, Any], page: Path) -> None:
    """A page with a curve of every measure, in the style of the report."""
    parts = []
    for key, (name, percent) in CHARTS.items():
        found = [row for row in record["rows"] if key in row and (row["solver"], row["steps"]) != REFERENCE]
        if not found:
            continue
        lines, ends = [], []
        for kind, solver in enumerate(dict.fromkeys(row["solver"] for row in found)):
            of_solver = [row for row in found if row["solver"] == solver]
            means = [row[key]["mean"] for row in of_solver]
            low, high = (
                [row[key].get(end, row[key]["mean"]) for row in of_solver] for end in ("low", "high")
            )
            titles = [
                f"{solver}, {row['steps']} steps: {mean:.4g}"
                for row, mean in zip(of_solver, means, strict=True)
            ]
            lines.append(
                Points(f"s{kind}", solver, [row["steps"] for row in of_solver], means, low, high, titles)
            )
            ends += [*low, *high]
        reference = record["rows"][0].get(key, {})
        level = (
            [reference.get(end, reference["mean"]) for end in ("mean", "low", "high")] if reference else []
        )
        bands = (
            [Band("control", "250 PLMS steps", *level)] if level and key in ("frechet", "accuracy") else []
        )
        ticks = score_ticks([*ends, *(level if bands else ())], percent, 5)
        drawn = line_chart(lines, ticks, tick_texts(ticks, percent), title=name, x_name="steps", bands=bands)
        keys = "".join(
            f'<span class="s{k} key"><i></i>{points.name}</span> ' for k, points in enumerate(lines)
        )
        keys += '<span class="control key"><i></i>250 PLMS steps</span>' if bands else ""
        parts.append(f"<h2>{name}</h2><p>{keys}</p>{drawn}")
    style = (resources.files("cadiff.report") / "templates" / "style.css").read_text(encoding="utf-8")
    extra = ".key { margin-right: 1.2rem } .key i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; "
    extra += "margin-right: .4em; background: var(--c) }"
    head = f"<!doctype html><meta charset=utf-8><title>Solvers</title><style>{style}{extra}</style>"
    about = ", ".join(f"{key} {value}" for key, value in record["about"].items())
    body = f"<main><h1>How few steps are enough</h1><p>{about}</p>{''.join(parts)}</main>"
    with atomic_path(page) as temporary:
        temporary.write_text(head + body, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", default="shipped")
    parser.add_argument("--pipeline", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument(
        "--steps", type=lambda text: [int(word) for word in text.split(",")], default=list(STEPS)
    )
    parser.add_argument("--solvers", type=lambda text: text.split(","), default=list(SCHEDULERS))
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--judge", default="efficientnet-lite2", help="a judge, or none")
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS")
    parser.add_argument(
        "--images", type=Path, help="real pictures, CLASS/picture.jpg; those shipped by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    model = Model(options.prior, options.pipeline, device)
    if model.index is None:
        parser.error("the prior does not say which ImageNet classes it knows")
    labels = np.arange(options.pictures) % len(model.index)
    side = model.latent_shape[1] * 2 ** (len(model.vqvae.config["block_out_channels"]) - 1)
    real = real_pictures(options.images, side, options.pictures, options.seed)
    about = {
        "of": str(options.pipeline or options.prior),
        "pictures": options.pictures,
        "real pictures": len(real),
        "guidance": options.guidance,
        "precision": options.precision,
        "judge": options.judge,
        "batch": options.batch,
        "seed": options.seed,
        "device": device_name(device),
        "torch": torch.__version__,
    }
    record: dict[str, Any] = {"kind": "solver-quality", "format": 1, "about": about, "rows": []}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        "| solver | steps | PSNR, dB | LPIPS | Fréchet | top-1, % | s a picture |", f"|{'---|' * 7}", sep="\n"
    )
    for row in rows(model, labels, real, options):
        record["rows"].append(row)
        write_json(options.out / "solvers.json", json.loads(json.dumps(record)))
        print(line(row), flush=True)
    chart(record, options.out / "solvers.html")


if __name__ == "__main__":
    main()

"""Real fMRI, handwritten digits: the betas heeded in every step of denoising, on the folds and pipelines of recipes/digit69.py.

Run: python recipes/digit69_likelihood.py OUT      (OUT of recipes/digit69.py; minutes on two cores; restarts skip what is done)

Nothing is trained. Inside each training fold, on the held-out fifth of it that digit69.py chose its settings on, `likelihood` is
chosen together with `strength` and `guidance_scale` by the PCC of the mean of samples, 0 with digit69.py's own choice among them;
the test fold is then drawn once. Scores and pictures as there.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from digit69 import CHOICE_SAMPLES, FOLDS, METRICS, SAMPLES, SEED, crop, draw, score

from cadiff.data.dataset import BrainDataset
from cadiff.diffuse.latents import crop_latents
from cadiff.diffuse.likelihood import LatentLikelihood
from cadiff.diffuse.pipeline import Correct, FmriToImagePipeline, open_pipeline
from cadiff.evaluate import pixel
from cadiff.evaluate.statistics import bootstrap_interval, compare
from cadiff.priors.load import ImagePrior

LIKELIHOODS, STRENGTHS, GUIDANCES = (0.1, 0.3, 1.0), (0.3, 0.5, 1.0), (1.0, 2.0)


def main(out: Path) -> None:
    parts = [fold(out / f"fold-{k}") for k in range(1, FOLDS + 1)]
    print([part["chosen"] for part in parts])

    def values(name: str, metric: str) -> np.ndarray:
        return np.concatenate([part["scores"][name][metric] for part in parts])

    for name in parts[0]["scores"]:
        cells = []
        for metric in METRICS:
            low, high = bootstrap_interval(values(name, metric), seed=SEED)
            cells.append(f"{values(name, metric).mean():.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {name} | {' | '.join(cells)} |")
    for kind in ("mean of samples", "single sample"):
        found = [
            compare(values(f"likelihood, {kind}", m), values(f"cadiff, {kind}", m), seed=SEED)
            for m in METRICS
        ]
        cells = [f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], p {c.p:.4f}" for c in found]
        print(f"| likelihood - none, {kind} | {' | '.join(cells)} |")


def fold(folder: Path) -> dict[str, Any]:
    """Scores with and without the likelihood on the test fold, and what was chosen without it."""
    done = folder / "likelihood.json"
    if done.is_file():
        return json.loads(done.read_text())
    before = json.loads((folder / "scores.json").read_text())
    chosen = choose(folder, before["chosen"])
    pipe, data = open_pipeline(folder / "runs" / "diffuse"), BrainDataset.open(folder / "data")
    samples, truth = drawn(pipe, data, SAMPLES, chosen)
    single = [score(samples[:, k], truth) for k in range(SAMPLES)]
    found = {name: before["scores"][name] for name in before["scores"]}
    found["likelihood, mean of samples"] = score(samples.mean(1), truth)
    found["likelihood, single sample"] = {m: np.mean([s[m] for s in single], 0).tolist() for m in METRICS}
    result = {"chosen": chosen, "scores": found}
    done.write_text(json.dumps(result, indent=1))
    return result


def choose(folder: Path, before: dict[str, float]) -> dict[str, float]:
    """The settings whose mean of samples correlates best with pictures held out of the training fold."""
    pipe, data = open_pipeline(folder / "inner-runs" / "diffuse"), BrainDataset.open(folder / "inner")
    grid = [{**before, "likelihood": 0.0}]
    for likelihood, strength, guidance in product(LIKELIHOODS, STRENGTHS, GUIDANCES):
        grid.append({"strength": strength, "guidance_scale": guidance, "likelihood": likelihood})
    quality = []
    for settings in grid:
        samples, truth = drawn(pipe, data, CHOICE_SAMPLES, settings)
        quality.append(float(pixel.pcc(samples.mean(1)[..., None], truth[..., None]).mean()))
        print(f"  {folder.name}, inner: {settings}: PCC {quality[-1]:.3f}", flush=True)
    return grid[int(np.argmax(quality))]


def drawn(
    pipe: FmriToImagePipeline, data: BrainDataset, samples: int, settings: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n, samples, 28, 28) of the test trials, and their stimuli (n, 28, 28)."""
    rows = data.rows("test")
    truth = crop(data.images([str(name) for name in data.trials["stimulus_id"].to_numpy()[rows]]))
    rest = {name: value for name, value in settings.items() if name != "likelihood"}
    correct = correction(pipe, data, rows, settings["likelihood"])
    return crop(draw(pipe, data.betas[rows], samples, correct=correct, **rest)), truth


def correction(
    pipe: FmriToImagePipeline, data: BrainDataset, rows: np.ndarray, weight: float
) -> Correct | None:
    """What pulls the test trials, by a model fitted on the training trials; nothing for weight 0."""
    if not weight:
        return None
    prior = ImagePrior(pipe.vqvae, pipe.unet, pipe.scheduler, pipe.vqvae.config["scaling_factor"])
    latents = partial(crop_latents, data, prior=prior, num_crops=0, crop_ratio=0.0, seed=0)
    model = LatentLikelihood.fit(data, data.rows("train"), lambda ids: latents(ids)[:, 0], seed=SEED)
    evidence = model.evidence(data.betas[rows], np.ones(len(rows)), weight)
    return lambda trial: model.correction(evidence.rows(trial.cpu()), trial.device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    main(parser.parse_args().out)

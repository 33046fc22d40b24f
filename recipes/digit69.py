"""Real fMRI, handwritten digits: the digit69 table of docs/results.md.

Run: python recipes/digit69.py digit69_28x28.mat DIGIT_PRIOR OUT      (about 20 minutes on two cores; restarts skip what is done)

Headline: nested five-fold cross-validation over all trials. Inside each training fold a fifth of the trials is held
out to choose `strength` and `guidance_scale` by the PCC of the mean of samples; the pipeline is then tuned again on the
whole training fold and scored once on the test fold. Beside it: the same on the file's own split. Scores are taken on
the 28 x 28 pictures, grey, in [0, 1]; SSIM has a Gaussian window of 11, sd 1.5, and borders of 5 are cut.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadiff.attend.stage import attend
from cadiff.baselines.retrieval import ClassMean, MeanImage
from cadiff.baselines.ridge import RidgePixels
from cadiff.contrast.stage import contrast
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.digit69 import read_digit69
from cadiff.data.splits import k_folds, resplit
from cadiff.diffuse.pipeline import FmriToImagePipeline, open_pipeline, to_uint8
from cadiff.diffuse.sampling import trial_noise
from cadiff.diffuse.stage import diffuse
from cadiff.evaluate import pixel
from cadiff.evaluate.statistics import bootstrap_interval, compare
from cadiff.experiments import stage_config
from cadiff.priors.load import decode

CANVAS, SIDE, SEED, FOLDS = 32, 28, 0, 5
STRENGTHS, GUIDANCES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0), (1.0, 2.0)
CHOICE_SAMPLES, SAMPLES = 8, 32
METRICS = {"pcc": pixel.pcc, "mse": pixel.mse, "ssim": pixel.ssim}
Changes = Mapping[str, Sequence[str] | None]
"""Stage -> what differs from the preset digit69, as `key=value`; None leaves the stage out."""


def main(source: Path, prior: Path, out: Path) -> None:
    everything = out / "digit69"
    if not everything.is_dir():
        read_digit69(source, everything, canvas=CANVAS)
    data = BrainDataset.open(everything)
    names = [str(name) for name in data.trials["stimulus_id"]]
    folds = [[names[i] for i in test] for _, test in k_folds(names, FOLDS, SEED)]
    nested = [score_fold(data, test, prior, out / f"fold-{k}") for k, test in enumerate(folds, start=1)]
    split = score_fold(data, [str(name) for name in data.stimulus_ids("test")], prior, out / "split")
    tables = {"nested five-fold": nested, "the file's split": [split]}
    (out / "results.json").write_text(json.dumps(tables, indent=1))
    for title, parts in tables.items():
        print_table(title, parts)


def score_fold(
    data: BrainDataset, test: list[str], prior: Path, out: Path, changes: Changes | None = None
) -> dict:
    """Per-image scores of every method on the test stimuli, and what was chosen without them."""
    done = out / "scores.json"
    if done.is_file():
        return json.loads(done.read_text())
    train = [str(name) for name in data.trials["stimulus_id"] if name not in set(test)]
    inner = [train[i] for i in k_folds(train, FOLDS, SEED)[0][1]]
    training = BrainDataset.open(resplit_once(data, test, out / "data"))
    without_test = BrainDataset.open(keep(training, train, inner, out / "inner"))
    settings = choose(without_test, prior, out / "inner-runs", changes)
    pipe = tune(training, prior, out / "runs", changes)
    rows = training.rows("test")
    ids = [str(name) for name in training.trials["stimulus_id"].to_numpy()[rows]]
    truth = crop(training.images(ids))
    samples = crop(draw(pipe, training.betas[rows], SAMPLES, **settings))  # (n, SAMPLES, 28, 28)
    methods = baselines(training, ids, rows)
    _, guess = pipe.condition(training.betas[rows])
    if guess is not None:
        with torch.no_grad():
            blurry = to_uint8(decode(pipe.vqvae, guess, pipe.vqvae.config["scaling_factor"]))
        methods["latent start alone, decoded"] = crop(blurry)
    methods["cadiff, mean of samples"] = samples.mean(1)
    found = {name: score(pictures, truth) for name, pictures in methods.items()}
    single = [score(samples[:, k], truth) for k in range(SAMPLES)]
    found["cadiff, single sample"] = {m: np.mean([s[m] for s in single], 0).tolist() for m in METRICS}
    result = {"chosen": settings, "scores": found}
    done.write_text(json.dumps(result, indent=1))
    return result


def choose(data: BrainDataset, prior: Path, out: Path, changes: Changes | None = None) -> dict[str, float]:
    """The sampling settings whose mean of samples correlates best with the held-out pictures."""
    pipe, rows = tune(data, prior, out, changes), data.rows("test")
    started = pipe.condition(data.betas[rows[:1]])[1] is not None
    truth = crop(data.images([str(name) for name in data.trials["stimulus_id"].to_numpy()[rows]]))
    quality = {}
    for strength, guidance in product(STRENGTHS if started else (1.0,), GUIDANCES):
        settings = {"strength": strength, "guidance_scale": guidance}
        means = crop(draw(pipe, data.betas[rows], CHOICE_SAMPLES, **settings)).mean(1)
        quality[strength, guidance] = float(np.mean(pixel.pcc(means[..., None], truth[..., None])))
        print(
            f"  inner: strength {strength}, guidance {guidance}: PCC {quality[strength, guidance]:.3f}",
            flush=True,
        )
    strength, guidance = max(quality, key=quality.__getitem__)
    return {"strength": strength, "guidance_scale": guidance}


def tune(data: BrainDataset, prior: Path, out: Path, changes: Changes | None = None) -> FmriToImagePipeline:
    """Phases 1 and 2 and the diffusion model on the training trials of `data`, with the preset digit69."""
    own: dict[str, Any] = {"contrast": (), "attend": (), "diffuse": (), **(changes or {})}
    config = stage_config("contrast", "digit69", own["contrast"])
    encoder = contrast(config, [data.folder], out / "contrast", resume=True)
    if own["attend"] is not None:
        config = stage_config("attend", "digit69", own["attend"])
        encoder = attend(config, data.folder, encoder, out / "attend", image_mae=prior, resume=True)
    config = stage_config("diffuse", "digit69", own["diffuse"])
    return open_pipeline(diffuse(config, data.folder, encoder, out / "diffuse", prior=prior, resume=True))


def draw(pipe: FmriToImagePipeline, betas: np.ndarray, samples: int, **settings: Any) -> np.ndarray:
    """Pictures uint8 (n, samples, 32, 32, 3)."""
    config = stage_config("reconstruct", "digit69")
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        np.asarray(betas),
        noise=trial_noise(len(betas), samples, pipe.latent_shape, SEED),
        num_inference_steps=config.num_inference_steps,
        scheduler=config.scheduler,
        batch_size=64,
        **settings,
    )


def baselines(data: BrainDataset, ids: list[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Grey pictures (n, 28, 28) of the methods without a diffusion model."""
    train, repeats = data.rows("train"), np.ones(len(rows), int)
    fitted = {
        "class mean (oracle)": ClassMean.fit(data, train),
        "mean image": MeanImage.fit(data, train),
        "ridge voxels -> pixels": RidgePixels.fit(data, train),
    }
    drawn = {k: f.reconstruct(data.betas[rows], stimulus_ids=ids, repeats=repeats) for k, f in fitted.items()}
    return {name: crop(pictures)[:, 0] for name, pictures in drawn.items()}


def score(pictures: np.ndarray, truth: np.ndarray) -> dict[str, list[float]]:
    return {name: metric(pictures[..., None], truth[..., None]).tolist() for name, metric in METRICS.items()}


def crop(pictures: np.ndarray) -> np.ndarray:
    """uint8 (..., 32, 32, 3) -> grey float (..., 28, 28) in [0, 1]."""
    edge = (CANVAS - SIDE) // 2
    return pictures[..., edge:-edge, edge:-edge, :].mean(-1) / 255.0


def resplit_once(data: BrainDataset, test: list[str], folder: Path) -> Path:
    return folder if folder.is_dir() else resplit(data, folder, test)


def keep(data: BrainDataset, train: list[str], inner: list[str], folder: Path) -> Path:
    """The training trials alone, `inner` as their test split: nothing of the outer test fold is in the folder."""
    if folder.is_dir():
        return folder
    trials = data.trials[data.trials["stimulus_id"].isin(train)].index.to_numpy()
    return resplit(data, folder, inner, rows=trials)


def print_table(title: str, parts: list[dict]) -> None:
    print(f"\n{title}: {[part['chosen'] for part in parts]}")

    def values(method: str, metric: str) -> np.ndarray:
        return np.concatenate([part["scores"][method][metric] for part in parts])

    for method in parts[0]["scores"]:
        cells = []
        for metric in METRICS:
            low, high = bootstrap_interval(values(method, metric), seed=SEED)
            cells.append(f"{values(method, metric).mean():.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {method} | {' | '.join(cells)} |")
    ours = "cadiff, mean of samples"
    for rival in ("ridge voxels -> pixels", "latent start alone, decoded"):
        found = [compare(values(ours, m), values(rival, m), seed=SEED) for m in METRICS]
        cells = [f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], p {c.p:.4f}" for c in found]
        print(f"| {ours} - {rival} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("digits", "prior", "out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    main(given.digits, given.prior, given.out)

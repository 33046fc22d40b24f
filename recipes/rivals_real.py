"""Real fMRI: every rival that applies on digit69 and on Miyawaki's figures, the tables of docs/rivals.md.

Run: python recipes/rivals_real.py digit69_28x28.mat digits69.npz DIGIT_PRIOR V1_mean_figure.mat OUT [--tuned DC-LDM cadiff]

About an hour on one core; restarts skip what is done. digits69.npz and DIGIT_PRIOR are made as recipes/README.md says, the
pictures of the data set left out. Cross-validation: the five folds of recipes/digit69.py over the trials of digit69, one picture
after another of Miyawaki's ten. Everything is fitted inside the training part: penalties, noise covariance, temperatures; all
else is as shipped. `--tuned`: diffusion models tuned on every fold, sampling settings chosen inside it; the folds of the
row `cadiff` are those of recipes/digit69.py and may be taken from there (fold-K/scores.json to OUT/digit69-tuned/cadiff).
Scores are taken on 28 x 28 pixels, and on 10 x 10 patches.

Pictures without fMRI, of Bayesian decoding and of SS-AE: for digit69 other handwritten sixes and nines; for Miyawaki 5,000
random patterns, each the union of one to four bars that are two patches wide. They tell that pictures are made of bars, which
is more than ridge regression is told, and it is not what the experimenters drew from: read those rows with that in mind.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import digit69
import numpy as np
from PIL import Image

from cadiff.artifacts import atomic_path, new_folder
from cadiff.baselines import find_baseline
from cadiff.baselines.bayes import Bayes
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.digit69 import read_digit69
from cadiff.data.readers.miyawaki import read_miyawaki
from cadiff.data.splits import average_repeats, k_folds, resplit
from cadiff.evaluate.statistics import bootstrap_interval, compare, holm
from cadiff.experiments import stage_config

SEED, SCALE, PATTERNS, SAMPLES = digit69.SEED, 8, 5000, digit69.SAMPLES
METRICS = digit69.METRICS
PATCHES = 10
RIDGE, MEAN, MAP = "ridge pixels", "Bayes, posterior mean", "Bayes, most probable"
ORACLE = "(oracle)"
COMMON = {
    "mean image": ("mean-image", {}),
    "retrieval": ("retrieval", {}),
    "ridge retrieval": ("ridge-retrieval", {}),
    RIDGE: ("ridge-pixels", {}),
    "ridge pixels, a penalty a component": ("ridge-pixels", {"per_target": True}),
}
WITHOUT_STARTS = ("label_start=false", "latent_start=0")
DC_LDM: digit69.Changes = {
    "contrast": ("gamma_c=0", "gamma_s=0", "masked_error_weight=1", "mask_ratio=0.75", "sparsify_rate=0"),
    "attend": None,
    "diffuse": (*WITHOUT_STARTS, "sparsify_rate=0"),
}
"""As presets/rivals/dc-ldm-demo.yaml."""
TUNED: dict[str, digit69.Changes] = {
    "DC-LDM": DC_LDM,
    "DC-LDM with the two ridge starts": {**DC_LDM, "diffuse": ("sparsify_rate=0",)},
    "cadiff without the two ridge starts": {"diffuse": WITHOUT_STARTS},
    "cadiff without the two ridge starts and phase 2": {"attend": None, "diffuse": WITHOUT_STARTS},
    "cadiff": {},
}
Scores = dict[str, dict[str, np.ndarray]]
"""Method -> metric -> score of every test picture, in the order of the folds."""


def main(digits: Path, unseen: Path, prior: Path, figures: Path, out: Path, diffusion: Iterable[str]) -> None:
    out = out.resolve()  # a training that goes on compares its settings, and paths are among them
    data, folds, methods = on_digits(digits, unseen, prior, out)
    found = run(data, folds, methods, digit69.crop, out / "digit69-folds", METRICS)
    found |= tuned(data, folds, prior, out / "digit69-tuned", diffusion)
    table("digit69, five folds", found, METRICS)
    data, folds, methods = on_figures(figures, out)
    scored = ["pcc", "mse"]  # ten patches a side are fewer than SSIM's window
    found = run(data, folds, methods, patches, out / "miyawaki-folds", scored)
    table("Miyawaki, one picture after another", found, scored)


def on_digits(
    source: Path, unseen: Path, prior: Path, out: Path
) -> tuple[BrainDataset, list[list[str]], dict]:
    """The data, the test stimuli of each fold, the methods."""
    if not (out / "digit69").is_dir():
        read_digit69(source, out / "digit69", canvas=digit69.CANVAS)
    data = BrainDataset.open(out / "digit69")
    names = [str(name) for name in data.trials["stimulus_id"]]
    folds = [[names[i] for i in test] for _, test in k_folds(names, digit69.FOLDS, SEED)]
    edge = (digit69.CANVAS - digit69.SIDE) // 2
    with np.load(unseen) as archive:
        padded = np.pad(archive["images"], ((0, 0), (edge, edge), (edge, edge)))
    sampler = stage_config("reconstruct", "digit69")
    same = {key: getattr(sampler, key) for key in ("num_inference_steps", "scheduler")}
    drawn = {"prior": prior, "num_images_per_trial": SAMPLES, **same}
    return data, folds, {
        f"mean image of the true class {ORACLE}": ("class-mean", {}),
        f"true label {ORACLE}": ("true-label", drawn),
        **COMMON,
        "ridge latents": ("ridge-latents", {"prior": prior}),
        "ridge label": ("ridge-label", drawn),
        MEAN: ("bayes", {"images": unseen, "fit": "pad"}),
        "Bayes label": ("bayes-label", drawn),
        "SS-AE": ("ssae", {"images": folder(padded, out / "digits")}),
    }  # fmt: skip


def on_figures(source: Path, out: Path) -> tuple[BrainDataset, list[list[str]], dict]:
    """The same of Miyawaki's figures."""
    if not (out / "miyawaki").is_dir():
        read_miyawaki(source, out / "miyawaki", scale=SCALE)
    data = BrainDataset.open(out / "miyawaki")
    patterns = out / "bars.npz"
    if not patterns.is_file():
        np.savez_compressed(patterns, images=np.kron(bars(PATTERNS), np.ones((1, SCALE, SCALE), np.uint8)))
    with np.load(patterns) as archive:
        ssae = {"images": folder(archive["images"], out / "bars"), "size": 3 * PATCHES}
    return data, [[name] for name in data.stimulus_ids("train")], {
        **COMMON,
        MEAN: ("bayes", {"images": patterns}),
        "SS-AE": ("ssae", ssae),
    }  # fmt: skip


def run(
    data: BrainDataset,
    folds: list[list[str]],
    methods: dict,
    crop: Callable[[np.ndarray], np.ndarray],
    out: Path,
    metrics: Iterable[str],
) -> Scores:
    """Fits and scores every method on every fold."""
    parts = []
    for number, test in enumerate(folds, start=1):
        place = out / f"fold-{number}"
        parts.append(BrainDataset.open(place if place.is_dir() else resplit(data, place, test)))
    scores: dict[str, dict[str, list[np.ndarray]]] = {}
    for method, (name, options) in methods.items():
        for number, part in enumerate(parts, start=1):
            done = out / f"fold-{number}-{method}.json"
            if not done.is_file():
                cls = find_baseline(name)
                if "work" in inspect.signature(cls.fit).parameters:
                    options = {**options, "work": out / f"fold-{number}-{method}"}
                fitted = cls.fit(part, part.rows("train"), **options)
                betas, ids, repeats = average_repeats(part)
                truth = crop(part.images(ids))
                samples = fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)
                found = of_samples(method, samples, truth, crop, metrics)
                if isinstance(fitted, Bayes):
                    likeliest = fitted.images[fitted.posterior(betas, repeats).argmax(axis=1)]
                    found[MAP] = score(crop(likeliest), truth, metrics)
                listed = {label: {m: v.tolist() for m, v in each.items()} for label, each in found.items()}
                with atomic_path(done) as path:
                    path.write_text(
                        json.dumps({"scores": listed, "fitted": fitted.facts()}, indent=1, default=str)
                    )
                print(f"{out.name} {number} {method}", flush=True)
            for label, found in json.loads(done.read_text())["scores"].items():
                for metric, values in found.items():
                    scores.setdefault(label, {}).setdefault(metric, []).append(np.array(values))
    return {m: {k: np.concatenate(v) for k, v in found.items()} for m, found in scores.items()}


def tuned(data: BrainDataset, folds: list[list[str]], prior: Path, out: Path, names: Iterable[str]) -> Scores:
    """Those named of the diffusion models `TUNED`, their sampling settings chosen inside each training fold."""
    scores: Scores = {}
    for method in names:
        parts = [
            digit69.score_fold(data, test, prior, out / method / f"fold-{number}", TUNED[method])["scores"]
            for number, test in enumerate(folds, start=1)
        ]
        for label, name in ((f"mean of {SAMPLES} samples", "mean of samples"), ("single sample",) * 2):
            found = [part[f"cadiff, {name}"] for part in parts]
            scores[f"{method}, {label}"] = {m: np.concatenate([each[m] for each in found]) for m in METRICS}
    return scores


def of_samples(
    method: str,
    samples: np.ndarray,
    truth: np.ndarray,
    crop: Callable[[np.ndarray], np.ndarray],
    metrics: Iterable[str],
) -> Scores:
    """Scores of pictures uint8 (n, k, H, W, 3): where k is above 1 those of their mean, and the mean of theirs."""
    count = samples.shape[1]
    if count == 1:
        return {method: score(crop(samples[:, 0]), truth, metrics)}
    single = [score(crop(samples[:, k]), truth, metrics) for k in range(count)]
    return {
        f"{method}, mean of {count} samples": score(crop(samples.mean(1)), truth, metrics),
        f"{method}, single sample": {m: np.mean([each[m] for each in single], axis=0) for m in metrics},
    }


def score(pictures: np.ndarray, truth: np.ndarray, metrics: Iterable[str]) -> dict[str, np.ndarray]:
    return {m: np.asarray(METRICS[m](pictures[..., None], truth[..., None])) for m in metrics}


def folder(pictures: np.ndarray, out: Path) -> str:
    """Grey pictures uint8 (n, H, W) as files; SS-AE names folders by strings."""
    if not out.is_dir():
        with new_folder(out) as place:
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(place / f"{number:05d}.png")
    return str(out)


def patches(pictures: np.ndarray) -> np.ndarray:
    """(n, 10 s, 10 s, 3) of 0 to 255 -> (n, 10, 10) in [0, 1], the mean of each patch."""
    side = pictures.shape[1] // PATCHES
    return pictures.reshape(len(pictures), PATCHES, side, PATCHES, side, 3).mean((2, 4, 5)) / 255.0


def bars(count: int, side: int = PATCHES) -> np.ndarray:
    """Patterns uint8 (count, side, side) of 0 and 255: unions of one to four bars, level, upright or slanting, two wide."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:side, :side]
    patterns = np.zeros((count, side, side), np.uint8)
    for pattern in patterns:
        for _ in range(rng.integers(1, 5)):
            along, across = [(x, y), (y, x), (x + y, x - y), (x - y, x + y)][rng.integers(4)]
            place = rng.integers(int(across.min()), int(across.max()))
            first, last = np.sort(rng.integers(along.min(), along.max() + 1, 2))
            pattern[(across >= place) & (across <= place + 1) & (along >= first) & (along <= last)] = 255
    return patterns


def table(title: str, scores: Scores, metrics: Iterable[str]) -> None:
    """Means with intervals, and differences to ridge regression with p corrected (Holm) over the methods of each metric."""
    print(f"\n{title}\n| method | {' | '.join(metrics)} |")
    for method, found in scores.items():
        cells = []
        for metric in metrics:
            low, high = bootstrap_interval(found[metric], seed=SEED)
            cells.append(f"{found[metric].mean():.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {method} | {' | '.join(cells)} |")
    rivals = [method for method in scores if method != RIDGE and ORACLE not in method]
    rows: dict[str, list[str]] = {method: [] for method in rivals}
    for metric in metrics:
        found = [compare(scores[method][metric], scores[RIDGE][metric], seed=SEED) for method in rivals]
        for method, c, p in zip(rivals, found, holm(np.array([c.p for c in found])), strict=True):
            rows[method].append(f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], p {p:.4f}")
    print(f"\n| minus {RIDGE}, p after Holm over {len(rivals)} methods | {' | '.join(metrics)} |")
    for method, cells in rows.items():
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("digits", "unseen", "prior", "figures", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument(
        "--tuned", nargs="+", choices=TUNED, default=[], metavar="MODEL", help=", ".join(TUNED)
    )
    given = parser.parse_args()
    main(given.digits, given.unseen, given.prior, given.figures, given.out, given.tuned)

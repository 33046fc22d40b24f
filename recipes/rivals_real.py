"""Real fMRI: every linear and Bayesian rival on digit69 and on Miyawaki's figures, the tables of docs/rivals.md.

Run: python recipes/rivals_real.py digit69_28x28.mat digits69.npz V1_mean_figure.mat OUT

digits69.npz is made by recipes/make_mnist_npz.py, the pictures of the data set left out. Cross-validation: five folds over the
trials of digit69 (those of recipes/digit69.py), one picture after another of Miyawaki's ten. Everything is fitted inside the
training part: penalties, noise covariance, temperatures. Scores are taken on 28 x 28 pixels, and on 10 x 10 patches.

Prior pictures of Bayesian decoding: for digit69 other handwritten sixes and nines; for Miyawaki 5,000 random patterns, each the
union of one to four bars that are two patches wide. That prior knows that pictures are made of bars, which is more than
ridge regression is told, and it is not what the experimenters drew from: read its row with that in mind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cadiff.baselines import find_baseline
from cadiff.baselines.bayes import Bayes
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.digit69 import read_digit69
from cadiff.data.readers.miyawaki import read_miyawaki
from cadiff.data.splits import average_repeats, k_folds, resplit
from cadiff.evaluate import pixel
from cadiff.evaluate.statistics import bootstrap_interval, compare

FOLDS, SEED, CANVAS, SIDE, SCALE, PATTERNS = 5, 0, 32, 28, 8, 5000
METRICS = {"pcc": pixel.pcc, "mse": pixel.mse, "ssim": pixel.ssim}
MEAN, MAP = "Bayes, posterior mean", "Bayes, most probable"
COMMON = {
    "mean image": ("mean-image", {}),
    "retrieval": ("retrieval", {}),
    "ridge retrieval": ("ridge-retrieval", {}),
    "ridge pixels": ("ridge-pixels", {}),
    "ridge pixels, a penalty a component": ("ridge-pixels", {"per_target": True}),
}


def main(digits: Path, prior: Path, figures: Path, out: Path) -> None:
    for name, make in (("digit69", read_digit69), ("miyawaki", read_miyawaki)):
        if not (out / name).is_dir():
            source, options = (
                (digits, {"canvas": CANVAS}) if name == "digit69" else (figures, {"scale": SCALE})
            )
            make(source, out / name, **options)
    digit69, miyawaki = BrainDataset.open(out / "digit69"), BrainDataset.open(out / "miyawaki")
    names = [str(name) for name in digit69.trials["stimulus_id"]]
    folds = [[names[i] for i in test] for _, test in k_folds(names, FOLDS, SEED)]
    bayes = {"images": prior, "fit": "pad"}
    methods = {
        "mean image of the true class (oracle)": ("class-mean", {}),
        **COMMON,
        MEAN: ("bayes", bayes),
    }
    table("digit69, five folds", run(digit69, folds, methods, grey, out / "digit69-folds"), METRICS)
    patterns = out / "bars.npz"
    if not patterns.is_file():
        np.savez_compressed(patterns, images=np.kron(bars(PATTERNS), np.ones((1, SCALE, SCALE), np.uint8)))
    bayes = {"images": patterns}
    methods = {
        **COMMON,
        MEAN: ("bayes", bayes),
    }
    one_by_one = [[name] for name in miyawaki.stimulus_ids("train")]
    scored = ["pcc", "mse"]  # ten patches a side are fewer than SSIM's window
    found = run(miyawaki, one_by_one, methods, patches, out / "miyawaki-folds", scored)
    table("Miyawaki, one picture after another", found, scored)


def run(
    data: BrainDataset,
    folds: list[list[str]],
    methods: dict,
    crop: Callable[[np.ndarray], np.ndarray],
    out: Path,
    metrics: list[str] | dict = METRICS,
) -> dict[str, dict[str, np.ndarray]]:
    """Method -> metric -> score of every test picture, in the order of the folds."""
    scores: dict[str, dict[str, list[np.ndarray]]] = {}
    for number, test in enumerate(folds, start=1):
        folder = out / f"fold-{number}"
        part = BrainDataset.open(folder if folder.is_dir() else resplit(data, folder, test))
        betas, ids, repeats = average_repeats(part)
        truth = crop(part.images(ids))
        for method, (name, options) in methods.items():
            done = out / f"fold-{number}-{method}.json"
            if not done.is_file():
                fitted = find_baseline(name).fit(part, part.rows("train"), **options)
                drawn = {method: fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)[:, 0]}
                if isinstance(fitted, Bayes):
                    drawn[MAP] = fitted.images[fitted.posterior(betas, repeats).argmax(axis=1)]
                found = {
                    label: {m: METRICS[m](crop(x)[..., None], truth[..., None]).tolist() for m in metrics}
                    for label, x in drawn.items()
                }
                done.write_text(json.dumps({"scores": found, "fitted": fitted.facts()}, indent=1))
                print(f"{out.name} {number} {method}", flush=True)
            for label, found in json.loads(done.read_text())["scores"].items():
                for metric, values in found.items():
                    scores.setdefault(label, {}).setdefault(metric, []).append(np.array(values))
    return {m: {k: np.concatenate(v) for k, v in found.items()} for m, found in scores.items()}


def grey(pictures: np.ndarray) -> np.ndarray:
    """uint8 (..., 32, 32, 3) -> (..., 28, 28) in [0, 1]."""
    edge = (CANVAS - SIDE) // 2
    return pictures[..., edge:-edge, edge:-edge, :].mean(-1) / 255.0


def patches(pictures: np.ndarray) -> np.ndarray:
    """uint8 (n, 80, 80, 3) -> (n, 10, 10) in [0, 1], the mean of each patch."""
    side = pictures.shape[1] // SCALE
    return pictures.reshape(len(pictures), side, SCALE, side, SCALE, 3).mean((2, 4, 5)) / 255.0


def bars(count: int, side: int = 10) -> np.ndarray:
    """Patterns uint8 (count, side, side) of 0 and 255: unions of one to four bars, level, upright or slanting, two wide."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:side, :side]
    patterns = np.zeros((count, side, side), np.uint8)
    for pattern in patterns:
        for _ in range(rng.integers(1, 5)):
            along, across = [(x, y), (y, x), (x + y, x - y), (x - y, x + y)][rng.integers(4)]
            lowest, highest = int(across.min()), int(across.max())
            place, (first, last) = (
                rng.integers(lowest, highest),
                np.sort(rng.integers(along.min(), along.max() + 1, 2)),
            )
            pattern[(across >= place) & (across <= place + 1) & (along >= first) & (along <= last)] = 255
    return patterns


def table(title: str, scores: dict[str, dict[str, np.ndarray]], metrics: list[str] | dict) -> None:
    print(f"\n{title}\n| method | {' | '.join(metrics)} |")
    for method, found in scores.items():
        cells = []
        for metric in metrics:
            low, high = bootstrap_interval(found[metric], seed=SEED)
            cells.append(f"{found[metric].mean():.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {method} | {' | '.join(cells)} |")
    ridge, bayes = scores["ridge pixels"], scores[MEAN]
    differences = {m: compare(bayes[m], ridge[m], seed=SEED) for m in metrics}
    cells = [f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], p {c.p:.4f}" for c in differences.values()]
    print(f"| {MEAN} - ridge pixels | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:5]))

"""Evaluation: n-way scores, bootstrap and one whole evaluation, against goals and against the usual way.

Run: python benchmarks/evaluate_speed.py [--skip-whole] [--size 256]     (under three minutes of processor time)

Wall and processor time are the best of several repeats in this process; processor time hardly feels other programs,
and counts all threads. Ratios above 1: ours is faster. Rivals: Algorithm 1 with 1,000 random trials, timed for a few of
them; SciPy's BCa bootstrap; a Python loop over resamples. The whole evaluation scores 50 stimuli x 5 samples of
synthetic pictures with the default judge, reading and writing included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import stats

from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.categories import n_way_table
from cadiff.evaluate.hierarchy import ScoreTable, hierarchical_bootstrap
from cadiff.evaluate.semantic import n_way_top_k, n_way_top_k_monte_carlo
from cadiff.evaluate.statistics import bootstrap_interval, permutation_p
from cadiff.heap import keep_freed_memory

IMAGES, SAMPLES, CLASSES, DRAWS = 1000, 5, 1000, 10_000
TRIALS = 3
"""Random trials timed for the rival; it needs 1,000."""


def seconds(task: Callable[[], object], repeats: int = 7) -> tuple[float, float]:
    """Best wall and processor time; the first call is warm-up where there are several."""
    wall, cpu = [], []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter(), time.process_time()
        task()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return min(wall[-repeats:]), min(cpu[-repeats:])


def row(name: str, found: tuple[float, float], goal: float | None = None, ratio: str = "") -> None:
    cells = [f"{1000 * value:,.0f} ms" for value in found]
    aim = f"{1000 * goal:,.0f} ms" if goal else ""
    print(f"| {name} | {cells[0]} | {cells[1]} | {aim} | {ratio} |", flush=True)


def n_way(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(IMAGES * SAMPLES, CLASSES)).astype(np.float32)
    truth = rng.integers(0, CLASSES, len(logits))
    ours = seconds(lambda: n_way_top_k(logits, truth))
    theirs = seconds(lambda: n_way_top_k_monte_carlo(logits, truth, rng, num_trials=TRIALS), repeats=1)
    ratio = f"{theirs[1] / TRIALS * 1000 / ours[1]:,.0f} (1,000 random trials)"
    row(f"50-way top-1, {IMAGES:,} x {SAMPLES} pictures x {CLASSES:,} classes", ours, 0.05, ratio)
    ours = seconds(lambda: n_way_table(logits[:IMAGES], truth[:IMAGES]), repeats=3)
    theirs = seconds(lambda: [n_way_top_k(logits[:IMAGES], truth[:IMAGES]) for _ in range(20)], repeats=1)
    ratio = f"{theirs[1] / 20 * IMAGES / ours[1]:.1f} (one call a stimulus)"
    row(f"the same for every pair of {IMAGES:,} x {IMAGES:,}", ours, None, ratio)


def resampling(rng: np.random.Generator) -> None:
    x = rng.exponential(size=IMAGES)
    ours = seconds(lambda: bootstrap_interval(x, num_draws=DRAWS), repeats=5)
    bca = seconds(
        lambda: stats.bootstrap((x,), np.mean, method="BCa", n_resamples=DRAWS, rng=rng, batch=1000),
        repeats=1,
    )
    loop = seconds(lambda: [rng.choice(x, IMAGES).mean() for _ in range(DRAWS)], repeats=1)
    ratio = f"{bca[1] / ours[1]:.1f} (SciPy), {loop[1] / ours[1]:.1f} (loop)"
    row(f"bootstrap interval, {IMAGES:,} images, {DRAWS:,} draws", ours, 2.0, ratio)
    row(
        f"permutation test, {IMAGES:,} images, {DRAWS:,} draws",
        seconds(lambda: permutation_p(x - 1, num_draws=DRAWS), 3),
    )
    subjects, images = np.repeat(np.arange(4), IMAGES), np.tile(np.arange(IMAGES), 4)
    scores, own = rng.exponential(size=4 * IMAGES), images + IMAGES * subjects
    for name, seen in (("own", own), ("shared", images)):
        table = ScoreTable(scores, subjects, seen)
        found = seconds(lambda table=table: hierarchical_bootstrap(table, num_draws=DRAWS), 2)
        row(f"hierarchical bootstrap, 4 subjects x {IMAGES:,} {name} images", found)


def whole(rng: np.random.Generator, size: int) -> None:
    def picture() -> Image.Image:
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)

    with tempfile.TemporaryDirectory() as name:
        stimuli, pictures = Path(name, "stimuli"), Path(name, "pictures")
        stimuli.mkdir()
        pictures.mkdir()
        for i in range(50):
            picture().save(stimuli / f"s{i:02d}.png")
            for sample in range(SAMPLES):
                picture().save(pictures / f"s{i:02d}_{sample}.png")
        found = seconds(
            lambda: evaluate(
                EvaluateConfig(),
                pictures,
                stimuli,
                Path(name, "evaluation"),
                pattern="{stimulus_id}_{sample}.png",
                progress=False,
            ),
            repeats=1,
        )
    row(f"whole evaluation, 50 stimuli x {SAMPLES} samples, {size} px, default judge", found, 60.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skip-whole", action="store_true", help="leave the whole evaluation out")
    parser.add_argument("--size", type=int, default=256, help="side of its pictures")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    rng = np.random.default_rng(0)
    print(f"| what | wall | processor | goal | ratio |\n|{'---|' * 5}")
    n_way(rng)
    resampling(rng)
    if not options.skip_whole:
        whole(rng, options.size)


if __name__ == "__main__":
    main()

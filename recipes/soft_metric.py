"""How soft is 50-way top-1? Decoders that know next to nothing, scored as papers score theirs.

Run: python recipes/soft_metric.py PHOTOS [--cache logits.npz]     (judging 1,000 photos takes a minute or two on one core)

PHOTOS is a folder of natural photos (.jpg or .png). For docs/results.md: the 1,000 ImageNet-compatible photos of the NIPS
2017 competition on adversarial attacks. If images.csv (file, imagenet_index) lies in it or beside it, the judge's accuracy is
printed too. The truth of a photo is the judge's own first class (Algorithm 1 of Chen et al. 2023), and so is its category.
One photo of each class is kept, the first by name, as in test sets of one image a class; --all keeps every photo, so that
a decoder may show the stimulus's own class by luck.

Every pretend decoder shows photos, drawn at random among those that fit what it knows, never the stimulus itself. The n-way
score of every photo for every other is exact, so the only randomness is which photos are shown and which 50 are tested.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from cadiff.evaluate.categories import (
    COARSE_CATEGORIES,
    category_oracle,
    coarse_category,
    is_animal,
    n_way_table,
    random_picture,
)
from cadiff.evaluate.pictures import SUFFIXES, read_picture
from cadiff.evaluate.semantic import truth_classes
from cadiff.evaluate.statistics import required_images
from cadiff.vision import load_classifier

TEST_IMAGES, RUNS, CHUNK = 50, 5, 100
CLAIM, RIVAL = 0.251, 0.180
"""50-way top-1 of CAD and of its strongest rival on subject 3 of Generic Object Decoding, as published."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--judge", default="efficientnet-lite2")
    parser.add_argument("--cache", type=Path, help="keep the judge's logits in this .npz")
    parser.add_argument("--all", action="store_true", help="keep all photos of a class")
    parser.add_argument("--sets", type=int, default=2000, help="test sets of 50 photos to draw")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    files = sorted(p for p in options.photos.rglob("*") if p.suffix.lower() in SUFFIXES)
    logits = judged(files, options.judge, options.cache)
    truth = truth_classes(logits)
    print(f"{len(files)} photos; the judge {options.judge} sees {len(np.unique(truth))} different classes.")
    print_accuracy(options.photos, files, truth)
    if not options.all:
        first = np.sort(np.unique(truth, return_index=True)[1])
        logits, truth = logits[first], truth[first]
    own = np.arange(len(truth))
    table, category = n_way_table(logits, truth), coarse_category(truth)
    rng = np.random.default_rng(options.seed)
    tested = np.stack([rng.permutation(len(truth))[:TEST_IMAGES] for _ in range(options.sets)])
    nothing = np.zeros(len(truth), int)
    knows = {
        "nothing: a random photo": nothing,
        "1 bit: animal or not": is_animal(truth).astype(int),
        "1 of 9 coarse categories": category,
    }
    print_decoders(table, tested, knows, rng)
    print_checkpoints(table, tested, category, rng)
    print_constant(table, tested)
    print_categories(table, category, own)
    print_sampling_error(table, tested, category, rng)


def judged(files: list[Path], judge: str, cache: Path | None) -> np.ndarray:
    """Logits (n, 1000), from the cache when it holds these very photos and this judge."""
    names = np.array([path.name for path in files])
    if cache is not None and cache.is_file():
        with np.load(cache, allow_pickle=False) as kept:
            if str(kept["judge"]) == judge and np.array_equal(kept["names"], names):
                return kept["logits"]
    classifier = load_classifier(judge)
    logits = np.concatenate([classifier.logits(np.array(read_picture(path))[None]) for path in files])
    if cache is not None:
        np.savez(cache, judge=np.array(judge), names=names, logits=logits)
    return logits


def print_accuracy(photos: Path, files: list[Path], truth: np.ndarray) -> None:
    for path in (photos / "images.csv", photos.parent / "images.csv"):
        if path.is_file():
            with path.open(newline="") as table:
                known = {row["file"]: int(row["imagenet_index"]) for row in csv.DictReader(table)}
            labels = np.array([known.get(path.name, -1) for path in files])
            right = (labels == truth)[labels >= 0]
            print(f"Its accuracy on the {len(np.unique(labels))} labelled classes: {percent(right.mean())}.")
            return


def shown(category: np.ndarray, stimuli: np.ndarray, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Photos of each stimulus's category, the stimulus itself excepted: (*stimuli.shape, runs)."""
    order = np.argsort(category, kind="stable")
    _, code, count = np.unique(category, return_inverse=True, return_counts=True)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    left = (count[code] - 1)[stimuli][..., None]
    if (left < 1).any():
        raise SystemExit("A category holds one photo only: give more photos.")
    drawn = start[code][stimuli][..., None] + rng.integers(0, left, (*stimuli.shape, runs))
    return order[drawn + (drawn >= place[stimuli][..., None])]


def run_means(
    table: np.ndarray, tested: np.ndarray, category: np.ndarray, runs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of whole runs (sets, runs), and the mean over images of the best of `runs` of each (sets,)."""
    means, best = [], []
    for part in np.array_split(tested, -(-len(tested) // CHUNK)):
        scores = table[shown(category, part, runs, rng), part[..., None]]  # (sets, images, runs)
        means.append(scores.mean(axis=1))
        best.append(scores.max(axis=2).mean(axis=1))
    return np.concatenate(means), np.concatenate(best)


def print_decoders(table, tested, knows, rng) -> None:
    print(
        f"\n| pretend decoder, {TEST_IMAGES} test images | mean of {RUNS} runs | 95 % of test sets | ", end=""
    )
    print(f"max of {RUNS} runs | best of {RUNS} per image |\n|{'---|' * 5}")
    for name, category in knows.items():
        means, best = run_means(table, tested, category, RUNS, rng)
        low, high = np.quantile(means.mean(axis=1), [0.025, 0.975])
        cells = [means.mean(), f"{percent(low)} to {percent(high)}", means.max(axis=1).mean(), best.mean()]
        print(f"| knows {name} | {' | '.join(percent(c) for c in cells)} |")


def print_checkpoints(table, tested, category, rng) -> None:
    for checkpoints in (10, 33):
        means, _ = run_means(table, tested, category, RUNS * checkpoints, rng)
        by_checkpoint = means.reshape(len(means), checkpoints, RUNS).mean(axis=2)
        cells = [by_checkpoint.max(axis=1).mean(), "", means.max(axis=1).mean(), ""]
        print(
            f"| ... best of {checkpoints} equal checkpoints, chosen on test | {' | '.join(percent(c) for c in cells)} |"
        )


def print_constant(table, tested) -> None:
    average, best = [], []
    for stimuli in tested:
        others = np.setdiff1d(np.arange(len(table)), stimuli)
        scores = table[np.ix_(others, stimuli)].mean(axis=1)
        average.append(scores.mean())
        best.append(scores.max())
    print(
        f"\nOne photo for every stimulus: {percent(np.mean(average))} on average; the best one for a given set of "
        f"{TEST_IMAGES}: {percent(np.mean(best))}."
    )


def print_categories(table, category, own) -> None:
    oracle = category_oracle(table, category, category, own)
    print("\nAny other photo of the right category, exact, by category of the stimulus:\n")
    print(f"| category | photos | 50-way top-1 |\n|{'---|' * 3}")
    for number, name in enumerate(COARSE_CATEGORIES):
        among = category == number
        if among.sum() > 1:
            print(f"| {name} | {among.sum()} | {percent(np.nanmean(oracle[among]))} |")
    print(f"| all | {len(own)} | {percent(np.nanmean(oracle))} |")
    print(f"| any photo at all | {len(own)} | {percent(random_picture(table, own).mean())} |")


def print_sampling_error(table, tested, category, rng) -> None:
    """A decoder right about some images (it shows the stimulus itself) and category-right about the others."""
    floor = float(np.nanmean(category_oracle(table, category, category, np.arange(len(table)))))

    def scores(goal: float) -> np.ndarray:
        """Per image (sets, images), mean over runs; all runs of an image share whether the brain gave it away."""
        right = rng.random(tested.shape) < (goal - floor) / (1 - floor)
        guessed = table[shown(category, tested, RUNS, rng), tested[..., None]].mean(axis=2)
        return np.where(right, 1.0, guessed)

    claim, rival = scores(CLAIM), scores(RIVAL)
    low, high = np.quantile(claim.mean(axis=1), [0.025, 0.975])
    difference = claim - rival
    spread = float(np.sqrt(np.mean(difference.var(axis=1, ddof=1))))
    needed = required_images(CLAIM - RIVAL, spread)
    reversed_order = float((difference.mean(axis=1) <= 0).mean())
    print(
        f"\nA decoder that is right about some images and category-right about the others, {percent(CLAIM)} in truth, scores "
        f"{percent(low)} to {percent(high)} on 95 % of test sets of {TEST_IMAGES}. Against an unrelated one of {percent(RIVAL)} "
        f"it comes out behind in {percent(reversed_order)} of sets; the deviation of paired differences is {spread:.2f}, and "
        f"a paired test at 5 % needs {needed} images to find the difference with 80 % power."
    )


def percent(value: float | str) -> str:
    return value if isinstance(value, str) else f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()

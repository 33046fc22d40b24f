"""What the judge sees in reconstructions: narrowed outputs, coarse categories, and how far a rough idea gets.

n-way identification draws its distractors from all classes, so that a decoder which knows no more than "some bird" already
beats chance several times over. Three answers, all from the judge's logits:

    category_bias     do the reconstructions fall into fewer classes than the stimuli do?
    per_category      is the score carried by one kind of picture?
    category_oracle   the expected score of a decoder that knows the coarse category and shows any picture of it;
                      `random_picture` is the same without the category

The coarse categories are nine ranges of ImageNet-1k's class order (the order of the 2012 challenge, in which torch,
TensorFlow and timm number classes). They are made for this purpose and frozen: coarse enough that telling them apart
is little to be proud of. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.errors import DataError
from cadiff.evaluate.semantic import success_probability
from cadiff.evaluate.statistics import bootstrap_interval

COARSE_CATEGORIES: dict[str, tuple[tuple[int, int], ...]] = {
    "fish": ((0, 6), (389, 397)),
    "birds": ((7, 24), (80, 100), (127, 146)),
    "amphibians and reptiles": ((25, 68),),  # a triceratops among them
    "invertebrates": ((69, 79), (107, 126), (300, 329)),
    "dogs": ((151, 268),),
    "other mammals": ((101, 106), (147, 150), (269, 299), (330, 388)),
    "food": ((923, 969),),  # as WordNet has it: hay and a plate of something count
    "scenes, people, plants": (
        (970, 998),
    ),  # alp to volcano, ballplayer to scuba diver, daisy to maize, fungi
    "objects": ((398, 922), (999, 999)),
}
"""Name: ranges of ImageNet-1k class indices, both ends included. Together they hold each of 0 to 999 once."""

LAST_ANIMAL = 397
"""Classes 0 to 397 are animals, all others are not."""

FEWEST_IMAGES = 5
"""Categories with fewer images get no interval: resampling two or three values shows no more than those."""


@dataclass(frozen=True)
class Outputs:
    """Which classes pictures were taken for, counted one run (one picture for every stimulus) at a time."""

    entropy_bits: float
    """Of the classes in a run; at most log2 of the pictures in it, and biased downwards alike for equal numbers."""
    distinct: float
    """Classes that occur in a run."""
    commonest: int
    """The class most pictures were taken for, over all runs; the lowest of equals."""
    commonest_share: float


@dataclass(frozen=True)
class CategoryBias:
    """Classes of the reconstructions beside those of the stimuli."""

    stimuli: Outputs
    reconstructions: Outputs
    commonest_right: float
    """Of the reconstructions taken for the commonest class, the share whose stimulus is of that class."""
    same_class: float
    """Share of all reconstructions taken for the class of their stimulus (top-1 among all the judge knows)."""
    same_coarse: float | None
    """Share taken for its coarse category; None where the classes are not ImageNet-1k's."""


@dataclass(frozen=True)
class CategoryScore:
    """Mean score of the stimuli of one coarse category."""

    category: str
    num_images: int
    mean: float
    low: float | None
    """Interval over its images; None for fewer than `FEWEST_IMAGES`."""
    high: float | None


def coarse_category(classes: np.ndarray) -> np.ndarray:
    """Position in `COARSE_CATEGORIES` of ImageNet-1k class indices, same shape; DataError for indices outside 0 to 999."""
    classes = np.asarray(classes)
    if classes.size and (classes.min() < 0 or classes.max() >= len(_CATEGORY_OF_CLASS)):
        raise DataError(
            f"Coarse categories are defined for ImageNet-1k's classes 0 to 999; found {classes.min()} to {classes.max()}."
        )
    return _CATEGORY_OF_CLASS[classes]


def is_animal(classes: np.ndarray) -> np.ndarray:
    """Whether ImageNet-1k class indices are animals: the coarsest question, one bit."""
    return np.asarray(classes) <= LAST_ANIMAL


def outputs(classes: np.ndarray) -> Outputs:
    """Entropy, number and concentration of predicted `classes`, `(n,)` or `(n, runs)`."""
    if np.size(classes) == 0:
        raise DataError("There are no predicted classes to count.")
    runs = np.asarray(classes).reshape(len(classes), -1).T
    counts = [np.unique(run, return_counts=True)[1] for run in runs]
    shares = [count / count.sum() for count in counts]
    values, totals = np.unique(runs, return_counts=True)
    return Outputs(
        entropy_bits=float(np.mean([-(p * np.log2(p)).sum() for p in shares])) + 0.0,  # no -0.0
        distinct=float(np.mean([len(count) for count in counts])),
        commonest=int(values[totals.argmax()]),
        commonest_share=float(totals.max() / runs.size),
    )


def category_bias(predicted: np.ndarray, truth: np.ndarray) -> CategoryBias:
    """Do reconstructions fall into fewer classes than the stimuli?

    Args:
        predicted: `(n, k)` the judge's first class of every sample. truth: `(n,)` its first class of every stimulus.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.ndim != 2 or truth.shape != predicted.shape[:1]:
        raise DataError(
            f"Category bias compares samples (n, k) with n stimuli: {predicted.shape} and {truth.shape}."
        )
    found = outputs(predicted)
    right = predicted == truth[:, None]
    coarse = None
    if max(predicted.max(), truth.max()) < len(_CATEGORY_OF_CLASS):
        coarse = float((coarse_category(predicted) == coarse_category(truth)[:, None]).mean())
    commonest_right = float(right[predicted == found.commonest].mean())
    return CategoryBias(outputs(truth), found, commonest_right, float(right.mean()), coarse)


def per_category(
    values: np.ndarray, truth: np.ndarray, *, num_draws: int = 10_000, seed: int = 0
) -> list[CategoryScore]:
    """Mean score by coarse category of the stimulus, in the order of `COARSE_CATEGORIES`; empty ones are left out.

    Args:
        values: `(n,)` one score a stimulus, mean over samples. truth: `(n,)` its ImageNet-1k class.
    """
    category, rows = coarse_category(truth), []
    for number, name in enumerate(COARSE_CATEGORIES):
        own = np.asarray(values)[category == number]
        if len(own) == 0:
            continue
        low = high = None
        if len(own) >= FEWEST_IMAGES:
            low, high = bootstrap_interval(own, num_draws=num_draws, seed=seed)
        rows.append(CategoryScore(name, len(own), float(own.mean()), low, high))
    return rows


def n_way_table(
    logits: np.ndarray, truth: np.ndarray, *, n: int = 50, k: int = 1, classes: np.ndarray | None = None
) -> np.ndarray:
    """`semantic.n_way_top_k` of every picture as a reconstruction of every stimulus: `(m, t)`.

    Args:
        logits: `(m, C)` of the pictures. truth: `(t,)` classes of the stimuli. n, k, classes: as there. Ties are broken
            at random.

    One sort a picture instead of one pass a pair: a thousand photos against a thousand take a fraction of a second.
    """
    logits, truth = np.asarray(logits), np.asarray(truth)
    allowed = np.arange(logits.shape[1]) if classes is None else np.unique(classes)
    if not np.isin(truth, allowed).all():
        raise DataError("A true class is not among the classes that take part.")
    if np.isnan(logits).any():
        raise DataError("The judge's scores of some pictures hold NaN: the pictures or the judge are broken.")
    above, equal = (np.empty((len(logits), len(truth)), dtype=np.int64) for _ in range(2))
    for row, scores in enumerate(logits):
        ordered, own = np.sort(scores[allowed]), scores[truth]
        end = np.searchsorted(ordered, own, side="right")
        above[row] = len(allowed) - end
        equal[row] = end - np.searchsorted(ordered, own, side="left") - 1
    return success_probability(above, equal, n=n, k=k, num_classes=len(allowed))


def category_oracle(
    table: np.ndarray, picture_category: np.ndarray, category: np.ndarray, own: np.ndarray | None = None
) -> np.ndarray:
    """Expected score `(t,)` of a decoder that knows the category of each stimulus and shows any other picture of it.

    Exact: the mean over all pictures of that category, no draw. NaN for a stimulus whose category has no other picture.

    Args:
        table: `(m, t)` score of every picture for every stimulus, such as `n_way_table`.
        picture_category: `(m,)`. category: `(t,)`, for example `coarse_category` of the stimuli's classes.
        own: `(t,)` row of the table that is the stimulus itself, left out; -1 where it is not among the pictures.
    """
    may = np.asarray(picture_category)[:, None] == np.asarray(category)[None, :]
    if may.shape != table.shape:
        raise DataError(f"A table of {table.shape} scores needs as many categories; there are {may.shape}.")
    if own is not None:
        stimuli = np.flatnonzero(np.asarray(own) >= 0)
        may[np.asarray(own)[stimuli], stimuli] = False
    count = may.sum(axis=0)
    total = np.where(may, table, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def random_picture(table: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """Expected score `(t,)` of showing any picture at all; arguments as in `category_oracle`."""
    return category_oracle(table, np.zeros(table.shape[0]), np.zeros(table.shape[1]), own)


def _lookup() -> np.ndarray:
    found = np.full(1000, -1)
    for number, ranges in enumerate(COARSE_CATEGORIES.values()):
        for first, last in ranges:
            found[first : last + 1] = number
    return found


_CATEGORY_OF_CLASS = _lookup()

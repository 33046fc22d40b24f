"""The controls that are made of training pictures: which pictures they take, and why one of them may be absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cadiff.evaluate.categories import coarse_category
from cadiff.evaluate.controls import PictureControls, mean_picture, same_category, score_picture
from cadiff.evaluate.judging import Judge
from cadiff.evaluate.pictures import stimulus_images
from cadiff.evaluate.scores import PairScores, Protocol, Seen

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class World:
    """What every control of an evaluation is scored with."""

    stimuli: pd.DataFrame
    """Of `cadiff.evaluate.pictures.open_stimuli`."""
    stimulus_ids: list[str]
    """Those that are evaluated, n."""
    size: tuple[int, int]
    look: Judge
    targets: Seen
    """The n stimuli."""
    protocol: Protocol

    @property
    def training(self) -> pd.DataFrame:
        """The training stimuli that have a picture."""
        return self.stimuli[(self.stimuli["split"] == "train") & self.stimuli["file"].notna()]

    def num_training(self, most: int) -> int:
        """How many training pictures controls are made of, where `most` are asked for."""
        return min(most, len(self.training))

    def picture(self, names: list[str]) -> np.ndarray:
        """uint8 (names, H, W, 3)."""
        return stimulus_images(self.stimuli, names, self.size)


def picture_controls(
    world: World, *, count: int, seed: int, headline: str, lowest: bool, brain: Seen
) -> Iterator[tuple[str, Scores, dict[str, float]]]:
    """(name, scores (n,) by metric, mean scores of wrong pairs) of every control made of single training pictures.

    Args:
        count: training pictures drawn by `seed`. headline: the metric that the best constant is chosen by; lowest: less of
            it is better. brain: the reconstructions whose nearest training pictures are sought.
    """
    known, targets, protocol = world.training, world.targets, world.protocol
    count = world.num_training(count)
    if count < 2:
        return
    drawn = np.sort(np.random.default_rng(seed).permutation(len(known))[:count])
    pictures = world.picture([str(known.index[i]) for i in drawn])
    controls = PictureControls(world.look(pictures), targets, protocol, seed=seed)
    anyone = controls.expected()
    mispaired = means(anyone)
    mean = score_picture(world.look(mean_picture(pictures)), targets, protocol)
    yield "mean_image", mean, means(mean)
    yield "random_train", anyone, mispaired
    for name, on in (("constant_train", "train"), ("constant_test", "test")):
        scores = controls.constant(headline, on=on, lowest=lowest)
        yield name, scores, means(scores)
    alike = same_category(controls.candidates, targets, coarse_category)
    if alike is not None:
        yield "coarse_category", controls.expected(alike), mispaired
    n = len(targets.images)
    nearest = controls.nearest(brain, np.repeat(np.arange(n), len(brain.images) // n))
    yield "nearest_train", {key: v.reshape(n, -1).mean(axis=1) for key, v in nearest.items()}, mispaired


def class_mean(world: World) -> tuple[Scores, Scores] | str:
    """Scores (n,) of the mean training picture of every stimulus' own class, and of those of other stimuli; else why not.

    All training pictures of a class count, in full size of the comparison; absent where any stimulus' class has none.
    """
    known, labels = world.training, world.stimuli.loc[world.stimulus_ids, "label"]
    if known.empty:
        return "there are no training pictures"
    if labels.isna().any():
        return f"{int(labels.isna().sum())} of {len(labels)} stimuli have no class label"
    members = known.groupby("label").groups
    if strange := [name for name in labels.unique() if name not in members]:
        some = f"{len(strange)} of the {labels.nunique()}" if len(strange) < labels.nunique() else "the"
        return f"{some} classes of the evaluated stimuli have no training pictures"
    classes = list(labels.unique())
    pictures = [mean_picture(world.picture([str(name) for name in members[label]])) for label in classes]
    rows = np.array([classes.index(label) for label in labels])
    seen = world.look(np.concatenate(pictures))[rows]
    return PairScores(seen, world.targets, world.protocol, num_samples=1).scored(np.arange(len(rows)))


def means(scores: Scores) -> dict[str, float]:
    """The mean over images of every metric."""
    return {name: float(values.mean()) for name, values in scores.items()}

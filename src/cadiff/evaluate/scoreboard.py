"""The conditions of an evaluation, scored one after the other: their part of evaluation.json, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cadiff.errors import DataError
from cadiff.evaluate import evidence, semantic, sets
from cadiff.evaluate.metrics import Metric
from cadiff.evaluate.output import averaging, reading, sample_table
from cadiff.evaluate.scores import PairScores, Seen
from cadiff.evaluate.settings import EvaluateConfig
from cadiff.evaluate.summary import Draws, label, role, summary
from cadiff.evaluate.systems import System
from cadiff.evaluate.training_pictures import Scores, World, means


class Scored(NamedTuple):
    """What controls and statistics need of a condition with pictures of its own, by metric."""

    seen: Seen
    """What the networks see of its pictures (n k)."""
    samples: Scores
    """(n, k)."""
    wrong: Scores
    """(n,), expected of each stimulus with a reconstruction of another one."""


@dataclass
class Scoreboard:
    """Scores of one condition after the other against the same stimuli."""

    config: EvaluateConfig
    world: World
    metrics: dict[str, Metric]
    headline: str
    primary: str
    """The condition that the evaluation is about."""
    prefix: str
    """Dataset and subject, for protocols."""
    draws: Draws
    variants: Mapping[str, Any] = field(default_factory=dict)
    """Conditions of the first folder that read part of the brain, as it describes them."""
    conditions: dict[str, Any] = field(default_factory=dict)
    """By name: what evaluation.json says of it."""
    per_image: dict[str, Scores] = field(default_factory=dict)
    """By name: every metric, (n,), mean over samples."""
    distances: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name of a drawn condition: of `cadiff.evaluate.sets.distances`."""
    blank: dict[str, str] = field(default_factory=dict)
    """By name of a drawn condition with pictures of one colour: how many."""
    tables: list[pd.DataFrame] = field(default_factory=list)
    """Of every drawn condition, one row a picture."""

    def drawn(self, system: System) -> Scored:
        """Scores a condition that has pictures of its own."""
        world, config, name = self.world, self.config, system.condition
        images = system.images(config.size)
        if images.shape[2:4] != world.size:
            raise DataError(
                f"{system.folder.folder}: {name} is {_by(images.shape[2:4])} pixels, others {_by(world.size)}; to resize "
                f"all alike, give the side in pixels: --set size={max(world.size)}."
            )
        n, k = images.shape[:2]
        if (blank := (images == images[:, :, :1, :1]).all(axis=(2, 3, 4)).ravel()).any():
            first = Path(system.folder.rows(system.inside)["file"].iloc[int(blank.argmax())]).name
            are = "is" if blank.sum() == 1 else "are"
            self.blank[name] = f"{blank.sum()} of {n * k} pictures {are} of one colour (first: {first})"
        own = np.repeat(np.arange(n), k)
        seen = world.look(images.reshape(n * k, *images.shape[2:]))
        pairs = PairScores(seen, world.targets, world.protocol, num_samples=k)
        right, wrong = pairs.scored(own)
        samples = {key: values.reshape(n, k) for key, values in right.items()}
        self.per_image[name] = {key: values.mean(axis=1) for key, values in samples.items()}
        drawn = averaging(system.folder) + reading(system.folder)
        tail = f"{drawn}/mean-of-{k}/{n}-images/{world.size[1]}px"
        variant = self.variants.get(name) if not system.origin else None
        about = self._condition(name, samples, means(wrong), tail, variant)
        if config.monte_carlo_trials and seen.logits is not None and world.targets.logits is not None:
            about["monte_carlo"] = self._monte_carlo(seen.logits, world.targets.logits, own)
        headline = self.per_image[name][self.headline]
        about["categories"] = evidence.categories(seen, world.targets, headline, self.draws)
        about["diversity"] = evidence.spread(seen, k)
        self.distances[name] = sets.distances(seen, world.targets, own, self.draws)
        self.tables.append(sample_table(system, samples, seen))
        return Scored(seen, samples, wrong)

    def control(self, name: str, scores: Scores, mispaired: Mapping[str, float]) -> None:
        """Adds a condition without pictures of its own: scores (n,) by metric, and the mean scores of wrong pairs."""
        self.per_image[name] = scores
        tail = f"{len(self.world.stimulus_ids)}-images/{self.world.size[1]}px"
        self._condition(name, {key: value[:, None] for key, value in scores.items()}, mispaired, tail)

    def _condition(
        self,
        name: str,
        samples: Mapping[str, np.ndarray],
        mispaired: Mapping[str, float],
        tail: str,
        variant: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One condition of evaluation.json from scores (images, samples) by metric."""
        n, k = next(iter(samples.values())).shape
        protocol = f"{self.prefix}/{{}}/{tail}"
        self.conditions[name] = {
            "label": label(name, variant),
            "role": role(name, variant),
            "num_images": n,
            "num_samples": k,
            "metrics": {
                key: summary(
                    metric, samples[key], mispaired[key], protocol.format(metric.protocol), self.draws
                )
                for key, metric in self.metrics.items()
                if key in samples
            },
        }
        return self.conditions[name]

    def _monte_carlo(
        self, logits: np.ndarray, stimulus_logits: np.ndarray, own: np.ndarray
    ) -> dict[str, float]:
        protocol = self.world.protocol
        truth = semantic.truth_classes(stimulus_logits, protocol.classes)[own]
        return {
            f"n_way_top{k}": float(
                semantic.n_way_top_k_monte_carlo(
                    logits,
                    truth,
                    np.random.default_rng(self.config.seed),
                    n=protocol.n_way,
                    k=k,
                    num_trials=self.config.monte_carlo_trials,
                    classes=protocol.classes,
                ).mean()
            )
            for k in protocol.top_k
        }


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))

"""All scores of one trace: stations by targets, gathered one station at a time, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cadiff.evaluate.pictures import Reconstructions
from cadiff.trace.pictures import AVERAGED, PICTURE, drawn_pictures
from cadiff.trace.probe import probe
from cadiff.trace.scores import METRICS, Difference, Values, differences, means, score
from cadiff.trace.stations import BETAS, CONTEXT, MAPPED, RANDOM, START, TUNED, Station
from cadiff.trace.targets import Target, stack
from cadiff.trace.verdict import METRIC, verdict

WAY = (BETAS, TUNED, MAPPED, CONTEXT, PICTURE)
"""The way of a trial to its picture: each station is made of the one before it."""
KINDS = ("steps", "over_random", "over_start", "over_betas")
"""What is asked: each step of the way; trained tokens minus the random encoder's; the context minus the start alone, which is
what the encoder adds; each station minus the betas."""


@dataclass(eq=False)
class Table:
    """Scores of the stations so far."""

    targets: Sequence[Target]
    components: Sequence[np.ndarray]
    """Of the training stimuli (k, C), one a target."""
    truth: Sequence[np.ndarray]
    """Of the stimuli that are scored (n, C), one a target."""
    shown: Sequence[str]
    """Stimulus of each training trial."""
    rows: np.ndarray
    """Row of `components` of each training trial."""
    stimulus_ids: Sequence[str]
    """Those that are scored."""
    split: str
    num_bootstrap: int
    seed: int
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Station -> label, meaning, shape, and how its read-out was fitted."""
    values: dict[str, dict[str, Values]] = field(default_factory=dict)
    """Target -> station -> metric -> (n,)."""

    def read(self, station: Station) -> None:
        """Fits the read-out of a station and scores it."""
        train = station.values[0]
        other = station.values[1] if len(station.values) > 1 else train[:0]
        wanted = stack(self.components, self.rows)
        predicted, fit = probe(train, other, wanted, self.shown, seed=self.seed)
        found = (
            predicted.numpy() if self.split == "test" else self._by_stimulus(fit.held_out.double().numpy())
        )
        # a start that was fitted on these trials holds what they showed; test trials are predicted from it, not they
        in_sample = self.split == "test" and START in {station.name, *self.about}
        explained, start = {}, 0
        for target, truth in zip(self.targets, self.truth, strict=True):
            part = slice(start, start + truth.shape[1])
            self._add(target.name, station.name, score(found[:, part], truth))
            missed = (fit.held_out[:, part].double() - wanted[:, part]).square().sum()
            spread = (wanted[:, part] - wanted[:, part].mean(0)).square().sum()
            explained[target.name] = None if in_sample else 1 - float(missed / spread)
            start = part.stop
        self.about[station.name] = {
            "label": station.label,
            "meaning": station.meaning,
            "shape": list(station.shape),
            "numbers": station.num_numbers,
            "probe": {"penalty": fit.penalty, "held_out_explained": explained},
        }

    def look(self, found: Reconstructions, side: int) -> None:
        """Scores the pictures of a folder as they are, without a read-out."""
        for drawn in drawn_pictures(found, self.stimulus_ids, side):
            n, samples = drawn.images.shape[:2]
            flat = drawn.images.reshape(n * samples, *drawn.images.shape[2:])
            told = {"shape": list(flat.shape[1:]), "numbers": flat[0].size, "probe": None, "samples": samples}
            self.about[drawn.name] = {"label": drawn.label, "meaning": drawn.meaning, **told}
            if samples > 1:
                meaning = f"mean of the components of {samples} samples"
                label = f"{drawn.label}, samples averaged"
                self.about[drawn.name + AVERAGED] = {"label": label, "meaning": meaning, **told}
            for target, truth in zip(self.targets, self.truth, strict=True):
                seen = target(flat)
                self._add(target.name, drawn.name, score(seen, truth))
                if samples > 1:
                    mean = seen.reshape(n, samples, -1).mean(axis=1)
                    self._add(target.name, drawn.name + AVERAGED, score(mean, truth))

    def as_json(self) -> dict[str, Any]:
        """Targets, stations, scores and differences as plain values, and the verdict."""
        targets = {
            target.name: {
                "label": target.label,
                "components": truth.shape[1],
                "explained": target.explained,
                **target.about,
            }
            for target, truth in zip(self.targets, self.truth, strict=True)
        }
        asked = {
            target: {
                metric: {kind: self._asked(target, metric, kind) for kind in KINDS} for metric in METRICS
            }
            for target in self.values
        }
        return {
            "verdict": self._verdict(asked[self.targets[0].name][METRIC]),
            "stimuli": len(self.stimulus_ids),
            "metrics": METRICS,
            "targets": targets,
            "stations": self.about,
            "scores": {name: self._scores(found) for name, found in self.values.items()},
            "differences": {
                target: {
                    metric: {kind: [row.as_json() for row in rows] for kind, rows in told.items()}
                    for metric, told in by_metric.items()
                }
                for target, by_metric in asked.items()
            },
        }

    def per_stimulus(self) -> pd.DataFrame:
        """station, target, stimulus_id, and a column a metric."""
        return pd.concat(
            [
                pd.DataFrame({"station": name, "target": target, "stimulus_id": self.stimulus_ids, **values})
                for name in self.about
                for target, values in ((t, found[name]) for t, found in self.values.items())
            ]
        )

    def _verdict(self, told: Mapping[str, list[Difference]]) -> str:
        """The sentence about the first target."""
        trained = {row.first for row in told["over_random"]}
        return verdict(
            {name: about["label"] for name, about in self.about.items()},
            {
                name: float(values[METRIC].mean())
                for name, values in self.values[self.targets[0].name].items()
            },
            told["steps"],
            told["over_random"],
            [row for row in told["over_betas"] if row.first in trained],
        )

    def _asked(self, target: str, metric: str, kind: str) -> list[Difference]:
        """The paired differences of one question."""
        found = {name: values[metric] for name, values in self.values[target].items()}
        way = [name for name in WAY if name in found]
        trained = [name for name in found if name.endswith("_tokens") and name != MAPPED]
        pairs = {
            "steps": list(zip(way[1:], way[:-1], strict=True)),
            "over_random": [(name, RANDOM) for name in trained],
            "over_start": [(CONTEXT, START)] if START in found else [],
            "over_betas": [(name, BETAS) for name in found if name != BETAS],
        }[kind]
        return differences(found, pairs, num_draws=self.num_bootstrap, seed=self.seed)

    def _scores(self, found: dict[str, Values]) -> dict[str, dict[str, Any]]:
        return {
            name: {
                metric: means(one, num_draws=self.num_bootstrap, seed=self.seed)
                for metric, one in values.items()
            }
            for name, values in found.items()
        }

    def _add(self, target: str, station: str, values: Values) -> None:
        self.values.setdefault(target, {})[station] = values

    def _by_stimulus(self, held_out: np.ndarray) -> np.ndarray:
        """Held-out predictions of training trials (trials, C) averaged by stimulus: (n, C)."""
        place = {name: i for i, name in enumerate(self.stimulus_ids)}
        where = np.array([place.get(name, -1) for name in self.shown])
        kept = where >= 0
        total = np.zeros((len(place), held_out.shape[1]))
        np.add.at(total, where[kept], held_out[kept])
        return total / np.bincount(where[kept], minlength=len(place))[:, None]

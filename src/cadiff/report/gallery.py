"""Which pictures the page shows, by rule and by seed, never by hand; and the score of every single test image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from cadiff.data.dataset import BrainDataset
from cadiff.evaluate.pictures import read_picture
from cadiff.report import facts, figures

NUM_FIRST = 8
"""Pictures in the head of the page."""
NUM_RANDOM = 8
"""Stimuli drawn by seed, besides best, median and worst."""
MAX_BRAIN, MAX_CONTROL = 5, 2
"""Samples shown of each stimulus."""


class Gallery:
    """Pictures of chosen stimuli beside their scores."""

    def __init__(
        self,
        scores: Mapping[str, Any],
        pictures: Mapping[str, Path],
        dataset: BrainDataset,
        tables: tuple[pd.DataFrame, pd.DataFrame],
        seed: int,
    ) -> None:
        self._scores, self._pictures, self._dataset = scores, pictures, dataset
        self._images, self._samples = tables
        self._metric = scores["headline"]["metric"]
        self._about = scores["metrics"][self._metric]
        self._primary = scores["headline"]["condition"]
        self._names = facts.shipped_names()
        main = self._images[self._images["condition"] == self._primary].set_index("stimulus_id")
        sign = 1 if self._about["direction"] == "higher" else -1
        # Best first; ties fall to PCC, which hardly ever has any.
        order = np.lexsort([-main["pcc"].to_numpy(), -sign * main[self._metric].to_numpy()])
        self._ranked = [str(main.index[i]) for i in order]
        self._drawn = [str(s) for s in np.random.default_rng(seed).permutation(main.index.to_numpy())]

    def first(self) -> list[dict[str, Any]]:
        """The head of the page: stimuli drawn by seed, each with its first sample."""
        found = []
        for stimulus_id in self._drawn[:NUM_FIRST]:
            row = self._rows(self._primary, stimulus_id).iloc[0]
            name, stimulus = self._name(stimulus_id), self._stimulus(stimulus_id)
            found.append({"name": name, "stimulus": stimulus, "sample": self._sample(row)})
        return found

    def groups(self) -> list[dict[str, Any]]:
        """Best, median and worst by score, then the seeded random choice."""
        ranked = self._ranked
        extremes = {"Best": ranked[0], "Median": ranked[len(ranked) // 2], "Worst": ranked[-1]}
        score = self._about["label"]
        one = {
            "title": "Best, median and worst",
            "text": f"by {score}, mean over samples, of all {len(ranked)} test images.",
            "rows": [self._row(stimulus_id, tag) for tag, stimulus_id in extremes.items()],
        }
        others = [s for s in self._drawn if s not in extremes.values()][:NUM_RANDOM]
        two = {
            "title": "Drawn at random",
            "text": f"{len(others)} of the other test images, in the order in which the generator drew them.",
            "rows": [self._row(stimulus_id, "") for stimulus_id in others],
        }
        return [one, two] if others else [one]

    def chart(self) -> dict[str, Any]:
        """The headline score of every single test image, sorted, beside the controls'."""
        percent, series = self._about["percent"], []
        for name, condition in self._scores["conditions"].items():
            if name == self._primary or condition["role"] == "control":
                rows = self._images[self._images["condition"] == name].set_index("stimulus_id")
                values = rows.loc[self._ranked, self._metric].astype(float).tolist()
                series.append((condition["role"], condition["label"], values))
        series.sort(key=lambda s: s[1] != self._scores["conditions"][self._primary]["label"])
        ends = [v for _, _, values in series for v in values]
        ticks = figures.nice_ticks(0.0 if percent else min(0.0, *ends), max(ends), 5)
        labels = [f"{100 * t:g}" if percent else f"{t:g}" for t in ticks]
        ahead = self._ahead(series)
        drawn = figures.per_image_chart(series, ticks, labels, f"{self._about['label']} of every test image")
        return {"svg": drawn, "ahead": ahead, "n": len(self._ranked)}

    def _ahead(self, series: Sequence[tuple[str, str, Sequence[float]]]) -> int | None:
        """Images on which the primary condition beats the mean of the controls."""
        if len(series) < 2:
            return None
        gain = np.asarray(series[0][2]) - np.mean([values for _, _, values in series[1:]], axis=0)
        return int((gain > 0).sum() if self._about["direction"] == "higher" else (gain < 0).sum())

    def _row(self, stimulus_id: str, tag: str) -> dict[str, Any]:
        blocks = []
        for name, condition in self._scores["conditions"].items():
            rows = self._rows(name, stimulus_id)
            shown = rows.head(MAX_BRAIN if name == self._primary else MAX_CONTROL)
            blocks.append(
                {
                    "label": condition["label"],
                    "role": condition["role"],
                    "main": name == self._primary,
                    "mean": float(rows[self._metric].mean()),
                    "pictures": [
                        {"uri": self._sample(row), "score": float(row[self._metric])}
                        for _, row in shown.iterrows()
                    ],
                }
            )
        # Pictures of the brain are a third larger than those of controls, whatever their number.
        shares = [len(b["pictures"]) * (4 if b["main"] else 3) for b in blocks]
        name, stimulus = self._name(stimulus_id), self._stimulus(stimulus_id)
        columns = " ".join(f"minmax(0, {share}fr)" for share in shares)
        return {
            "id": stimulus_id,
            "name": name,
            "tag": tag,
            "stimulus": stimulus,
            "blocks": blocks,
            "columns": columns,
        }

    def _rows(self, condition: str, stimulus_id: str) -> pd.DataFrame:
        chosen = (self._samples["condition"] == condition) & (self._samples["stimulus_id"] == stimulus_id)
        return self._samples[chosen]

    def _name(self, stimulus_id: str) -> str:
        """The category for people, else the label as it is, else the id."""
        label = self._dataset.stimuli.at[stimulus_id, "label"]
        if not isinstance(label, str):
            return stimulus_id
        return self._names.get(label, label).split(",")[0]

    def _stimulus(self, stimulus_id: str) -> Markup:
        return Markup(figures.picture_uri(self._dataset.image(stimulus_id)))

    def _sample(self, row: Any) -> Markup:
        return Markup(
            figures.picture_uri(read_picture(self._pictures[str(row["origin"])] / str(row["file"])))
        )

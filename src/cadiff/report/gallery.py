"""Which pictures a page shows, by rule and by seed, never by hand; and the score of every single test image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cadiff.report import facts
from cadiff.report.charts import per_image_chart
from cadiff.report.conditions import grouped, label
from cadiff.report.figures import picture_uri, score_ticks, tick_texts
from cadiff.report.inputs import Evaluated

NUM_FIRST = 8
"""Pictures in the head of the page."""
NUM_RANDOM = 8
"""Stimuli drawn by seed, besides best, median and worst."""
MAX_BRAIN, MAX_OTHER = 5, 2
"""Samples shown of each stimulus."""
OFTEN = 3
"""Controls in the chart of every image; more would hide each other."""


class Gallery:
    """Pictures of chosen stimuli beside their scores."""

    def __init__(self, evaluated: Evaluated, seed: int) -> None:
        self._evaluated = evaluated
        self._about = evaluated.scores["metrics"][evaluated.metric]
        self._names = facts.shipped_names()
        main = evaluated.images[evaluated.images["condition"] == evaluated.primary].set_index("stimulus_id")
        sign = 1 if self._about["direction"] == "higher" else -1
        # Best first; ties fall to PCC, which hardly ever has any.
        order = np.lexsort([-main["pcc"].to_numpy(), -sign * main[evaluated.metric].to_numpy()])
        self._ranked = [str(main.index[i]) for i in order]
        self._drawn = [str(s) for s in np.random.default_rng(seed).permutation(main.index.to_numpy())]
        self._shown = [
            (group.kind, name)
            for group, names in grouped(evaluated)
            for name in names
            if self._is_drawn(name)
        ]

    def first(self) -> list[dict[str, Any]]:
        """The head of the page: stimuli drawn by seed, each with its first sample."""
        found = []
        for stimulus_id in self._drawn[:NUM_FIRST]:
            row = self._evaluated.rows(self._evaluated.primary, stimulus_id).iloc[0]
            pictures = {"stimulus": self._stimulus(stimulus_id), "sample": self._sample(row)}
            found.append({"name": self._name(stimulus_id), **pictures})
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
        """The headline score of every single test image, sorted, beside the strongest controls'."""
        evaluated, percent = self._evaluated, self._about["percent"]
        series = []
        for group, names in grouped(evaluated):
            kept = 0
            for name in names:
                values = evaluated.values(name, evaluated.metric)
                if group.kind in ("brain", "control") and values is not None and kept < OFTEN:
                    series.append((group.kind, label(evaluated, name), values.loc[self._ranked].tolist()))
                    kept += 1
        ticks = score_ticks([v for _, _, values in series for v in values], percent, 5)
        title = f"{self._about['label']} of every test image"
        drawn = per_image_chart(series, ticks, tick_texts(ticks, percent), title)
        controls = [name for kind, name, _ in series if kind == "control"]
        return {"svg": drawn, "ahead": self._ahead(series), "n": len(self._ranked), "controls": controls}

    def _ahead(self, series: Sequence[tuple[str, str, Sequence[float]]]) -> int | None:
        """Images on which the primary condition beats the mean of the controls shown."""
        if len(series) < 2:
            return None
        gain = np.asarray(series[0][2]) - np.mean([values for _, _, values in series[1:]], axis=0)
        return int((gain > 0).sum() if self._about["direction"] == "higher" else (gain < 0).sum())

    def _row(self, stimulus_id: str, tag: str) -> dict[str, Any]:
        evaluated, blocks = self._evaluated, []
        for kind, name in self._shown:
            rows = evaluated.rows(name, stimulus_id)
            main = name == evaluated.primary
            blocks.append(
                {
                    "label": label(evaluated, name),
                    "kind": kind,
                    "main": main,
                    "mean": self._mean(rows),
                    "protocol": evaluated.scores["conditions"][name]["metrics"][evaluated.metric]["protocol"],
                    "pictures": [
                        {"uri": self._sample(row), "score": float(row[evaluated.metric])}
                        for _, row in rows.head(MAX_BRAIN if main else MAX_OTHER).iterrows()
                    ],
                }
            )
        return {
            "id": stimulus_id,
            "name": self._name(stimulus_id),
            "tag": tag,
            "stimulus": self._stimulus(stimulus_id),
            "blocks": blocks,
        }

    def _mean(self, rows: pd.DataFrame) -> float:
        return float(rows[self._evaluated.metric].astype(float).mean())

    def _is_drawn(self, condition: str) -> bool:
        """Whether the condition has pictures of its own; controls made of training pictures have none."""
        samples = self._evaluated.samples
        return bool((samples["condition"] == condition).any())

    def _name(self, stimulus_id: str) -> str:
        """The category for people, else the label as it is, else the id."""
        given = self._evaluated.stimuli.at[stimulus_id, "label"]
        if not isinstance(given, str):
            return stimulus_id
        return self._names.get(given, given).split(",")[0]

    def _stimulus(self, stimulus_id: str) -> str:
        return picture_uri(self._evaluated.stimulus(stimulus_id))

    def _sample(self, row: Any) -> str:
        return picture_uri(self._evaluated.picture(row))

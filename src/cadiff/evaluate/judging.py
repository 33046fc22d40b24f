"""What the judge sees: logits and features of pictures, each distinct picture looked at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cadiff.evaluate.scores import Seen


class Judge:
    """Looks at pictures with a classifier, or (without a name) not at all.

    name: as `cadiff.vision.load_classifier` takes it. classes: the ImageNet indices that take part; all by default.
    """

    def __init__(
        self,
        name: str | None,
        classes: tuple[int, ...] | None = None,
        *,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> None:
        self._classes, self._batch_size, self._progress = classes, batch_size, progress
        self._classifier: Any = None
        if name is not None:
            from cadiff.vision import load_classifier  # torch loads only when there is a judge

            self._classifier = load_classifier(name)

    def __call__(self, images: np.ndarray) -> Seen:
        """Pictures uint8 (n, H, W, 3) with the judge's logits and features."""
        if self._classifier is None:
            return Seen(images)
        # Controls often repeat one picture for every stimulus: look once at each.
        first: dict[bytes, int] = {}
        names = [hashlib.sha256(image.tobytes()).digest() for image in images]
        where = np.array([i for i, name in enumerate(names) if first.setdefault(name, i) == i])
        rank = {names[i]: row for row, i in enumerate(where)}
        back = np.array([rank[name] for name in names])
        found = self._classifier.features(
            images[where], ("pooled", "logits"), batch_size=self._batch_size, progress=self._progress
        )
        return Seen(images, found["logits"][back], found["pooled"][back])

    def about(
        self, targets: Seen, stimuli: pd.DataFrame, stimulus_ids: Sequence[str]
    ) -> dict[str, Any] | None:
        """Name, preprocessing, and calibration: does the judge know the stimuli themselves?"""
        if self._classifier is None or targets.logits is None:
            return None
        known = stimuli.loc[list(stimulus_ids), "imagenet_index"]
        rows = np.flatnonzero(known.notna().to_numpy())
        right = int((targets.logits.argmax(axis=1)[rows] == known.iloc[rows].astype(int).to_numpy()).sum())
        classes = self._classes
        return {
            "name": self._classifier.name,
            "preprocessing": self._classifier.preprocessing,
            "num_classes": len(set(classes)) if classes else targets.logits.shape[1],
            "truth": "the judge's own arg-max on the stimulus (Algorithm 1)",
            "calibration": {
                "num_labelled": len(rows),
                "num_right": right,
                "accuracy": right / len(rows) if len(rows) else None,
                "num_classes_seen": len(np.unique(targets.logits.argmax(axis=1))),
            },
        }

"""What networks see: the judge's logits and features, and those of further eyes; each distinct picture looked at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cadiff.evaluate.scores import TWO_WAY, Metric, Seen
from cadiff.eyes.names import EYES, MINDEYE


def eye_metrics(eyes: Mapping[str, str]) -> dict[str, tuple[str, str, Metric]]:
    """Metric name -> (eye, layer, metric) for the eyes of the settings: MindEye's rows for those it uses, else two-way.

    Eyes with a name of their own (`cadiff.eyes.EYES`) are read at all their layers, other local classifiers at `pooled`.
    """
    found = {}
    for eye in eyes:
        for layer in EYES[eye].layers if eye in EYES else ("pooled",):
            row = next((r for r in MINDEYE if (r.eye, r.layer) == (eye, layer)), None)
            short = f"{eye}_{layer}".replace("-", "_")
            if row is None or row.kind == "two_way":
                label = f"2-way, {row.label if row else eye}"
                metric = Metric(label, f"2-way/{eye}-{layer}/pcc", True, 0.5, True, False)
                found[TWO_WAY + short] = (eye, layer, metric)
            else:
                label, protocol = f"distance, {row.label}", f"1-pcc/{eye}-{layer}"
                found[f"distance_{short}"] = (eye, layer, Metric(label, protocol, False, None, False, False))
    return found


class Judge:
    """Looks at pictures with a classifier, or (without a name) not at all, and with further eyes.

    name: as `cadiff.vision.load_classifier` takes it. classes: the ImageNet indices that take part; all by default.
    eyes: name -> folder or file of weights, as `cadiff.eyes.load_eye` takes them.
    """

    def __init__(
        self,
        name: str | None,
        classes: tuple[int, ...] | None = None,
        *,
        eyes: Mapping[str, str] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> None:
        self._classes, self._batch_size, self._progress = classes, batch_size, progress
        self._classifier: Any = None
        if name is not None:
            from cadiff.vision import load_classifier  # torch loads only when there is a judge

            self._classifier = load_classifier(name)
            self._classifier.check_classes(classes)
        self._eyes: dict[str, Any] = {}
        self._metrics = eye_metrics(eyes or {})
        if eyes:
            from cadiff.eyes import load_eye

            self._eyes = {eye: load_eye(eye, path) for eye, path in eyes.items()}

    def __call__(self, images: np.ndarray) -> Seen:
        """Pictures uint8 (n, H, W, 3) with the judge's logits and features, and what the eyes see."""
        if self._classifier is None and not self._eyes:
            return Seen(images)
        # Controls often repeat one picture for every stimulus: look once at each.
        first: dict[bytes, int] = {}
        names = [hashlib.sha256(image.tobytes()).digest() for image in images]
        where = np.array([i for i, name in enumerate(names) if first.setdefault(name, i) == i])
        rank = {names[i]: row for row, i in enumerate(where)}
        back = np.array([rank[name] for name in names])
        options: dict[str, Any] = {"batch_size": self._batch_size, "progress": self._progress}
        features = {eye: network.features(images[where], **options) for eye, network in self._eyes.items()}
        eyes = {name: features[eye][layer][back] for name, (eye, layer, _) in self._metrics.items()}
        if self._classifier is None:
            return Seen(images, eyes=eyes)
        found = self._classifier.features(images[where], ("pooled", "logits"), **options)
        return Seen(images, found["logits"][back], found["pooled"][back], eyes)

    def about_eyes(self) -> dict[str, Any]:
        """Per further eye: what happens to the pixels, and SHA-256 of its weights."""
        return {
            name: {"preprocessing": eye.preprocessing, "weights_sha256": eye.digest()}
            for name, eye in self._eyes.items()
        }

    def about(
        self, targets: Seen, stimuli: pd.DataFrame, stimulus_ids: Sequence[str]
    ) -> dict[str, Any] | None:
        """Name, preprocessing, and calibration: does the judge know the stimuli themselves?"""
        if self._classifier is None or targets.logits is None:
            return None
        known = stimuli.loc[list(stimulus_ids), "imagenet_index"]
        comparable = (
            known.notna().to_numpy() & self._classifier.is_imagenet
        )  # else its class numbers mean something else
        rows = np.flatnonzero(comparable)
        right = int((targets.logits.argmax(axis=1)[rows] == known.iloc[rows].astype(int).to_numpy()).sum())
        classes = self._classes
        return {
            "name": self._classifier.name,
            "preprocessing": self._classifier.preprocessing,
            "weights_sha256": self._classifier.digest(),
            "num_classes": len(set(classes)) if classes else targets.logits.shape[1],
            "truth": "the judge's own arg-max on the stimulus (Algorithm 1)",
            "calibration": {
                "num_labelled": len(rows),
                "num_right": right,
                "accuracy": right / len(rows) if len(rows) else None,
                "num_classes_seen": len(np.unique(targets.logits.argmax(axis=1))),
            },
        }

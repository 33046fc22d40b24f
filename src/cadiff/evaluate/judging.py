"""What networks see: the judge's logits and features, and those of further eyes; each distinct picture looked at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cadiff.evaluate.metrics import TWO_WAY, Metric, two_way
from cadiff.evaluate.names import class_names
from cadiff.evaluate.scores import Distances, Seen
from cadiff.eyes.names import EYES, LPIPS, MINDEYE


def eye_metrics(eyes: Mapping[str, str]) -> dict[str, tuple[str, str, Metric]]:
    """Metric name -> (eye, layer, metric) for the eyes of the settings: MindEye's rows for those it uses, else two-way.

    Eyes with a name of their own (`cadiff.eyes.EYES`) are read at all their layers, other local classifiers at `pooled`.
    LPIPS has no features of its own and is not among them.
    """
    found = {}
    for eye in eyes:
        if eye == LPIPS:
            continue
        for layer in EYES[eye].layers if eye in EYES else ("pooled",):
            row = next((r for r in MINDEYE if (r.eye, r.layer) == (eye, layer)), None)
            short, name = f"{eye}_{layer}".replace("-", "_"), row.label if row else eye
            if row is None or row.kind == "two_way":
                metric = two_way(f"2-way, {name}", f"{eye}-{layer}", f"{name}'s features", False)
                found[TWO_WAY + short] = (eye, layer, metric)
            else:
                label, protocol = f"distance, {name}", f"1-pcc/{eye}-{layer}"
                says = (
                    f"1 - correlation of {name}'s features of reconstruction and stimulus, 0 for equal ones"
                )
                found[f"distance_{short}"] = (
                    eye,
                    layer,
                    Metric(label, protocol, False, None, False, False, says),
                )
    return found


def lpips_metric(name: str) -> Metric:
    """LPIPS, version and network as `cadiff.eyes.load_lpips` names them, such as "lpips0.1-alexnet"."""
    version, _, network = name.removeprefix("lpips").partition("-")
    words = {"alexnet": "AlexNet", "vgg16": "VGG16"}.get(network, network)
    says = (
        f"Perceptual distance of reconstruction and stimulus, 0 for equal pictures: LPIPS {version} on {words} "
        "(Zhang et al. 2018)"
    )
    return Metric("LPIPS", name, False, None, False, False, says)


class Judge:
    """Looks at pictures with a classifier, or (without a name) not at all, and with further eyes.

    name: as `cadiff.vision.load_classifier` takes it. classes: the ImageNet indices that take part; all by default.
    eyes: name -> folder or file of weights, as `cadiff.eyes.load_eye` takes them, and "lpips" as `cadiff.eyes.load_lpips`.
    """

    metrics: dict[str, Metric]
    """Those of the eyes."""
    distances: dict[str, Distances]
    """Those of them that compare pictures themselves, for `Protocol`."""

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
        self._lpips: Any = None
        self._read = eye_metrics(eyes or {})
        self.metrics = {key: metric for key, (_, _, metric) in self._read.items()}
        self.distances = {}
        if eyes:
            from cadiff.eyes import load_eye, load_lpips

            self._eyes = {eye: load_eye(eye, path) for eye, path in eyes.items() if eye != LPIPS}
            if LPIPS in eyes:
                self._lpips = load_lpips(eyes[LPIPS])
                self.metrics[LPIPS] = lpips_metric(self._lpips.name)
                self.distances[LPIPS] = self._lpips.table

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
        eyes = {name: features[eye][layer][back] for name, (eye, layer, _) in self._read.items()}
        if self._classifier is None:
            return Seen(images, eyes=eyes)
        found = self._classifier.features(images[where], ("pooled", "logits"), **options)
        return Seen(images, found["logits"][back], found["pooled"][back], eyes)

    def about_eyes(self) -> dict[str, Any]:
        """Per further eye: what happens to the pixels, and SHA-256 of its weights."""
        eyes = self._eyes if self._lpips is None else {**self._eyes, LPIPS: self._lpips}
        return {
            name: {"preprocessing": eye.preprocessing, "weights_sha256": eye.digest()}
            for name, eye in eyes.items()
        }

    def class_names(self, classes: Sequence[int], stimuli: pd.DataFrame) -> dict[int, str]:
        """Names of classes by number, as far as they are known; none without a judge."""
        if self._classifier is None:
            return {}
        return class_names(classes, self._classifier.labels, self._classifier.is_imagenet, stimuli)

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

"""Every metric of one reconstruction against one stimulus: the table of metrics, and the arrays of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cadiff.evaluate import pixel, semantic
from cadiff.evaluate.features import correlation_table, retrieval

PSNR_CEILING = 100.0
"""Decibel; identical pictures have no finite PSNR, and means need one."""
TWO_WAY = "two_way_"


@dataclass(frozen=True)
class Metric:
    """What a number means."""

    label: str
    """For people, short."""
    protocol: str
    """Its part of the protocol string."""
    higher_is_better: bool
    chance: float | None
    """Score of a guess that knows nothing, where theory gives it; None: measured by mispairing."""
    percent: bool
    """Shown in per cent."""
    needs_judge: bool


@dataclass(frozen=True)
class Seen:
    """Pictures and what the judge makes of them; logits and features are None without a judge."""

    images: np.ndarray
    """uint8 (n, H, W, 3)."""
    logits: np.ndarray | None = None
    """(n, C)."""
    features: np.ndarray | None = None
    """(n, D)."""
    eyes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name of a metric of `eye_metrics` -> features (n, D) of its eye and layer."""


def metric_table(
    n_way: int,
    top_k: Sequence[int],
    judge: str | None,
    *,
    pools: Sequence[int] = (),
    eyes: Mapping[str, Metric] | None = None,
) -> dict[str, Metric]:
    """The metrics by name, in the order of the report; those that need a judge only when there is one.

    Args:
        n_way, top_k: of n-way identification. judge: its short name, for protocols.
        pools: sizes of the pools for retrieval by the judge's features.
        eyes: metrics by further networks, of `cadiff.evaluate.judging.eye_metrics`.
    """
    table: dict[str, Metric] = {}
    if judge is not None:
        for k in top_k:
            label, protocol = f"{n_way}-way top-{k}", f"{n_way}-way/top-{k}/exact/{judge}"
            table[f"n_way_top{k}"] = Metric(label, protocol, True, k / n_way, True, True)
        table["two_way_features"] = Metric(
            "2-way, judge's features", f"2-way/{judge}-pooled/pcc", True, 0.5, True, True
        )
        for pool in pools:
            table[f"retrieval_{pool}"] = Metric(
                f"retrieval of {pool}",
                f"retrieval-{pool}/exact/{judge}-pooled/pcc",
                True,
                1 / pool,
                True,
                True,
            )
    table.update(eyes or {})
    table["two_way_pixels"] = Metric("2-way, pixels", "2-way/pixels/pcc", True, 0.5, True, False)
    table["pcc"] = Metric("PCC", "pcc", True, None, False, False)
    table["ssim"] = Metric("SSIM", "ssim/gauss11-1.5/cut5", True, None, False, False)
    table["mse"] = Metric("MSE", "mse/range1", False, None, False, False)
    table["psnr"] = Metric("PSNR, dB", f"psnr/at-most-{PSNR_CEILING:.0f}", True, None, False, False)
    return table


@dataclass(frozen=True)
class Protocol:
    """What the n-way metrics mean."""

    n_way: int
    top_k: tuple[int, ...]
    classes: np.ndarray | None = None
    """Only these classes take part; None: all that the judge knows."""
    pools: tuple[int, ...] = ()
    """Sizes of the pools that retrieval picks from."""


class PairScores:
    """All metrics of m reconstructions against any of n stimuli; what is costly is computed once for all
    pairs.

    `against(own)` scores reconstruction i as a picture of stimulus `own[i]`. With the true pairing that is
    the result; with a wrong one it is what the same pictures score when they have nothing to do with what was
    seen.
    """

    def __init__(self, seen: Seen, stimuli: Seen, protocol: Protocol) -> None:
        self._seen, self._stimuli, self._protocol = seen, stimuli, protocol
        self._truth: np.ndarray | None = None
        self._alike_features: np.ndarray | None = None
        if stimuli.logits is not None:
            self._truth = semantic.truth_classes(stimuli.logits, protocol.classes)
        if seen.features is not None and stimuli.features is not None:
            self._alike_features = pixel.correlations(seen.features, stimuli.features)
        self._eyes = {
            name: correlation_table(features, stimuli.eyes[name]) for name, features in seen.eyes.items()
        }
        chunks = [_pixel_tables(seen.images[part], stimuli.images) for part in _parts(len(seen.images))]
        self._alike_pixels = np.concatenate([alike for alike, _ in chunks])  # (m, n)
        self._mse = np.concatenate([error for _, error in chunks])  # (m, n)

    def against(self, own: np.ndarray, *, with_ssim: bool = True) -> dict[str, np.ndarray]:
        """Scores `(m,)` by metric name, each reconstruction against stimulus `own (m,)`."""
        scores: dict[str, np.ndarray] = {}
        rows, protocol = np.arange(len(own)), self._protocol
        if self._seen.logits is not None and self._truth is not None:
            for k in protocol.top_k:
                scores[f"n_way_top{k}"] = semantic.n_way_top_k(
                    self._seen.logits, self._truth[own], n=protocol.n_way, k=k, classes=protocol.classes
                )
        if self._alike_features is not None:
            scores["two_way_features"] = pixel.two_way_identification(self._alike_features, own)
            for pool in protocol.pools:
                scores[f"retrieval_{pool}"] = retrieval(self._alike_features, own, pool=pool)
        for name, alike in self._eyes.items():
            if name.startswith(TWO_WAY):
                scores[name] = pixel.two_way_identification(alike, own)
            else:
                scores[name] = 1.0 - alike[rows, own]
        scores["two_way_pixels"] = pixel.two_way_identification(self._alike_pixels, own)
        scores["pcc"] = self._alike_pixels[rows, own]
        if with_ssim:
            scores["ssim"] = self._ssim(rows, own)
        scores["mse"] = self._mse[rows, own]
        scores["psnr"] = -10.0 * np.log10(np.maximum(scores["mse"], 10 ** (-PSNR_CEILING / 10)))
        return scores

    def _ssim(self, rows: np.ndarray, own: np.ndarray) -> np.ndarray:
        """SSIM of the reconstructions `rows (r,)` with the stimuli `own (r,)`."""
        images, targets = self._seen.images, self._stimuli.images
        parts = [pixel.ssim(images[rows[part]], targets[own[part]]) for part in _parts(len(rows))]
        return np.concatenate(parts)

    def mispaired(self, own: np.ndarray) -> dict[str, float]:
        """Mean scores against wrong stimuli: the chance level that these very pictures have.

        Averages over the cyclic shifts of the stimuli, all of them up to 24, else 24 evenly spaced; SSIM,
        which is slow, over the first 4 of those and the first sample of every stimulus.
        """
        n = len(self._stimuli.images)
        shifts = np.unique(np.linspace(1, n - 1, min(n - 1, 24)).round().astype(int))
        total: dict[str, list[float]] = {}
        first = np.unique(own, return_index=True)[1]
        for i, shift in enumerate(shifts):
            found = self.against((own + shift) % n, with_ssim=False)
            if i < 4:
                found["ssim"] = self._ssim(first, (own[first] + shift) % n)
            for name, values in found.items():
                total.setdefault(name, []).append(float(values.mean()))
        return {name: float(np.mean(values)) for name, values in total.items()}


def _parts(m: int) -> list[np.ndarray]:
    """Row numbers in pieces, so that float copies of large pictures stay small."""
    return np.array_split(np.arange(m), -(-m // 64))


def _pixel_tables(images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation and mean squared error of every picture with every target, both (m, n)."""
    x, y = pixel.as_unit(images).reshape(len(images), -1), pixel.as_unit(targets).reshape(len(targets), -1)
    squares = (x**2).mean(axis=1)[:, None] + (y**2).mean(axis=1)[None, :]
    error = squares - 2 * (x @ y.T) / x.shape[1]
    return pixel.correlations(x, y), np.maximum(error, 0.0)  # rounding may leave -1e-16 for equal pictures

"""Which pictures show the same, whatever their format, size and compression.

A picture's fingerprint is its luminance at 32 x 32 places. Two are compared as a whole and in their details (what is
left when means over 4 x 4 places are taken off), by correlation; the smaller of both is their similarity. Different
photos may agree in their coarse layout (up to .95 among 10,000 photos) but then not in details (.64 at most), while
copies recompressed at JPEG quality 20 keep .94. Sets of look-alikes, such as handwritten digits, have less room: a copy
must stand out from how similar the nearest different pictures are.

Not found: copies that were mirrored, cropped, turned or much brightened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

PLACES = 32
BLOCK = 4
LEAST = 0.75  # similarity below which two pictures are never called the same
STAND_OUT = 0.25  # of the distance between usual nearest neighbours: what a copy must come closer than
FEW, FEW_LEAST = 20, 0.97  # with fewer pictures what is usual cannot be told, and this is asked instead
FAR = 13.0  # mean absolute difference, grey levels of 255: copies are as bright as their originals
LOOK_ALIKE = 0.7  # usual similarity of neighbours (photos have .35, digits .85) from which on a look-alike may be chance
ROWS = 512  # pictures compared at a time


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Unit vectors float32 (n, PLACES * PLACES) of whole pictures and of their details, and the luminance, uint8."""

    whole: np.ndarray
    details: np.ndarray
    grey: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Fingerprints:
        """Those of some pictures."""
        return Fingerprints(self.whole[rows], self.details[rows], self.grey[rows])

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.grey)


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Luminance uint8 (PLACES, PLACES) of a picture uint8 (H, W, 3)."""
    image = Image.fromarray(picture).convert("L")
    return np.asarray(image.resize((PLACES, PLACES), Image.Resampling.LANCZOS))


def fingerprints(thumbnails: np.ndarray) -> Fingerprints:
    """Of thumbnails uint8 (n, PLACES, PLACES)."""
    grey = thumbnails.astype(np.float32)
    n, side = len(grey), PLACES // BLOCK
    means = grey.reshape(n, side, BLOCK, side, BLOCK).mean(axis=(2, 4))
    details = grey - np.kron(means, np.ones((1, BLOCK, BLOCK), np.float32))
    return Fingerprints(_unit(grey), _unit(details), thumbnails.reshape(n, PLACES * PLACES))


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference (n,) of luminances uint8 (n, places), grey levels."""
    return np.abs(a.astype(np.int16) - b).mean(axis=1)


def similarity(a: Fingerprints, b: Fingerprints) -> np.ndarray:
    """Similarity (len(a), len(b)) in [-1, 1]."""
    return np.minimum(a.whole @ b.whole.T, a.details @ b.details.T)


def usual_similarity(prints: Fingerprints, rng: np.random.Generator, most: int = 1500) -> float | None:
    """How similar nearest neighbours among different pictures are: the 90 % quantile, or None with too few pictures."""
    if len(prints) < FEW:
        return None
    chosen = prints[rng.permutation(len(prints))[:most]]
    among = similarity(chosen, chosen)
    np.fill_diagonal(among, -1.0)
    return float(np.quantile(among.max(axis=1), 0.9))


def least_similarity(usual: float | None) -> float:
    """The similarity from which on two pictures are called the same."""
    if usual is None:
        return FEW_LEAST
    return max(LEAST, 1 - STAND_OUT * (1 - usual))


def same_pictures(a: Fingerprints, b: Fingerprints, least: float) -> list[tuple[int, int, float]]:
    """(row of a, row of b, similarity) of pictures that show the same: for each of a the most similar one of b."""
    found = []
    for start in range(0, len(a) if len(b) else 0, ROWS):
        part = a[np.arange(start, min(start + ROWS, len(a)))]
        alike = similarity(part, b)
        best = alike.argmax(axis=1)
        value = alike[np.arange(len(part)), best]
        near = distance(part.grey, b.grey[best]) <= FAR
        for row in np.flatnonzero((value >= least) & near):
            found.append((start + int(row), int(best[row]), float(value[row])))
    return found


@dataclass(frozen=True)
class LookAlikes:
    """Pictures of one set that show what a picture of another set shows."""

    pairs: list[tuple[int, int, float]]
    """As `same_pictures` gives them."""
    usual: float | None
    """How similar nearest neighbours in the other set are."""
    least: float
    """The similarity that was asked for."""

    @property
    def may_be_chance(self) -> bool:
        """Whether the pictures are all so alike (digits, faces of one camera) that some pairs come by chance."""
        return self.usual is not None and self.usual > LOOK_ALIKE


def look_alikes(pictures: Fingerprints, among: Fingerprints, rng: np.random.Generator) -> LookAlikes:
    """Which of `pictures` show what one of `among` shows, by the bar that `among` itself sets."""
    usual = usual_similarity(among, rng)
    least = least_similarity(usual)
    return LookAlikes(same_pictures(pictures, among, least), usual, least)


def _unit(values: np.ndarray) -> np.ndarray:
    """Centred and scaled to length 1, (n, places); what does not vary becomes 0 and is like nothing."""
    flat = values.reshape(len(values), PLACES * PLACES)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-3 * PLACES)

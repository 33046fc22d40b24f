"""What pictures score that owe nothing to the brain: the same picture for everyone, any training picture, the mean image.

All are made of training pictures (`candidates`) and scored like reconstructions. Letters: m candidates, n stimuli.

    mean_image        the mean of the training pictures, for every stimulus
    constant_train    one training picture for every stimulus: the one that scores best on the other training pictures
    constant_test     the one that scores best on the test stimuli: an attack, since it was chosen on the test set
    random_train      the expected score of a training picture drawn at random
    coarse_category   the expected score of a training picture of the right one among nine coarse categories: an oracle,
                      which shows how far a rough idea gets (it knows the category of the test stimulus)
    nearest_train     for every reconstruction the training picture most like it: what remains when the drawing itself is
                      taken away; a rival, since it follows the brain

Expected scores are exact means over the candidates, so they carry no noise of a draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cadiff.evaluate import pixel
from cadiff.evaluate.scores import PairScores, Protocol, Seen

SSIM_CANDIDATES = 8
"""SSIM is slow; expectations over candidates use this many of them."""


class PictureControls:
    """Scores of candidate pictures against every stimulus."""

    def __init__(self, candidates: Seen, stimuli: Seen, protocol: Protocol) -> None:
        self.candidates, self._stimuli, self._protocol = candidates, stimuli, protocol
        self._pairs = PairScores(candidates, stimuli, protocol)
        self._table = _table(self._pairs, len(candidates.images), len(stimuli.images))

    def constant(self, headline: str, *, on: str, lowest: bool = False) -> dict[str, np.ndarray]:
        """Scores (n,) of one candidate for every stimulus: the best by the headline `on` "train" or "test".

        lowest: of the headline less is better. SSIM, which is slow, is chosen by MSE; retrieval on training pictures, of which
        there may be fewer than a pool holds, by two-way identification.
        """
        if headline == "ssim":
            headline, lowest = "mse", True
        if on == "test":
            table = self._table[headline]
        else:  # how well does each candidate pass for the others, which are training pictures like it
            if headline.startswith("retrieval"):
                headline = "two_way_features"
            pairs = PairScores(self.candidates, self.candidates, replace(self._protocol, pools=()))
            count = len(self.candidates.images)
            table = _table(pairs, count, count)[headline]
            np.fill_diagonal(table, np.nan)
        means = np.nanmean(table, axis=1)
        best = int(means.argmin() if lowest else means.argmax())
        return score_picture(_row(self.candidates, best), self._stimuli, self._protocol)

    def expected(self, weight: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Expected scores (n,) of a candidate drawn for each stimulus with the weights (m, n); all alike by default.

        Stimuli without any candidate of positive weight take the mean over all of them.
        """
        m, n = len(self.candidates.images), len(self._stimuli.images)
        weight = np.ones((m, n)) if weight is None else weight.astype(np.float64)
        weight = np.where(weight.sum(axis=0) > 0, weight, 1.0)
        share = weight / weight.sum(axis=0)
        found = {name: (table * share).sum(axis=0) for name, table in self._table.items()}
        found["ssim"] = self._expected_ssim(weight)
        return found

    def nearest(self, reconstructions: Seen, own: np.ndarray) -> dict[str, np.ndarray]:
        """Scores (m',) of the candidate most like each reconstruction, as reconstructions of the stimuli `own` (m',).

        Most like: by the judge's features, by pixels without a judge.
        """
        if reconstructions.features is not None and self.candidates.features is not None:
            alike = pixel.correlations(reconstructions.features, self.candidates.features)
        else:
            flat = [
                pixel.as_unit(seen.images).reshape(len(seen.images), -1)
                for seen in (reconstructions, self.candidates)
            ]
            alike = pixel.correlations(flat[0], flat[1])
        chosen = alike.argmax(axis=1)
        found = {name: table[chosen, own] for name, table in self._table.items()}
        found["ssim"] = pixel.ssim(self.candidates.images[chosen], self._stimuli.images[own])
        return found

    def _expected_ssim(self, weight: np.ndarray) -> np.ndarray:
        found = np.empty(weight.shape[1])
        for stimulus in range(len(found)):
            likely = np.flatnonzero(weight[:, stimulus])[:SSIM_CANDIDATES]
            picture = np.repeat(self._stimuli.images[stimulus][None], len(likely), axis=0)
            found[stimulus] = pixel.ssim(self.candidates.images[likely], picture).mean()
        return found


def score_picture(picture: Seen, stimuli: Seen, protocol: Protocol) -> dict[str, np.ndarray]:
    """Scores (n,) of one picture as the reconstruction of every stimulus."""
    n = len(stimuli.images)
    repeated = Seen(
        np.repeat(picture.images, n, axis=0),
        None if picture.logits is None else np.repeat(picture.logits, n, axis=0),
        None if picture.features is None else np.repeat(picture.features, n, axis=0),
        {name: np.repeat(values, n, axis=0) for name, values in picture.eyes.items()},
    )
    return PairScores(repeated, stimuli, protocol).against(np.arange(n))


def mean_picture(images: np.ndarray) -> np.ndarray:
    """uint8 (1, H, W, 3), the mean of uint8 (m, H, W, 3)."""
    return np.rint(images.mean(axis=0, dtype=np.float64)).astype(np.uint8)[None]


def same_category(
    candidates: Seen, stimuli: Seen, category: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """Weights (m, n): 1 where candidate and stimulus fall into one coarse category, by the judge's first class."""
    if candidates.logits is None or stimuli.logits is None:
        return None
    first, second = (
        category(seen.logits.argmax(axis=1)) for seen in (candidates, stimuli) if seen.logits is not None
    )
    return (np.asarray(first)[:, None] == np.asarray(second)[None, :]).astype(float)


def _row(seen: Seen, i: int) -> Seen:
    part = slice(i, i + 1)
    return Seen(
        seen.images[part],
        None if seen.logits is None else seen.logits[part],
        None if seen.features is None else seen.features[part],
        {name: values[part] for name, values in seen.eyes.items()},
    )


def _table(pairs: PairScores, m: int, n: int) -> dict[str, np.ndarray]:
    """Scores (m, n) of every picture against every stimulus, by metric, without SSIM."""
    columns = [pairs.against(np.full(m, stimulus), with_ssim=False) for stimulus in range(n)]
    return {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}

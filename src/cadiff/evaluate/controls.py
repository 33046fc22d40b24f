"""What pictures score that owe nothing to the brain: the same picture for everyone, any training picture, the mean image.

All are made of training pictures (`candidates`) and scored like reconstructions. Letters: m candidates, n stimuli.

    mean_image        the mean of the training pictures, for every stimulus
    constant_train    one training picture for every stimulus: the one that scores best on the other training pictures
    constant_test     the one that scores best on the test stimuli: an attack, since it was chosen on the test set
    random_train      the expected score of a training picture drawn at random
    coarse_category   the expected score of a training picture of the right one among nine coarse categories: an oracle,
                      which shows how far a rough idea gets (it knows the category of the test stimulus)
    class_mean        the mean of the training pictures of the stimulus' own class: an oracle that knows the class
    nearest_train     for every reconstruction the training picture most like it: what remains when the drawing itself is
                      taken away; a rival, since it follows the brain

Expected scores are exact means over the candidates, so they carry no noise of a draw; SSIM, which is slow, is the mean over
some of them, drawn anew for each stimulus. Backward retrieval looks for a picture
among those of other stimuli: where all stimuli get one picture it is at chance, and it is left out but for class_mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cadiff.evaluate import pixel
from cadiff.evaluate.scores import PairScores, Protocol, Seen

SSIM_CANDIDATES = 8
"""SSIM is slow; expectations over candidates use so many of them, drawn for each stimulus."""


class PictureControls:
    """Scores of candidate pictures against every stimulus; `seed` draws the candidates of expected SSIM."""

    def __init__(self, candidates: Seen, stimuli: Seen, protocol: Protocol, *, seed: int = 0) -> None:
        self.candidates, self._stimuli, self._protocol, self._seed = candidates, stimuli, protocol, seed
        self._pairs = PairScores(candidates, stimuli, protocol)
        self._table = self._pairs.tables()

    def constant(self, headline: str, *, on: str, lowest: bool = False) -> dict[str, np.ndarray]:
        """Scores (n,) of one candidate for every stimulus: the best by the headline `on` "train" or "test".

        lowest: of the headline less is better. SSIM, which is slow, is chosen by MSE; retrieval by two-way identification, for
        a pool may hold more pictures than there are for training, and backward all constants are at chance.
        """
        if headline == "ssim":
            headline, lowest = "mse", True
        if headline.startswith("retrieval") and (on == "train" or headline not in self._table):
            headline = "two_way_features"
        if on == "test":
            table = self._table[headline]
        else:  # how well does each candidate pass for the others, which are training pictures like it
            pairs = PairScores(self.candidates, self.candidates, replace(self._protocol, pools=()))
            table = pairs.tables()[headline].copy()
            np.fill_diagonal(table, np.nan)
        means = np.nanmean(table, axis=1)
        best = int(means.argmin() if lowest else means.argmax())
        found = {name: values[best] for name, values in self._table.items()}
        return {**found, "ssim": _ssim_of_one(self.candidates.images[best], self._stimuli)}

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
            alike, _ = pixel.pair_tables(reconstructions.images, self.candidates.images)
        chosen = alike.argmax(axis=1)
        found = {name: table[chosen, own] for name, table in self._table.items()}
        found["ssim"] = self._pairs.ssim(chosen, own)
        return found

    def _expected_ssim(self, weight: np.ndarray) -> np.ndarray:
        found, generator = np.empty(weight.shape[1]), np.random.default_rng(self._seed)
        for stimulus in range(len(found)):
            likely = generator.permutation(np.flatnonzero(weight[:, stimulus]))[:SSIM_CANDIDATES]
            picture = np.repeat(self._stimuli.images[stimulus][None], len(likely), axis=0)
            found[stimulus] = pixel.ssim(self.candidates.images[likely], picture).mean()
        return found


def score_picture(picture: Seen, stimuli: Seen, protocol: Protocol) -> dict[str, np.ndarray]:
    """Scores (n,) of one picture as the reconstruction of every stimulus."""
    found = {name: table[0] for name, table in PairScores(picture, stimuli, protocol).tables().items()}
    return {**found, "ssim": _ssim_of_one(picture.images[0], stimuli)}


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


def _ssim_of_one(picture: np.ndarray, stimuli: Seen) -> np.ndarray:
    return np.array([pixel.ssim(picture[None], stimulus[None])[0] for stimulus in stimuli.images])

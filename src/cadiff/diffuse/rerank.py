"""Choosing among the samples of a trial by the likelihood of its betas, never by the picture that was seen.

An encoding model (`cadiff.encoding`), fitted on the training trials, says how likely the betas are under each sample. After
Kneeland et al. 2023 (arXiv 2306.00927 and 2312.07705), who search among samples for the one whose predicted betas fit best.

Every condition is ranked by the betas that it reads itself: `shuffled` by the shuffled ones, averages of fewer repeats by
those averages. Conditions that read no betas (`prior_only`, `label_oracle`) have nothing to be ranked by: their samples
stay as they are, the first one is picked, and their mean is plain. So what ranking adds is inside `brain` and `shuffled` alike,
and their difference remains what the brain contributes.

Letters in shapes: n trials, V voxels, s samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Split
from cadiff.data.simulate import noise_free_betas
from cadiff.data.splits import check_disjoint
from cadiff.diffuse.controls import Rows, Trials
from cadiff.encoding import EncodingModel
from cadiff.encoding.trained_on import refuse_unfit
from cadiff.errors import ConfigError, DataError

RerankMode = Literal["pick", "mean", "order"]
ENCODING = "encoding"
"""Stands for a model that is fitted on the spot, and is the name of its folder."""


def open_encoding(
    source: str, data: BrainDataset, features: Sequence[str] | None, size: int, seed: int
) -> EncodingModel:
    """An encoding model for the test trials of `data`.

    Args:
        source: `ENCODING` to fit one on its training trials, or the folder of one.
        features: of a fit; pictures are seen at `size` pixels, as they are drawn.

    Raises:
        DataError: a leak between the splits, no training trials, or a model of other voxels or of the test stimuli.
        ConfigError: features for a model that is fitted already. ArtifactError: no such folder.
    """
    if source == ENCODING:
        check_disjoint(data)
        rows = data.rows("train")
        if not len(rows):
            raise DataError(
                f"{data.folder} has no training trials to fit an encoding model on: give the folder of one, rerank=FOLDER."
            )
        return EncodingModel.fit(data, rows, features=features, size=size, seed=seed)
    if features is not None:
        raise ConfigError(f"rerank_features are for rerank={ENCODING}; the model in {source} has its own.")
    folder = Path(source)
    inner = folder / ENCODING
    model = EncodingModel.load(inner if inner.is_dir() else folder)
    refuse_unfit(model.trained_on, data, folder)
    return model


class Reranker:
    """Turns the stream of pictures that are drawn into the stream of those that are kept."""

    def __init__(self, model: EncodingModel, mode: RerankMode, num_samples: int) -> None:
        self.model, self.mode, self.num_samples = model, mode, num_samples
        self.num_kept = num_samples if mode == "order" else 1
        """Pictures of a trial that are kept."""
        self._betas: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._scores: list[tuple[str, int, np.ndarray, np.ndarray]] = []

    def read(self, condition: str, betas: np.ndarray, repeats: np.ndarray) -> None:
        """Ranks a condition by raw betas (n, V), each row an average of `repeats` trials (n,)."""
        self._betas[condition] = (betas, repeats)

    def read_controls(
        self, rows: Mapping[str, Rows], trials: Trials, data: BrainDataset, split: Split
    ) -> None:
        """Ranks the brain and the controls among `rows` by the betas that each of them reads."""
        for name in ("brain", "shuffled"):
            if name in rows:
                chosen = rows[name].of_trial
                self.read(name, trials.betas[chosen], trials.repeats[chosen])
        if "noise_free" in rows:
            self.read("noise_free", noise_free_betas(data, split, trials.stimulus_ids), trials.repeats)

    def __call__(
        self, pictures: Iterable[tuple[str, int, np.ndarray]]
    ) -> Iterator[tuple[str, int, np.ndarray]]:
        """Condition, number of the picture in it and picture uint8 (H, W, 3), as they come and as they are kept.

        The samples of a trial must come one after the other, numbered trial * samples + sample.
        """
        held: list[np.ndarray] = []
        for name, number, picture in pictures:
            held.append(picture)
            if len(held) == self.num_samples:
                trial = number // self.num_samples
                for place, kept in enumerate(self._keep(name, trial, np.stack(held))):
                    yield name, trial * self.num_kept + place, kept
                held = []

    def _keep(self, name: str, trial: int, samples: np.ndarray) -> Iterable[np.ndarray]:
        if name in self._betas:
            betas, repeats = self._betas[name]
            some = slice(trial, trial + 1)
            likelihood = self.model.log_likelihood(betas[some], samples, repeats[some])
            weights = self.model.weights(likelihood)[0]
            self._scores.append((name, trial, likelihood[0], weights))
            order = np.argsort(-likelihood[0], kind="stable")
        else:
            weights, order = np.full(len(samples), 1 / len(samples)), np.arange(len(samples))
        if self.mode == "mean":
            return [np.rint(np.tensordot(weights, samples.astype(float), axes=1)).astype(np.uint8)]
        return samples[order][: self.num_kept]

    def table(self, stimulus_ids: Sequence[str]) -> pd.DataFrame:
        """Likelihood and posterior weight of every sample, numbered as it was drawn, of the conditions that were ranked."""
        rows: list[dict[str, Any]] = [
            {
                "condition": name,
                "stimulus_id": stimulus_ids[trial],
                "trial": trial,
                "sample": sample,
                "log_likelihood": value,
                "weight": weight,
            }
            for name, trial, values, weights in self._scores
            for sample, (value, weight) in enumerate(zip(values, weights, strict=True))
        ]
        return pd.DataFrame(rows)

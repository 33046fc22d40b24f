"""Choosing among the samples of a trial by the likelihood of its betas, never by the picture that was seen.

An encoding model (`cadiff.encoding`), fitted on the training trials, says how likely the betas are under each sample. After
Kneeland et al. 2023 (arXiv 2306.00927 and 2312.07705), who search among samples for the one whose predicted betas fit best;
with `rerank_rounds` the search goes on around the likeliest ones (`cadiff.diffuse.generations`).

Every condition is ranked by the betas that it reads itself: `shuffled` by the shuffled ones, averages of fewer repeats by
those averages. Conditions that read no betas (`prior_only`, `label_oracle`) have nothing to be ranked by: their samples
stay as they are, the first one is picked, and their mean is plain. So what ranking adds is inside `brain` and `shuffled` alike,
and their difference remains what the brain contributes.

Letters in shapes: n trials, V voxels, s samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Split
from cadiff.data.simulate import noise_free_betas
from cadiff.data.splits import check_disjoint
from cadiff.data.trained_on import refuse_unfit
from cadiff.diffuse.controls import Rows, Trials
from cadiff.diffuse.drawing import Drawing, Pick
from cadiff.diffuse.generations import Samples, generation_strengths
from cadiff.diffuse.settings import ReconstructConfig
from cadiff.encoding import EncodingModel
from cadiff.errors import ConfigError, DataError
from cadiff.progress import counted

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
    """Draws the samples of every trial and keeps those that its betas make likely."""

    def __init__(self, model: EncodingModel, config: ReconstructConfig) -> None:
        self.model, self.config = model, config
        self.num_samples = config.num_images_per_trial
        self.num_kept = self.num_samples if config.rerank_mode == "order" else 1
        """Pictures of a trial that are kept."""
        self._betas: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._scores: list[tuple[str, int, np.ndarray]] = []

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

    def kept(self, drawing: Drawing) -> Iterator[tuple[str, int, np.ndarray]]:
        """Condition, number of the picture in it and picture uint8 (H, W, 3), of the pictures that are kept."""
        batch, samples = self.config.batch_size, self.num_samples
        size = max(1, batch // samples)
        trials = range(drawing.num_trials)
        # apart, so that every batch of a search is of one size, and compiled once
        read = _groups([(t, name) for t in trials for name in drawing.rows if name in self._betas], size)
        others = _groups(
            [(t, name) for t in trials for name in drawing.rows if name not in self._betas], size
        )
        strengths = generation_strengths(self.config)
        first, *later = [drawing.calls(strength) for strength in strengths]
        batches = [sum(ceil(len(g) * samples / batch) for g in groups) for groups in (read, others)]
        calls = first * sum(batches) + sum(later) * batches[0]
        pictures = first * drawing.total + sum(later) * samples * sum(map(len, read))
        with drawing.compiled(pictures), counted("pictures", calls) as step:
            for group in read + others:
                found = self._generations(
                    drawing, group, strengths if group[0][1] in self._betas else strengths[:1], step
                )
                for (trial, name), kept in zip(group, found, strict=True):
                    for place, picture in enumerate(kept):
                        yield name, trial * self.num_kept + place, picture

    def _generations(
        self,
        drawing: Drawing,
        group: Sequence[tuple[int, str]],
        strengths: Sequence[float],
        step: Callable[[], None],
    ) -> list[np.ndarray]:
        """The pictures that are kept of some cells (trial, condition), which are drawn together."""
        found = [Samples() for _ in group]
        picks = [Pick(*cell, sample) for cell in group for sample in range(self.num_samples)]
        for generation, strength in enumerate(strengths):
            parents = torch.cat([one.parents(self.num_samples) for one in found]) if generation else None
            latents = drawing.latents(picks, step, parents=parents, strength=strength, generation=generation)
            pictures = drawing.decoded(latents)
            for i, (samples, cell) in enumerate(zip(found, group, strict=True)):
                own = slice(i * self.num_samples, (i + 1) * self.num_samples)
                samples.add(pictures[own], latents[own], self._likelihood(*cell, pictures[own]))
        for samples, (trial, name) in zip(found, group, strict=True):
            if name in self._betas:
                self._scores.append((name, trial, samples.drawn))
        return [samples.kept(self.config.rerank_mode, self.num_kept, self.model) for samples in found]

    def _likelihood(self, trial: int, name: str, pictures: np.ndarray) -> np.ndarray | None:
        """(s,), or None where no betas are read."""
        if name not in self._betas:
            return None
        betas, repeats = self._betas[name]
        some = slice(trial, trial + 1)
        return self.model.log_likelihood(betas[some], pictures, repeats[some])[0]

    def table(self, stimulus_ids: Sequence[str]) -> pd.DataFrame:
        """Likelihood and posterior weight of every sample, numbered as it was drawn, of the conditions that were ranked.

        Only samples of the first generation are equally probable beforehand: weights are among them, later ones have none; nor
        has any that was drawn by a likelihood (`likelihood`), which would count the betas twice.
        """
        rows: list[dict[str, Any]] = [
            {
                "condition": name,
                "stimulus_id": stimulus_ids[trial],
                "trial": trial,
                "sample": sample,
                "log_likelihood": value,
                "weight": weight,
            }
            for name, trial, values in self._scores
            for sample, (value, weight) in enumerate(zip_longest(values, self._weights(values)))
        ]
        return pd.DataFrame(rows)

    def _weights(self, values: np.ndarray) -> np.ndarray:
        """(s,) of the first generation, from the log likelihoods of all."""
        if self.config.likelihood:
            return np.empty(0)
        first = values[None, : self.num_samples]
        return self.model.weights(first, of_mean=self.config.rerank_mode == "mean")[0]


def _groups(cells: list[tuple[int, str]], size: int) -> list[list[tuple[int, str]]]:
    return [cells[start : start + size] for start in range(0, len(cells), size)]

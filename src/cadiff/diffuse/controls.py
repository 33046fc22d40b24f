"""What is drawn beside the brain: conditions that show what it contributes, and how far anything could get.

A control is the same pipeline with the same noise and another condition, drawn in the same batches, so that a picture
and its control differ by the condition alone:

    prior_only      "no brain": what the image prior draws anyway
    shuffled        the betas of another stimulus: what any brain makes it draw
    label_oracle    the true label instead of betas: what the generator could do with a perfect category
    noise_free      simulated subjects only: the response without its noise, averaged and scaled as the brain's is, so that
                    what is missing to it is the noise alone

`autoencoded` is no drawing: what the prior's auto-encoder leaves of the stimulus, so the most that perfect latents could give.
Of all conditions it alone looks at the picture that was seen; no network that draws is given it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Split
from cadiff.data.simulate import noise_free_betas
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.latents import to_unit_range
from cadiff.diffuse.likelihood import Evidence
from cadiff.diffuse.pipeline import FmriToImagePipeline, to_uint8
from cadiff.errors import ConfigError, DataError
from cadiff.priors.load import ImagePrior

Control = Literal["prior_only", "shuffled", "label_oracle", "autoencoded", "noise_free"]
AUTOENCODED = "autoencoded"


class Trials(NamedTuple):
    """What is decoded, one row a picture to draw; repeats of a stimulus averaged or not."""

    betas: np.ndarray
    """(n, V) raw betas."""
    stimulus_ids: list[str]
    """(n,)."""
    repeats: np.ndarray
    """(n,) how many trials each row averages."""


Starts = Callable[[np.ndarray, np.ndarray], Tensor]
"""Raw betas (n, V), how many trials each row averages (n,) -> where the contexts begin (n, C)."""
Weigh = Callable[[np.ndarray, np.ndarray], Evidence]
"""The same -> what they say of the latents."""


class Rows(NamedTuple):
    """The condition of every trial, as rows of a table that several trials or conditions may share."""

    condition: Condition
    """Of m rows."""
    guess: Tensor | None
    """(m, c, h, w), latents to begin from, where they are used."""
    of_trial: np.ndarray
    """(n,) which row each trial takes."""
    evidence: Evidence | None = None
    """Of m rows: what their betas say of the latents, where that is heeded; None where no betas are read."""

    def on_disk(self, path: Path) -> Rows:
        """The same in files of this stem, from which the system reads what is needed: memory does not grow with trials."""
        context, time = (_mapped(part, path.with_suffix(f".{i}")) for i, part in enumerate(self.condition))
        guess = None if self.guess is None else _mapped(self.guess, path.with_suffix(".guess"))
        evidence = self.evidence
        if evidence is not None:
            evidence = Evidence(_mapped(evidence.score, path.with_suffix(".score")), evidence.weight)
        return Rows(Condition(context, time), guess, self.of_trial, evidence)


def read_betas(
    pipe: FmriToImagePipeline,
    betas: np.ndarray,
    repeats: np.ndarray,
    *,
    split: Split,
    with_guess: bool,
    starts: Starts | None = None,
    weigh: Weigh | None = None,
) -> Rows:
    """What the pipeline makes of raw betas (n, V) of a split, where `starts` are given with those instead of its own.

    `weigh`: what they say of the latents, where that is heeded.

    Raises:
        ConfigError: a guess to begin from is wanted, and the pipeline has none.
    """
    start = None if starts is None else starts(betas, repeats)
    condition, guess = pipe.condition(betas, repeats, split=split, start=start)
    if with_guess and guess is None:
        raise ConfigError("strength below 1 needs a pipeline that was tuned with latent_start.")
    evidence = None if weigh is None else weigh(betas, repeats)
    return Rows(condition, guess if with_guess else None, np.arange(len(betas)), evidence)


def control(
    name: Control,
    brain: Rows,
    pipe: FmriToImagePipeline,
    data: BrainDataset,
    *,
    split: Split,
    trials: Trials,
    seed: int,
    starts: Starts | None = None,
    weigh: Weigh | None = None,
) -> Rows:
    """The condition of a control beside that of the brain; `autoencoded` has none.

    Raises:
        DataError: the data do not allow it.
    """
    count, start = len(trials.stimulus_ids), pipe.conditioner.latent_start
    nowhere = None  # the guess that knows nothing, where sampling begins at one
    if brain.guess is not None and start is not None:
        nowhere = start.mean.view(1, *pipe.latent_shape)
    if name == "shuffled":
        return brain._replace(of_trial=derangement(trials.stimulus_ids, seed))
    if name == "prior_only":
        return Rows(pipe.conditioner.null(1), nowhere, np.zeros(count, dtype=np.int64))
    if name == "label_oracle":
        guess = None if nowhere is None else nowhere.expand(count, -1, -1, -1)
        return Rows(_true_labels(pipe, data, trials.stimulus_ids), guess, np.arange(count))
    if name == "noise_free":
        betas = noise_free_betas(data, split, trials.stimulus_ids)
        guessed = brain.guess is not None
        read = partial(read_betas, pipe, split=split, with_guess=guessed, starts=starts, weigh=weigh)
        return read(betas, trials.repeats)
    raise ValueError(f"{name} is not drawn from a condition")


def _true_labels(pipe: FmriToImagePipeline, data: BrainDataset, stimulus_ids: list[str]) -> Condition:
    table = data.stimuli.loc[stimulus_ids]
    rows = pipe.conditioner.label_rows(list(table["label"]), list(table["imagenet_index"]))
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        missing = stimulus_ids[rows.index(None)]
        raise DataError(
            f"The control 'label_oracle' needs the label of every stimulus; the prior has no class for {missing!r} "
            f"({len(rows) - len(known)} such): leave the control out."
        )
    return pipe.conditioner.label_condition(known)


def autoencoded(
    pipe: FmriToImagePipeline, data: BrainDataset, stimulus_ids: Sequence[str], batch_size: int
) -> Iterator[np.ndarray]:
    """The stimuli through the auto-encoder of the pipeline, uint8 (H, W, 3) one by one, at the size that it draws.

    Raises:
        DataError: a stimulus without picture.
    """
    prior = ImagePrior(pipe.vqvae, pipe.unet, pipe.scheduler, pipe.vqvae.config["scaling_factor"])
    for start in range(0, len(stimulus_ids), batch_size):
        images = data.images(stimulus_ids[start : start + batch_size], size=prior.image_size)
        yield from to_uint8(prior.decode(prior.encode(to_unit_range(images))))


def derangement(groups: Sequence[str], seed: int) -> np.ndarray:
    """A permutation (n,) that gives every row a row of another group, drawn by `seed`.

    Raises:
        DataError: one group has more than half of the rows, so that no such permutation exists.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.unique(np.asarray(groups, dtype=str)))
    rank = {name: i for i, name in enumerate(names)}
    ordered = np.argsort([rank[str(group)] for group in groups], kind="stable")
    largest = max(np.unique(np.asarray(groups, dtype=str), return_counts=True)[1])
    if 2 * largest > len(groups):
        raise DataError(
            f"The control 'shuffled' needs betas of other stimuli; {largest} of {len(groups)} trials show the same one: "
            "reconstruct more stimuli, or leave the control out."
        )
    # sorted by group and rolled by the largest group's size, no row can meet its own group
    permutation = np.empty(len(groups), dtype=np.int64)
    permutation[ordered] = np.roll(ordered, -largest)
    return permutation


def _mapped(values: Tensor, path: Path) -> Tensor:
    """A copy on the CPU whose memory is a new file."""
    empty = torch.from_file(str(path), shared=True, size=values.numel(), dtype=values.dtype)
    return empty.view(values.shape).copy_(values)

"""The stations between betas and picture: every representation of a trial that the pipeline makes, and two to compare with.

    betas             what the encoder reads, preprocessed
    random_encoder    tokens of an encoder of the same sizes that was never trained: what a trained one has to beat
    phase_1_tokens    tokens of encoders that earlier stages made, as many as are given
    tuned_tokens      tokens of the encoder in the pipeline
    mapped_tokens     what the mapper makes of these, before a start is added; only where there is a start
    start             the label start or the image start: ridge predictions from the betas
    context           what the U-Net attends to
    time_vector       what is added to its time embedding

Shapes: n trials, V voxels, N tokens of width D, L context length, C context width, T time width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from cadiff.contrast.mae import FmriEncoder, initialise
from cadiff.diffuse.conditioner import Condition, FmriConditioner
from cadiff.trace.starts import own_start

BATCH = 64
BETAS, RANDOM, TUNED = "betas", "random_encoder", "tuned_tokens"
MAPPED, START, CONTEXT = "mapped_tokens", "start", "context"


@dataclass(frozen=True, eq=False)
class Inputs:
    """Trials that go through the stations together."""

    betas: Tensor
    """(n, V) preprocessed."""
    start: Tensor | None = None
    """What the condition starts from for each of them, where the pipeline has a start."""


@dataclass(frozen=True, eq=False)
class Station:
    """A representation of trials."""

    name: str
    label: str
    meaning: str
    shape: tuple[int, ...]
    """Of one trial, before it was flattened."""
    values: tuple[Tensor, ...]
    """One (n, numbers) float32 on the CPU for each of the inputs."""

    @property
    def num_numbers(self) -> int:
        """How many numbers one trial has here."""
        return prod(self.shape)


def random_encoder(like: FmriEncoder, seed: int) -> FmriEncoder:
    """An encoder of the same sizes with the weights that training begins at, drawn by `seed`."""
    made = FmriEncoder(like.config)
    initialise(made, torch.Generator().manual_seed(seed))
    return made.eval()


@torch.no_grad()
def stations(
    conditioner: FmriConditioner,
    inputs: Sequence[Inputs],
    *,
    encoders: Mapping[str, FmriEncoder] | None = None,
    seed: int = 0,
) -> Iterator[Station]:
    """Every station in the order in which a trial comes by, one in memory at a time.

    Args:
        encoders: of earlier stages, by label. seed: of the random encoder.
    """
    device = conditioner.device

    def made(name: str, label: str, meaning: str, values: Sequence[Tensor]) -> Station:
        flat = tuple(value.flatten(1).float().cpu() for value in values)
        return Station(name, label, meaning, tuple(values[0].shape[1:]), flat)

    yield made(BETAS, "Betas", "preprocessed, what the encoder reads", [trials.betas for trials in inputs])
    untrained = random_encoder(conditioner.encoder, seed)
    told = "of an encoder of the same sizes that was never trained: the floor"
    yield made(RANDOM, "Random encoder", told, _tokens(untrained, inputs, device))
    taken = {TUNED, MAPPED}
    for label, encoder in (encoders or {}).items():
        while (name := f"{label.lower().replace(' ', '_')}_tokens") in taken:
            label += "+"
        taken.add(name)
        yield made(name, f"{label} tokens", "all tokens, flattened", _tokens(encoder, inputs, device))
    tokens = _tokens(conditioner.encoder, inputs, device)
    yield made(TUNED, "Tuned tokens", "of the encoder in the pipeline", tokens)
    if own_start(conditioner) is not None:
        mapped = [
            _by_batch(lambda x: conditioner.dim_mapper(conditioner.channel_mapper(x)), t, device)
            for t in tokens
        ]
        yield made(
            MAPPED, "Mapped tokens", "what the mapper makes of the encoder alone, without the start", mapped
        )
        label = "Image start" if conditioner.start is None else "Label start"
        starts = [trials.start for trials in inputs if trials.start is not None]
        yield made(START, label, "ridge prediction from the betas", starts)
    conditions = [_condition(conditioner, t, trials) for t, trials in zip(tokens, inputs, strict=True)]
    yield made(CONTEXT, "Context", "what the U-Net attends to", [found.context for found in conditions])
    times = [found.time for found in conditions]
    yield made("time_vector", "Time vector", "what is added to the U-Net's time embedding", times)


def _tokens(encoder: FmriEncoder, inputs: Sequence[Inputs], device: torch.device) -> list[Tensor]:
    """(n, N, D) float32 on the CPU for each of the inputs."""
    encoder = encoder.to(device).eval()
    return [_by_batch(encoder.tokens, trials.betas, device) for trials in inputs]


def _by_batch(network: Callable[[Tensor], Tensor], rows: Tensor, device: torch.device) -> Tensor:
    return torch.cat([network(part.to(device)).float().cpu() for part in rows.split(BATCH)])


def _condition(conditioner: FmriConditioner, tokens: Tensor, trials: Inputs) -> Condition:
    """The condition on the CPU, of tokens (n, N, D) of these trials."""
    starts = [None] * len(tokens) if trials.start is None else trials.start.split(BATCH)
    parts = zip(tokens.split(BATCH), trials.betas.split(BATCH), starts, strict=False)
    device = conditioner.device
    found = [
        conditioner.from_tokens(t.to(device), b.to(device), start=None if s is None else s.to(device))
        for t, b, s in parts
    ]
    return Condition(*(torch.cat([one[i].float().cpu() for one in found]) for i in range(2)))

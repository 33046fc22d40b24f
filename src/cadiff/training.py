"""fit(): the one training loop.

Batches and random draws are pure functions of the step: `batches(step)` gives the batch and the loss receives a
generator seeded by (seed, batch number). A resumed run therefore needs only weights, optimiser and step number to go on
exactly as if it had never stopped: 10 steps = 5 + kill + 5, bit for bit on the CPU.

Launched with several processes (accelerate, torchrun), each works on its rows of every batch, and the step is that of one
process with the whole batch: see `cadiff.sharing`.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadiff.artifacts import read_json
from cadiff.blocks import by_kind, clip_gradients, compiled_blocks, is_divided, own_part, sharded_blocks
from cadiff.checkpoints import load_checkpoint, save_checkpoint
from cadiff.config import Config
from cadiff.errors import ConfigError, DivergedError
from cadiff.feed import feed
from cadiff.graphs import Graphed
from cadiff.onednn import onednn_linears
from cadiff.processes import on_main, start, world
from cadiff.progress import Bar
from cadiff.progress import progress as _progress
from cadiff.runs import RunFolder
from cadiff.sharing import average_gradients, send_from_main, shared_batches, total

Batch = Any
LossFunction = Callable[[Batch, torch.Generator], Mapping[str, Tensor]]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Decay rate of a moving average."""
COMPILED = 10_000
"""Steps from which compiling is won back: on an H100 it takes 15 s (phase 1) to over two minutes (tuning)."""


class FitConfig(Config):
    """How to train: optimiser, schedule, precision, checkpoints."""

    steps: int = Field(default=1000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=16, ge=1)
    """Samples in one batch, of all processes together; the effective batch is this times `accumulate`."""
    learning_rate: float = Field(default=2.5e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Applied to matrices and kernels, not to vectors (biases, norms)."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Moment decay rates of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine down to `min_learning_rate`, or constant."""
    min_learning_rate: float = Field(default=0.0, ge=0)
    """Where the cosine ends."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged into one step."""
    clip_norm: float | None = Field(default=0.8, gt=0)
    """Largest norm of the gradient, each module on its own; null for no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA, fp32 elsewhere."""
    compile: bool | None = None
    """Compile the repeated blocks of networks, which may take minutes before the first step; null: on CUDA, for so many
    steps that it pays."""
    graph: bool | None = None
    """Replay each step as one CUDA graph, several times faster with small batches; null: in phases 1 and 2 and in tuning, on
    one GPU with accumulate=1."""
    shard: bool = False
    """With several processes, divide weights, gradients and moments of transformer blocks among them (FSDP)."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the trained weights and return that."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log lines; each line is the mean since the last one."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    seed: int = Field(default=0, ge=0)
    """Seeds batches and every draw inside the loss."""

    @model_validator(mode="after")
    def _fits_together(self) -> FitConfig:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate:g}, where the cosine ends, is above the learning rate, "
                f"{self.learning_rate:g}"
            )
        return self


@dataclass
class FitResult:
    """What training came to."""

    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


def learning_rate_at(step: int, config: FitConfig) -> float:
    """Learning rate of a step (counted from 0): linear warm-up, then half-cosine or constant; per iteration."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low, high = config.min_learning_rate, config.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def epoch_batches(
    num_items: int, batch_size: int, seed: int, *, distinct: bool = False
) -> Callable[[int], np.ndarray]:
    """Index batches (batch_size,) as a pure function of the step.

    Items are shuffled anew each epoch; a batch may straddle two epochs, so every item is used equally often and all
    batches are full, also when there are fewer items than `batch_size`.

    Args:
        distinct: no batch holds an item twice: those that are left at the end of an epoch are passed over. Needs as many items
            as a batch takes.
    """
    used = num_items // batch_size * batch_size if distinct else num_items  # in one epoch
    if not used:
        raise ValueError(f"{num_items} items cannot fill a batch of {batch_size} distinct ones")

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(num_items)

    def batch(step: int) -> np.ndarray:
        first, last = step * batch_size, (step + 1) * batch_size
        epochs = range(first // used, (last - 1) // used + 1)
        # slices first: copying the order of a million items for every batch takes longer than reading the batch
        parts = [order(n)[:used][max(first - n * used, 0) : last - n * used] for n in epochs]
        return np.concatenate(parts)

    return batch


def fit(
    loss_fn: LossFunction,
    modules: Mapping[str, nn.Module],
    batches: Callable[[int], Batch],
    config: FitConfig,
    *,
    run: RunFolder,
    description: str = "training",
    capturable: bool = False,
) -> FitResult:
    """Trains every parameter of `modules` that requires a gradient.

    Args:
        loss_fn: (batch, generator) -> named scalars; "loss" is back-propagated, all are logged. Random draws must
            come from the generator (on the CPU), made for the whole batch where there are several processes: `cadiff.sharing`.
        modules: what is trained, by name; moved to the device, and left there in evaluation mode.
        batches: batch number -> batch of tensors (nested in dicts, tuples or lists), rows first; moved to the device.
        config: see `FitConfig`.
        run: where the log and the checkpoints go; a checkpoint found there is continued.
        description: what the progress bar says.
        capturable: the loss draws through `cadiff.draws` alone and never waits for the GPU, so it may run as a CUDA graph.

    Raises:
        ConfigError: launched with a number of processes that does not divide the batch.
        DivergedError: the loss or a weight is not finite; resuming goes back to the last checkpoint's weights.
    """
    refuse_uneven(config)
    device = start()
    started = time.perf_counter()
    for module in modules.values():
        module.to(device).train()
    with ExitStack() as undone_after, _progress() as bar:
        undone_after.enter_context(shared_batches())
        send_from_main(p for m in modules.values() for p in m.parameters() if p.requires_grad)
        notice = ""
        pays = device.type == "cuda" and config.steps >= COMPILED
        if pays if config.compile is None else config.compile:
            number = undone_after.enter_context(compiled_blocks(modules.values()))
            notice = f"compiling {number} blocks"
        if config.shard and world() > 1:
            undone_after.enter_context(sharded_blocks(modules.values(), device))
        elif not notice and device.type == "cpu":
            undone_after.enter_context(onednn_linears(modules.values()))
        _train(
            loss_fn,
            modules,
            batches,
            config,
            run,
            device,
            Bar(bar, description, config.steps, config.batch_size * config.accumulate, notice),
            graph=_takes_graph(config, device, capturable),
        )
    for module in modules.values():
        module.eval()
    return FitResult(config.steps, time.perf_counter() - started, on_main(run.history))


def _takes_graph(config: FitConfig, device: torch.device, capturable: bool) -> bool:
    """Whether steps are replayed; where they were asked to be and cannot, a warning says why."""
    hindrances = {
        "this training draws or waits within its steps": not capturable,
        "there is no CUDA GPU": device.type != "cuda",
        f"{world()} processes were launched": world() > 1,
        f"accumulate={config.accumulate}": config.accumulate > 1,
    }
    found = [why for why, holds in hindrances.items() if holds]
    if found and config.graph:
        warnings.warn(
            f"fit.graph=true has no effect ({', '.join(found)}): steps run without it.", stacklevel=2
        )
    return not found and config.graph is not False


def refuse_uneven(config: FitConfig) -> None:
    """Raises ConfigError unless each of the launched processes gets an equal part of a batch."""
    if (rest := config.batch_size % world()) and world() > 1:
        nearest = max(world(), config.batch_size - rest)
        raise ConfigError(
            f"fit.batch_size={config.batch_size}, the batch of all processes together, cannot be divided evenly among "
            f"{world()} processes: set fit.batch_size={nearest}, or launch another number of processes."
        )


def refuse_several(what: str) -> None:
    """Raises ConfigError where several processes were launched; `what` is the subject of the sentence."""
    if world() > 1:
        raise ConfigError(
            f"{what} trains in one process, and {world()} were launched: start it without a launcher."
        )


def _train(
    loss_fn: LossFunction,
    modules: Mapping[str, nn.Module],
    batches: Callable[[int], Batch],
    config: FitConfig,
    run: RunFolder,
    device: torch.device,
    bar: Bar,
    *,
    graph: bool,
) -> None:
    on_cuda = device.type == "cuda"
    bf16 = config.precision == "bf16" or (config.precision == "auto" and on_cuda)
    trained = {
        f"{name}.{key}": parameter
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    whole = [p for p in trained.values() if not is_divided(p)]  # FSDP averages the gradients of the others
    optimizer = _optimizer(list(trained.values()), config, fused=on_cuda)
    average = {name: p.detach().clone() for name, p in trained.items()} if config.ema_decay else {}
    first = load_checkpoint(run.last_checkpoint, trained, average, optimizer)
    run.rewind(first)
    groups = [[p for p in module.parameters() if p.requires_grad] for module in modules.values()]
    coming = feed(batches, range(first * config.accumulate, config.steps * config.accumulate), device)
    sums: dict[str, Tensor] = {}  # on the device: nothing waits for a GPU between two log lines
    since_log = 0
    bar.begin(first)

    def backward(batch: Batch, generator: torch.Generator) -> Mapping[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            terms = loss_fn(batch, generator)
        (terms["loss"] / config.accumulate).backward()
        return {key: value.detach() for key, value in terms.items()}

    run_step = Graphed(backward) if graph else backward
    for step in range(first, config.steps):
        for part in range(config.accumulate):
            generator = step_generator(config.seed, step * config.accumulate + part)
            for key, value in run_step(next(coming), generator).items():
                sums[key] = sums.get(key, 0) + value.float()
        average_gradients(whole)
        for group in groups if config.clip_norm else ():
            if group:
                clip_gradients(group, config.clip_norm or 0.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        optimizer.step()
        if not (
            isinstance(run_step, Graphed) and run_step.captured
        ):  # whose gradients are overwritten in place
            optimizer.zero_grad(set_to_none=True)
        if average:
            update_average(average, trained, config.ema_decay or 0.0, step)
        since_log += 1
        done = step + 1
        if step == first:
            bar.first_step(device)
        save = done % config.checkpoint_every == 0 and done < config.steps
        if done % config.log_every == 0 or done == config.steps or save:  # never checkpoint an unseen NaN
            values = total(torch.stack(list(sums.values()))).tolist()
            count = since_log * config.accumulate * world()
            means = {key: value / count for key, value in zip(sums, values, strict=True)}
            if not math.isfinite(means["loss"]):
                raise DivergedError(_diverged("The loss is", done, config, run))
            # a finite loss can have gradients that are not; the next loss would show it, a checkpoint later
            if (save or done == config.steps) and not all_finite(trained):
                raise DivergedError(_diverged("The weights are", done, config, run))
            run.log({"step": done, "learning_rate": learning_rate_at(step, config), **means})
            bar.show(done, means["loss"])
            sums, since_log = {}, 0
        if save:
            save_checkpoint(run.checkpoint, done, trained, average, optimizer)

    optimizer.zero_grad(set_to_none=True)  # after a capture they hold the graph's memory
    for name, value in average.items():
        own_part(trained[name]).copy_(own_part(value))


def step_generator(seed: int, index: int) -> torch.Generator:
    """The generator of every draw in batch `index`."""
    mixed = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def _optimizer(parameters: list[nn.Parameter], config: FitConfig, *, fused: bool) -> torch.optim.AdamW:
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    decays = ((matrices, config.weight_decay), (vectors, 0.0))
    groups = [
        {"params": params, "weight_decay": decay} for found, decay in decays for params in by_kind(found)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], trained: Mapping[str, Tensor], decay: float, step: int
) -> None:
    """Moves an exponential moving average towards the weights after a step, counted from 0."""
    decay = min(decay, (1 + step) / (10 + step))  # early averages would otherwise remember the random start
    averages, values = ([own_part(p) for p in tensors.values()] for tensors in (average, trained))
    torch._foreach_lerp_(averages, values, 1 - decay)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no number is NaN or infinite, in any process."""
    found = torch.stack([own_part(tensor).isfinite().all() for tensor in tensors.values()])
    return total((~found).sum()).item() == 0


def _diverged(what: str, step: int, config: FitConfig, run: RunFolder) -> str:
    there = run.last_checkpoint
    resume = (
        f"the checkpoint of step {read_json(there / 'state.json')['step']} in {there} is kept"
        if there
        else "there is no checkpoint yet"
    )
    return (
        f"{what} not finite after step {step} (learning rate {learning_rate_at(step - 1, config):.3g}): "
        f"{resume}; try a smaller fit.learning_rate or fit.precision=fp32 in a new --out."
    )

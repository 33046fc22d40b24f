"""fit(): the one training loop.

Batches and random draws are pure functions of the step: `batches(step)` gives the batch and the loss receives a
generator seeded by (seed, batch number). A resumed run therefore needs only weights, optimiser and step number to go on
exactly as if it had never stopped: 10 steps = 5 + kill + 5, bit for bit on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from cadiff.artifacts import read_json
from cadiff.checkpoints import load_checkpoint, save_checkpoint
from cadiff.config import Config
from cadiff.errors import ConfigError, DivergedError
from cadiff.runs import RunFolder

Batch = Any
LossFunction = Callable[[Batch, torch.Generator], Mapping[str, Tensor]]


class FitConfig(Config):
    """How to train: optimiser, schedule, precision, checkpoints."""

    steps: int = Field(default=1000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=16, ge=1)
    """Samples in one batch; the effective batch is this times `accumulate`."""
    learning_rate: float = Field(default=2.5e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Applied to matrices and kernels, not to vectors (biases, norms)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Moment decay rates of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine down to `min_learning_rate`, or constant."""
    min_learning_rate: float = Field(default=0.0, ge=0)
    """Where the cosine ends."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged into one step."""
    clip_norm: float | None = 0.8
    """Largest norm of the gradient, each module on its own; none for no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA, fp32 elsewhere."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the trained weights and return that."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log lines; each line is the mean since the last one."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    seed: int = 0
    """Seeds batches and every draw inside the loss."""


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


def epoch_batches(num_items: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Index batches (batch_size,) as a pure function of the step.

    Items are shuffled anew each epoch; a batch may straddle two epochs, so every item is used equally often and all
    batches are full, also when there are fewer items than `batch_size`.
    """

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(num_items)

    def batch(step: int) -> np.ndarray:
        first, last = step * batch_size, (step + 1) * batch_size
        epochs = range(first // num_items, (last - 1) // num_items + 1)
        items = np.concatenate([order(epoch) for epoch in epochs])
        offset = first - epochs[0] * num_items
        return items[offset : offset + batch_size]

    return batch


def fit(
    loss_fn: LossFunction,
    modules: Mapping[str, nn.Module],
    batches: Callable[[int], Batch],
    config: FitConfig,
    *,
    run: RunFolder,
    description: str = "training",
) -> FitResult:
    """Trains every parameter of `modules` that requires a gradient.

    Args:
        loss_fn: (batch, generator) -> named scalars; "loss" is back-propagated, all are logged. Random draws must
            come from the generator (on the CPU).
        modules: what is trained, by name; moved to the device, and left there in evaluation mode.
        batches: batch number -> batch of tensors (nested in dicts, tuples or lists); moved to the device.
        config: see `FitConfig`.
        run: where the log and the checkpoints go; a checkpoint found there is continued.
        description: what the progress bar says.

    Raises:
        ConfigError: launched with several processes.
        DivergedError: the loss or a weight is not finite; resuming goes back to the last checkpoint's weights.
    """
    from accelerate import Accelerator
    from accelerate.utils import send_to_device

    accelerator = Accelerator()  # its precision is global to the process, so autocast is ours
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"Training was launched with {accelerator.num_processes} processes; it runs in one so far. Start it without "
            "a launcher, and reach large batches with fit.accumulate."
        )
    on_cuda = accelerator.device.type == "cuda"
    precision = ("bf16" if on_cuda else "fp32") if config.precision == "auto" else config.precision
    for module in modules.values():
        module.to(accelerator.device).train()
    trained = {
        f"{name}.{key}": parameter
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    optimizer = _optimizer(list(trained.values()), config, fused=on_cuda)
    average = {name: p.detach().clone() for name, p in trained.items()} if config.ema_decay else {}
    first = load_checkpoint(run.last_checkpoint, trained, average, optimizer)
    run.rewind(first)
    groups = [[p for p in module.parameters() if p.requires_grad] for module in modules.values()]
    sums: dict[str, Tensor] = {}
    started, since_log = time.perf_counter(), 0

    with _progress() as bar:
        task = bar.add_task(description, total=config.steps, completed=first, rate="", loss="")
        for step in range(first, config.steps):
            for part in range(config.accumulate):
                index = step * config.accumulate + part
                generator = _generator(config.seed, index)
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=precision == "bf16"):
                    terms = loss_fn(send_to_device(batches(index), accelerator.device), generator)
                accelerator.backward(terms["loss"] / config.accumulate)
                for key, value in terms.items():
                    sums[key] = sums.get(key, 0) + value.detach().float()
            for group in groups if config.clip_norm else ():
                if group:
                    torch.nn.utils.clip_grad_norm_(group, config.clip_norm or 0.0, foreach=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                _update_average(average, trained, config.ema_decay or 0.0, step)
            since_log += 1
            done = step + 1
            save = done % config.checkpoint_every == 0 and done < config.steps
            if done % config.log_every == 0 or done == config.steps or save:  # never checkpoint an unseen NaN
                means = {k: v.item() / (since_log * config.accumulate) for k, v in sums.items()}
                if not math.isfinite(means["loss"]):
                    raise DivergedError(_diverged("The loss is", done, config, run))
                # a finite loss can have gradients that are not; the next loss would show it, a checkpoint later
                if (save or done == config.steps) and not _all_finite(trained):
                    raise DivergedError(_diverged("The weights are", done, config, run))
                run.log({"step": done, "learning_rate": learning_rate_at(step, config), **means})
                rate = (
                    (done - first) * config.batch_size * config.accumulate / (time.perf_counter() - started)
                )
                bar.update(task, completed=done, rate=f"{rate:,.0f}/s", loss=f"loss {means['loss']:.4g}")
                sums, since_log = {}, 0
            if save:
                save_checkpoint(run.checkpoint, done, trained, average, optimizer)

    for name, value in average.items():
        trained[name].data.copy_(value)
    for module in modules.values():
        module.eval()
    return FitResult(config.steps, time.perf_counter() - started, run.history())


def _generator(seed: int, index: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def _optimizer(parameters: list[nn.Parameter], config: FitConfig, *, fused: bool) -> torch.optim.AdamW:
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, fused=fused
    )


@torch.no_grad()
def _update_average(
    average: Mapping[str, Tensor], trained: Mapping[str, Tensor], decay: float, step: int
) -> None:
    decay = min(decay, (1 + step) / (10 + step))  # early averages would otherwise remember the random start
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in trained.values()], 1 - decay)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    return Progress(*columns)


def _all_finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


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

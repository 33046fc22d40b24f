"""Steps of training, timed in the training loop itself.

`cadiff.training.fit` runs as in a stage, on random weights and random data: autocast, clipping, optimiser, learning rate and
the way of the batch to the device are all in the time. The clock is read after steps of the optimiser, and stops the loop when
enough is known. The GPU is waited for between repeats only, so steps queue up as they do in training.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from cadiff.benchmark.machine import forget_peak, peak_memory, training_device
from cadiff.benchmark.record import Measurement
from cadiff.plan.machines import Machine, synchronise
from cadiff.plan.stages import STEPS
from cadiff.plan.time import update_s
from cadiff.plan.workloads import WORKLOADS, Models, Workload
from cadiff.runs import RunFolder
from cadiff.training import fit

NEVER = 10**9
READ_TWICE, UPDATED = 8, 32
"""Bytes a parameter must move in a step at least, in float32: it is read on the way there and back; the gradient of one that
learns is written, and AdamW reads it with weight and two moments and writes these three."""
PROFILED_STEPS = 3


class Enough(Exception):
    """Ends the training loop: everything is measured."""


class Clock:
    """Told of the beginning and of the end of every step; raises `Enough` when the repeats are done.

    Args:
        device: waited for before the clock is read.
        warmup: steps before the first repeat, each waited for.
        repeats: how many there are.
        least: seconds that a repeat takes at least.
        profiler: records a few more steps after the last repeat.
    """

    def __init__(
        self, device: torch.device, *, warmup: int, repeats: int, least: float, profiler: Any = None
    ) -> None:
        self.device, self.warmup, self.repeats, self.least = device, warmup, repeats, least
        self.profiler = profiler
        self.warm: list[float] = []
        self.times: list[float] = []
        self.steps = 1
        self._done, self._next = 0, 1
        self._last: float | None = None

    @property
    def first(self) -> float:
        """Seconds of the very first step."""
        return self.warm[0]

    def begin(self) -> None:
        """The first step begins; later calls change nothing."""
        if self._last is None:
            self._last = self._now()

    def end(self) -> None:
        """One step ends."""
        self._done += 1
        if self._done < self._next or self._last is None:
            return
        now = self._now()
        if len(self.times) == self.repeats:
            self.profiler.stop()
            raise Enough
        (self.warm if self._done <= self.warmup else self.times).append((now - self._last) / self.steps)
        if self._done == self.warmup:
            fastest = min(self.warm[1:] or self.warm)
            self.steps = max(1, min(1000, round(self.least / fastest)))
        self._next = self._done + self.steps
        if len(self.times) == self.repeats:
            if self.profiler is None:
                raise Enough
            self.profiler.start()
            self._next = self._done + PROFILED_STEPS
        self._last = time.perf_counter()

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()


def time_training(
    stage: str,
    config: Any,
    models: Models,
    batch: int,
    machine: Machine,
    *,
    repeats: int = 5,
    least: float = 1.0,
    warmup: int | None = None,
    batches: Callable[[int], Any] | None = None,
    profile_to: Path | None = None,
) -> Measurement:
    """Times the steps of `contrast`, `attend` or `diffuse`.

    Args:
        stage: its name.
        config: its settings; `fit.precision` and `fit.compile` are followed.
        models: sizes.
        batch: samples in a step.
        machine: rates that the time is compared with.
        repeats: the median is taken over so many.
        least: seconds of a repeat at least.
        warmup: steps before the first repeat; by default 10 on a GPU, where steps are compiled and captured, and 2 on a CPU.
        batches: number -> batch, where they are to come from elsewhere; random ones that lie ready by default.
        profile_to: file for a table of the calls that take longest.
    """
    device = training_device()
    precision = resolve(config.fit.precision, device)
    step = STEPS[stage](config, models, batch, bf16=precision == "bf16")
    schedule = {"batch_size": batch, "accumulate": 1, "steps": NEVER, "epochs": None, "warmup_epochs": None}
    never = {"log_every": NEVER, "checkpoint_every": NEVER}
    # constant: over a billion steps the schedules of the stages are that as well
    fitting = config.fit.model_copy(update={**schedule, **never, "warmup_steps": 0})
    forget_peak(device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        work = WORKLOADS[stage](config, models)
        pool = [] if batches else [work.batch(batch) for _ in range(4)]
    if stage == "diffuse":
        unet: Any = work.modules["model"].get_submodule("unet")
        unet.to(memory_format=torch.channels_last)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    profiler = profile(activities=activities) if profile_to else None
    rates = machine if config.fit.graph is False else machine.replaying()
    warmup = warmup or (10 if device.type == "cuda" else 2)
    clock = Clock(device, warmup=warmup, repeats=repeats, least=least, profiler=profiler)
    _run(stage, work, batches or (lambda number: pool[number % len(pool)]), fitting, clock)
    memory, reserved = peak_memory(device)
    if profiler is not None and profile_to is not None:
        write_profile(profiler, profile_to, device)
    return Measurement(
        stage,
        f"batch {batch}",
        batch,
        precision,
        device.type == "cuda" if config.fit.compile is None else config.fit.compile,
        "samples",
        median(clock.times),
        max(clock.times),
        clock.first,
        len(clock.times),
        clock.steps,
        memory,
        reserved,
        step.cost.flops,
        machine.floor(step.cost, READ_TWICE * step.parameters + UPDATED * step.trained),
        rates.op_by_op(step.cost) + update_s(step.trained, machine),
    )


def write_profile(profiler: Any, path: Path, device: torch.device) -> None:
    """The calls that took longest in all, as a text table."""
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=90))


def resolve(asked: str, device: torch.device) -> str:
    """What `auto` comes to."""
    return ("bf16" if device.type == "cuda" else "fp32") if asked == "auto" else asked


def _run(stage: str, work: Workload, batches: Callable[[int], Any], fitting: Any, clock: Clock) -> None:
    def loss(batch: Any, generator: torch.Generator) -> Mapping[str, Tensor]:
        clock.begin()
        return work.loss(batch, generator)

    # a CUDA graph is replayed without a call of the loss; the optimiser takes its step always
    hook = register_optimizer_step_post_hook(lambda *_: clock.end())
    # a bar that would never fill is of no use to anybody
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()), suppress(Enough):
        run = RunFolder.open(Path(scratch) / stage, stage=stage, config=fitting)
        try:
            fit(loss, work.modules, batches, fitting, run=run, description=stage, capturable=True)
        finally:
            hook.remove()

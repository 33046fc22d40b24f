"""All cases in order, each on a clean slate; what cannot run here is said, and the others go on."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cadiff import __version__
from cadiff.benchmark.cases import Case
from cadiff.benchmark.drawing import time_drawing
from cadiff.benchmark.judging import measure_judging
from cadiff.benchmark.machine import training_device
from cadiff.benchmark.reading import measure_reading
from cadiff.benchmark.record import Measurement, Record
from cadiff.benchmark.training import time_training
from cadiff.errors import UserError
from cadiff.plan.machines import Machine, measure_machine
from cadiff.plan.workloads import Models

SAMPLES = 5
"""Pictures of a stimulus in the evaluation that is timed."""


def run_benchmark(
    cases: Sequence[Case],
    configs: Mapping[str, Any],
    models: Models,
    *,
    size: str,
    seconds: float = 5.0,
    repeats: int = 5,
    compiled_drawing: bool | None = None,
    profile_to: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
    keep: Callable[[Record], None] = lambda _: None,
) -> Record:
    """Measures the machine, then every case.

    Args:
        cases: what to time.
        configs: settings of the stages by name.
        models: sizes.
        size: a word for the record.
        seconds: of measuring in each case, warm-up apart, where steps are short enough.
        repeats: the median is taken over so many.
        compiled_drawing: see `time_drawing`.
        profile_to: folder for tables of the calls that take longest.
        announce: receives one line before and after each case.
        keep: receives the record after every case, so that a run that is cut off loses one case only.
    """
    device = training_device()
    announce("measuring the peak of this machine")
    machine = measure_machine(device)
    announce(describe(machine))
    record = Record(machine, size, versions())
    for case in cases:
        name = f"{case.stage}, batch {case.batch}"
        announce(name)
        options = {"repeats": repeats, "least": seconds / repeats}
        if profile_to is not None:
            options["profile_to"] = profile_to / f"{case.stage}-{case.batch}.txt"
        if case.stage == "reconstruct":
            options["compiled"] = compiled_drawing
        try:
            found = _measure(case, configs, models, machine, options)
        except torch.OutOfMemoryError:
            record.skipped[name] = "out of memory"
        except UserError as error:
            record.skipped[name] = str(error)
        else:
            record.measurements.append(found)
            memory = f", {found.memory / 2**30:.1f} GiB" if found.memory else ""
            announce(f"  {found.rate:,.3g} {found.unit}/s{memory}")
        if name in record.skipped:
            announce(f"  left out: {record.skipped[name]}")
        keep(record)
        gc.collect()
        torch.compiler.reset()  # each case compiles for itself
    return record


def describe(machine: Machine) -> str:
    """One line about a machine."""
    rates = f"bf16 {machine.bf16 / 1e12:,.3g}, tf32 {machine.tf32 / 1e12:,.3g}, fp32 {machine.fp32 / 1e12:,.3g} TFLOP/s"
    return f"{machine.name}: {rates}, {machine.bandwidth / 1e9:,.0f} GB/s ({machine.source})"


def versions() -> dict[str, str]:
    """What took part."""
    found = {"cadiff": __version__, "python": platform.python_version()}
    for package in ("torch", "diffusers", "transformers", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _measure(
    case: Case, configs: Mapping[str, Any], models: Models, machine: Machine, options: dict[str, Any]
) -> Measurement:
    if case.stage in ("contrast", "attend", "diffuse"):
        return time_training(case.stage, configs[case.stage], models, case.batch, machine, **options)
    if case.stage == "reconstruct":
        config = configs["reconstruct"].model_copy(update=dict(case.settings))
        budget = options.pop("least") * options["repeats"] * 4
        length = configs["diffuse"].context_length
        return time_drawing(
            config, models, case.batch, machine, context_length=length, budget=budget, **options
        )
    options.pop("profile_to", None)
    if case.stage == "evaluate":
        side = 256 if str(models.prior) == "published" else 64
        stimuli = max(2, case.batch // SAMPLES)
        return measure_judging(configs["evaluate"], stimuli=stimuli, samples=SAMPLES, side=side)
    return measure_reading(case.batch, models.mae.num_voxels, patch_size=models.mae.patch_size, **options)

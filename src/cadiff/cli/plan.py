"""`plan`: what every stage of a preset will need, before anything is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cadiff.cli.options import Protocol, Set
from cadiff.errors import ConfigError

if TYPE_CHECKING:
    from cadiff.plan import Machine, StagePlan, StageTime

WIDTH = 160
"""Columns of a table that goes into a file or another program."""
VRAM_HELP = "GiB of the GPU: batches are taken in parts that fit, or what does not fit is refused."
GPU_HELP = "Also predict the time: h100, a100, 4090, cpu, or this machine (measured on the spot)."
MEASURED_HELP = "What `cadiff benchmark --json FILE` wrote, in place of assumed efficiencies."


def plan(
    preset: Annotated[
        str, typer.Argument(help="Name of a preset (`cadiff presets`) or path of a .yaml file.")
    ],
    dataset: Annotated[
        Path | None, typer.Option("--dataset", "--data", help="Dataset folder, for its voxels and trials.")
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATASET", help="More data for phase 1, as for `run`; repeatable.", show_default=False
        ),
    ] = None,
    prior: Annotated[
        str, typer.Option(help="Folder of an image prior, `shipped`, or the sizes of the `published` one.")
    ] = "shipped",
    vram: Annotated[float | None, typer.Option(help=VRAM_HELP, min=0.1, show_default=False)] = None,
    gpu: Annotated[str | None, typer.Option(help=GPU_HELP, show_default=False)] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="FILE", help=MEASURED_HELP, show_default=False)
    ] = None,
    precision: Annotated[
        Literal["bf16", "fp32"] | None,
        typer.Option(
            help="Of matrix products; by default what the settings of each stage come to on such a machine.",
            show_default=False,
        ),
    ] = None,
    protocol: Protocol = None,
    set_: Set = None,
) -> None:
    """Parameters, batch, memory and time of every stage of a preset, counted without doing it.

    - `cadiff plan paper/god-sub-03 --prior published`
    - `cadiff plan paper/god-sub-03 --prior published --vram 24 --set contrast.gradient_checkpointing=true`
    - `cadiff plan paper/god-sub-03 --prior published --dataset data/god-3 --corpus data/hcp --gpu h100 --measured h100.json`
    """
    from cadiff.benchmark.record import efficiencies, read_record, shipped_record
    from cadiff.config import load_preset
    from cadiff.experiments import preset_configs
    from cadiff.plan import find_amounts, find_machine, find_models, plan_stages, plan_times

    machine = None if gpu is None else find_machine(gpu)
    record = read_record(measured) if measured else shipped_record(gpu) if gpu else None
    if record is not None and (gpu is None or not measured):
        machine = record.machine  # the rates that go with its efficiencies
    if record is not None and machine is not None and record.machine.device != machine.device:
        raise ConfigError(
            f"{measured} was measured on {record.machine.name} ({record.machine.device}), which says nothing about "
            f"{machine.name} ({machine.device}): leave --gpu out, or measure on such a machine."
        )
    configs = preset_configs(preset, set_ or [], protocol)
    folders = [dataset] if dataset else []
    models = find_models(configs, folders, prior=prior, image_mae=prior)
    device = "cuda" if machine is None else machine.device
    bf16 = None if precision is None else precision == "bf16"
    stages = plan_stages(configs, models, vram=vram, bf16=bf16, device=device)
    if machine is None:
        return show(stages, vram)
    simulated = dataset is None and "simulate" in load_preset(preset, protocol)
    amounts = find_amounts(configs, dataset, corpus or [], simulated=simulated)
    known = [] if record is None else efficiencies(record)
    show(stages, vram, machine, plan_times(configs, stages, models, amounts, machine, known))


def show(
    stages: Sequence[StagePlan],
    vram: float | None,
    machine: Machine | None = None,
    times: Sequence[StageTime] = (),
) -> None:
    """Prints a plan as a table."""
    from rich.console import Console
    from rich.table import Table

    heads = ["stage", "parameters", "of which learn", "batch", "memory"]
    heads += ["step or picture", "how many", "time", "efficiency"] if times else []
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    by_stage = {found.stage: found for found in times}
    for stage in stages:
        parts = f" x {stage.accumulate}" if stage.accumulate > 1 else ""
        table.add_row(
            stage.stage,
            f"{stage.parameters / 1e6:,.1f} M",
            f"{stage.trained / 1e6:,.1f} M",
            f"{stage.batch_size}{parts}",
            f"{stage.memory / 2**30:.1f} GiB",
            *_time(by_stage.get(stage.stage)),
        )
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    limit = "" if vram is None else f" Everything fits into {vram:g} GiB."
    typer.echo(f"Memory is an estimate, on a GPU, good to about a fifth.{limit} {_products(stages)}")
    if machine is not None:
        typer.echo(_about(machine, times))


def _time(found: StageTime | None) -> list[str]:
    if found is None:
        return []
    share = f"{found.efficiency.value:.2f}{' assumed' if found.efficiency.source == 'assumed' else ''}"
    count = "?" if found.count is None else f"{found.count:,}"
    total = "?" if found.total_s is None else duration(found.total_s)
    return [duration(found.step_s), count, total, share]


def _products(stages: Sequence[StagePlan]) -> str:
    """In which numbers the stages multiply."""
    kinds: dict[str, list[str]] = {}
    for stage in stages:
        kinds.setdefault("bf16" if stage.bf16 else "fp32", []).append(stage.stage)
    if len(kinds) == 1:
        return f"Matrix products in {next(iter(kinds))}."
    told = [f"{kind} ({', '.join(names)})" for kind, names in kinds.items()]
    return f"Matrix products in {', '.join(told)}."


def _about(machine: Machine, times: Sequence[StageTime]) -> str:
    sources = dict.fromkeys(found.efficiency.source for found in times)
    assumed = "assumed" in sources
    measured = ", ".join(source for source in sources if source != "assumed")
    text = f"Time on {machine.name} (rates: {machine.source}), without preparing data and checkpoints."
    if measured:
        text += f" Efficiencies were measured on {measured}."
    if assumed:
        text += (
            " Assumed efficiencies make the time a rough guess: measure with `cadiff benchmark --json FILE`."
        )
    if any(found.count is None for found in times):
        text += " How much there is to do (?) depends on the data: give --dataset and --corpus."
    return text


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for limit, size, unit in (
        (1e-3, 1e-6, "µs"),
        (1, 1e-3, "ms"),
        (120, 1, "s"),
        (7200, 60, "min"),
        (172800, 3600, "h"),
    ):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"

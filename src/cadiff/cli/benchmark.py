"""`benchmark`: how fast this machine does what a stage does."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cadiff.cli.options import Protocol, Set
from cadiff.cli.plan import WIDTH
from cadiff.errors import ConfigError

STAGES_HELP = "contrast, attend, diffuse, reconstruct, evaluate, data; all of them by default."
SIZE_HELP = "Sizes: the paper's (the default on a GPU) or the demo's (on a CPU)."


def benchmark(
    stages: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE]...", help=STAGES_HELP, show_default=False)
    ] = None,
    size: Annotated[Literal["paper", "demo"] | None, typer.Option(help=SIZE_HELP, show_default=False)] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Another batch than the usual ones; repeatable.", min=1, show_default=False),
    ] = None,
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], typer.Option(help="auto: bf16 on a GPU, fp32 elsewhere.")
    ] = "auto",
    compile_: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compiled or not; by default as training does it.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of measuring in each case.", min=0.1)] = 5.0,
    repeats: Annotated[int, typer.Option(help="The median is taken over so many.", min=1)] = 5,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write it all as JSON.", show_default=False),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write tables of the calls that take longest.", show_default=False
        ),
    ] = None,
    protocol: Protocol = None,
    set_: Set = None,
) -> None:
    """Speed and peak memory of every stage on this machine, on random weights and data; no dataset is needed.

    - `cadiff benchmark`
    - `cadiff benchmark contrast --size paper --batch 250 --json h100.json`
    - `cadiff benchmark diffuse --set diffuse.gradient_checkpointing=true --profile profiles`
    """
    from cadiff.artifacts import refuse_existing
    from cadiff.benchmark import STAGES, cases_of, run_benchmark, write_record
    from cadiff.benchmark import markdown as as_markdown
    from cadiff.benchmark.cases import PRESETS
    from cadiff.benchmark.machine import training_device
    from cadiff.benchmark.tables import rows
    from cadiff.experiments import preset_configs
    from cadiff.plan import find_models

    for stage in stages or ():
        if stage not in STAGES:
            raise ConfigError(f"No stage {stage!r} to time; there are {', '.join(STAGES)}.")
    if json_file is not None:  # before minutes of measuring
        refuse_existing(json_file)
        json_file.parent.mkdir(parents=True, exist_ok=True)
    size = size or ("paper" if training_device().type == "cuda" else "demo")
    preset, prior = PRESETS[size]
    configs = preset_configs(preset, set_ or [], protocol)
    configs = with_fit(configs, precision=None if precision == "auto" else precision, compile=compile_)
    models = find_models(configs, prior=prior, image_mae=prior)
    cases = cases_of(stages or STAGES, size, configs, batch or ())
    record = run_benchmark(
        cases,
        configs,
        models,
        size=size,
        seconds=seconds,
        repeats=repeats,
        compiled_drawing=compile_,
        profile_to=profile,
        announce=lambda line: typer.echo(line, err=True),
        keep=lambda found: None if json_file is None else (write_record(json_file, found), None)[1],
    )
    if markdown:
        typer.echo(as_markdown(record, shlex.join(["cadiff", *sys.argv[1:]])), nl=False)
    else:
        show(rows(record), record.skipped)
    if json_file is not None:
        typer.echo(f"written: {json_file} (for `cadiff plan PRESET --measured {json_file}`)", err=True)


def with_fit(configs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The settings of the stages with other values in the `fit` of those that train; None changes nothing."""
    wanted = {key: value for key, value in changes.items() if value is not None}
    changed = dict(configs)
    for stage in ("contrast", "attend", "diffuse"):
        fit = configs[stage].fit.model_copy(update=wanted)
        changed[stage] = configs[stage].model_copy(update={"fit": fit})
    drawing = {
        key: value for key, value in wanted.items() if key in type(configs["reconstruct"]).model_fields
    }
    changed["reconstruct"] = configs["reconstruct"].model_copy(update=drawing)
    return changed


def show(rows: list[list[str]], skipped: dict[str, str]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    for name, why in skipped.items():
        typer.echo(f"left out: {name}: {why}")

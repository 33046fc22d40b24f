"""`plan`: what every stage of a preset will need, before anything is done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cadiff.cli.options import Protocol, Set

if TYPE_CHECKING:
    from cadiff.plan import StagePlan

VRAM_HELP = "GiB of the GPU: batches are taken in parts that fit, or what does not fit is refused."


def plan(
    preset: Annotated[
        str, typer.Argument(help="Name of a preset (`cadiff presets`) or path of a .yaml file.")
    ],
    dataset: Annotated[
        Path | None, typer.Option("--dataset", "--data", help="Dataset folder, for its voxels.")
    ] = None,
    prior: Annotated[
        str, typer.Option(help="Folder of an image prior, `shipped`, or the sizes of the `published` one.")
    ] = "shipped",
    vram: Annotated[float | None, typer.Option(help=VRAM_HELP, min=0.1, show_default=False)] = None,
    precision: Annotated[
        Literal["bf16", "fp32"], typer.Option(help="Of matrix products: bf16 as on a GPU, or fp32.")
    ] = "bf16",
    protocol: Protocol = None,
    set_: Set = None,
) -> None:
    """Parameters, batch and memory of every stage of a preset, counted without doing it.

    - `cadiff plan paper/god-sub-03 --prior published`
    - `cadiff plan paper/god-sub-03 --prior published --vram 24 --set contrast.gradient_checkpointing=true`
    """
    from cadiff.experiments import preset_configs
    from cadiff.plan import find_models, plan_stages

    configs = preset_configs(preset, set_ or [], protocol)
    models = find_models(configs, [dataset] if dataset else [], prior=prior, image_mae=prior)
    stages = plan_stages(configs, models, vram=vram, bf16=precision == "bf16")
    show(stages, vram)


def show(stages: Iterable[StagePlan], vram: float | None) -> None:
    """Prints a plan as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "parameters", "of which learn", "batch", "memory", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in stages:
        parts = f" x {stage.accumulate}" if stage.accumulate > 1 else ""
        table.add_row(
            stage.stage,
            f"{stage.parameters / 1e6:,.1f} M",
            f"{stage.trained / 1e6:,.1f} M",
            f"{stage.batch_size}{parts}",
            f"{stage.memory / 2**30:.1f} GiB",
        )
    Console().print(table)
    limit = "" if vram is None else f" Everything fits into {vram:g} GiB."
    typer.echo(f"Memory is an estimate, on a GPU, good to about a fifth.{limit}")

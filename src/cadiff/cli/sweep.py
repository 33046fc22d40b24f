"""The verb `sweep`: tables of runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cadiff.cli.options import SET_HELP
from cadiff.errors import ConfigError


def sweep(
    table: Annotated[
        str | None,
        typer.Argument(help="Name of a table (`--list`) or path of a .yaml file.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the sweep; run again, it goes on.", show_default=False),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SUBJECT=]FOLDER",
            help="Dataset of a subject; repeatable. Without any, all are simulated.",
        ),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATASET", help="More data for phase 1: a dataset, or a folder of them; repeatable."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to start from, as for `cadiff run`.", show_default=False)
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="Folder of an image prior, or `shipped`.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help=f"{SET_HELP} A row's own settings win.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at a time; threads and GPUs are divided.", min=1, show_default=False),
    ] = None,
    processes: Annotated[
        int, typer.Option(help="Processes of each training stage, through accelerate.", min=1)
    ] = 1,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Run on Slurm: partition=gpu,gpus=1,time=04:00:00.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show the plan.")] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Only compare what is there, also while the sweep goes on.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the tables that come with cadiff.")] = False,
) -> None:
    """Make every run of a table, stages that runs share once, and compare them on one page.

    - `cadiff sweep --list`
    - `cadiff sweep mine.yaml --dry-run`
    - `cadiff sweep mine.yaml --out runs/mine --jobs 4`
    - `cadiff sweep mine.yaml --out runs/mine --page`
    - `cadiff sweep table-2 --dataset data/god-3 --corpus data/hcp --weights weights --out runs/table-2 --slurm partition=gpu`

    docs/sweeps.md describes the file. A run that fails does not stop the others (exit code 1 at the end); the same command goes
    on with what is missing.
    """
    if list_:
        _list()
        return
    if table is None:
        raise ConfigError(
            "Name a table: cadiff sweep TABLE --out FOLDER; `cadiff sweep --list` shows those that come along."
        )
    if out is None and not dry_run:
        raise ConfigError(
            f"Say where the runs shall go: cadiff sweep {table} --out FOLDER; or --dry-run to see the plan."
        )
    from cadiff.sweep import Given, compare_made, describe, plan_sweep, run_sweep
    from cadiff.sweep.executors import Cluster, Executor, Local, parse_slurm

    given = Given(_datasets(dataset or []), tuple(corpus or ()), weights, prior, tuple(set_ or ()))
    settings = None if slurm is None else parse_slurm(slurm)
    if dry_run or out is None:
        for line in describe(plan_sweep(table, given), out):
            typer.echo(line)
        return
    if page:
        outcome = compare_made(table, out, given)
        for cell, error in outcome.failed.items():
            typer.echo(f"failed: {cell}: {error}", err=True)
        done = outcome.num_cells - len(outcome.missing)
        others = Counter(status for status, _ in outcome.missing.values())
        counts = [f"{done} done", *(f"{count} {status}" for status, count in sorted(others.items()))]
        typer.echo(f"{outcome.num_cells} {'run' if outcome.num_cells == 1 else 'runs'}: {', '.join(counts)}.")
        typer.echo(f"comparison: {outcome.page.resolve()}" if outcome.page else "no run is scored yet")
        return
    if settings is None:
        jobs = jobs or 1
        executor: Executor = Local(jobs, processes)
    else:
        executor = Cluster(out, settings, processes)
    outcome = run_sweep(
        table, out, given, executor=executor, jobs=jobs, announce=lambda line: typer.secho(line, bold=True)
    )
    for cell, error in outcome.failed.items():
        typer.echo(f"failed: {cell}: {error}", err=True)
    if outcome.page is not None:
        typer.echo(f"comparison: {outcome.page.resolve()}")
    if outcome.failed:
        typer.echo(
            f"{len(outcome.failed)} of {outcome.num_cells} runs failed; the same command tries them again.",
            err=True,
        )
        raise typer.Exit(1)


def _list() -> None:
    from cadiff.sweep import read_table, shipped_tables

    names = shipped_tables()
    width = max(map(len, names), default=0)
    for name in names:
        table = read_table(name).table
        source = f" ({table.source})" if table.source else ""
        typer.echo(f"{name:<{width}}  {len(table.rows):>2} rows  {table.title}{source}")


def _datasets(items: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for item in items:
        name, sign, folder = item.partition("=")
        if not sign or Path(item).exists():
            name, folder = "", item
        if name in found:
            whose = f"for {name!r}" if name else "without a subject"
            raise ConfigError(f"--dataset: two folders {whose}; say whose each is: --dataset SUBJECT=FOLDER.")
        found[name] = Path(folder)
    return found

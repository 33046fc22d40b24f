"""`cadiff sweep`: a table of runs, each stage made once for all runs that share it.

out/sweep.json          the table, and when it was begun
out/stages/NAME-HASH    every stage of every run, named after what it is a function of; never overwritten
out/cells/ROW/SUBJECT-seed-N   one run: cell.json, log.txt, and links to its stages
out/comparison.html, results.tsv, results.json
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from cadiff.artifacts import provenance, refuse_existing, write_json
from cadiff.errors import ArtifactError
from cadiff.runs import lock_folder, only_locked, unlock_folder
from cadiff.sweep.cells import Cell, Given, expand
from cadiff.sweep.drive import Event, Missing, Work, drive
from cadiff.sweep.executors import Executor, Local
from cadiff.sweep.plan import STAGES_FOLDER, Planned, place, plan_cells, voxels_remark
from cadiff.sweep.table import Source, read_table

RECORD = "sweep.json"


@dataclass(frozen=True)
class Outcome:
    """What a sweep has come to."""

    page: Path | None
    """comparison.html; None where no run came to an evaluation."""
    missing: dict[str, Missing]
    """Cell -> why it has no score."""
    num_cells: int

    @property
    def failed(self) -> dict[str, str]:
        """Cell -> the last sentence of what went wrong."""
        return {cell: why for cell, (status, why) in self.missing.items() if status == "failed"}


@dataclass(frozen=True)
class Sweep:
    """A table with everything that it asks for looked at."""

    source: Source
    cells: list[Planned]
    remarks: list[str]


def plan_sweep(table: str | Path, given: Given | None = None) -> Sweep:
    """Reads a table and validates every run of it: settings, datasets, weights, options.

    Raises:
        UserError: the first mistake, with the row's name and line.
    """
    source = read_table(table)
    cells, remarks = expand(source, given or Given())
    planned, left_out = plan_cells(cells)
    voxels = dict.fromkeys(text for one in planned if (text := voxels_remark(one)))
    return Sweep(source, planned, [*remarks, *left_out, *voxels])


def run_sweep(
    table: str | Path,
    out: Path,
    given: Given | None = None,
    *,
    executor: Executor | None = None,
    jobs: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
    show: bool = True,
) -> Outcome:
    """Makes every run of a table and compares them; run again it goes on, and skips what is there.

    Args:
        table: name of a table that comes with cadiff, or the path of a YAML file.
        out: folder of the sweep; a table may grow or change between two calls, since stages are found by what they are made of.
        given: what the command line adds to the table.
        executor: where runs are made (`cadiff.sweep.executors`); None: in processes of this machine.
        jobs: runs at a time; None: one on this machine, as many as can start elsewhere.
        announce: receives a line now and then. show: whether to show progress.

    Raises:
        UserError: the table asks for something that cannot be, `out` is in use by another process, or holds something else.
    """
    out = Path(out)
    if not (out / RECORD).is_file() and not only_locked(out):
        refuse_existing(out)
    sweep = plan_sweep(table, given)
    if executor is None:
        executor, jobs = Local(jobs or 1), jobs or 1
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out)
    try:
        for remark in sweep.remarks:
            announce(f"note: {remark}")
        return _run(sweep, out, executor, jobs, announce, show)
    finally:
        executor.close()
        unlock_folder(lock)


def compare_made(table: str | Path, out: Path, given: Given | None = None) -> Outcome:
    """Compares the runs of a table that are there, while others are still being made or after an interruption; runs nothing.

    Raises:
        UserError: as `run_sweep`; or `out` holds no sweep.
    """
    from cadiff.sweep.results import write_results

    if not (out / RECORD).is_file():
        raise ArtifactError(
            f"{out} holds no sweep to compare runs of: begin one with cadiff sweep {table} --out {out}."
        )
    sweep = plan_sweep(table, given)
    work, missing = Work(out, sweep.cells), dict[str, Missing]()
    for planned in sweep.cells:
        (scored,) = (place(s, planned.keys[s.name]) for s in planned.steps if s.name == "evaluate")
        if scored in work.missing(planned):
            missing[planned.cell.name] = work.standing(planned)
    return Outcome(write_results(sweep.source, work, missing, sweep.remarks), missing, len(sweep.cells))


def _run(
    sweep: Sweep, out: Path, executor: Executor, jobs: int | None, announce: Callable[[str], None], show: bool
) -> Outcome:
    from cadiff.sweep.results import link, write_results
    from cadiff.sweep.view import View

    source, work = sweep.source, Work(out, sweep.cells)
    about = {
        "kind": "sweep",
        "format": 1,
        "table": source.name,
        "text": source.text,
        "provenance": provenance(),
    }
    write_json(out / RECORD, about)
    (out / STAGES_FOLDER).mkdir(exist_ok=True)
    for planned in sweep.cells:
        work.folder(planned).mkdir(parents=True, exist_ok=True)
        write_json(work.folder(planned) / "cell.json", planned.as_json())
    missing: dict[str, Missing] = {}
    with View(work) if show else nullcontext() as view:
        for event in drive(work, executor, jobs, view.watch if view else lambda _: None):
            link(work, event.planned)
            _note(event, work, missing)
            if view:
                view.ended(event)
    announce("comparing the runs")
    page = write_results(source, work, missing, sweep.remarks)
    return Outcome(page, missing, len(sweep.cells))


def _note(event: Event, work: Work, missing: dict[str, Missing]) -> None:
    """Notes a failure, also for a later `compare_made`: a cell may have failed without a process, or without a word."""
    if event.error:
        missing[event.planned.cell.name] = Missing("failed", event.error)
        about = {"status": "failed", "stage": event.stage, "error": event.error}
        write_json(work.folder(event.planned) / "status.json", {**work.status(event.planned), **about})


def describe(sweep: Sweep, out: Path | None = None) -> list[str]:
    """The plan in lines: rows, which stages are shared by how many runs, and how many are to be made."""
    cells = [planned.cell for planned in sweep.cells]
    common = set.intersection(*(set(cell.overrides) for cell in cells)) if cells else set()
    lines = [
        f"{sweep.source.name}: {sweep.source.table.title}" if sweep.source.table.title else sweep.source.name
    ]
    lines += [f"note: {remark}" for remark in sweep.remarks]
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    width = max(map(len, rows))
    for name, members in rows.items():
        subjects = ", ".join(dict.fromkeys(cell.subject for cell in members))
        seeds = ", ".join(dict.fromkeys(str(cell.seed) for cell in members))
        lines.append(f"  {name:<{width}}  {subjects}; seed {seeds}; {_how(members[0], common)}")
    users: dict[str, int] = {}
    kinds: dict[str, list[str]] = {}
    for planned in sweep.cells:
        for step in planned.steps:
            name = place(step, planned.keys[step.name])
            users[name] = users.get(name, 0) + 1
            if users[name] == 1:
                kinds.setdefault(step.kind or step.name, []).append(name)
    there = set() if out is None else {name for name in users if (out / STAGES_FOLDER / name).exists()}
    lines.append(f"{'stage':<12}{'to be made':>11}{'for runs':>10}")
    for kind, names in kinds.items():
        made = sum(name not in there for name in names)
        lines.append(f"{kind:<12}{made:>11}{sum(users[name] for name in names):>10}")
    total, left = sum(users.values()), len(users) - len(there)
    begun = f"; {len(there)} are there or begun" if there else ""
    lines.append(
        f"{len(cells)} runs of {total} stages in all, {left} to be made since runs share them{begun}."
    )
    return lines


def _how(cell: Cell, common: set[str]) -> str:
    if cell.baseline is not None:
        options = ", ".join(f"{key}={value}" for key, value in cell.options.items())
        return f"baseline {cell.baseline}" + (f" ({options})" if options else "")
    seeds = (".fit.seed=", "reconstruct.seed=", "simulate.subject=")
    own = [text for text in cell.overrides if text not in common and not any(word in text for word in seeds)]
    return f"{cell.preset}" + (f" with {', '.join(own)}" if own else "")

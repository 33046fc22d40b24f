"""One view of all running cells: how many stages are there, how fast they come, how long the rest will take."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cadiff.sweep.drive import Event, Work
from cadiff.sweep.plan import STAGES_FOLDER, Planned

EVERY_S = 1.0


class View:
    """A bar over the stages with a line a running cell on a terminal; one line a finished cell anywhere."""

    def __init__(self, work: Work, console: Console | None = None) -> None:
        self.work, self.console = work, console or Console(stderr=True, soft_wrap=True)
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
        ]
        self._bars = Progress(
            *columns, console=self.console, disable=not self.console.is_terminal, transient=True
        )
        self._total = len(work.stages())
        self._first = self._seen = work.num_there()
        self._started, self._last, self._ended = time.monotonic(), 0.0, 0
        self._task = self._bars.add_task("stages", total=self._total, completed=self._seen, told="")
        self._cells: dict[str, Any] = {}

    def __enter__(self) -> View:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def watch(self, running: Sequence[Planned]) -> None:
        """Redraws, no more than once in a while."""
        now = time.monotonic()
        if now - self._last < EVERY_S or not self.console.is_terminal:
            return
        self._last, self._seen = now, self.work.num_there()
        told = pace(self._seen - self._first, self._total - self._seen, now - self._started)
        self._bars.update(self._task, completed=self._seen, told=told)
        names = {planned.cell.name: planned for planned in running}
        for name in [name for name in self._cells if name not in names]:
            self._bars.remove_task(self._cells.pop(name))
        for name, planned in names.items():
            status = self.work.status(planned)
            if name not in self._cells:
                self._cells[name] = self._bars.add_task(name, total=None, told="")
            done, total = steps_of(self.work.out / STAGES_FOLDER / str(status.get("stage", "")))
            told = f"{status.get('step', 'starting')}{' (waits for another run)' if status.get('status') == 'waiting' else ''}"
            self._bars.update(self._cells[name], completed=done, total=total, told=told)

    def ended(self, event: Event) -> None:
        """Says how a cell ended."""
        self._ended += 1
        cell = event.planned.cell
        outcome = f"failed: {event.error}" if event.error else "done"
        seen = self.work.num_there()
        told = pace(seen - self._first, self._total - seen, time.monotonic() - self._started)
        line = (
            f"[{self._ended}/{len(self.work.cells)}] {cell.row}, {cell.subject}, seed {cell.seed}: {outcome}"
        )
        self.console.print(
            f"{line}; {told}" if told and seen < self._total else line, markup=False, highlight=False
        )


def pace(made: int, left: int, seconds: float) -> str:
    """Rate and time left, from the stages made so far; empty before the first one."""
    if made <= 0:
        return ""
    if not left:
        return "all stages are there"
    rate, rest = made / seconds, left * seconds / made
    speed = f"{60 * rate:.1f} stages a minute" if 60 * rate >= 1 else f"{3600 * rate:.1f} stages an hour"
    return f"{speed}, about {_clock(rest)} left for {left}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def steps_of(stage: Path) -> tuple[int, int | None]:
    """Training steps taken and wanted, as far as a stage's own folder tells."""
    try:
        last = (stage / "log.jsonl").read_text().splitlines()[-1]
        fit = json.loads((stage / "run.json").read_text())["config"]["fit"]
        return int(json.loads(last)["step"]), None if fit.get("epochs") else int(fit["steps"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0, None

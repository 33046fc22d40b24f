"""Makes the cells of a sweep, several at a time, and sees to it that no two of them make the same stage at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from cadiff.artifacts import read_json
from cadiff.errors import ArtifactError
from cadiff.sweep.executors import Executor, Running
from cadiff.sweep.plan import CELLS_FOLDER, STAGES_FOLDER, Planned, lock_of, place

POLL_S = 0.2


class Missing(NamedTuple):
    """A cell that has no score."""

    status: Literal["failed", "running", "not made"]
    why: str
    """In words, for results and pages."""


@dataclass
class Work:
    """What is left to do; stages that are there stay there."""

    out: Path
    cells: Sequence[Planned]
    _there: set[str] = field(default_factory=set)

    def missing(self, planned: Planned) -> set[str]:
        """Places of the stages of a cell that are not there yet."""
        found: set[str] = set()
        for step in planned.steps:
            name = place(step, planned.keys[step.name])
            if name in self._there:
                continue
            if step.done(self.out / STAGES_FOLDER / name):
                self._there.add(name)
            else:
                found.add(name)
        return found

    def stages(self) -> set[str]:
        """Places of all stages, each once."""
        return {place(step, planned.keys[step.name]) for planned in self.cells for step in planned.steps}

    def num_there(self) -> int:
        """How many of them are there."""
        left: set[str] = set().union(*(self.missing(planned) for planned in self.cells))
        return len(self.stages()) - len(left)

    def folder(self, planned: Planned) -> Path:
        """Of a cell."""
        return self.out / CELLS_FOLDER / planned.cell.name

    def status(self, planned: Planned) -> dict[str, Any]:
        """status.json of a cell; empty before it was begun."""
        try:
            return read_json(self.folder(planned) / "status.json")
        except ArtifactError:
            return {}

    def standing(self, planned: Planned) -> Missing:
        """Of a cell without a score, by its status.json and the lock of the stage that it makes or waits for."""
        status = self.status(planned)
        stage, known = status.get("stage"), status.get("status")
        if stage is not None and stage not in self.missing(planned):  # of what the table was before
            return NOT_MADE
        if known == "failed":
            return Missing("failed", str(status["error"]))
        if stage is not None and _locked(lock_of(self.out / STAGES_FOLDER / stage)):
            return Missing("running", f"being made now: {status['step']}")
        return NOT_MADE


NOT_MADE = Missing("not made", "not made yet")


def _locked(lock: Path) -> bool:
    """Whether a process holds it."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


@dataclass(frozen=True)
class Event:
    """A cell has come to an end."""

    planned: Planned
    error: str | None
    """The last sentence of what went wrong."""
    stage: str | None = None
    """Where it did, as far as that is known."""


def drive(
    work: Work,
    executor: Executor,
    jobs: int | None,
    watch: Callable[[Sequence[Planned]], None] = lambda _: None,
) -> Iterator[Event]:
    """Makes all cells, at most `jobs` at a time (None: as many as can start), and yields each as it ends.

    A cell waits while another one makes a stage that it needs, and starts as soon as that stage is there. Where a stage that
    several share has failed, the others fail with it; all the rest goes on. `watch` sees the running cells now and then.
    """
    waiting, running = list(work.cells), dict[int, tuple[Planned, Running]]()
    broken: dict[str, str] = {}
    try:
        while waiting or running:
            for slot, (planned, run) in list(running.items()):
                code = run.poll()
                if code is not None:
                    del running[slot]
                    error = None if code == 0 else _why(work, planned, code, broken)
                    yield Event(planned, error, work.status(planned).get("stage"))
            for planned in list(waiting):
                missing = work.missing(planned)
                if hopeless := sorted(missing & broken.keys()):
                    waiting.remove(planned)
                    yield Event(planned, broken[hopeless[0]], hopeless[0])
                    continue
                if not missing:
                    waiting.remove(planned)
                    yield Event(planned, None)
                    continue
                if jobs is not None and len(running) >= jobs:
                    continue
                if any(missing & work.missing(other) for other, _ in running.values()):
                    continue
                waiting.remove(planned)
                slot = next(i for i in range(len(work.cells)) if i not in running)
                (work.folder(planned) / "status.json").unlink(missing_ok=True)
                running[slot] = (planned, executor.start(work.out, work.folder(planned), slot))
            watch([planned for planned, _ in running.values()])
            if running:
                time.sleep(POLL_S)
    finally:
        for _, run in running.values():
            run.stop()


def _why(work: Work, planned: Planned, code: int, broken: dict[str, str]) -> str:
    """What ended a cell; a stage that failed is noted in `broken` for the cells that share it."""
    status, log = work.status(planned), work.folder(planned) / "log.txt"
    ended = (
        f"its process ended with signal {-code}"
        if code < 0
        else _last_line(log) or f"its process ended with {code}"
    )
    error = str(status.get("error") or f"{ended}; see {log}")
    if status.get("status") in ("making", "failed") and "stage" in status:
        broken[status["stage"]] = f"{status['step']}, shared with {planned.cell.row}, failed: {error}"
        return f"{status['step']}: {error}"
    return error


def _last_line(log: Path) -> str:
    text = log.read_text(errors="replace").strip() if log.is_file() else ""
    return text.splitlines()[-1].strip() if text else ""

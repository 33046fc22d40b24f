"""What a training or a drawing shows while it runs: steps and how fast they are; of a training the loss, and how long the
compiler took. In a terminal the line moves; in a file it is one line at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cadiff.processes import is_main


def progress() -> Progress:
    """The display; of several processes the main one has it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    return Progress(*columns, disable=not is_main())


@contextmanager
def counted(description: str, total: int) -> Iterator[Callable[[], None]]:
    """The line of something that is no training; each call of what it gives is a step."""
    started = time.perf_counter()
    with progress() as bar:
        task = bar.add_task(description, total=total, rate="", loss="")

        def step() -> None:
            bar.advance(task)
            rate = bar.tasks[0].completed / max(1e-9, time.perf_counter() - started)
            bar.update(task, rate=f"{rate:.3g}/s")

        yield step


class Bar:
    """The line of one training.

    Args:
        bar: the display, begun.
        description: what is trained.
        steps: how many there will be. samples: of one step.
        notice: what happens before the first step, such as compiling; empty for nothing.
    """

    def __init__(self, bar: Progress, description: str, steps: int, samples: int, notice: str = "") -> None:
        self.bar, self.description, self.notice = bar, description, notice
        self.steps, self.samples = steps, samples

    def begin(self, first: int) -> None:
        """Shows the line, with `first` steps done already."""
        text = f"{self.description}: {self.notice}" if self.notice else self.description
        self.task = self.bar.add_task(text, total=self.steps, completed=first, rate="", loss="")
        self.first, self.started = first, time.perf_counter()

    def first_step(self, device: torch.device) -> None:
        """Says how long the first step took, where there was a notice."""
        if not self.notice:
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - self.started
        self.bar.console.print(
            f"{self.description}: {self.notice}, the first step took {took:.0f} s", soft_wrap=True
        )
        self.bar.update(self.task, description=self.description)
        self.first, self.started = self.first + 1, time.perf_counter()

    def show(self, done: int, loss: float) -> None:
        """Shows the steps done and a loss."""
        rate = (done - self.first) * self.samples / max(1e-9, time.perf_counter() - self.started)
        self.bar.update(self.task, completed=done, rate=f"{rate:,.0f}/s", loss=f"loss {loss:.4g}")

"""The random draws of a training step: made on the CPU, from the generator of the step, so that all devices see the same.

A CUDA graph (`cadiff.graphs`) replays kernels, not Python, so what a step draws must lie in memory of its own beforehand. While
a `Tape` records, it remembers how each draw is made and keeps a buffer for it; while it plays, `drawn` gives the buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cadiff.sharing import own, to_device

Make = Callable[[torch.Generator], Tensor]


def drawn(make: Make, generator: torch.Generator, device: torch.device, *, views: int = 1) -> Tensor:
    """`make(generator)` on `device`, the rows of this process.

    Args:
        make: draws for the whole batch of all processes (`cadiff.sharing.whole`), from the generator that it gets.
        generator: of the step, on the CPU.
        device: where the rows go; on the way to a GPU the CPU does not wait.
        views: whole batches that the rows consist of, one after the other.
    """

    def mine(source: torch.Generator) -> Tensor:
        return to_device(own(make(source), views), device)

    return mine(generator) if _tape is None else _tape.draw(mine, generator)


class Tape:
    """Every draw of one step in order: how it is made, and the memory that it is read from."""

    def __init__(self) -> None:
        self._draws: list[tuple[Make, Tensor]] = []
        self._next: int | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block, draws are made as always, and remembered."""
        self._draws, self._next = [], None
        with self._running():
            yield

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Within the block nothing is drawn: `drawn` gives the buffers, in order.

        Raises RuntimeError when other draws are asked for than were recorded.
        """
        self._next = 0
        with self._running():
            yield
        if self._next != len(self._draws):
            raise RuntimeError(f"{self._next} draws in this step, {len(self._draws)} in the one recorded")

    def fill(self, generator: torch.Generator) -> None:
        """Makes all draws of a step, in order, into the buffers."""
        for make, buffer in self._draws:
            buffer.copy_(make(generator), non_blocking=True)

    def draw(self, make: Make, generator: torch.Generator) -> Tensor:
        """The next draw."""
        if self._next is None:
            value = make(generator)
            self._draws.append((make, value.clone()))
            return value
        if self._next == len(self._draws):
            raise RuntimeError(f"more than the {len(self._draws)} draws recorded")
        self._next += 1
        return self._draws[self._next - 1][1]

    @contextmanager
    def _running(self) -> Iterator[None]:
        global _tape
        _tape = self
        try:
            yield
        finally:
            _tape = None


_tape: Tape | None = None

"""A training step's loss and gradients as one CUDA graph: thousands of kernels start with one call.

With small batches a GPU finishes kernels faster than Python starts them. At the published sizes on an H100, phase 2 with batch
16 took 147 ms a step, and 49 as a graph (docs/benchmarks.md). The first steps run as always, so that kernels are
chosen and compiled; then one is captured and replayed from there on, with its inputs and draws copied to where it reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cadiff.draws import Tape

WARM_UP = 3
"""Steps before the capture."""

Work = Callable[[Any, torch.Generator], Mapping[str, Tensor]]
"""(batch, generator) -> named scalars, with gradients left in the parameters; all its draws through `cadiff.draws`."""


class Graphed:
    """Calls `work`, and after the first few calls replays what it did.

    Once `captured`, gradients lie in memory that every call overwrites: they must not be set to None any more.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._tape, self._calls = Tape(), 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()
        self._inputs: Any = None
        self._terms: Mapping[str, Tensor] = {}

    @property
    def captured(self) -> bool:
        """Whether calls are replays from now on."""
        return self._graph is not None

    def __call__(self, batch: Any, generator: torch.Generator) -> Mapping[str, Tensor]:
        """What `work` returns; after the capture in memory that the next call overwrites."""
        if self._calls < WARM_UP:
            self._calls += 1
            self._stream.wait_stream(torch.cuda.current_stream())  # warm-up belongs on a stream of its own
            with torch.cuda.stream(self._stream), self._tape.recording():
                terms = self.work(batch, generator)
            torch.cuda.current_stream().wait_stream(self._stream)
            return terms
        if self._graph is None:
            self._inputs = each(torch.clone, batch)
            self._tape.fill(generator)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream), self._tape.playing():
                self._terms = self.work(self._inputs, generator)
            self._graph = graph
        else:
            each(lambda old, new: old.copy_(new, non_blocking=True), self._inputs, batch)
            self._tape.fill(generator)
        self._graph.replay()
        return self._terms


def each(work: Callable[..., Any], *trees: Any) -> Any:
    """`work` on corresponding tensors of equally nested dicts, tuples and lists."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: each(work, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(each(work, *parts) for parts in zip(*trees, strict=True))
    return work(*trees)

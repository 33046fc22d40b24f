"""How much memory a step takes and what it has to do, counted without taking or doing it.

The step runs on fake tensors (PyTorch's FakeTensorMode: shapes and types, no numbers and no memory), forward and backward,
and every storage that is made or freed on the way is counted. What is counted is exact for the tensors; what the allocator
and the libraries' workspaces add is not in it (`OVERHEAD`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cadiff.plan.cost import Cost, CostCounter

OVERHEAD = 1.2
"""Of the allocator and of workspaces, over the tensors themselves (docs/benchmarks.md: 1.15 to 1.27 measured)."""
ADAMW = 8
"""Bytes of optimiser state for each trained parameter: two moments in float32."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive: `now`, and the most there were, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._known:  # a view
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Step:
    """What one step of a stage came to."""

    parameters: int
    """Number of parameters, all of them."""
    trained: int
    """Number of those that learn."""
    peak: int
    """Most bytes alive at once: parameters, activations, gradients."""
    cost: Cost = field(default_factory=Cost)
    """What the step does, forward and backward; the optimiser is not in it."""


def count_step(build: Callable[[], nn.Module], step: Callable[[Any], Tensor | None], *, bf16: bool) -> Step:
    """Builds a network and takes one step with it, all on fake tensors.

    Args:
        build: makes the network, its trainable parameters marked.
        step: network -> loss to go back from, or None for a step without gradients.
        bf16: matrix products in bfloat16 (autocast), as on a GPU.
    """
    # what schedules and position tables read from numpy are real tensors, and small
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        network = build()
        with CostCounter() as work:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = step(network)
            if loss is not None:
                loss.backward()
        sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return Step(sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns), live.peak, work.cost)

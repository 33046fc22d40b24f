"""Batches on their device, each process with its rows; for a GPU the next one is read while this one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from cadiff.sharing import own, to_device

Batch = Any


def feed(
    batches: Callable[[int], Batch],
    numbers: Iterable[int],
    device: torch.device,
    *,
    ahead: bool | None = None,
) -> Iterator[Batch]:
    """The batches of these numbers, in order, on `device`: the same values whether they are read ahead or not.

    Args:
        batches: number -> tensors (nested in dicts, tuples or lists), the first dimension of each the rows of the batch.
        numbers: of batches.
        device: where they go; a GPU gets them from pinned memory, without the CPU waiting.
        ahead: read the next batch in another thread meanwhile; by default for a GPU.
    """

    def read(number: int) -> Batch:
        return _each(batches(number), own)

    def send(batch: Batch) -> Batch:
        return _each(batch, lambda tensor: to_device(tensor, device))

    if not (device.type == "cuda" if ahead is None else ahead):
        for number in numbers:
            yield send(read(number))
        return
    with ThreadPoolExecutor(1, "feed") as thread:
        waiting = None
        for number in numbers:
            coming = thread.submit(read, number)
            if waiting is not None:
                yield send(waiting.result())
            waiting = coming
        if waiting is not None:
            yield send(waiting.result())


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: _each(value, change) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_each(value, change) for value in batch)
    return batch

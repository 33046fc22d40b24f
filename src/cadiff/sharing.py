"""One batch over several processes, exactly as one process would have it.

Inside `shared_batches()` each of W processes holds an equal part of the rows of every batch, in order. What one process would
compute over the whole batch stays what it is:

    draws       are made for the whole batch from one generator; each process keeps its rows            own(draw(whole(n)))
    means       over rows are the mean of the processes' means, because parts are equal
    ratios      of sums (masked errors) take the denominator of all                                     total(count)
    contrasts   see the rows of all processes, and send gradients back to them                          gather(rows)
    gradients   are averaged after the backward pass: d mean_r L_r = mean_r d L_r                       average_gradients

With one process, and outside the block, all of these return what they are given, bit for bit. See
docs/decisions/0015-several-processes.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cadiff import processes

BUCKET = 8 * 2**20
"""Numbers that travel together when gradients are averaged: few messages, and little memory beside the gradients."""

_share = (
    0,
    1,
)  # this process and how many there are; not a context variable: reading ahead happens in another thread


@contextmanager
def shared_batches() -> Iterator[None]:
    """Within the block a batch is that of all processes together, which it connects."""
    global _share
    if processes.world() > 1:
        processes.start()
    before, _share = _share, (processes.rank(), processes.world())
    try:
        yield
    finally:
        _share = before


def whole(rows: int) -> int:
    """Rows of the whole batch, of which this process holds `rows`."""
    return rows * _share[1]


def first_row(rows: int) -> int:
    """Where the `rows` rows of this process begin in the whole batch."""
    return rows * _share[0]


def own(tensor: Tensor, views: int = 1) -> Tensor:
    """The rows of this process out of those of the whole batch (`views` whole batches, one after the other)."""
    rank, world = _share
    if world == 1:
        return tensor
    parts = tensor.unflatten(0, (views, world, -1))
    return parts[:, rank].flatten(0, 1)


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, (N, ...) -> (W N, ...), each keeping its way back for gradients."""
    return _Gather.apply(rows, *_share) if _share[1] > 1 else rows  # pyright: ignore[reportReturnType]


def total(value: Tensor) -> Tensor:
    """The sum over processes, without gradient."""
    if _share[1] > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def processes_sharing() -> int:
    """W, the number of processes among which each batch is divided."""
    return _share[1]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; on the way to a GPU the CPU does not wait."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces each gradient by its mean over processes; a parameter without a gradient must lack it everywhere."""
    if _share[1] == 1:
        return
    sent = []
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, message in sent:
        message.wait()
        parts = (flat / _share[1]).split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view(g.shape) for part, g in zip(parts, bucket, strict=True)])


@torch.no_grad()
def send_from_main(tensors: Iterable[Tensor]) -> None:
    """Makes tensors what they are in the main process, in place."""
    for tensor in tensors if _share[1] > 1 else ():
        value = tensor.detach().contiguous()
        dist.broadcast(value, src=0)
        tensor.copy_(value)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


class _Gather(torch.autograd.Function):
    """All-gather; the gradient of a row is the sum of what all processes made of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, world: int) -> Tensor:
        ctx.rank, ctx.rows = rank, len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.rank * ctx.rows :][: ctx.rows], None, None

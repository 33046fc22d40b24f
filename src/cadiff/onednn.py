"""Linear layers by oneDNN on processors where PyTorch's own choice is slow.

In float32 PyTorch leaves matrix products on x86 to MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN, which
PyTorch brings along for convolutions, uses AVX-512 on all that have it: on an AMD EPYC it does 150 to 220 GFLOP/s a core where
MKL does 60 to 95 (docs/benchmarks.md). The products are the same float32 sums in another order.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST = 2**20
"""Multiplications in a product from which the way through Python is won back."""


@contextmanager
def onednn_linears(modules: Iterable[nn.Module]) -> Iterator[int]:
    """Within the block, linear layers of `modules` compute by oneDNN where that is faster; gives how many may do so.

    They do for float32 on the CPU, outside of autocast, and for large enough products; other calls are as ever. It is for
    networks that are neither compiled nor divided among processes. `torch.backends.mkldnn.set_flags(False)` turns it off.
    """
    found: list[Any] = [layer for module in modules for layer in module.modules() if type(layer) is nn.Linear]
    layers = list({id(layer): layer for layer in found}.values()) if pays() else []
    before = [vars(layer).get("forward") for layer in layers]  # another one's; None: the class's own
    try:
        for layer in layers:
            if "forward" not in vars(layer):
                layer.forward = _forward(layer)
        yield len(layers)
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                vars(layer).pop("forward", None)


def pays() -> bool:
    """Whether this is a processor with AVX-512 that MKL does not use, and oneDNN is there and not turned off."""
    return torch.backends.mkldnn.enabled and is_available() and _slow_mkl()


@cache
def is_available() -> bool:
    """Whether PyTorch was built with the operator that this takes."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _slow_mkl() -> bool:
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkl.is_available() and "AuthenticAMD" in _processor()


def _processor() -> str:
    if not os.path.exists("/proc/cpuinfo"):
        return platform.processor()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return next((line for line in file if line.startswith("vendor_id")), "")


def _forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight = layer.weight
        if (
            x.dtype == weight.dtype == torch.float32
            and x.device.type == weight.device.type == "cpu"
            and x.numel() * len(weight) >= LEAST
            and not torch.is_autocast_enabled("cpu")
        ):
            return linear(x, weight, layer.bias)
        return F.linear(x, weight, layer.bias)

    return forward


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) weight^T (I, O) + bias (O,) by oneDNN -> (..., O); float32 on the CPU, differentiable once."""
    return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows, outs = x.flatten(0, -2), gradient.flatten(0, -2)
        of_weight = None
        if wanted[1]:
            # the operator copies its first input when that is transposed: let it be the narrower one
            narrow = rows.shape[1] < outs.shape[1]
            of_weight = _product(rows.t(), outs.t()).t() if narrow else _product(outs.t(), rows.t())
        return (
            _product(gradient, weight.t()) if wanted[0] else None,
            of_weight,
            outs.sum(0) if wanted[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

"""In which numbers the networks run that draw: bf16 where it is fast, or float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "native", "fp32", "bf16"]
NATIVE = ("avx512_bf16", "amx_bf16")
"""Instructions of a CPU that multiply bf16, by the names that both PyTorch and Linux give them."""
CPUINFO = Path("/proc/cpuinfo")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which networks run at this precision, see `resolved`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolved(precision, device) == "bf16")


@contextmanager
def cast_once(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, and without gradients, autocast keeps its bf16 copies of frozen weights too until it ends.

    By itself it keeps those of weights that require gradients, and casts the others anew in every call.
    """
    frozen = [p for network in networks for p in network.parameters() if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(parameter.is_floating_point())
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def resolved(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What a precision comes to on a device.

    auto is bf16 on CUDA and fp32 elsewhere; native is bf16 on CUDA and on CPUs that have instructions for it, fp32 elsewhere.
    """
    if precision in ("fp32", "bf16"):
        return precision
    native = precision == "native" and device.type == "cpu" and has_bf16()
    return "bf16" if device.type == "cuda" or native else "fp32"


@cache
def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself; others emulate it, which is slower than float32."""
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(bool(found.get(name)) for name in NATIVE)
    words = CPUINFO.read_text(errors="replace").split() if CPUINFO.is_file() else []
    return any(name in words for name in NATIVE)

"""How fast a machine is: four rates that a step's time is reckoned from, of known GPUs or measured here.

Rates of known GPUs are those of their data sheets, dense, without sparsity; what a program reaches is less (`time.py`).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F

from cadiff.errors import ConfigError
from cadiff.onednn import linear, pays
from cadiff.plan.cost import Cost, Op

TERA, GIGA = 1e12, 1e9
REPLAYED = 3e-6
"""Seconds that a call takes at least in a CUDA graph, where Python starts none. Not measured alone: with it phase 2, and tuning,
come to the same share of the op-by-op rate at two batches on an H100 (within 13 %; with Python's 7.2 us within 67 %)."""


@dataclass(frozen=True)
class Machine:
    """Rates of one device."""

    name: str
    bf16: float
    """Matrix products in bfloat16, operations a second (a multiply-add is two)."""
    tf32: float
    """Convolutions in float32; on a GPU its tensor cores do them."""
    fp32: float
    """Matrix products in float32."""
    bandwidth: float
    """Bytes a second, read plus written."""
    launch: float
    """Seconds that a call takes at least."""
    device: str = "cuda"
    """"cuda" or "cpu"."""
    source: str = "data sheet"
    """Where the rates are from: "data sheet" or "measured"."""
    attention: float | None = None
    """Fused attention in float32, which on a CPU is far from the rate of one large product; None: that of products."""
    replay: float | None = None
    """Seconds that a call takes at least in a CUDA graph; None: as many as `launch`, as in records before 2026-11-23."""

    @property
    def on_cpu(self) -> bool:
        """Whether this is a processor, which computes in float32 by default."""
        return self.device == "cpu"

    def replaying(self) -> Machine:
        """The same where steps are replayed as a CUDA graph."""
        return replace(self, launch=self.launch if self.replay is None else self.replay)

    def floor(self, cost: Cost, weights: int = 0) -> float:
        """Seconds that nothing can undercut: the operations at the peak of their units, or the weights moved once.

        Args:
            weights: bytes that must move at least (`least_bytes`).
        """
        operations = sum(count * op.flops / self._rate(op) for op, count in cost.ops.items())
        return max(operations, weights / self.bandwidth)

    def op_by_op(self, cost: Cost) -> float:
        """Seconds when every call does its operations and moves its bytes at the peak rate, one call after the other.

        On a GPU, where thousands of threads wait for memory while others compute, a call takes the longer of the two; a core
        of a CPU does both in turn.
        """
        return sum(count * self._op(op) for op, count in cost.ops.items())

    def _op(self, op: Op) -> float:
        working, moving = op.flops / self._rate(op), op.bytes / self.bandwidth
        return max(working + moving if self.on_cpu else max(working, moving), self.launch)

    def _rate(self, op: Op) -> float:
        return getattr(self, op.unit) or self.fp32


KNOWN = {
    "h100": Machine("NVIDIA H100 SXM", 989 * TERA, 494 * TERA, 67 * TERA, 3350 * GIGA, 5e-6, replay=REPLAYED),
    "a100": Machine(
        "NVIDIA A100 SXM 80 GB", 312 * TERA, 156 * TERA, 19.5 * TERA, 2039 * GIGA, 5e-6, replay=REPLAYED
    ),
    "4090": Machine(
        "NVIDIA RTX 4090", 165 * TERA, 82.6 * TERA, 82.6 * TERA, 1008 * GIGA, 5e-6, replay=REPLAYED
    ),
}
"""What `--gpu` knows by name; the seconds of a call are assumed."""


def find_machine(name: str) -> Machine:
    """A machine by name: one of `KNOWN`, "cpu" (this machine's processor) or "this" (its GPU where it has one).

    Raises:
        ConfigError: no such name.
    """
    if name in KNOWN:
        return KNOWN[name]
    if name == "cpu":
        return measure_machine(torch.device("cpu"))
    if name == "this":
        return measure_machine()
    raise ConfigError(f"No machine {name!r}; --gpu takes {', '.join(KNOWN)}, cpu or this.")


def measure_machine(device: torch.device | None = None) -> Machine:
    """Measures the rates of this machine in a few seconds, on random numbers: zeros can be faster.

    Args:
        device: by default the GPU where there is one.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cuda = device.type == "cuda"
    side = 8192 if on_cuda else 1024
    half = _product(side, torch.bfloat16, device)
    single = _product(side, torch.float32, device)
    if not on_cuda and pays():
        single = max(single, _linear(side))
    return Machine(
        device_name(device),
        bf16=half,
        tf32=_tf32(side, device) if on_cuda else _convolution(),
        fp32=single,
        bandwidth=_copy(2**30 if on_cuda else 2**27, device),
        launch=_launch(device),
        device=device.type,
        source="measured",
        attention=None if on_cuda else _attention(),
        replay=REPLAYED if on_cuda else None,
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def seconds(
    task: Callable[[], object],
    device: torch.device,
    *,
    least: float = 0.3,
    repeats: int = 5,
    pick: Callable[[Iterable[float]], float] = median,
) -> float:
    """Seconds of one call after a warm-up, over `repeats` runs of many calls that take `least` together.

    pick: the median; the best for a peak, which other programs can only hide.
    """

    def timed(calls: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(calls):
            task()
        synchronise(device)
        return (time.perf_counter() - start) / calls

    timed(2)
    calls = max(1, int(least / repeats / max(timed(2), 1e-9)))
    return pick([timed(calls) for _ in range(repeats)])


def synchronise(device: torch.device) -> None:
    """Waits for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)


def _product(side: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = _random((side, side), dtype, device), _random((side, side), dtype, device)
    out = torch.empty_like(a)
    return 2 * side**3 / seconds(lambda: torch.mm(a, b, out=out), device, pick=min)


def _linear(side: int) -> float:
    x, weight = (_random((side, side), torch.float32, torch.device("cpu")) for _ in range(2))
    return 2 * side**3 / seconds(lambda: linear(x, weight), x.device, pick=min)


def _convolution(batch: int = 16, channels: int = 128, side: int = 16) -> float:
    """Of 3 x 3, channels last, as in the shipped prior; on a CPU another library does it than matrix products."""
    x, weight = (
        _random(shape, torch.float32, torch.device("cpu")).to(memory_format=torch.channels_last)
        for shape in ((batch, channels, side, side), (channels, channels, 3, 3))
    )
    work = 2 * 9 * batch * channels**2 * side**2
    with torch.no_grad():
        return work / seconds(lambda: torch.conv2d(x, weight, padding=1), x.device, pick=min)


def _attention(batch: int = 16, heads: int = 4, tokens: int = 128, width: int = 32) -> float:
    q, k, v = (_random((batch, heads, tokens, width), torch.float32, torch.device("cpu")) for _ in range(3))
    work = 4 * batch * heads * tokens**2 * width
    return work / seconds(lambda: F.scaled_dot_product_attention(q, k, v), q.device, pick=min)


def _tf32(side: int, device: torch.device) -> float:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return _product(side, torch.float32, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _copy(size: int, device: torch.device) -> float:
    source = _random((size // 4,), torch.float32, device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, pick=min)


def _launch(device: torch.device) -> float:
    x = torch.zeros(16, device=device)
    return seconds(lambda: x.add_(1), device, least=0.05)

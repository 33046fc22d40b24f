"""What a step has to do, op by op: floating-point operations and bytes that move, counted on fake tensors.

Operations are those of PyTorch's own counter (`torch.utils.flop_counter`: matrix products, convolutions and attention, a
multiply-add is two). Bytes are each op's inputs read once and outputs written once; a view moves none. Time is then at least
the sum over ops of the longer of the two (the roofline of Williams et al. 2009, op by op), as nothing is fused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# PyTorch's table knows the attention kernels of GPUs only; fake tensors take the CPU's, which does the same work.
ATTENTION = {
    "aten._scaled_dot_product_flash_attention_for_cpu": flop_counter.sdpa_flop,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": flop_counter.sdpa_backward_flop,
}


Unit = Literal["bf16", "tf32", "fp32", "attention"]


class Op(NamedTuple):
    """One kind of call."""

    flops: int
    bytes: int
    unit: Unit
    """What computes it: in bfloat16, or in float32, where GPUs do convolutions with their tensor cores; fused attention in
    float32 apart."""


@dataclass(frozen=True)
class Cost:
    """How often each kind of call was made."""

    ops: Counter[Op] = field(default_factory=Counter)

    @property
    def flops(self) -> int:
        """Floating-point operations in all."""
        return sum(op.flops * count for op, count in self.ops.items())

    @property
    def bytes(self) -> int:
        """Bytes moved in all, when nothing is fused."""
        return sum(op.bytes * count for op, count in self.ops.items())

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.ops + other.ops)

    def __mul__(self, times: int) -> Cost:
        return Cost(Counter({op: times * count for op, count in self.ops.items()}))


class CostCounter(TorchDispatchMode):
    """Counts every call inside it into `cost`."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        count = ATTENTION.get(str(func._overloadpacket)) or flop_counter.flop_registry.get(
            func._overloadpacket
        )
        flops = 0 if count is None else int(count(*args, **(kwargs or {}), out_val=result))
        if moved := _moved(read, written, func._schema.is_mutable):
            self.cost.ops[Op(flops, moved, _unit(func, read))] += 1
        return result


def _unit(func: Any, read: list[Tensor]) -> Unit:
    if any(t.dtype in (torch.bfloat16, torch.float16) for t in read):
        return "bf16"
    if str(func._overloadpacket) in ATTENTION:
        return "attention"
    return "tf32" if "convolution" in str(func) else "fp32"


def _moved(read: list[Tensor], written: list[Tensor], in_place: bool) -> int:
    sources = {t.untyped_storage()._cdata for t in read}
    made = [t for t in written if t.untyped_storage()._cdata not in sources]
    if not made and not in_place:
        return 0
    return sum(map(_size, read)) + sum(map(_size, written if in_place else made))


def _size(tensor: Tensor) -> int:
    """Bytes of the numbers there are: those of an expanded tensor are stored once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())

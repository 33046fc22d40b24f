"""The repeated blocks of a network, the unit in which it is compiled and in which its weights are divided.

Compiling blocks instead of networks ("regional compilation") takes a fraction of the time, since equal blocks share their code,
and leaves random draws and the choice of tokens outside. Dividing them (FSDP; Zhao et al. 2023, PyTorch's `fully_shard`) leaves
each of W processes 1/W of their weights, gradients and moments; a block is put together while it works. Both happen in place:
names of parameters stay, and both are undone afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cadiff import processes

TRANSFORMERS = ("Block", "CrossBlock", "ViTMAELayer", "BasicTransformerBlock")
"""Class names: of cadiff.contrast, of phase 2, of transformers' ViT-MAE, of diffusers' U-Nets."""
CONVOLUTIONS = ("ResnetBlock2D",)
"""Of diffusers' U-Nets and autoencoders; not divided, since their weights are kept channels last, which FSDP refuses."""
SHAPES = 64
"""Sizes (widths, numbers of tokens) for which one kind of block is compiled; PyTorch gives up after 8."""


def repeated_blocks(modules: Iterable[nn.Module], names: Sequence[str]) -> list[nn.Module]:
    """Every block of the given class names, each once, in the order of the network."""
    found = {
        id(block): block for module in modules for block in module.modules() if type(block).__name__ in names
    }
    return list(found.values())


@contextmanager
def compiled_blocks(modules: Collection[nn.Module], **options: Any) -> Iterator[int]:
    """Within the block, the repeated blocks of `modules` run compiled; gives how many there are.

    Args:
        options: for `torch.compile`, such as `backend`.
    """
    blocks = repeated_blocks(modules, (*TRANSFORMERS, *CONVOLUTIONS))
    for block in blocks:
        block.compile(dynamic=False, **options)
    try:
        with _many_shapes():
            yield len(blocks)
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def _many_shapes() -> AbstractContextManager[Any]:
    """Within it, a kind of block is compiled for `SHAPES` sizes. The setting had another name before PyTorch 2.7."""
    from torch._dynamo import config  # takes a moment to import

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return config.patch({name: SHAPES})


@contextmanager
def sharded_blocks(modules: Collection[nn.Module], device: torch.device) -> Iterator[int]:
    """Within the block, weights of the repeated blocks of `modules` are divided among the processes; gives how many there are.

    Afterwards every process holds all of them again. A block that raises leaves the network unusable.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = repeated_blocks(modules, TRANSFORMERS)
    mesh = init_device_mesh(device.type, (processes.world(),))
    before = [(part, type(part), _copied(vars(part))) for block in blocks for part in block.modules()]
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    yield len(blocks)
    for part, cls, contents in before:  # FSDP has no way back: class and hooks are put back by hand
        weights = {
            name: None if value is None else nn.Parameter(put_together(value.detach()), value.requires_grad)
            for name, value in part._parameters.items()
        }
        part.__class__ = cls
        part.__dict__.clear()
        part.__dict__.update(contents)
        part._parameters.update(weights)


def put_together(tensor: Tensor) -> Tensor:
    """The whole of a divided tensor, a copy on every process; any other tensor as it is."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is held in parts by the processes."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """The part of a divided tensor that this process holds; any other tensor as it is. Shares memory, no gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if is_divided(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Copies `value`, the whole, into a tensor that may be divided."""
    if is_divided(tensor):
        from torch.distributed.tensor import distribute_tensor

        divided: Any = tensor
        value = distribute_tensor(
            value.to(own_part(tensor).device), divided.device_mesh, divided.placements, src_data_rank=None
        )
    own_part(tensor).copy_(own_part(value))


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], largest: float) -> None:
    """Scales gradients down to a joint norm of `largest`, as `clip_grad_norm_` does, without waiting for a GPU."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    divided = [own_part(g) for g in gradients if is_divided(g)]
    if not divided:
        torch.nn.utils.clip_grad_norm_(parameters, largest, foreach=True)
        return
    held = [g for g in gradients if not is_divided(g)]
    squares = torch.stack([part.square() for part in torch._foreach_norm(divided)]).sum()
    dist.all_reduce(squares)
    if held:
        squares = squares + torch.stack([part.square() for part in torch._foreach_norm(held)]).sum()
    torch._foreach_mul_([*divided, *held], (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0))


def by_kind(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Whole and divided parameters apart, since PyTorch's optimisers cannot mix them; without empty groups."""
    parameters = list(parameters)
    groups = ([p for p in parameters if is_divided(p) is kind] for kind in (False, True))
    return [group for group in groups if group]


def _copied(contents: Mapping[str, Any]) -> dict[str, Any]:
    """A module's attributes without its weights; dicts (hooks, submodules) as copies."""
    copied = {name: value.copy() if isinstance(value, dict) else value for name, value in contents.items()}
    return {**copied, "_parameters": {}}

"""Which weights are tuned.

Sun et al. 2023, 4.2.2, and their code: the fMRI encoder, the heads, and in the U-Net every cross-attention (`attn2`) with
the norm before it (`transformer_blocks.*.norm2`). The list is explicit: the released code selects by substring, which
in diffusers' names would also match the `norm2` of every residual block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from cadiff.diffuse.conditioner import FmriConditioner

UnetBlocks = Literal["all", "up"]
TUNED = re.compile(r"\.transformer_blocks\.\d+\.(attn2|norm2)\.")


def tuned_unet_parameters(unet: nn.Module, blocks: UnetBlocks = "all") -> dict[str, nn.Parameter]:
    """The tuned parameters of a U-Net by name: 112 tensors and 26,696,640 numbers in the published one.

    Args:
        blocks: all, or only those of the way up (about a third faster; a variant of ours).
    """
    return {
        name: parameter
        for name, parameter in unet.named_parameters()
        if TUNED.search(name) and (blocks == "all" or name.startswith("up_blocks."))
    }


def mark_trainable(
    unet: UNet2DConditionModel,
    conditioner: FmriConditioner,
    *,
    train_encoder: bool = True,
    train_positions: bool = False,
    train_null: bool = False,
    blocks: UnetBlocks = "all",
) -> dict[str, nn.Parameter]:
    """Sets `requires_grad` on everything, true for exactly the returned parameters.

    Args:
        train_encoder: tune the fMRI encoder too. Its CLS token is not used here.
        train_positions: with the encoder, tune its position table, which otherwise stays fixed.
        train_null: tune the condition that stands for "no brain".
    """
    unet.requires_grad_(False)
    conditioner.requires_grad_(False)
    tuned = {f"unet.{name}": parameter for name, parameter in tuned_unet_parameters(unet, blocks).items()}
    parts = ["channel_mapper", "dim_mapper", "time_head"]
    parts += ["encoder"] if train_encoder else []
    parts += ["null_context", "null_time"] if train_null else []
    fixed = {"encoder.cls_token"} if train_positions else {"encoder.cls_token", "encoder.pos_embed"}
    for name, parameter in conditioner.named_parameters():
        if name.split(".")[0] in parts and name not in fixed:
            tuned[f"conditioner.{name}"] = parameter
    for parameter in tuned.values():
        parameter.requires_grad_(True)
    return tuned


@contextmanager
def gradients_on_the_way_up(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within the block, nothing is back-propagated through the way down and the middle of the U-Net.

    The values are the same; the condition gets its gradient from the way up only.
    """

    def detach(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _detached(args), {key: _detached(value) for key, value in kwargs.items()}

    blocks = [*unet.down_blocks, unet.mid_block]
    handles = [
        b.register_forward_pre_hook(detach, with_kwargs=True) for b in blocks if isinstance(b, nn.Module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return tuple(_detached(v) for v in value) if isinstance(value, tuple) else value

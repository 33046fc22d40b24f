"""Gradient checkpointing of a U-Net: less memory, since activations are computed again on the way back.

PyTorch's checkpoint puts back the state of the random generators for that, and up to 2.9 cannot read a GPU's while a CUDA graph
is captured (`cadiff.graphs`). Without dropout nothing in a U-Net is drawn, and there is nothing to put back.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(unet: Any) -> None:
    """Turns gradient checkpointing on; with dropout diffusers' own way, which draws the same again."""
    way = () if has_dropout(unet) else (_checkpoint,)
    unet.enable_gradient_checkpointing(*way)


def has_dropout(network: nn.Module) -> bool:
    """Whether it draws while it is trained, past `cadiff.draws`: its steps cannot be a CUDA graph."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in network.modules())


def _checkpoint(module: nn.Module, *args: Any) -> Any:
    return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=False)

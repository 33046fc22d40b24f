"""Attention of wide heads, by plain matrix products.

The published U-Net has one head of 384 to 960 channels in each attention layer. Fused attention on a GPU stops at 256; beyond
it PyTorch falls back to a kernel whose backward pass took 35 % of a tuning step on an H100 (docs/benchmarks.md). Scores of its
at most 1,024 tokens fit into memory, so the products are written out there, which is the same function.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn

FUSED = 256
"""Channels of a head up to which fused attention kernels go."""


def write_out_wide_heads(unet: nn.Module, widest: int = FUSED) -> int:
    """Sets, on a GPU, the plain processor in every attention layer with heads wider than `widest`; returns how many there are."""
    wide = [
        layer
        for layer in unet.modules()
        if isinstance(layer, Attention) and layer.inner_dim // layer.heads > widest
    ]
    if torch.cuda.is_available():
        for layer in wide:
            layer.set_processor(AttnProcessor())
    return len(wide)

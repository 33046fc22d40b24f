"""Cross-modality attention and the fMRI auto-encoder that carries it (phase 2).

Source: Sun et al. 2023 (CAD), eqs. 4 and 5. Printed, eq. 4 takes the queries from the *other* modality, whose
tokens could not be added to those that are reconstructed; as in the released code the queries come from the
modality that is reconstructed, keys and values from the other one, of which nothing is masked. This file is
part of the room `contrast`, because both phases save the same kind of encoder folder.

Shapes: B batch, Q query tokens, S support tokens, W width of the cross blocks, D width of the fMRI encoder.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cadiff.config import Config
from cadiff.contrast.mae import FmriMae, FmriMaeConfig


class CrossConfig(Config):
    """Sizes of the cross blocks. Widths and heads are those of the image auto-encoder (here ViT-MAE base)."""

    width: int = Field(default=768, ge=1)
    """Width of the blocks: the hidden size of the image encoder."""
    depth: int = Field(default=3, ge=1)
    """Number of cross blocks."""
    num_heads: int = Field(default=12, ge=1)
    """Attention heads: those of the image encoder."""
    mlp_dim: int = Field(default=3072, ge=1)
    """Width of the hidden layer of each block."""
    layer_norm_eps: float = Field(default=1e-12, ge=0)
    """Of the image encoder; 1e-12 in transformers' ViT-MAE."""
    residual: bool = True
    """Add the input of the cross blocks to their output before mapping back to the fMRI width."""


class SplitAttention(nn.Module):
    """Multi-head attention with separate maps: queries (B, Q, W), support (B, S, W) -> (B, Q, W)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, queries: Tensor, support: Tensor) -> Tensor:
        """Softmax attention, scale (W / heads)^-1/2."""
        q, k, v = (
            self.attention[name](x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name, x in (("query", queries), ("key", support), ("value", support))
        )  # each (B, heads, tokens, W / heads)
        return self.output["dense"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """One block of cross-modality attention, with the parameter names of the released checkpoints.

    With LNa shared by both attentions: a = Self(LNa(h)), *without* a residual; h <- h + Cross(q=LNa(a),
    kv=support); h <- h + W2 GELU(W1 LNb(h)). The support is not normalised here. Weights normal(0, .02),
    biases 0.
    """

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = SplitAttention(width, config.num_heads)
        self.cross_attention = SplitAttention(width, config.num_heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.mlp_dim)})
        self.output = nn.ModuleDict({"dense": nn.Linear(config.mlp_dim, width)})
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, support: Tensor) -> Tensor:
        """Tokens (B, Q, W) attend to the support (B, S, W) -> (B, Q, W)."""
        normed = self.layernorm_before(hidden)
        own = self.attention(normed, normed)
        hidden = hidden + self.cross_attention(self.layernorm_before(own), support)
        return hidden + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(hidden))))


class FmriCross(FmriMae):
    """fMRI auto-encoder whose masked tokens attend to an image; `tokens` and `support` do without."""

    def __init__(self, config: FmriMaeConfig, cross: CrossConfig) -> None:
        super().__init__(config)
        self.cross = cross
        self.cross_map_in = nn.Linear(config.embed_dim, cross.width)
        self.cross_blocks = nn.ModuleList([CrossBlock(cross) for _ in range(cross.depth)])
        self.cross_map_out = nn.Linear(cross.width, config.embed_dim)

    def guide(self, hidden: Tensor, image_support: Tensor) -> Tensor:
        """Let tokens (B, 1 + K, D), before the final norm, attend to the image (B, S, W) -> (B, 1 + K, D).

        There is no connection around this bottleneck of W channels: the tokens pass through it (eq. 5
        within).
        """
        narrow = self.cross_map_in(hidden)
        x = narrow
        for block in self.cross_blocks:
            x = block(x, image_support)
        return self.cross_map_out(narrow + x if self.cross.residual else x)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, betas: Tensor, mask_ratio: float, generator: torch.Generator, image_support: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rebuild masked fMRI with the image's help. Returns prediction (B, V) and mask, bool (B, L)."""
        masking = self.mask(betas, mask_ratio, generator)
        encoded = self.norm(self.guide(self.hidden(betas, masking), image_support))
        return self.decode(encoded, masking), masking.mask


def initialise_cross(module: nn.Module, generator: torch.Generator) -> None:
    """Weights normal(0, .02), biases 0: how the released code starts what no checkpoint holds."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02, generator=generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)

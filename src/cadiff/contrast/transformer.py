"""The plain pre-norm transformer of the fMRI auto-encoder (Dosovitskiy et al. 2021).

Parameter names and numerics follow timm 0.5.4, in whose layout the released weights are stored (fused
`attn.qkv`, `mlp.fc1`, LayerNorm eps 1e-5, exact GELU, no dropout), so loading such weights is the identity.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention: (B, L, D) -> (B, L, D), scale (D / heads)^-1/2."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Shape-preserving, see the class."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, L, D / heads)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Two linear maps with a GELU between: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Shape-preserving, see the class."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + Attention(LN(x)), then x + Mlp(LN(x)): (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Shape-preserving, see the class."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sine_positions(length: int, dim: int) -> Tensor:
    """Fixed table (1, 1 + length, dim), float32; Vaswani et al. 2017, section 3.5. Row 0 (CLS) is zero.

    Position p >= 0 (row p + 1) holds sin(p w_i) in its first half and cos(p w_i) in its second, with
    w_i = 10000^(-2i / dim). Computed in float64, since p w_i reaches hundreds of radians.
    """
    half = torch.arange(dim // 2, dtype=torch.float64)
    frequencies = 10000.0 ** (-2.0 * half / dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)  # (length, dim / 2)
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), table]).unsqueeze(0).float()

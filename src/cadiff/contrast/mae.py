"""Masked auto-encoder of fMRI: the encoder that every later stage uses, and the decoder that trains it.

Source: Sun et al. 2023 (CAD), section 3.1 and 4.2.1, on the architecture of Chen et al. 2023 (MinD-Vis) and
He et al. 2022 (MAE). Parameter names are those of the released checkpoints (`MAEforFMRIContrast`), so loading
them is the identity. Differs: attention is computed by PyTorch's fused kernel, and the two views of phase 1
go through as one batch.

Shapes: B batch, V voxels (a multiple of the patch size), L = V / patch_size tokens, D embed_dim, K visible
tokens.
"""

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cadiff.config import Config
from cadiff.contrast.masking import Masking, put_back, random_masking, take
from cadiff.contrast.transformer import Block, sine_positions


class FmriMaeSize(Config):
    """Sizes of the auto-encoder that do not depend on the data; by default the published ones (151.6 M)."""

    patch_size: int = Field(default=16, ge=1)
    """Voxels per token. Neighbours in the vector are neighbours in an ROI, not in space."""
    embed_dim: int = Field(default=1024, ge=2)
    """Width of the encoder."""
    depth: int = Field(default=24, ge=1)
    """Blocks of the encoder."""
    num_heads: int = Field(default=16, ge=1)
    """Attention heads of the encoder."""
    mlp_ratio: float = Field(default=1.0, gt=0)
    """Width of the hidden layer of each block, over the width of the block."""
    decoder_embed_dim: int = Field(default=512, ge=2)
    """Width of the decoder."""
    decoder_depth: int = Field(default=8, ge=1)
    """Blocks of the decoder."""
    decoder_num_heads: int = Field(default=16, ge=1)
    """Attention heads of the decoder."""

    @model_validator(mode="after")
    def _widths_divide(self) -> "FmriMaeSize":
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            w, h = getattr(self, width), getattr(self, heads)
            if w % h or w % 2:
                raise ValueError(f"{width}={w} must be even and a multiple of {heads}={h}.")
        return self


class FmriMaeConfig(FmriMaeSize):
    """Everything that is needed to rebuild an `FmriEncoder` or `FmriMae`; saved beside the weights."""

    num_voxels: int = Field(ge=1)
    """Length of the input vector after preprocessing; a multiple of `patch_size`."""

    @model_validator(mode="after")
    def _whole_patches(self) -> "FmriMaeConfig":
        if extra := self.num_voxels % self.patch_size:
            raise ValueError(
                f"num_voxels={self.num_voxels} is not a multiple of patch_size={self.patch_size}: "
                f"take {self.num_voxels + self.patch_size - extra}."
            )
        return self

    @property
    def num_tokens(self) -> int:
        """L, without the CLS token."""
        return self.num_voxels // self.patch_size


class PatchEmbed(nn.Module):
    """Patches of neighbouring voxels to tokens: (B, V) -> (B, L, D)."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv1d(1, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, betas: Tensor) -> Tensor:
        """(B, V) -> (B, L, D)."""
        return self.proj(betas.unsqueeze(1)).transpose(1, 2)


class FmriEncoder(nn.Module):
    """Vision transformer over patches of voxels. PyTorch's default weights until `initialise` or a load."""

    def __init__(self, config: FmriMaeConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """Keep only what enters each block and compute the rest again on the way back: less memory, a quarter slower."""
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sine_positions(config.num_tokens, dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            [Block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)]
        )
        self.norm = nn.LayerNorm(dim)

    def embed(self, betas: Tensor) -> Tensor:
        """Patch tokens with their positions: (B, V) -> (B, L, D), no CLS."""
        if betas.ndim != 2 or betas.shape[1] != self.config.num_voxels:
            raise ValueError(
                f"The encoder takes betas (batch, {self.config.num_voxels}), got {tuple(betas.shape)}: "
                "bring them to its length with the Preprocessor of its folder."
            )
        x = self.patch_embed(betas)
        return x + self.pos_embed[:, 1:].to(
            x.dtype
        )  # bf16 under autocast: the tokens move through memory at half the cost

    def tokens(self, betas: Tensor) -> Tensor:
        """What the image model is conditioned on: nothing masked, no CLS, final norm. (B, V) -> (B, L, D).

        Training prepends a CLS token; without it here, as the released weights are consumed (`dc_ldm` of
        MinD-Vis).
        """
        return self.norm(self._run(self.embed(betas)))

    def hidden(self, betas: Tensor, masking: Masking | None = None) -> Tensor:
        """CLS and visible tokens after the last block, before the final norm: (B, V) -> (B, 1 + K, D).

        `masking=None`: every token is visible, K = L. Kept tokens stand in the order of `masking.keep`.
        """
        x = self.embed(betas)
        if masking is not None:
            x = take(x, masking.keep)
        cls = (self.cls_token + self.pos_embed[:, :1]).to(x.dtype).expand(len(x), -1, -1)
        return self._run(torch.cat([cls, x], dim=1))

    def support(self, betas: Tensor) -> Tensor:
        """What the image attends to in phase 2: nothing masked, with CLS, final norm. -> (B, 1 + L, D)."""
        return self.norm(self.hidden(betas))

    def _run(self, x: Tensor) -> Tensor:
        return self._through(self.blocks, x)

    def _through(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            if self.recompute and torch.is_grad_enabled():  # nothing in a block is drawn at random
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return x


class FmriMae(FmriEncoder):
    """Encoder plus decoder: rebuilds the whole vector of voxels from its visible patches."""

    def __init__(self, config: FmriMaeConfig) -> None:
        super().__init__(config)
        dim = config.decoder_embed_dim
        self.decoder_embed = nn.Linear(config.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(sine_positions(config.num_tokens, dim), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            [Block(dim, config.decoder_num_heads, config.mlp_ratio) for _ in range(config.decoder_depth)]
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.decoder_pred = nn.Linear(dim, config.patch_size)

    def decode(self, encoded: Tensor, masking: Masking) -> Tensor:
        """Normed encoder output (B, 1 + K, D) -> prediction of all voxels, also visible ones (B, V)."""
        x = self.decoder_embed(encoded)
        x = torch.cat([x[:, :1], put_back(x[:, 1:], masking, self.mask_token)], dim=1)  # (B, 1 + L, D_dec)
        x = self._through(self.decoder_blocks, x + self.decoder_pos_embed.to(x.dtype))
        return self.decoder_pred(self.decoder_norm(x))[:, 1:].flatten(1)  # the CLS token is dropped

    def forward(
        self, betas: Tensor, mask_ratio: float, generator: torch.Generator, views: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Mask each sample on its own, encode, decode.

        For two views of each sample hand in `betas.repeat(2, 1)` and `views=2`, and split the result with `chunk(2)`.
        Returns the prediction (B, V) and the mask, bool (B, L), True = hidden.
        """
        masking = self.mask(betas, mask_ratio, generator, views)
        return self.decode(self.norm(self.hidden(betas, masking)), masking), masking.mask

    def mask(self, betas: Tensor, mask_ratio: float, generator: torch.Generator, views: int = 1) -> Masking:
        """A masking for every row of `betas`."""
        num_tokens, device = self.config.num_tokens, betas.device
        return random_masking(
            len(betas), num_tokens, mask_ratio, generator=generator, device=device, views=views
        )


def stretched(encoder: FmriEncoder, num_voxels: int) -> FmriEncoder:
    """A copy of the plain encoder for another length, its position table stretched or squeezed to it.

    The released code does so in its third stage (`F.interpolate`, nearest neighbour), for subjects whose length
    is not the checkpoint's: a token then stands at another position than the one it was trained at.
    """
    made = FmriEncoder(encoder.config.model_copy(update={"num_voxels": num_voxels}))
    known = encoder.state_dict()
    weights = {name: known[name] for name in made.state_dict()}
    table = F.interpolate(known["pos_embed"][:, 1:].mT, size=made.config.num_tokens, mode="nearest").mT
    weights["pos_embed"] = torch.cat([known["pos_embed"][:, :1], table], dim=1)
    made.load_state_dict(weights)
    return made.eval()


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """The published initialisation, in place: Linear xavier-uniform, others normal(0, .02), biases 0.

    Position tables are left alone.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        for key, parameter in module.named_parameters(prefix=name, recurse=False):
            if key.endswith(("cls_token", "mask_token")):
                nn.init.normal_(parameter, std=0.02, generator=generator)

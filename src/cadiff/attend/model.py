"""The image side of phase 2: a ViT-MAE whose masked tokens attend to the fMRI, and the joint objective.

Source: Sun et al. 2023 (CAD), eqs. 4 to 7; He et al. 2022 (MAE) for the image auto-encoder, which is
transformers' own modules called in order. Both sides take their queries from the modality that they rebuild,
keys and values from the other one, of which nothing is masked (see contrast/cross.py).
Differs from the released code, unless settings ask for it: images are normalised once (it divides by 255
twice, so its image branch saw almost constant pictures), and position tables stay fixed.

Shapes: B batch, V voxels, L fMRI tokens, D their width; P image tokens, K visible ones, W the image encoder's
width, S side of the picture in pixels.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cadiff.attend.image_mae import ImageMae
from cadiff.contrast.cross import CrossBlock, CrossConfig, FmriCross
from cadiff.contrast.losses import masked_error
from cadiff.contrast.masking import Masking, patchify, put_back, random_masking, take

Trainable = Literal["code", "paper"]


class ImageCross(nn.Module):
    """ViT-MAE with cross blocks between its last encoder layer and its final norm."""

    def __init__(
        self, image_mae: ImageMae, fmri_dim: int, cross: CrossConfig, *, rescale_twice: bool = False
    ) -> None:
        super().__init__()
        self.mae = image_mae.model
        self.scale = 255.0**2 if rescale_twice else 255.0
        self.cross_map_in = nn.Linear(fmri_dim, cross.width)
        self.cross_blocks = nn.ModuleList([CrossBlock(cross) for _ in range(cross.depth)])
        shape = (1, len(image_mae.mean), 1, 1)
        self.register_buffer("mean", torch.tensor(image_mae.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(image_mae.std).view(shape), persistent=False)

    @property
    def image_size(self) -> int:
        """S, pixels."""
        config: Any = self.mae.config
        return config.image_size

    @property
    def num_tokens(self) -> int:
        """P, without the CLS token."""
        return self.mae.vit.embeddings.patch_embeddings.num_patches

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures as they are stored, uint8 (B, S, S, 3), to network input (B, 3, S, S) of std about 1 (.004 rescaled twice).

        Only uint8 is taken: a float picture could already be scaled, and scaling it again erases it.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"normalise takes uint8 pictures, got {images.dtype}.")
        pixels = images.movedim(-1, 1).float() / self.scale
        return (pixels - self.get_buffer("mean")) / self.get_buffer("std")

    def support(self, pixels: Tensor) -> Tensor:
        """What the fMRI attends to: nothing masked, no cross blocks, after the final norm. -> (B, 1 + P, W).

        It depends on the picture and on the image encoder alone, so with a frozen encoder it may be kept.
        """
        return self.mae.vit.layernorm(self._hidden(pixels, None))

    def forward(
        self, pixels: Tensor, mask_ratio: float, generator: torch.Generator, fmri_support: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rebuild the masked picture (B, 3, S, S) with the help of the fMRI (B, 1 + L, D).

        Returns predicted patches (B, P, patch_size^2 * 3) and the mask, bool (B, P), True = hidden.
        """
        masking = random_masking(
            len(pixels), self.num_tokens, mask_ratio, generator=generator, device=pixels.device
        )
        hidden = self._hidden(pixels, masking)  # (B, 1 + K, W)
        keys = self.cross_map_in(fmri_support)
        for block in self.cross_blocks:
            hidden = block(hidden, keys)
        return self._decode(self.mae.vit.layernorm(hidden), masking), masking.mask

    def target(self, pixels: Tensor) -> Tensor:
        """What predictions aim at (B, P, patch_size^2 * 3): patches, each z-scored under norm_pix_loss."""
        patches = self.mae.patchify(pixels)
        if self.mae.config.norm_pix_loss:
            mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
            patches = (patches - mean) / (variance + 1e-6).sqrt()
        return patches

    def set_trainable(self, which: Trainable, *, decoder_positions: bool = False) -> None:
        """Which image weights learn, besides the cross blocks and their map, which always do.

        "code": the decoder (the released script), with its position table only by `decoder_positions`;
        "paper": the encoder (section 4.2.1), without.
        """
        self.requires_grad_(True)
        self.mae.vit.requires_grad_(which == "paper")
        self.mae.decoder.requires_grad_(which == "code")
        self.mae.vit.embeddings.position_embeddings.requires_grad_(False)
        self.mae.decoder.decoder_pos_embed.requires_grad_(which == "code" and decoder_positions)

    def _hidden(self, pixels: Tensor, masking: Masking | None) -> Tensor:
        """CLS and visible tokens after the last encoder layer."""
        embeddings = self.mae.vit.embeddings
        positions = embeddings.position_embeddings
        x = embeddings.patch_embeddings(pixels) + positions[:, 1:]
        if masking is not None:
            x = take(x, masking.keep)
        cls = (embeddings.cls_token + positions[:, :1]).to(x.dtype).expand(len(x), -1, -1)
        x = torch.cat([cls, x], dim=1)
        vit: Any = self.mae.vit
        layers = vit.layers if hasattr(vit, "layers") else vit.encoder.layer  # transformers 5, transformers 4
        return _run(layers, x)

    def _decode(self, encoded: Tensor, masking: Masking) -> Tensor:
        decoder = self.mae.decoder
        x = decoder.decoder_embed(encoded)
        x = torch.cat([x[:, :1], put_back(x[:, 1:], masking, decoder.mask_token)], dim=1)
        x = _run(decoder.decoder_layers, x + decoder.decoder_pos_embed)
        return decoder.decoder_pred(decoder.decoder_norm(x))[:, 1:]


def phase_2_loss(
    fmri: FmriCross,
    image: ImageCross,
    betas: Tensor,
    target: Tensor,
    pixels: Tensor,
    generator: torch.Generator,
    *,
    mask_ratio: float,
    image_mask_ratio: float,
    gamma_f: float,
    gamma_i: float,
    image_support: Tensor | None = None,
) -> dict[str, Tensor]:
    """Eq. 7: gamma_f * masked error of the fMRI + gamma_i * masked error of the picture, each with help.

    Args:
        fmri, image: the two auto-encoders.
        betas: encoder input (B, V).
        target: what the prediction of the fMRI is compared with (B, V).
        pixels: normalised pictures (B, 3, S, S).
        generator: of both maskings.
        mask_ratio, image_mask_ratio: fractions of hidden tokens.
        gamma_f, gamma_i: weights.
        image_support: `image.support(pixels)` where it is already known (frozen image encoder).

    Returns:
        scalars `loss`, `fmri_error`, `image_error`.
    """
    if image_support is None:
        image_support = image.support(pixels)
    predicted, mask = fmri(betas, mask_ratio, generator, image_support)
    size = fmri.config.patch_size
    fmri_error = masked_error(patchify(predicted, size), patchify(target, size), mask)
    painted, image_mask = image(pixels, image_mask_ratio, generator, fmri.support(betas))
    image_error = masked_error(painted, image.target(pixels), image_mask)
    total = gamma_f * fmri_error + gamma_i * image_error
    return {"loss": total, "fmri_error": fmri_error, "image_error": image_error}


def _run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        out = layer(x)
        x = out[0] if isinstance(out, tuple) else out  # transformers 4 returns a tuple
    return x

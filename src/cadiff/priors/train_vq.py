"""Autoencoder of an image prior: pictures <-> a small grid of latents.

Two kinds, both diffusers models and both kept in the folder `vqvae/`:

    vq   VQModel (van den Oord et al. 2017; Esser et al. 2021 without the adversarial part)
         L = |x - x'| + w_p P(x, x') + w_c C / var(z)      C: the codebook loss that diffusers returns, beta 0.25
    kl   AutoencoderKL (Rombach et al. 2022, appendix G)
         L = |x - x'| + w_p P(x, x') + w_k KL(q(z|x) || N(0, 1)), mean over pictures, sum over latents

P is the distance of EfficientNet-Lite0 features (`perceptual_weight` 0 leaves it out, as for digits). Dividing C by the variance
of the latents keeps them from shrinking towards the origin to please the codebook.

Shapes: images (B, 3, S, S) in [-1, 1]; latents (B, latent_channels, S / f, S / f) with f = 2 ** (len(channels) - 1).
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from pydantic import Field, model_validator
from torch import Tensor
from tqdm import tqdm

from cadiff.config import Config
from cadiff.priors.load import Autoencoder
from cadiff.priors.perceptual import PerceptualDistance
from cadiff.processes import on_main
from cadiff.runs import RunFolder
from cadiff.sharing import gather, own, to_device, total, whole
from cadiff.training import FitConfig, epoch_batches, fit


class AutoencoderConfig(Config):
    """The autoencoder and how it is trained; the defaults made the shipped prior's size."""

    kind: Literal["vq", "kl"] = "vq"
    """vq: discrete codes (the paper's); kl: a Gaussian bottleneck."""
    channels: tuple[int, ...] = Field(default=(64, 128, 192), min_length=1)
    """Width of each resolution; every one after the first halves the picture."""
    layers_per_block: int = Field(default=1, ge=1)
    """Residual layers at each resolution."""
    norm_groups: int = Field(default=32, ge=1)
    """Groups of the normalisations; must divide every width."""
    latent_channels: int = Field(default=3, ge=1)
    """Channels of the latents, and the width of a code."""
    num_codes: int = Field(default=8192, ge=2)
    """Codebook entries (vq)."""
    perceptual_weight: float = Field(default=0.15, ge=0)
    """Weight of the feature distance; 0 for pictures that are not photos."""
    perceptual_size: int = Field(default=128, ge=32)
    """Pixels that pictures are brought to before the feature distance."""
    codebook_weight: float = Field(default=0.25, ge=0)
    """Weight of the codebook loss (vq)."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the KL term (kl)."""
    codebook_start: int = Field(default=250, ge=0)
    """Batches before the codebook is placed on the latents; until then a plain autoencoder (vq)."""
    revive_every: int = Field(default=50, ge=1)
    """Batches after which codes that none of them used move onto latents of the last one (vq)."""
    horizontal_flip: bool = True
    """Train on mirrored pictures too; not for digits or letters."""
    fit: FitConfig = FitConfig(
        steps=4000, batch_size=64, learning_rate=3e-4, weight_decay=0.0, warmup_steps=200
    )
    """Optimiser and schedule."""

    @model_validator(mode="after")
    def _check(self) -> "AutoencoderConfig":
        if bad := [width for width in self.channels if width % self.norm_groups]:
            raise ValueError(f"channels {bad[0]} is not a multiple of norm_groups {self.norm_groups}")
        # Use counts are not part of a checkpoint: they must be empty whenever one is taken, or a resumed run would differ.
        if self.kind == "vq" and self.fit.checkpoint_every * self.fit.accumulate % self.revive_every:
            raise ValueError(
                f"fit.checkpoint_every {self.fit.checkpoint_every} must be a multiple of revive_every {self.revive_every}"
            )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels per latent, each way."""
        return 2 ** (len(self.channels) - 1)


def build_autoencoder(config: AutoencoderConfig, image_size: int) -> Autoencoder:
    """The untrained diffusers model."""
    levels = len(config.channels)
    common: dict[str, Any] = {
        "block_out_channels": config.channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "sample_size": image_size,
    }
    if config.kind == "kl":
        return AutoencoderKL(**common)
    return VQModel(num_vq_embeddings=config.num_codes, vq_embed_dim=config.latent_channels, **common)


def train_autoencoder(
    config: AutoencoderConfig, images: np.ndarray, heldout: np.ndarray, *, run: RunFolder
) -> dict[str, Any]:
    """Trains the autoencoder on `images`, writes it to `run.path/"vqvae"` and returns what was measured.

    Both arrays are uint8 (N, S, S, 3); `heldout` is only reconstructed, for the PSNR in decibels.
    """
    model = build_autoencoder(config, images.shape[1])
    # Convolutions of these sizes run 1.2 to 2 times faster in this layout, on CPU and GPU.
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    order = epoch_batches(len(images), config.fit.batch_size, config.fit.seed)

    def batches(index: int) -> dict[str, Any]:
        return {"index": index, "images": torch.from_numpy(images[np.sort(order(index))])}

    loss = autoencoder_loss(config, model)
    result = fit(loss, {"vqvae": model}, batches, config.fit, run=run, description="autoencoder")
    centre_latents(model, images[:: max(1, len(images) // 4096)])
    facts = {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "heldout_psnr": round(psnr(heldout, reconstruct(model, heldout)), 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if isinstance(model, VQModel):
        facts["codes_used"] = len(torch.unique(_codes(model, encode(model, images[:2048]))))
    stored: Any = model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    on_main(lambda: stored.cpu().save_pretrained(run.path / "vqvae"))
    return facts


def autoencoder_loss(config: AutoencoderConfig, model: Autoencoder) -> Callable[..., dict[str, Tensor]]:
    """loss_fn for `cadiff.training.fit`; a batch is {"index": its number, "images": uint8 (B, S, S, 3)}."""
    distance = PerceptualDistance(config.perceptual_size) if config.perceptual_weight else None
    codebook = Codebook(model, config) if isinstance(model, VQModel) else None

    def loss(batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        images = to_range(batch["images"])  # (B, 3, S, S)
        if config.horizontal_flip:
            mirrored = own(torch.rand(whole(len(images)), generator=generator) < 0.5)
            mirrored = to_device(mirrored, images.device).view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(3), images)
        if codebook is not None:
            decoded, bottleneck = codebook.forward(images, batch["index"], generator)
            terms, weight = {"codebook": bottleneck}, config.codebook_weight
        else:
            assert isinstance(model, AutoencoderKL)
            decoded, bottleneck = _through_gaussian(model, images, generator)
            terms, weight = {"kl": bottleneck}, config.kl_weight
        terms["l1"] = (decoded.float() - images).abs().mean()
        total = terms["l1"] + weight * sum(value for key, value in terms.items() if key != "l1")
        if distance is not None:
            terms["perceptual"] = distance(decoded, images)
            total = total + config.perceptual_weight * terms["perceptual"]
        return {"loss": total, **terms}

    return loss


def _through_gaussian(model: Any, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Reconstruction (B, 3, S, S) from a draw of the posterior, and the mean KL in nats a picture."""
    posterior = model.encode(images).latent_dist
    shape = posterior.mean.shape
    noise = own(torch.randn(whole(shape[0]), *shape[1:], generator=generator))
    noise = to_device(noise, images.device)
    return model.decode(posterior.mean + posterior.std * noise).sample, posterior.kl().mean()


class Codebook:
    """Forward pass of a VQModel whose codebook starts on the latents and revives codes that nobody uses."""

    def __init__(self, model: VQModel, config: AutoencoderConfig) -> None:
        self.model, self.start, self.every = model, config.codebook_start, config.revive_every
        self.used = torch.zeros(config.num_codes, dtype=torch.bool)

    def forward(self, images: Tensor, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Reconstruction (B, 3, S, S) and the codebook loss; `index` is the number of the batch."""
        latents: Tensor = self.model.encode(images).latents.float()  # pyright: ignore[reportAttributeAccessIssue]
        if index < self.start:
            decoded: Any = self.model.decode(latents, force_not_quantize=True)
            return decoded.sample, latents.new_zeros(())
        vectors = gather(latents.detach()).permute(0, 2, 3, 1).reshape(-1, latents.shape[1])  # (B h w, C)
        if index == self.start:
            self._place(vectors, generator)
        quantised, loss, (_, _, codes) = self.model.quantize(latents)
        self.used = self.used.to(codes.device)
        self.used[codes.flatten()] = True
        decoded = self.model.decode(quantised, force_not_quantize=True)
        if (index + 1) % self.every == 0:
            self._revive(vectors, generator)
        return decoded.sample, loss / vectors.var().clamp_min(1e-6)

    @torch.no_grad()
    def _place(self, vectors: Tensor, generator: torch.Generator, iterations: int = 8) -> None:
        """k-means on one batch of latents, started from a draw of them."""
        codes = self.model.quantize.embedding.weight
        codes.copy_(_draw(vectors, len(codes), generator))
        for _ in range(iterations):
            nearest = torch.cdist(vectors, codes).argmin(dim=1)
            counts = torch.bincount(nearest, minlength=len(codes)).to(vectors)
            sums = torch.zeros_like(codes).index_add_(0, nearest, vectors)
            codes.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), codes))

    @torch.no_grad()
    def _revive(self, vectors: Tensor, generator: torch.Generator) -> None:
        codes = self.model.quantize.embedding.weight
        fresh = _draw(vectors, len(codes), generator)
        used = total(self.used.int()) > 0  # by any process
        codes.copy_(torch.where(used[:, None], codes, fresh))
        self.used.zero_()


def _draw(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the vectors with replacement, a thousandth of their spread apart so that no two codes are the same."""
    chosen = vectors[torch.randint(len(vectors), (count,), generator=generator).to(vectors.device)]
    return chosen + 1e-3 * vectors.std() * torch.randn(chosen.shape, generator=generator).to(vectors.device)


# --------------------------------------------------------------------------------------------- using an autoencoder


def to_range(images: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S) in [-1, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_bytes(images: Tensor) -> np.ndarray:
    """(B, 3, S, S) in [-1, 1] -> uint8 (B, S, S, 3)."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def encode(
    model: Autoencoder, images: np.ndarray, *, batch_size: int = 128, progress: bool = False
) -> Tensor:
    """Latents (N, C, h, w) of uint8 images (N, S, S, 3) on the CPU: unscaled, before any quantisation (kl: the means)."""
    device = next(model.parameters()).device
    parts = []
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc="encoding", unit="batch", disable=not progress, leave=False):
        encoded: Any = model.encode(to_range(torch.from_numpy(images[start : start + batch_size]).to(device)))
        latents = encoded.latent_dist.mean if isinstance(model, AutoencoderKL) else encoded.latents
        parts.append(latents.float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def decode(model: Autoencoder, latents: Tensor, *, batch_size: int = 128) -> np.ndarray:
    """Pictures uint8 (N, S, S, 3) of unscaled latents (N, C, h, w); a VQModel quantises them first."""
    device = next(model.parameters()).device
    decoder: Any = model.decode
    return np.concatenate([to_bytes(decoder(part.to(device)).sample) for part in latents.split(batch_size)])


def reconstruct(model: Autoencoder, images: np.ndarray) -> np.ndarray:
    """Images through the autoencoder and back, uint8 (N, S, S, 3)."""
    return decode(model, encode(model, images))


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio in decibels, over pictures; 60 where two are identical."""
    squared = (images.astype(np.float64) - others.astype(np.float64)) ** 2 / 255.0**2
    return float(np.mean(-10 * np.log10(np.maximum(squared.mean(axis=(1, 2, 3)), 1e-6))))


@torch.no_grad()
def centre_latents(model: Autoencoder, images: np.ndarray) -> None:
    """Gives the latents mean zero a channel and stores 1 / their deviation as `config.scaling_factor`.

    The shift is folded into the 1x1 convolutions on both sides of the bottleneck and into the codes, so pictures pass
    through the model as before.
    """
    latents = encode(model, images).transpose(0, 1).flatten(1)  # (C, N h w)
    mean = latents.mean(dim=1)
    shift = mean.to(next(model.parameters()).device)
    before: Any = model.quant_conv
    after: Any = model.post_quant_conv
    before.bias[: len(shift)] -= shift  # kl: the first half are the means
    after.bias += after.weight[:, :, 0, 0] @ shift
    if isinstance(model, VQModel):
        model.quantize.embedding.weight -= shift
    deviation = (latents - mean[:, None]).square().mean().sqrt().item()
    model.register_to_config(scaling_factor=round(1.0 / max(deviation, 1e-6), 6))


@torch.no_grad()
def _codes(model: VQModel, latents: Tensor) -> Tensor:
    """Rows of the codebook that the latents fall on."""
    device = model.quantize.embedding.weight.device
    return torch.cat([model.quantize(part.to(device))[2][2].flatten().cpu() for part in latents.split(256)])

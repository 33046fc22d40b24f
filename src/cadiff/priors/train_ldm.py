"""Label-to-image latent diffusion of an image prior.

    noisy latents   x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) epsilon            Ho et al. 2020 (DDPM), Eq. 4
    objective       E w_t || epsilon - epsilon_theta(x_t, t, context) ||^2       DDPM, Eq. 14, mean over C, h, w
    weight          w_t = min(SNR_t, gamma) / SNR_t, SNR_t = abar_t / (1 - abar_t)   Hang et al. 2023, Eq. 5
    context         a learned vector a class, the one token of cross-attention; a share of the pictures gets the row
                    "no label" instead, for classifier-free guidance (Ho & Salimans 2022)

The time path carries no class: it stays free for a brain condition. Betas are scaled_linear 0.0015..0.0195 over 1,000 steps
(Rombach et al. 2022, label-to-image on ImageNet).

Softmax over one token is 1 whatever the query, so with one token the queries and keys of cross-attention get no gradient and
a longer context meets them untrained. `context_tokens: 2` mends that: every second batch, drawn at random, sees the row "no
label" before the label and must learn where to look; a single token stays valid.

Shapes: latents (N, C, h, w), scaled to about unit variance; context (B, L, context_dim); labels (B,), `num_classes`: no label.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from cadiff.config import Config
from cadiff.processes import is_main
from cadiff.runs import RunFolder
from cadiff.sharing import own, to_device, whole
from cadiff.training import FitConfig, epoch_batches, fit


class DiffusionConfig(Config):
    """The denoiser and how it is trained; the defaults made the shipped prior's size."""

    channels: tuple[int, ...] = Field(default=(96, 192, 256), min_length=1)
    """Width of each resolution; every one after the first halves the latents."""
    cross_attention: tuple[bool, ...] = (True, True, False)
    """Resolutions that attend to the context, beside the middle block, which always does."""
    layers_per_block: int = Field(default=2, ge=1)
    """Residual layers at each resolution."""
    norm_groups: int = Field(default=32, ge=1)
    """Groups of the normalisations; must divide every width."""
    head_dim: int = Field(default=32, ge=1)
    """Width of an attention head; must divide every width."""
    context_dim: int = Field(default=512, ge=1)
    """Width of a label's vector."""
    context_tokens: Literal[1, 2] = 1
    """2 trains cross-attention's queries and keys as well, see above; the shipped prior was trained with 1."""
    label_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of pictures whose label is hidden."""
    min_snr: float | None = Field(default=5.0, gt=0)
    """gamma of the loss weight; none for equal weights."""
    horizontal_flip: bool = True
    """Train on mirrored pictures too; not for digits or letters."""
    fit: FitConfig = FitConfig(
        steps=5000,
        batch_size=256,
        learning_rate=3e-4,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        warmup_steps=500,
        ema_decay=0.9995,
        clip_norm=1.0,
    )
    """Optimiser and schedule."""

    @model_validator(mode="after")
    def _check(self) -> "DiffusionConfig":
        if len(self.cross_attention) != len(self.channels):
            raise ValueError(
                f"cross_attention has {len(self.cross_attention)} entries for {len(self.channels)} channels"
            )
        for name, part in (("norm_groups", self.norm_groups), ("head_dim", self.head_dim)):
            if bad := [width for width in self.channels if width % part]:
                raise ValueError(f"channels {bad[0]} is not a multiple of {name} {part}")
        return self


class LabelTable(nn.Module):
    """A learned context vector a class, and a last row for "no label"."""

    def __init__(self, num_classes: int, context_dim: int) -> None:
        super().__init__()
        self.null_label = num_classes
        self.embedding = nn.Embedding(num_classes + 1, context_dim)

    def forward(self, labels: Tensor, num_tokens: int = 1) -> Tensor:
        """Context (B, num_tokens, context_dim); the tokens before the label's are the row "no label"."""
        before = torch.full((len(labels), num_tokens - 1), self.null_label, device=labels.device)
        return self.embedding(torch.cat([before, labels[:, None]], dim=1))


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of training, as a sampler."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def build_unet(config: DiffusionConfig, latent_shape: tuple[int, int, int]) -> UNet2DConditionModel:
    """The untrained denoiser; its last layer starts at zero, so that the first prediction is no noise at all."""
    channels, size, _ = latent_shape
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.cross_attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.cross_attention)]
    heads = tuple(width // config.head_dim for width in config.channels)
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        attention_head_dim=heads,  # pyright: ignore[reportArgumentType]  # diffusers means the number of heads
        cross_attention_dim=config.context_dim,
        use_linear_projection=True,
        norm_num_groups=config.norm_groups,
    )
    nn.init.zeros_(unet.conv_out.weight)
    assert unet.conv_out.bias is not None
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def train_diffusion(
    config: DiffusionConfig, latents: Tensor, labels: np.ndarray, num_classes: int, *, run: RunFolder
) -> dict[str, Any]:
    """Trains denoiser and label table; writes `unet`, `scheduler` and `label_embedding.safetensors` into `run.path`.

    Args:
        latents: scaled, (V, N, C, h, w): V views of each picture, such as the mirrored one; one is drawn at a time.
        labels: (N,) class rows.
        num_classes: rows of the label table, one more is added for "no label".

    Returns: what was measured.
    """
    unet = build_unet(config, (latents.shape[2], latents.shape[3], latents.shape[4]))
    table = LabelTable(num_classes, config.context_dim)
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    order, targets = (
        epoch_batches(len(labels), config.fit.batch_size, config.fit.seed),
        torch.from_numpy(labels),
    )

    def batches(index: int) -> dict[str, Tensor]:
        rows = torch.from_numpy(order(index))
        return {"latents": latents[:, rows].transpose(0, 1), "labels": targets[rows]}

    loss = diffusion_loss(config, unet, table)
    result = fit(loss, {"unet": unet, "labels": table}, batches, config.fit, run=run, description="diffusion")
    stored: Any = unet.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    if is_main():
        stored.cpu().save_pretrained(run.path / "unet")
        build_scheduler().save_pretrained(run.path / "scheduler")
        save_file({"weight": table.embedding.weight.detach().cpu()}, run.path / "label_embedding.safetensors")
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "last_loss": round(result.history[-1]["loss"], 4),
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "context_tokens": config.context_tokens,
    }


def diffusion_loss(
    config: DiffusionConfig, unet: UNet2DConditionModel, table: LabelTable
) -> Callable[..., dict[str, Tensor]]:
    """loss_fn for `cadiff.training.fit`; a batch is {"latents": (B, V, C, h, w), "labels": (B,)}."""
    abar: Tensor = build_scheduler().alphas_cumprod
    weights = snr_weights(abar, config.min_snr)

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        views, labels = batch["latents"], batch["labels"]
        device, count, everyone = views.device, len(labels), whole(len(labels))
        view = to_device(own(torch.randint(views.shape[1], (everyone,), generator=generator)), device)
        timesteps = own(torch.randint(len(abar), (everyone,), generator=generator))
        hidden = to_device(own(torch.rand(everyone, generator=generator) < config.label_dropout), device)
        epsilon = to_device(own(torch.randn(everyone, *views.shape[2:], generator=generator)), device)
        longer = bool(torch.rand((), generator=generator) < 0.5)
        latents = views[torch.arange(count, device=device), view].float()  # (B, C, h, w)
        kept = to_device(abar[timesteps], device).view(-1, 1, 1, 1)
        weight, timesteps = to_device(weights[timesteps], device), to_device(timesteps, device)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * epsilon
        labels = torch.where(hidden, table.null_label, labels)
        context = table(labels, config.context_tokens if longer else 1)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, timesteps, encoder_hidden_states=context, return_dict=False)[0]
        squared = (predicted.float() - epsilon).square().mean(dim=(1, 2, 3))  # (B,)
        return {"loss": (weight * squared).mean(), "mse": squared.mean()}

    return loss


def snr_weights(alphas_cumprod: Tensor, min_snr: float | None) -> Tensor:
    """Loss weight of each timestep (T,): min(SNR, gamma) / SNR, Hang et al. 2023; all ones without gamma."""
    if min_snr is None:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=min_snr) / snr


@torch.no_grad()
def draw_latents(
    unet: UNet2DConditionModel,
    table: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    guidance_scale: float = 1.5,
    num_inference_steps: int = 50,
) -> Tensor:
    """Scaled latents (B, C, h, w) of class rows (B,), by DDIM (Song et al. 2021).

    `table` is (num_classes + 1, context_dim), the last row "no label"; a guidance scale of 1 is none.
    """
    scheduler: Any = build_scheduler()
    scheduler.set_timesteps(num_inference_steps)
    size, channels = unet.config["sample_size"], unet.config["in_channels"]
    device, dtype = unet.device, unet.dtype
    latents = torch.randn(len(labels), channels, size, size, generator=generator).to(device, dtype)
    context = torch.cat([table[labels], table[-1:].expand(len(labels), -1)])[:, None]  # (2 B, 1, context_dim)
    context = context.to(device, dtype)
    for timestep in scheduler.timesteps:
        both = unet(
            torch.cat([latents, latents]), timestep, encoder_hidden_states=context, return_dict=False
        )[0]
        labelled, unlabelled = both.chunk(2)
        epsilon = unlabelled + guidance_scale * (labelled - unlabelled)
        latents = scheduler.step(epsilon, timestep, latents).prev_sample
    return latents

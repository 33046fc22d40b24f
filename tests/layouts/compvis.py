"""Latent diffusion in the CompVis layout (Rombach et al. 2022), and what MinD-Vis makes of it: names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layouts import weights


def residual_block(name: str, into: int, out: int, time: int) -> weights.Shapes:
    return weights.join(
        weights.norm(f"{name}.in_layers.0", into),
        weights.conv(f"{name}.in_layers.2", out, into),
        weights.linear(f"{name}.emb_layers.1", out, time),
        weights.norm(f"{name}.out_layers.0", out),
        weights.conv(f"{name}.out_layers.3", out, out),
        weights.conv(f"{name}.skip_connection", out, into, 1) if into != out else {},
    )


def spatial_transformer(name: str, width: int, context: int) -> weights.Shapes:
    at = f"{name}.transformer_blocks.0"
    attentions = [
        weights.join(
            *(
                weights.linear(f"{at}.{kind}.to_{k}", width, width if k == "q" else source, bias=False)
                for k in ("q", "k", "v")
            ),
            weights.linear(f"{at}.{kind}.to_out.0", width, width),
        )
        for kind, source in (("attn1", width), ("attn2", context))
    ]
    return weights.join(
        weights.norm(f"{name}.norm", width),
        weights.conv(f"{name}.proj_in", width, width, 1),
        *attentions,
        weights.linear(f"{at}.ff.net.0.proj", 8 * width, width),
        weights.linear(f"{at}.ff.net.2", width, 4 * width),
        *(weights.norm(f"{at}.norm{i}", width) for i in (1, 2, 3)),
        weights.conv(f"{name}.proj_out", width, width, 1),
    )


def unet(
    width: int = 192, mults: tuple[int, ...] = (1, 2, 3, 5), context: int = 512, latent: int = 3
) -> weights.Shapes:
    """Two residual blocks a level, cross attention on every level but the first, one head."""
    time, parts = (
        4 * width,
        [
            weights.linear("time_embed.0", 4 * width, width),
            weights.linear("time_embed.2", 4 * width, 4 * width),
        ],
    )
    parts.append(weights.conv("input_blocks.0.0", width, latent))
    now, stack, at = width, [width], 1
    for level, mult in enumerate(mults):
        for _ in range(2):
            parts.append(residual_block(f"input_blocks.{at}.0", now, mult * width, time))
            now = mult * width
            if level:
                parts.append(spatial_transformer(f"input_blocks.{at}.1", now, context))
            stack.append(now)
            at += 1
        if level < len(mults) - 1:
            parts.append(weights.conv(f"input_blocks.{at}.0.op", now, now))
            stack.append(now)
            at += 1
    parts.append(residual_block("middle_block.0", now, now, time))
    parts.append(spatial_transformer("middle_block.1", now, context))
    parts.append(residual_block("middle_block.2", now, now, time))
    at = 0
    for level, mult in reversed(list(enumerate(mults))):
        for i in range(3):
            parts.append(residual_block(f"output_blocks.{at}.0", now + stack.pop(), mult * width, time))
            now = mult * width
            if level:
                parts.append(spatial_transformer(f"output_blocks.{at}.1", now, context))
            if level and i == 2:
                parts.append(weights.conv(f"output_blocks.{at}.2.conv", now, now))
            at += 1
    return weights.join(*parts, weights.norm("out.0", now), weights.conv("out.2", latent, now))


def time_head(time: int = 768, context: int = 512, length: int = 77) -> weights.Shapes:
    """What MinD-Vis adds to the U-Net, with its spelling."""
    return weights.join(
        weights.conv("time_embed_condtion.0", length // 2, length, 1, dimensions=1),
        weights.conv("time_embed_condtion.1", 1, length // 2, 1, dimensions=1),
        weights.linear("time_embed_condtion.2", time, context),
    )


def vq(
    width: int = 128, mults: tuple[int, ...] = (1, 2, 4), codes: int = 8192, latent: int = 3
) -> weights.Shapes:
    """VQ-f4: two residual blocks a level (three on the way up), attention in the middle only."""

    def block(name: str, into: int, out: int) -> weights.Shapes:
        return weights.join(
            weights.norm(f"{name}.norm1", into),
            weights.conv(f"{name}.conv1", out, into),
            weights.norm(f"{name}.norm2", out),
            weights.conv(f"{name}.conv2", out, out),
            weights.conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {},
        )

    def middle(name: str, of: int) -> weights.Shapes:
        attention = weights.join(
            weights.norm(f"{name}.attn_1.norm", of),
            *(weights.conv(f"{name}.attn_1.{k}", of, of, 1) for k in ("q", "k", "v")),
        )
        return weights.join(
            block(f"{name}.block_1", of, of),
            attention,
            weights.conv(f"{name}.attn_1.proj_out", of, of, 1),
            block(f"{name}.block_2", of, of),
        )

    parts, now, last = [weights.conv("encoder.conv_in", width, 3)], width, len(mults) - 1
    for level, mult in enumerate(mults):
        for i in range(2):
            parts.append(block(f"encoder.down.{level}.block.{i}", now, mult * width))
            now = mult * width
        if level < last:
            parts.append(weights.conv(f"encoder.down.{level}.downsample.conv", now, now))
    parts += [
        middle("encoder.mid", now),
        weights.norm("encoder.norm_out", now),
        weights.conv("encoder.conv_out", latent, now),
    ]
    parts += [weights.conv("decoder.conv_in", now, latent), middle("decoder.mid", now)]
    for level, mult in reversed(list(enumerate(mults))):
        for i in range(3):
            parts.append(block(f"decoder.up.{level}.block.{i}", now, mult * width))
            now = mult * width
        if level:
            parts.append(weights.conv(f"decoder.up.{level}.upsample.conv", now, now))
    parts += [weights.norm("decoder.norm_out", now), weights.conv("decoder.conv_out", 3, now)]
    parts += [{"quantize.embedding.weight": (codes, latent)}, weights.conv("quant_conv", latent, latent, 1)]
    return weights.join(*parts, weights.conv("post_quant_conv", latent, latent, 1))


SMALL = {"width": 32, "mults": (1, 2, 3), "context": 24}
"""A U-Net of 3 levels for quick tests; the narrowest that groups of 32 allow."""
SMALL_VQ = {"width": 32, "mults": (1, 2), "codes": 48}


def label_ldm(
    unet_size: Mapping[str, Any] = {}, vq_size: Mapping[str, Any] = {}, rows: int = 1001
) -> weights.Shapes:
    """CompVis label-to-image: model, first stage, label table."""
    return weights.join(
        weights.prefixed("model.diffusion_model.", unet(**unet_size)),
        weights.prefixed("first_stage_model.", vq(**vq_size)),
        {"cond_stage_model.embedding.weight": (rows, unet_size.get("context", 512))},
    )


def brain_ldm(
    unet_size: Mapping[str, Any] = {},
    vq_size: Mapping[str, Any] = {},
    encoder: Mapping[str, Any] = {},
    length: int = 77,
) -> weights.Shapes:
    """MinD-Vis finetuned.pth and CAD checkpoint_best.pth: time head in the U-Net, encoder and mappers as the condition."""
    context, width = unet_size.get("context", 512), encoder.get("width", 1024)
    tokens = encoder.get("tokens", 291)
    condition = weights.join(
        weights.prefixed("mae.", {**weights.fmri_encoder(**encoder), "mask_token": (1, 1, width)}),
        weights.conv("channel_mapper.0", tokens // 2, tokens, 1, dimensions=1),
        weights.conv("channel_mapper.1", length, tokens // 2, 1, dimensions=1),
        weights.linear("dim_mapper", context, width),
    )
    return weights.join(
        weights.prefixed(
            "model.diffusion_model.",
            {**unet(**unet_size), **time_head(4 * unet_size.get("width", 192), context, length)},
        ),
        weights.prefixed("first_stage_model.", vq(**vq_size)),
        weights.prefixed("cond_stage_model.", condition),
    )


def noise_buffers(start: float = 0.0015, end: float = 0.0195, steps: int = 1000) -> dict[str, Tensor]:
    """Two of the buffers that Lightning keeps in the state dict."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}


def averaged(state: Mapping[str, Tensor], factor: float = 0.5) -> dict[str, Tensor]:
    """The averages of the denoiser as Lightning's LitEma keeps them: names without dots."""
    flat = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): factor * value
        for name, value in state.items()
        if name.startswith("model.diffusion_model.")
    }
    return {
        **flat,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(5, dtype=torch.int32),
    }

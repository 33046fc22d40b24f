"""What the published networks compute, from their equations and descriptions, as functions of a dict of weights.

Rombach et al. 2022 (latent diffusion), Chen et al. 2023 (MinD-Vis), Sun et al. 2023 (CAD), He et al. 2022 (MAE). Nothing here is
shared with cadiff, diffusers or transformers: it is what they are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def sub(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def conv(w: Weights, name: str, x: Tensor, *, stride: int = 1, padding: int | None = None) -> Tensor:
    kernel = w[f"{name}.weight"]
    padding = kernel.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, kernel, w[f"{name}.bias"], stride=stride, padding=padding)


def group_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def layer_norm(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention by its formula: (B, Q, W), (B, K, W), (B, K, W) -> (B, Q, W)."""
    out = []
    for query, key, value in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True):
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        out.append(scores.softmax(-1) @ value)
    return torch.cat(out, dim=-1)


def transformer(w: Weights, prefix: str, x: Tensor, heads: int, eps: float = 1e-5) -> Tensor:
    depth = len({name[len(prefix) :].split(".")[0] for name in w if name.startswith(prefix)})
    for i in range(depth):
        at = f"{prefix}{i}"
        q, k, v = linear(w, f"{at}.attn.qkv", layer_norm(w, f"{at}.norm1", x, eps)).chunk(3, -1)
        x = x + linear(w, f"{at}.attn.proj", attention(q, k, v, heads))
        hidden = F.gelu(linear(w, f"{at}.mlp.fc1", layer_norm(w, f"{at}.norm2", x, eps)))
        x = x + linear(w, f"{at}.mlp.fc2", hidden)
    return x


def patch_tokens(w: Weights, x: Tensor) -> Tensor:
    """fMRI (B, V) or pictures (B, 3, S, S) -> tokens with positions (B, L, D), no CLS."""
    kernel = w["patch_embed.proj.weight"]
    if kernel.ndim == 3:
        tokens = F.conv1d(x[:, None], kernel, w["patch_embed.proj.bias"], stride=kernel.shape[-1]).mT
    else:
        tokens = F.conv2d(x, kernel, w["patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).mT
    return tokens + w["pos_embed"][:, 1:]


def visible_tokens(w: Weights, x: Tensor, keep: Tensor | None) -> Tensor:
    tokens = patch_tokens(w, x)
    if keep is not None:
        tokens = torch.stack([row[index] for row, index in zip(tokens, keep, strict=True)])
    cls = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(tokens), -1, -1)
    return torch.cat([cls, tokens], dim=1)


def mae_decode(w: Weights, encoded: Tensor, keep: Tensor, heads: int, eps: float) -> Tensor:
    """Normed encoder output (B, 1 + K, D) -> predicted patches (B, L, P)."""
    x = linear(w, "decoder_embed", encoded)
    full = w["mask_token"].expand(len(x), w["decoder_pos_embed"].shape[1] - 1, -1).clone()
    for row, index, values in zip(full, keep, x[:, 1:], strict=True):
        row[index] = values
    x = torch.cat([x[:, :1], full], dim=1) + w["decoder_pos_embed"]
    x = layer_norm(w, "decoder_norm", transformer(w, "decoder_blocks.", x, heads, eps), eps)
    return linear(w, "decoder_pred", x)[:, 1:]


def mae(w: Weights, x: Tensor, keep: Tensor, heads: int, decoder_heads: int, eps: float = 1e-5) -> Tensor:
    """Masked auto-encoder: fMRI or pictures, indices of the visible patches -> predicted patches (B, L, P)."""
    hidden = transformer(w, "blocks.", visible_tokens(w, x, keep), heads, eps)
    return mae_decode(w, layer_norm(w, "norm", hidden, eps), keep, decoder_heads, eps)


def fmri_tokens(w: Weights, x: Tensor, heads: int) -> Tensor:
    """As the third stage reads the encoder: nothing masked and no CLS token. (B, V) -> (B, L, D)."""
    return layer_norm(w, "norm", transformer(w, "blocks.", patch_tokens(w, x), heads))


def cross_blocks(w: Weights, hidden: Tensor, image: Tensor, heads: int, eps: float = 1e-12) -> Tensor:
    """Phase 2 on the fMRI side, between the last block and the norm: (B, 1 + K, D), (B, S, W) -> (B, 1 + K, D)."""

    def attend(at: str, queries: Tensor, support: Tensor) -> Tensor:
        q = linear(w, f"{at}.attention.query", queries)
        k, v = (linear(w, f"{at}.attention.{kind}", support) for kind in ("key", "value"))
        return linear(w, f"{at}.output.dense", attention(q, k, v, heads))

    narrow = linear(w, "cross_map_in", hidden)
    x = narrow
    for i in range(len({name.split(".")[1] for name in w if name.startswith("cross_blocks.")})):
        at = f"cross_blocks.{i}"
        normed = layer_norm(w, f"{at}.layernorm_before", x, eps)
        own = attend(f"{at}.attention", normed, normed)
        x = x + attend(f"{at}.cross_attention", layer_norm(w, f"{at}.layernorm_before", own, eps), image)
        inner = F.gelu(linear(w, f"{at}.intermediate.dense", layer_norm(w, f"{at}.layernorm_after", x, eps)))
        x = x + linear(w, f"{at}.output.dense", inner)
    return linear(w, "cross_map_out", narrow + x)


def mapped_context(w: Weights, tokens: Tensor) -> Tensor:
    """`cond_stage_model`: channel_mapper mixes tokens, dim_mapper widths. (B, N, D) -> (B, L, C)."""
    for i in (0, 1):
        tokens = w[f"channel_mapper.{i}.weight"][..., 0] @ tokens + w[f"channel_mapper.{i}.bias"][:, None]
    return linear(w, "dim_mapper", tokens)


def time_vector(w: Weights, timesteps: Tensor) -> Tensor:
    """Sinusoids (cosines first, longest period 10,000), then the MLP: (B,) -> (B, 4 W)."""
    half = w["time_embed.0.weight"].shape[1] // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
    angles = timesteps[:, None].float() * frequencies
    x = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return linear(w, "time_embed.2", F.silu(linear(w, "time_embed.0", x)))


def time_condition(w: Weights, context: Tensor) -> Tensor:
    """MinD-Vis's second condition: (B, L, C) -> (B, 4 W), added to the time vector."""
    x = context
    for i in (0, 1):
        x = w[f"time_embed_condtion.{i}.weight"][..., 0] @ x + w[f"time_embed_condtion.{i}.bias"][:, None]
    return linear(w, "time_embed_condtion.2", x)[:, 0]


def residual(w: Weights, name: str, x: Tensor, time: Tensor) -> Tensor:
    h = conv(w, f"{name}.in_layers.2", F.silu(group_norm(w, f"{name}.in_layers.0", x, 1e-5)))
    h = h + linear(w, f"{name}.emb_layers.1", F.silu(time))[:, :, None, None]
    h = conv(w, f"{name}.out_layers.3", F.silu(group_norm(w, f"{name}.out_layers.0", h, 1e-5)))
    return h + (conv(w, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)


def spatial(w: Weights, name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    at, (height, width) = f"{name}.transformer_blocks.0", x.shape[-2:]

    def attend(kind: str, queries: Tensor, support: Tensor) -> Tensor:
        q = linear(w, f"{at}.{kind}.to_q", queries)
        k, v = linear(w, f"{at}.{kind}.to_k", support), linear(w, f"{at}.{kind}.to_v", support)
        return linear(w, f"{at}.{kind}.to_out.0", attention(q, k, v, heads))

    h = conv(w, f"{name}.proj_in", group_norm(w, f"{name}.norm", x, 1e-6)).flatten(2).mT
    normed = layer_norm(w, f"{at}.norm1", h)
    h = h + attend("attn1", normed, normed)
    h = h + attend("attn2", layer_norm(w, f"{at}.norm2", h), context)
    value, gate = linear(w, f"{at}.ff.net.0.proj", layer_norm(w, f"{at}.norm3", h)).chunk(2, -1)
    h = h + linear(w, f"{at}.ff.net.2", value * F.gelu(gate))
    return x + conv(w, f"{name}.proj_out", h.mT.unflatten(2, (height, width)))


def unet(w: Weights, x: Tensor, timesteps: Tensor, context: Tensor, heads: int = 1) -> Tensor:
    """The denoiser; with the time condition where the weights have its head. (B, c, h, w) -> (B, c, h, w)."""
    time = time_vector(w, timesteps)
    if "time_embed_condtion.0.weight" in w:
        time = time + time_condition(w, context)

    def block(name: str, h: Tensor) -> Tensor:
        if f"{name}.0.op.weight" in w:
            return conv(w, f"{name}.0.op", h, stride=2)
        h = residual(w, f"{name}.0", h, time)
        if f"{name}.1.norm.weight" in w:
            h = spatial(w, f"{name}.1", h, context, heads)
        if f"{name}.2.conv.weight" in w:
            h = conv(w, f"{name}.2.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return h

    count = {
        part: len({n.split(".")[1] for n in w if n.startswith(part)})
        for part in ("input_blocks.", "output_blocks.")
    }
    h = conv(w, "input_blocks.0.0", x)
    stack = [h]
    for i in range(1, count["input_blocks."]):
        h = block(f"input_blocks.{i}", h)
        stack.append(h)
    h = residual(w, "middle_block.0", h, time)
    h = residual(w, "middle_block.2", spatial(w, "middle_block.1", h, context, heads), time)
    for i in range(count["output_blocks."]):
        h = block(f"output_blocks.{i}", torch.cat([h, stack.pop()], dim=1))
    return conv(w, "out.2", F.silu(group_norm(w, "out.0", h, 1e-5)))


def vq_block(w: Weights, name: str, x: Tensor) -> Tensor:
    h = conv(w, f"{name}.conv1", F.silu(group_norm(w, f"{name}.norm1", x, 1e-6)))
    h = conv(w, f"{name}.conv2", F.silu(group_norm(w, f"{name}.norm2", h, 1e-6)))
    return h + (conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def vq_middle(w: Weights, name: str, x: Tensor) -> Tensor:
    x = vq_block(w, f"{name}.block_1", x)
    normed = group_norm(w, f"{name}.attn_1.norm", x, 1e-6)
    q, k, v = (conv(w, f"{name}.attn_1.{kind}", normed).flatten(2).mT for kind in ("q", "k", "v"))
    mixed = attention(q, k, v, 1).mT.unflatten(2, x.shape[-2:])
    return vq_block(w, f"{name}.block_2", x + conv(w, f"{name}.attn_1.proj_out", mixed))


def vq_encode(w: Weights, images: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) -> latents before quantisation."""
    h = conv(w, "encoder.conv_in", images)
    for level in range(len({n.split(".")[2] for n in w if n.startswith("encoder.down.")})):
        for i in (0, 1):
            h = vq_block(w, f"encoder.down.{level}.block.{i}", h)
        if f"encoder.down.{level}.downsample.conv.weight" in w:  # padded below and to the right
            h = conv(w, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    h = F.silu(group_norm(w, "encoder.norm_out", vq_middle(w, "encoder.mid", h), 1e-6))
    return conv(w, "quant_conv", conv(w, "encoder.conv_out", h))


def vq_decode(w: Weights, latents: Tensor) -> Tensor:
    """Latents -> nearest codes -> pictures."""
    codes = w["quantize.embedding.weight"]
    flat = latents.movedim(1, -1)
    nearest = torch.cdist(flat.flatten(0, -2)[None], codes[None])[0].argmin(-1)
    h = conv(w, "post_quant_conv", codes[nearest].view(flat.shape).movedim(-1, 1))
    h = vq_middle(w, "decoder.mid", conv(w, "decoder.conv_in", h))
    for level in reversed(range(len({n.split(".")[2] for n in w if n.startswith("decoder.up.")}))):
        for i in (0, 1, 2):
            h = vq_block(w, f"decoder.up.{level}.block.{i}", h)
        if f"decoder.up.{level}.upsample.conv.weight" in w:
            h = conv(
                w, f"decoder.up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0, mode="nearest")
            )
    return conv(w, "decoder.conv_out", F.silu(group_norm(w, "decoder.norm_out", h, 1e-6)))

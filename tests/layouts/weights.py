"""Checkpoints in the layouts that other projects published, made by code: names, shapes and wrappers.

A layout is a dict of name -> shape, written down from its description; `fill` gives it values, `on_meta` none. What the networks
compute is in `layouts.networks`, independent of the libraries that cadiff uses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def conv(name: str, out: int, into: int, kernel: int = 3, dimensions: int = 2) -> Shapes:
    return {f"{name}.weight": (out, into, *(kernel,) * dimensions), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def join(*parts: Shapes) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def prefixed(prefix: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in shapes.items()}


def fill(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Values with which every layer matters: matrices that keep the size of their input, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values[name] = 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
        else:
            fan_in = noise[0].numel()
            values[name] = noise / fan_in**0.5 if "embed" not in name or "proj" in name else 0.5 * noise
    return {name: value.to(dtype) for name, value in values.items()}


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def blocks(prefix: str, depth: int, width: int, hidden: int) -> Shapes:
    return join(
        *(
            join(
                norm(f"{prefix}{i}.norm1", width),
                linear(f"{prefix}{i}.attn.qkv", 3 * width, width),
                linear(f"{prefix}{i}.attn.proj", width, width),
                norm(f"{prefix}{i}.norm2", width),
                linear(f"{prefix}{i}.mlp.fc1", hidden, width),
                linear(f"{prefix}{i}.mlp.fc2", width, hidden),
            )
            for i in range(depth)
        )
    )


def fmri_encoder(tokens: int = 291, width: int = 1024, depth: int = 24, patch: int = 16) -> Shapes:
    """The encoder with its CLS token and position table; MLP ratio 1."""
    return join(
        {"cls_token": (1, 1, width), "pos_embed": (1, tokens + 1, width)},
        conv("patch_embed.proj", width, 1, patch, dimensions=1),
        blocks("blocks.", depth, width, width),
        norm("norm", width),
    )


def fmri_decoder(
    tokens: int = 291, width: int = 1024, decoder: int = 512, depth: int = 8, patch: int = 16
) -> Shapes:
    return join(
        {"mask_token": (1, 1, decoder), "decoder_pos_embed": (1, tokens + 1, decoder)},
        linear("decoder_embed", decoder, width),
        blocks("decoder_blocks.", depth, decoder, decoder),
        norm("decoder_norm", decoder),
        linear("decoder_pred", patch, decoder),
    )


def cross_part(width: int = 1024, cross: int = 768, depth: int = 3, hidden: int = 3072) -> Shapes:
    """What phase 2 of CAD adds to the fMRI auto-encoder."""
    parts = [linear("cross_map_in", cross, width), linear("cross_map_out", width, cross)]
    for i in range(depth):
        at = f"cross_blocks.{i}"
        for attention in ("attention", "cross_attention"):
            parts += [
                linear(f"{at}.{attention}.attention.{k}", cross, cross) for k in ("query", "key", "value")
            ]
            parts.append(linear(f"{at}.{attention}.output.dense", cross, cross))
        parts += [
            linear(f"{at}.intermediate.dense", hidden, cross),
            linear(f"{at}.output.dense", cross, hidden),
        ]
        parts += [norm(f"{at}.layernorm_before", cross), norm(f"{at}.layernorm_after", cross)]
    return join(*parts)


def image_encoder(width: int = 768, depth: int = 12, patch: int = 16, tokens: int = 196) -> Shapes:
    """facebookresearch/mae: as of fMRI, but two-dimensional patches and MLP ratio 4."""
    return join(
        {"cls_token": (1, 1, width), "pos_embed": (1, tokens + 1, width)},
        conv("patch_embed.proj", width, 3, patch),
        blocks("blocks.", depth, width, 4 * width),
        norm("norm", width),
    )


def image_decoder(
    width: int = 768, decoder: int = 512, depth: int = 8, patch: int = 16, tokens: int = 196
) -> Shapes:
    return join(
        {"mask_token": (1, 1, decoder), "decoder_pos_embed": (1, tokens + 1, decoder)},
        linear("decoder_embed", decoder, width),
        blocks("decoder_blocks.", depth, decoder, 4 * decoder),
        norm("decoder_norm", decoder),
        linear("decoder_pred", patch * patch * 3, decoder),
    )


@contextmanager
def foreign_class(module: str, name: str) -> Iterator[type]:
    """A class that exists while it is pickled, and not when the file is read."""
    made = type(name, (), {"__module__": module})
    roots = [".".join(module.split(".")[: i + 1]) for i in range(module.count(".") + 1)]
    fresh = [root for root in roots if root not in sys.modules]
    for root in fresh:
        sys.modules[root] = ModuleType(root)
    setattr(sys.modules[module], name, made)
    try:
        yield made
    finally:
        delattr(sys.modules[module], name)
        for root in fresh:
            del sys.modules[root]


def save(path: Path, content: Any, *, older: bool = False, **settings: Any) -> Path:
    """`torch.save`; `settings` become the attributes of a pickled `config.Config_MBM_fMRI` under "config"."""
    with foreign_class("config", "Config_MBM_fMRI") as kind:
        if settings:
            config = kind()
            config.__dict__.update(settings)
            content = {**content, "config": config}
        torch.save(content, path, _use_new_zipfile_serialization=not older)
    return path


def optimizer_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """As AdamW's state_dict: indices, moments, groups."""
    some = list(state.values())[:3]
    moments = {
        i: {"step": torch.tensor(7.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for i, p in enumerate(some)
    }
    return {
        "state": moments,
        "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95), "params": list(range(len(some)))}],
    }

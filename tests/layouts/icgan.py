"""Generators in the layout of facebookresearch/ic_gan, and what they compute, from the equations of BigGAN and SAGAN.

Nothing here is shared with cadiff. A layout is a dict name -> shape, as in `layouts.weights`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from layouts.weights import Shapes, join

Weights = Mapping[str, Tensor]
WIDTHS = {32: [4, 4, 4, 4], 64: [16, 16, 8, 4, 2], 128: [16, 16, 8, 4, 2, 1], 256: [16, 16, 8, 8, 4, 2, 1]}


def spectral(name: str, out: int, *into: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (out, *into), f"{name}.u0": (1, out), f"{name}.sv0": (1,)}
    return {**shapes, f"{name}.bias": (out,)} if bias else shapes


def stored(name: str, width: int) -> Shapes:
    return {f"{name}.stored_mean": (width,), f"{name}.stored_var": (width,)}


def conditional(name: str, width: int, condition: int) -> Shapes:
    parts = [spectral(f"{name}.{part}", width, condition, bias=False) for part in ("gain", "bias")]
    return join(stored(name, width), *parts)


def generator(
    size: int = 256,
    ch: int = 96,
    *,
    chunk: int = 17,
    embed: int = 512,
    features: int = 2048,
    attention: tuple[int, ...] = (64,),
    label_dim: int = 0,
    hier: bool = True,
) -> Shapes:
    """`G_ema_best0.pth`; `label_dim` > 0 for the class-conditional kind, whose blocks read a label's row too."""
    widths = [ch * multiple for multiple in WIDTHS[size]]
    condition = embed + label_dim + (chunk if hier else 0)
    parts = [
        {"shared.weight": (1000, label_dim or 128)},
        spectral("shared_feat", embed, features),
        spectral("linear", widths[0] * 16, chunk),
    ]
    for i, (into, out) in enumerate(itertools.pairwise(widths)):
        at = f"blocks.{i}.0"
        parts += [
            spectral(f"{at}.conv1", out, into, 3, 3),
            spectral(f"{at}.conv2", out, out, 3, 3),
            spectral(f"{at}.conv_sc", out, into, 1, 1),
            conditional(f"{at}.bn1", into, condition),
            conditional(f"{at}.bn2", out, condition),
        ]
        if 8 * 2**i in attention:
            at = f"blocks.{i}.1"
            parts.append({f"{at}.gamma": ()})
            parts += [spectral(f"{at}.{k}", out // 8, out, 1, 1, bias=False) for k in ("theta", "phi")]
            parts.append(spectral(f"{at}.g", out // 2, out, 1, 1, bias=False))
            parts.append(spectral(f"{at}.o", out, out // 2, 1, 1, bias=False))
    last = widths[-1]
    head: Shapes = {
        "output_layer.0.gain": (last,),
        "output_layer.0.bias": (last,),
        **stored("output_layer.0", last),
    }
    return join(*parts, head, spectral("output_layer.2", 3, last, 3, 3))


def fill(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Values with which every part matters: variances and gains near 1, attention half mixed in."""
    rng = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=rng)
        if name.endswith(("stored_var", "output_layer.0.gain", "sv0")):
            values[name] = (0.2 * noise).exp()
        elif name.endswith("gamma"):
            values[name] = torch.tensor(0.5)
        else:
            values[name] = noise if name.endswith((".weight", ".u0")) else 0.1 * noise
    return values


def sigma(weight: Tensor, u: Tensor) -> Tensor:
    """The largest singular value as one power iteration from u sees it."""
    matrix = weight.reshape(len(weight), -1)
    right = matrix.T @ u.flatten()
    right = right / right.norm()
    left = matrix @ right
    return (left / left.norm()) @ matrix @ right


def weight(w: Weights, name: str) -> Tensor:
    return w[f"{name}.weight"] / sigma(w[f"{name}.weight"], w[f"{name}.u0"])


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return torch.einsum("of,bf->bo", weight(w, name), x) + w.get(f"{name}.bias", torch.zeros(()))


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    """Convolution as a sum of shifted products."""
    kernel, (height, width) = weight(w, name), x.shape[2:]
    reach = kernel.shape[-1] // 2
    padded, out = F.pad(x, (reach,) * 4), torch.zeros(())
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            shifted = padded[:, :, i : i + height, j : j + width]
            out = out + torch.einsum("oc,bchw->bohw", kernel[:, :, i, j], shifted)
    return out + w[f"{name}.bias"][:, None, None] if f"{name}.bias" in w else out


def standardise(w: Weights, name: str, x: Tensor) -> Tensor:
    mean, var = (w[f"{name}.stored_{part}"][:, None, None] for part in ("mean", "var"))
    return (x - mean) / (var + 1e-5).sqrt()


def conditional_norm(w: Weights, name: str, x: Tensor, condition: Tensor) -> Tensor:
    gain, bias = (linear(w, f"{name}.{part}", condition)[:, :, None, None] for part in ("gain", "bias"))
    return standardise(w, name, x) * (1 + gain) + bias


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def attend(w: Weights, at: str, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape

    def pooled(name: str) -> Tensor:
        found = conv(w, f"{at}.{name}", x)
        return found.reshape(batch, -1, height // 2, 2, width // 2, 2).amax(dim=(3, 5)).flatten(2)

    query = conv(w, f"{at}.theta", x).flatten(2)
    scores = torch.einsum("bcq,bck->bqk", query, pooled("phi")).softmax(-1)
    found = torch.einsum("bqk,bck->bcq", scores, pooled("g")).reshape(batch, -1, height, width)
    return x + w[f"{at}.gamma"] * conv(w, f"{at}.o", found)


def draw(w: Weights, noise: Tensor, features: Tensor, *, hier: bool = True) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1]."""
    num_blocks = len({name.split(".")[1] for name in w if name.startswith("blocks.")})
    chunk = w["linear.weight"].shape[1]
    embedded = linear(w, "shared_feat", features)
    x = linear(w, "linear", noise[:, :chunk]).reshape(len(noise), -1, 4, 4)
    for i in range(num_blocks):
        piece = noise[:, chunk * (i + 1) : chunk * (i + 2)] if hier else noise[:, :0]
        condition, at = torch.cat([embedded, piece], dim=1), f"blocks.{i}.0"
        h = conv(w, f"{at}.conv1", twice(conditional_norm(w, f"{at}.bn1", x, condition).relu()))
        h = conv(w, f"{at}.conv2", conditional_norm(w, f"{at}.bn2", h, condition).relu())
        x = h + conv(w, f"{at}.conv_sc", twice(x))
        if f"blocks.{i}.1.gamma" in w:
            x = attend(w, f"blocks.{i}.1", x)
    gain, bias = (w[f"output_layer.0.{part}"][:, None, None] for part in ("gain", "bias"))
    x = (standardise(w, "output_layer.0", x) * gain + bias).relu()
    return conv(w, "output_layer.2", x).tanh()

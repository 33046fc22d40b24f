"""Vision Transformers in torchvision's names: the judges of MinD-Vis and CAD (ViT-H/14) and of others (ViT-B/16).

Dosovitskiy et al. 2021, Eq. 1-4; SWAG weights: Singh et al. 2022. The file alone says how large the network is, all but the
number of heads, which is a fact of the model by its width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadiff.errors import ArtifactError
from cadiff.eyes.eye import Classifier
from cadiff.eyes.pixels import Preprocessing, square
from cadiff.eyes.weights import fill, read_weights

HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads by width, of ViT-B, ViT-L and ViT-H."""

LAYOUT = "torchvision's VisionTransformer"


class Layer(nn.Module):
    """Attention and perceptron, each after a layer normalisation and beside a shortcut (Eq. 2 and 3)."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        # Places 0 and 3 hold weights in torchvision's names; 1 and 2 are activation and dropout.
        self.mlp = nn.ModuleDict({"0": nn.Linear(width, hidden), "3": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width), the same."""
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp["3"](F.gelu(self.mlp["0"](self.ln_2(x))))


class Encoder(nn.Module):
    """Position table, layers, last normalisation."""

    def __init__(self, tokens: int, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, tokens, width))
        self.layers = nn.ModuleDict({f"encoder_layer_{i}": Layer(width, heads, hidden) for i in range(depth)})
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width), the same."""
        x = x + self.pos_embedding
        for layer in self.layers.values():
            x = layer(x)
        return self.ln(x)


class VisionTransformer(nn.Module):
    """Gives `pooled`, the class token (B, width), and `logits` (B, classes)."""

    def __init__(
        self, *, image_size: int, patch: int, width: int, depth: int, heads: int, hidden: int, classes: int
    ):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder((image_size // patch) ** 2 + 1, width, depth, heads, hidden)
        self.heads = nn.ModuleDict({"head": nn.Linear(width, classes)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised pictures (B, 3, image_size, image_size)."""
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)  # (B, patches, width)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        pooled = self.encoder(tokens)[:, 0]
        return {"pooled": pooled, "logits": self.heads["head"](pooled)}


def load_torchvision_vit(
    path: Path, device: str | torch.device | None = None, *, num_heads: int | None = None
) -> Classifier:
    """A classifier from a file of torchvision's ViT weights, such as vit_h_14_swag-80465313.pth.

    Pictures are prepared as torchvision says for these weights: those of more than 224 pixels, and those with "swag" in their
    file's name, bicubic to their size; the others bilinear to 256 (ViT-L/16: 242) and cropped to 224.

    num_heads: attention heads, for widths other than those of ViT-B, ViT-L and ViT-H.

    Raises:
        ArtifactError: other weights, or a width whose number of heads is not known.
    """
    path = Path(path)
    weights = _modern_names(read_weights(path))
    size = _sizes(weights, path)
    heads = num_heads or HEADS.get(size["width"])
    if heads is None:
        raise ArtifactError(
            f"{path} holds a ViT of width {size['width']}; the number of its attention heads is known for "
            f"{', '.join(map(str, HEADS))} only."
        )
    with torch.device("meta"):
        network = VisionTransformer(**size, heads=heads)
    fill(network, weights, source=path, layout=LAYOUT)
    side, classes = size["image_size"], size["classes"]
    return Classifier(
        path.name.removesuffix(path.suffix),
        network,
        preprocessing_of(path.name, side, (size["width"], size["patch"])),
        num_classes=classes,
        is_imagenet=classes == 1000,
        weights=(path,),
        device=device,
    )


def preprocessing_of(file: str, image_size: int, model: tuple[int, int]) -> Preprocessing:
    """How torchvision prepares pictures for weights of this file name, input size, and (width, patch)."""
    if image_size != 224 or "swag" in file:
        return Preprocessing(square(image_size), square(image_size), interpolation="bicubic")
    edge = 242 if model == (1024, 16) else 256
    return Preprocessing(square(edge), square(224))


def _modern_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Files of 2021 and 2022 call the perceptron's parts linear_1 and linear_2."""
    old = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}
    found = {}
    for name, value in weights.items():
        for before, after in old.items():
            name = name.replace(before, after)
        found[name] = value
    return found


def _sizes(weights: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    needed = (
        "conv_proj.weight",
        "encoder.pos_embedding",
        "heads.head.weight",
        "encoder.layers.encoder_layer_0.mlp.0.weight",
    )
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ArtifactError(
            f"{path} does not fit {LAYOUT}: it lacks {missing[0]}. Weights of other classifiers go into a folder of "
            "transformers or timm; docs/judges.md says how."
        )
    width, _, patch, _ = weights["conv_proj.weight"].shape
    side = math.isqrt(weights["encoder.pos_embedding"].shape[1] - 1) * patch
    depth = 1 + max(
        int(name.split(".")[2].rpartition("_")[2]) for name in weights if name.startswith("encoder.layers.")
    )
    return {
        "image_size": side,
        "patch": patch,
        "width": width,
        "depth": depth,
        "hidden": weights["encoder.layers.encoder_layer_0.mlp.0.weight"].shape[0],
        "classes": weights["heads.head.weight"].shape[0],
    }

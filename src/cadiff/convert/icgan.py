"""Generators of facebookresearch/ic_gan (Casanova et al. 2021, BigGAN backbone) -> a folder that `load_generator` opens.

The file is `G_ema_best0.pth` (or `G_ema.pth`) of an archive such as icgan_biggan_imagenet_res256. Every size is read off the
shapes; that released generators without classes read SwAV's features leaves no trace in them. The table of class labels
`shared`, which such a generator never reads, is left behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from cadiff.convert.recognise import Found, count_blocks
from cadiff.convert.tensor_refs import TensorRef
from cadiff.errors import ArtifactError
from cadiff.priors.icgan.features import FeatureConfig
from cadiff.priors.icgan.folder import save_generator
from cadiff.priors.icgan.networks import BOTTOM, GENERATOR, Generator, GeneratorConfig, ImageSize

SWAV_DIM = 2048
UNUSED = "shared."
OTHER = "take icgan_biggan_imagenet_res256, which is conditioned on instances alone"


def generator_config(found: Found) -> GeneratorConfig:
    """The sizes of the generator in a file.

    Raises:
        ArtifactError: weights are missing, or make another generator.
    """
    embed_dim, feature_dim = found.size("shared_feat.weight", 2)
    chunk_dim = found.size("linear.weight", 2)[1]
    condition_dim = found.size("blocks.0.0.bn1.gain.weight", 2)[1]
    width = found.size("output_layer.0.gain", 1)[0]
    num_blocks = count_blocks(found.weights, "blocks.")
    image_size = BOTTOM * 2**num_blocks
    if image_size not in GENERATOR or width % GENERATOR[image_size][-1]:
        raise ArtifactError(
            f"{found.file.path}: {num_blocks} blocks that end {width} wide make no generator of the released widths; expected "
            f"{', '.join(map(str, GENERATOR))} pixels."
        )
    if condition_dim not in (embed_dim, embed_dim + chunk_dim):
        raise ArtifactError(
            f"{found.file.path}: its blocks are conditioned on {condition_dim} numbers, expected {embed_dim} of the features "
            f"and {chunk_dim} of the noise: it is conditioned on class labels too (cc_icgan), which no brain gives; {OTHER}."
        )
    if feature_dim != SWAV_DIM:
        raise ArtifactError(
            f"{found.file.path}: it reads {feature_dim} features, expected the {SWAV_DIM} of SwAV's ResNet-50; {OTHER}."
        )
    hierarchical = condition_dim != embed_dim
    return GeneratorConfig(
        image_size=cast(ImageSize, image_size),
        channels=width // GENERATOR[image_size][-1],
        noise_dim=chunk_dim * (num_blocks + 1) if hierarchical else chunk_dim,
        hierarchical=hierarchical,
        feature_dim=feature_dim,
        embed_dim=embed_dim,
        attention=tuple(
            BOTTOM * 2 ** (i + 1) for i in range(num_blocks) if f"blocks.{i}.1.gamma" in found.weights
        ),
    )


def import_generator(found: Found, out: Path, facts: Mapping[str, Any]) -> Path:
    """Writes the generator's folder.

    Raises:
        ArtifactError: a weight is missing, of another shape or damaged, or `out` exists.
    """
    check(found)
    weights = {name: value.float() for name, value in found.file.tensors(_used(found)).items()}
    features = FeatureConfig(eye="swav", layer="avgpool")
    return save_generator(
        out, generator_config(found), weights, features=features, about={}, provenance=dict(facts)
    )


def check(found: Found) -> None:
    """Raises `ArtifactError` unless every weight of the generator is there with its shape; reads none of them."""
    with torch.device("meta"):
        generator = Generator(generator_config(found))
    expected = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
    there = {name: ref.shape for name, ref in _used(found).items()}
    for name in sorted(expected.keys() | there.keys()):
        if expected.get(name) != there.get(name):
            raise ArtifactError(
                f"{found.file.path}: weight {name} is {there.get(name, 'absent')}, expected "
                f"{expected.get(name, 'no such weight')}: it is incomplete, or another model."
            )


def facts(found: Found) -> list[tuple[str, str]]:
    """What `describe` says of the generator: (label, text)."""
    config = generator_config(found)
    numel = sum(ref.numel for name, ref in _used(found).items() if not name.endswith((".u0", ".sv0")))
    attention = f", attention at {', '.join(map(str, config.attention))} pixels" if config.attention else ""
    lines = [
        ("pictures", f"{config.image_size} pixels, width multiplier {config.channels}{attention}"),
        (
            "noise",
            f"{config.noise_dim} numbers in {config.num_chunks} chunks; dense vectors of {config.dense_dim}",
        ),
        (
            "features",
            f"{config.feature_dim} numbers of SwAV's ResNet-50, as far as known: the file does not say",
        ),
        ("weights", f"{numel:,} numbers and statistics"),
    ]
    if any(name.startswith(UNUSED) for name in found.weights):
        lines.append(("unused", "the table of class labels, which is left behind"))
    return lines


def _used(found: Found) -> dict[str, TensorRef]:
    return {name: ref for name, ref in found.weights.items() if not name.startswith(UNUSED)}

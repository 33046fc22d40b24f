"""The folder of an instance-conditioned generator: config.json (sizes, which features it reads, origin) and model.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from cadiff.artifacts import load_artifact, save_artifact
from cadiff.errors import ArtifactError
from cadiff.priors.icgan.features import FeatureConfig
from cadiff.priors.icgan.layers import spectral_layers
from cadiff.priors.icgan.networks import Generator, GeneratorConfig
from cadiff.priors.train_vq import to_bytes

KIND = "instance-gan"


@dataclass(frozen=True)
class InstanceGan:
    """A generator that is ready to draw, and the features that it is conditioned on."""

    generator: Generator
    """In evaluation mode, its spectral norms folded, its parameters frozen."""
    features: FeatureConfig
    about: dict[str, Any]
    """What else the folder says: training, origin."""
    folder: Path = Path()
    """Where it was opened."""

    @torch.no_grad()
    def draw(
        self, noise: Tensor, features: Tensor, dense: Tensor | None = None, *, batch_size: int = 64
    ) -> np.ndarray:
        """Noise (m, Z), features (m, F) and, where given, dense vectors (m, W) -> pictures uint8 (m, S, S, 3)."""
        device = next(self.generator.parameters()).device
        pieces = []
        for start in range(0, len(noise), batch_size):
            part = slice(start, start + batch_size)
            given = [x[part].to(device) if x is not None else None for x in (noise, features, dense)]
            pieces.append(to_bytes(self.generator(*given)))
        return np.concatenate(pieces)


def save_generator(
    folder: Path,
    config: GeneratorConfig,
    weights: Mapping[str, Tensor],
    *,
    features: FeatureConfig,
    about: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Path:
    """Writes a generator by the names of its `state_dict`; `load_generator` is the inverse."""
    settings = {
        "generator": config.model_dump(mode="json"),
        "features": features.model_dump(mode="json"),
        "about": dict(about),
    }
    return save_artifact(folder, kind=KIND, config=settings, tensors=weights, provenance=provenance)


def load_generator(folder: Path, device: str | torch.device | None = None) -> InstanceGan:
    """Opens a folder of `cadiff prior train --kind icgan` or `cadiff weights import`; on CUDA where there is one.

    Raises:
        ArtifactError: no such folder, damaged, or weights that do not fit its config.json.
    """
    folder = folder / "generator" if (folder / "generator" / "config.json").is_file() else folder
    settings, weights = load_artifact(folder, KIND)
    try:
        config = GeneratorConfig.model_validate(settings["generator"])
        features = FeatureConfig.model_validate(settings["features"])
    except (ValidationError, KeyError) as error:
        raise ArtifactError(
            f"{folder}/config.json does not describe a generator ({' '.join(str(error).split())[:150]}): make it again."
        ) from None
    with torch.device("meta"):
        generator = Generator(config)
    expected = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    ):
        name = wrong[0]
        raise ArtifactError(
            f"{folder}: the weight {name} is {found.get(name, 'absent')}, expected {expected.get(name, 'no such weight')} by "
            "its config.json: copy the folder again."
        )
    generator.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    generator.eval().requires_grad_(False).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for layer in spectral_layers(generator):
        layer.fold()
    return InstanceGan(generator, features, settings.get("about", {}), folder)

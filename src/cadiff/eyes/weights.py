"""Weights of networks from files that others made, without running what is in them."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cadiff.errors import ArtifactError

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> float32 tensor of a .safetensors file, or of a PyTorch file (.pth, .pt, .pth.tar) opened with `weights_only`.

    The weights may lie under `state_dict` or `model`; the prefix `module.` of parallel training is taken off.

    Raises:
        ArtifactError: no such file, a damaged one, or one that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"There is no file of weights {path}.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{path} cannot be read as weights ({reason}): expected a .safetensors file, or a PyTorch file that holds "
            "tensors only."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ArtifactError(f"{path} holds a {type(content).__name__}, expected weights by name.")
    found = {
        str(name).removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not found:
        raise ArtifactError(f"{path} holds no weights.")
    return found


def fill(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: Path | str,
    layout: str,
    unused: Collection[str] = (),
) -> nn.Module:
    """The network with these weights, strictly; it may have been built on the device "meta".

    Args:
        source: the file, for messages. layout: whose names are expected, for messages.
        unused: beginnings of names that the file may hold beyond the network's.

    Raises:
        ArtifactError: a weight is missing, has another shape, or is one that the network does not know.
    """
    expected = network.state_dict()
    weights = dict(weights)
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):  # not in files of old PyTorch, and never read
            weights.setdefault(name, torch.zeros_like(value, device="cpu"))
    wrong = [name for name in expected if name not in weights or weights[name].shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        found = f"has shape {tuple(weights[name].shape)}" if name in weights else "is missing"
        raise ArtifactError(
            f"{source} does not fit {layout}: {len(wrong)} of {len(expected)} weights differ; the first, {name}, {found}, "
            f"expected {tuple(expected[name].shape)}."
        )
    strange = [
        name for name in weights if name not in expected and not any(name.startswith(u) for u in unused)
    ]
    if strange:
        raise ArtifactError(
            f"{source} does not fit {layout}: it holds {len(strange)} weights that this network does not have (first: "
            f"{strange[0]})."
        )
    network.load_state_dict({name: weights[name] for name in expected}, assign=True)
    return network

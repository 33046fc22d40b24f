"""Checkpoints of a run in progress: weights, averages and optimiser state as safetensors, never a pickle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cadiff.artifacts import new_folder, read_json, write_json
from cadiff.errors import ArtifactError


def save_checkpoint(
    folder: Path,
    step: int,
    trained: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes the state after `step` optimiser steps; the last complete checkpoint stays until the new one is whole.

    Args:
        folder: the checkpoint folder, replaced.
        step: optimiser steps taken.
        trained: name -> trained parameter.
        average: name -> moving average, empty without one.
        optimizer: its state is stored under the same names.
    """
    state = {
        f"{name}/{key}": value
        for name, parameter in trained.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    with new_folder(fresh) as temporary:
        for file, tensors in (("weights", trained), ("average", average), ("optimizer", state)):
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(kept, temporary / f"{file}.safetensors")
        write_json(temporary / "state.json", {"step": step})
    # a folder cannot be replaced in one rename; `RunFolder.last_checkpoint` looks at all three names
    shutil.rmtree(old, ignore_errors=True)
    if folder.is_dir():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    there: Path | None,
    trained: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restores what `save_checkpoint` wrote, in place; returns the step to go on from (0 without a checkpoint).

    Raises:
        ArtifactError: the checkpoint belongs to another model.
    """
    if there is None:
        return 0
    weights = load_file(there / "weights.safetensors")
    if weights.keys() != trained.keys():
        differing = sorted(weights.keys() ^ trained.keys())
        raise ArtifactError(
            f"The checkpoint {there} belongs to another model (first differing weight: {differing[0]})."
        )
    for tensors, file in ((trained, "weights"), (average, "average")):
        stored = load_file(there / f"{file}.safetensors")
        for name, tensor in tensors.items():
            tensor.data.copy_(stored[name])
    for key, value in load_file(there / "optimizer.safetensors").items():
        name, _, entry = key.rpartition("/")
        parameter = trained[name]
        # AdamW keeps its step count on the CPU; moments live beside the parameter
        optimizer.state[parameter][entry] = value if entry == "step" else value.to(parameter.device)
    return int(read_json(there / "state.json")["step"])

"""Checkpoints of a run in progress: weights, averages and optimiser state as safetensors, never a pickle.

They do not say how many processes made them: divided weights are put together, and the main process writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cadiff.artifacts import new_folder, read_json, write_json
from cadiff.blocks import fill, put_together
from cadiff.errors import ArtifactError
from cadiff.processes import is_main


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
    parts = {"weights": trained, "average": average, "optimizer": state}
    files = {file: _kept(tensors) for file, tensors in parts.items()}
    if not is_main():
        return
    fresh = folder.with_name(folder.name + ".new")
    if fresh.is_dir():  # whole, and the newest there is: a save was cut off between its renames
        _promote(fresh, folder)
    with new_folder(fresh) as temporary:
        for file, kept in files.items():
            save_file(kept, temporary / f"{file}.safetensors")
        write_json(temporary / "state.json", {"step": step})
    _promote(fresh, folder)


def load_checkpoint(
    there: Path | None,
    trained: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restores what `save_checkpoint` wrote, in place; returns the step to go on from (0 without a checkpoint).

    Raises:
        ArtifactError: the checkpoint belongs to another model: a name or a shape differs.
    """
    if there is None:
        return 0
    for tensors, file in ((trained, "weights"), (average, "average")):
        stored = load_file(there / f"{file}.safetensors")
        for name in sorted(stored.keys() | tensors.keys()):  # also shapes: copy_ would broadcast
            if name not in stored or name not in tensors or stored[name].shape != tensors[name].shape:
                raise ArtifactError(
                    f"The checkpoint {there} belongs to another model (first differing weight: {name})."
                )
        for name, tensor in tensors.items():
            fill(tensor, stored[name])
    # AdamW keeps its step counts on the CPU, unless its kernel reads them on the device
    on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    for key, value in load_file(there / "optimizer.safetensors").items():
        name, _, entry = key.rpartition("/")
        parameter = trained[name]
        if entry == "step":
            restored = value.to(parameter.device) if on_device else value
        else:  # moments, beside the parameter and in its memory layout (channels_last)
            restored = torch.empty_like(parameter, requires_grad=False)
            fill(restored, value)
        optimizer.state[parameter][entry] = restored
    return int(read_json(there / "state.json")["step"])


def _kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU; in processes that write nothing, only their part in putting them together."""
    whole = ((name, put_together(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in whole if is_main()}


def _promote(fresh: Path, folder: Path) -> None:
    """Puts the whole folder `fresh` in the place of `folder`.

    A folder cannot be replaced in one rename: `RunFolder.last_checkpoint` looks at all three names, and only a folder
    that a whole one has replaced is ever taken apart.
    """
    old = folder.with_name(folder.name + ".old")
    if folder.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)

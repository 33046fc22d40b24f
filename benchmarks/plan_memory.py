"""Does `cadiff plan` predict memory? The most memory that a real step took, over what was counted, for phase 1 at full size.

Run: python benchmarks/plan_memory.py [batch ...]       (about 4 minutes on two cores for the default 2 8 16; 6 GiB)

On a CPU the process's own peak is read (resident set, less what was there before the model); on CUDA PyTorch's.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from cadiff.contrast.mae import FmriMae, FmriMaeConfig
from cadiff.contrast.stage import ContrastConfig, phase_1_loss
from cadiff.plan.stages import contrast_step
from cadiff.plan.workloads import Models

SIZES = FmriMaeConfig(num_voxels=4656)


def main(batches: list[int]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"phase 1, {SIZES.depth} x {SIZES.embed_dim}, {SIZES.num_voxels} voxels, float32, {device}")
    print("| batch | counted, GiB | in", "seconds | measured, GiB | measured / counted |", sep=" ")
    print("|---|---|---|---|---|")
    for batch in batches:
        started = time.perf_counter()
        counted = contrast_step(ContrastConfig(), Models(SIZES), batch, bf16=False).peak
        seconds = time.perf_counter() - started
        command = [sys.executable, "-W", "ignore", __file__, "--measure", str(batch)]
        measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = (
            f"{counted / 2**30:.2f}",
            f"{seconds:.1f}",
            f"{measured / 2**30:.2f}",
            f"{measured / counted:.2f}",
        )
        print(f"| {batch} | {' | '.join(row)} |", flush=True)


def measure(batch: int) -> int:
    """Bytes that one real step takes at its peak, beside the libraries."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = _resident()
    model = FmriMae(SIZES).to(device)
    betas = torch.randn(batch, SIZES.num_voxels, device=device)
    phase_1_loss(model, betas, torch.Generator().manual_seed(0), ContrastConfig())["loss"].backward()
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident() - before


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("batch", type=int, nargs="*", default=[2, 8, 16])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(measure(given.measure))
    else:
        main(given.batch)

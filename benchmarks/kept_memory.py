"""What it is worth that freed memory stays with the process (`cadiff.heap`): the same work in processes with and without.

Run: OMP_NUM_THREADS=1 python benchmarks/kept_memory.py [--pairs 3] [--only WORD ...]

Both ways take turns, each in a process of its own; what is measured begins after a first pass. Printed: medians of processor
seconds, of those the system's, page faults, the largest memory of the process, and the ratio of processor time (above 1: keeping
is faster).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from before_after import MAE, PHASE_1, PHASE_2, drawing, training_step

from cadiff.diffuse.settings import DiffuseConfig
from cadiff.heap import keep_freed_memory
from cadiff.plan.machines import device_name
from cadiff.plan.workloads import WORKLOADS, Models
from cadiff.priors.load import load_prior
from cadiff.vision import load_classifier

HEAD = (
    "| work | freed, s | of which system | faults | GiB | kept, s | of which system | faults | GiB | ratio |"
)


def step(stage: str, size: int) -> Callable[[], object]:
    config = {"contrast": PHASE_1, "attend": PHASE_2, "diffuse": DiffuseConfig(unet_blocks="up")}[stage]
    work = WORKLOADS[stage](config, Models(MAE))
    one = training_step(work, work.batch(size))
    return lambda: [one() for _ in range(4)]


def judging(name: str, batch: int) -> Callable[[], object]:
    classifier = load_classifier(name, device="cpu")
    pictures = torch.randint(0, 256, (128, 64, 64, 3), dtype=torch.uint8).numpy()
    return lambda: classifier.features(pictures, ("pooled",), batch_size=batch)


def encoding(batch: int) -> Callable[[], object]:
    prior, pictures = load_prior("shipped"), torch.rand(64, 3, 64, 64) * 2 - 1
    return lambda: [prior.encode(part) for part in pictures.split(batch)]


WORK: dict[str, Callable[[], Callable[[], object]]] = {
    "judge (Lite2), 128 pictures, 16 at a time": lambda: judging("efficientnet-lite2", 16),
    "judge (Lite2), 128 pictures, 64 at a time": lambda: judging("efficientnet-lite2", 64),
    "latents of 64 pictures, one at a time": lambda: encoding(1),
    "latents of 64 pictures, 16 at a time": lambda: encoding(16),
    "phase 1, four steps of 64": lambda: step("contrast", 64),
    "phase 2, four steps of 16": lambda: step("attend", 16),
    "tuning, four steps of 16": lambda: step("diffuse", 16),
    "drawing, 48 pictures, four steps": lambda: drawing(48, tokens=8, controls=True),
}


def measure(name: str, keep: bool) -> None:
    """In a process of its own: JSON of seconds, those of the system, faults and GiB."""
    if keep:
        assert keep_freed_memory(), "this C library cannot be told"
    torch.manual_seed(0)
    work = WORK[name]()
    work()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    work()
    seconds, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF)
    largest = after.ru_maxrss / 2**20
    print(
        json.dumps([seconds, after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt, largest])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], help="work that contains one of these words")
    args = parser.parse_args()
    print(f"{device_name(torch.device('cpu'))}, PyTorch {torch.__version__}, {args.pairs} pairs\n\n{HEAD}")
    print("|---" * 10 + "|")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    for name in WORK:
        if not any(word in name for word in args.only):
            continue
        found: dict[str, list[list[float]]] = {"freed": [], "kept": []}
        for turn in range(args.pairs):
            for way in ("freed", "kept") if turn % 2 else ("kept", "freed"):
                command = [sys.executable, str(Path(__file__)), "--measure", way, name]
                done = subprocess.run(command, env=plain, check=True, capture_output=True, text=True)
                found[way].append(json.loads(done.stdout))
        cells = [
            f"{median(a):.2f} | {median(b):.2f} | {median(c):,.0f} | {median(d):.2f}"
            for a, b, c, d in (zip(*found[way], strict=True) for way in found)
        ]
        ratios = [a[0] / b[0] for a, b in zip(*found.values(), strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {' | '.join(cells)} | {spread} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[3], keep=sys.argv[2] == "kept")
    else:
        main()

"""Random masking and sparsification: one batched selection against a sort, and against a loop over samples.

Run: python benchmarks/bench_masking.py [--device cuda]    One JSON line a case; ratio > 1: ours is faster.

`argsort` is the original masked auto-encoder's way (two sorts of the noise), `loop` one randperm a sample. All
variants run in the same process, so that ratios do not depend on the machine as times do.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from cadiff.contrast.masking import random_masking, sparsify


def seconds(task: Callable[[], object], device: torch.device, repeats: int = 15) -> float:
    def once() -> float:
        start = time.perf_counter()
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()  # warm-up: allocator, thread pool
    return statistics.median(once() for _ in range(repeats))


def by_argsort(batch: int, tokens: int, kept: int, rng: torch.Generator, device: torch.device) -> None:
    order = torch.rand(batch, tokens, generator=rng).to(device).argsort(1)
    restore = order.argsort(1)
    mask = torch.ones(batch, tokens, device=device)
    mask[:, :kept] = 0
    mask.gather(1, restore)


def by_loop(batch: int, tokens: int, kept: int, rng: torch.Generator, device: torch.device) -> None:
    keep = torch.stack([torch.randperm(tokens, generator=rng)[:kept] for _ in range(batch)]).to(device)
    torch.ones(batch, tokens, dtype=torch.bool, device=device).scatter_(1, keep, False)


def sparsify_by_argsort(betas: torch.Tensor, rate: float, rng: torch.Generator) -> None:
    noise = torch.rand(betas.shape, generator=rng).to(betas.device)
    betas.scatter(1, noise.argsort(1)[:, : int(rate * betas.shape[1])], 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device, rng = torch.device(parser.parse_args().device), torch.Generator().manual_seed(0)
    about = {"device": str(device), "threads": torch.get_num_threads()}
    batch, tokens, kept = (
        500,
        291,
        72,
    )  # phase 1 as published: two views of 250 samples, 4656 voxels, ratio 0.75
    ours = seconds(lambda: random_masking(batch, tokens, 0.75, generator=rng, device=device), device)
    for name, rival in (("argsort", by_argsort), ("loop", by_loop)):
        theirs = seconds(lambda rival=rival: rival(batch, tokens, kept, rng, device), device)
        result = {"name": "masking", "against": name, "ours_ms": round(1e3 * ours, 3)}
        print(json.dumps({**result, "ratio": round(theirs / ours, 2), **about}))
    betas = torch.randn(250, 4656, generator=rng).to(device)
    ours = seconds(lambda: sparsify(betas, 0.2, generator=rng), device)
    theirs = seconds(lambda: sparsify_by_argsort(betas, 0.2, rng), device)
    result = {"name": "sparsify", "against": "argsort", "ours_ms": round(1e3 * ours, 3)}
    print(json.dumps({**result, "ratio": round(theirs / ours, 2), **about}))


if __name__ == "__main__":
    main()

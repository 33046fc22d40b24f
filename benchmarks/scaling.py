"""Does it stay fast as data grow? Time a sample against trials, batch and sequence length, and who waits for whom.

Run: python benchmarks/scaling.py [--trials 1000,1000000] [--voxels 1024] [--size demo|paper] [--folder TMP] [--json FILE]

trials     random batches out of a memory-mapped file of so many trials, read once before: milliseconds a batch (of which choosing
           its trials, that is the order of an epoch), microseconds a sample, and the memory of this process that is not the page
           cache's, which must not grow (1,000,000 trials of 1,024 voxels: 4 GB)
batch      phase 1 in the training loop, samples a second and peak memory at several batches
length     the same at several input lengths
waiting    share of a training step that is spent waiting for the next batch, read from disk as phase 1 reads it; the goal is 2 %.
           On a GPU, where it is read meanwhile, what steps take longer than on a batch that lies ready; on a CPU the reading

Sizes of the network: the demo's or the paper's. Files go into a temporary folder. On a machine that does other work besides,
--processor-time counts what this process computes instead of what the clock says; on one thread of a quiet CPU both are the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cadiff.artifacts import write_json
from cadiff.benchmark.cases import PRESETS
from cadiff.benchmark.reading import make_dataset, open_pool, time_reading
from cadiff.benchmark.training import time_training
from cadiff.contrast.mae import FmriMaeConfig
from cadiff.experiments import preset_configs
from cadiff.heap import keep_freed_memory
from cadiff.plan import Models, find_machine
from cadiff.training import epoch_batches


def resident() -> float:
    """MiB of this process that are its own, without mapped files (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def trials(counts: list[int], voxels: int, batch: int, place: Path) -> Iterator[dict[str, Any]]:
    for count in counts:
        folder = make_dataset(place / f"trials-{count}", count, voxels)
        gc.collect()
        before = resident()
        started = time.perf_counter()
        pool = open_pool(folder, 16)
        opened = time.perf_counter() - started
        for start in range(0, count, 4096):  # the first touch of a page is the system's work, once
            pool.datasets[0].betas[start : start + 4096].sum()
        middle, slowest, _, _ = time_reading(pool, batch)
        indices, chosen = epoch_batches(len(pool), batch, seed=0), []
        for step in range(20):
            started = time.perf_counter()
            indices(step)
            chosen.append(time.perf_counter() - started)
        yield {
            "trials": count,
            "opened_s": opened,
            "batch_ms": 1e3 * middle,
            "slowest_ms": 1e3 * slowest,
            "of_which_choosing_ms": 1e3 * median(chosen),
            "sample_us": 1e6 * middle / batch,
            "memory_mib": resident() - before,
        }
        del pool
        for file in folder.glob("betas*"):
            file.unlink()


def training(configs: Any, sizes: list[tuple[int, int]], machine: Any) -> Iterator[dict[str, Any]]:
    config = configs["contrast"]
    for batch, length in sizes:
        models = Models(FmriMaeConfig(**config.mae.model_dump(), num_voxels=length))
        found = time_training("contrast", config, models, batch, machine, repeats=3, least=0.5)
        yield {
            "batch": batch,
            "voxels": length,
            "samples_s": found.rate,
            "memory_gib": found.memory / 2**30,
            "share": found.share,
        }


def waiting(configs: Any, place: Path, count: int, voxels: int, machine: Any) -> Iterator[dict[str, Any]]:
    """Steps on batches from disk against the same steps on a batch that lies ready."""
    config = configs["contrast"]
    pool = open_pool(make_dataset(place / "waiting", count, voxels), config.mae.patch_size)
    models = Models(FmriMaeConfig(**config.mae.model_dump(), num_voxels=pool.preprocessors[0].num_voxels))
    batch = config.fit.batch_size
    indices = epoch_batches(len(pool), batch, seed=0)
    spent: list[float] = []

    def read(step: int) -> Tensor:
        started = time.perf_counter()
        found = torch.from_numpy(pool.betas(indices(step)))
        spent.append(time.perf_counter() - started)
        return found

    ready = time_training("contrast", config, models, batch, machine, repeats=5, least=0.5)
    fed = time_training("contrast", config, models, batch, machine, repeats=5, least=0.5, batches=read)
    yield {
        "batch": batch,
        "ready_ms": 1e3 * ready.step_s,
        "from_disk_ms": 1e3 * fed.step_s,
        "reading_ms": 1e3 * median(spent),
        "waiting_share": median(spent) / fed.step_s
        if machine.on_cpu
        else max(0.0, 1 - ready.step_s / fed.step_s),
    }


def table(name: str, found: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints rows as they come."""
    kept: list[dict[str, Any]] = []
    for row in found:
        if not kept:
            print(f"\n{name}\n\n| {' | '.join(row)} |\n|{'---|' * len(row)}")
        kept.append(row)
        print(
            "| " + " | ".join(f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for v in row.values()) + " |",
            flush=True,
        )
    return kept


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=numbers, default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--voxels", type=int, default=1024)
    parser.add_argument("--batches", type=numbers, default=[8, 32, 128])
    parser.add_argument("--lengths", type=numbers, default=[512, 1024, 2048, 4096])
    parser.add_argument("--size", choices=tuple(PRESETS), default="demo")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=["trials", "batch", "length", "waiting"]
    )
    parser.add_argument(
        "--folder", type=Path, help="where to put the files; the system's temporary folder by default"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processor-time", action="store_true", help="with OMP_NUM_THREADS=1")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    if options.processor_time:
        time.perf_counter = time.process_time
    configs = preset_configs(PRESETS[options.size][0])
    machine = find_machine("this")
    usual = configs["contrast"].fit.batch_size
    print(f"{machine.name}, {options.size} sizes")
    record: dict[str, Any] = {"kind": "scaling", "format": 1, "machine": machine.name, "size": options.size}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        place = Path(scratch)
        parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "trials": lambda: trials(options.trials, options.voxels, usual, place),
            "batch": lambda: training(configs, [(b, options.voxels) for b in options.batches], machine),
            "length": lambda: training(configs, [(usual, v) for v in options.lengths], machine),
            "waiting": lambda: waiting(configs, place, 20_000, options.voxels, machine),
        }
        for name in options.parts:
            record[name] = table(name, parts[name]())
            if options.json is not None:
                write_json(options.json, json.loads(json.dumps(record)))


if __name__ == "__main__":
    main()

"""What sharing a batch of phase 1 among processes costs: seconds a step, and the part of it that goes into averaging gradients.

    python benchmarks/processes.py --processes 1 2 --width 256 --rows 8

Every process holds `--rows` rows, so a step should take as long with two processes as with one, plus the communication (weak
scaling). Processes wait for each other before they average, so that what the slowest one takes longer, on a machine that does
other work besides, does not count as communication. On a CPU: gloo, one thread each. Under a launcher on GPUs the same functions
run over NCCL.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from cadiff import processes
from cadiff.contrast.mae import FmriMae, FmriMaeConfig, initialise
from cadiff.contrast.stage import ContrastConfig, phase_1_loss
from cadiff.sharing import average_gradients, shared_batches


def steps(rank: int, world: int, port: int, arguments: argparse.Namespace) -> None:
    if world > 1:
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    width = arguments.width
    size = FmriMaeConfig(num_voxels=4096, embed_dim=width, depth=8, num_heads=8, decoder_embed_dim=width // 2,
                         decoder_depth=2, decoder_num_heads=8)  # fmt: skip
    model = FmriMae(size)
    initialise(model, torch.Generator().manual_seed(0))
    config, optimizer = ContrastConfig(), torch.optim.AdamW(model.parameters())
    betas = torch.randn(arguments.rows, 4096, generator=torch.Generator().manual_seed(rank))
    spent = {"step": 0.0, "waiting": 0.0, "averaging": 0.0}
    with shared_batches():
        for step in range(arguments.steps + 1):
            if step == 1:  # the first one is not counted
                spent = dict.fromkeys(spent, 0.0)
            _timed(spent, "step", partial(_step, model, betas, config, optimizer, spent))
    if processes.is_main():
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        each = {name: seconds / arguments.steps for name, seconds in spent.items()}
        print(
            f"{world} process(es), {arguments.rows} rows each, {count / 1e6:.1f} M parameters: {each['step']:.3f} s a step, "
            f"{each['averaging']:.4f} s of it averaging gradients ({100 * each['averaging'] / each['step']:.1f} %), "
            f"{each['waiting']:.3f} s waiting for the slowest"
        )


def _step(
    model: FmriMae, betas: torch.Tensor, config: ContrastConfig, optimizer: Any, spent: dict[str, float]
) -> None:
    phase_1_loss(model, betas, torch.Generator().manual_seed(0), config)["loss"].backward()
    if processes.world() > 1:
        _timed(spent, "waiting", torch.distributed.barrier)
    _timed(spent, "averaging", lambda: average_gradients(model.parameters()))
    optimizer.step()
    optimizer.zero_grad()


def _timed(spent: dict[str, float], name: str, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    spent[name] += time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    for world in given.processes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(steps, (world, port, given), nprocs=world)

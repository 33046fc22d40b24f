"""Runs a function in several connected processes, as a launcher would, and brings back what each returned."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def nursery() -> Any:
    """Starts processes that have imported what takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cadiff.attend.stage", "cadiff.diffuse.stage", "cadiff.priors.train"])
    return context


def launch(function: Callable[..., Any], folder: Path, *args: Any, processes: int = 2) -> list[Any]:
    """What `function(*args)` returns in each process, in order; what they print goes to `folder`/NUMBER.txt.

    Raises:
        AssertionError: a process did not end well; the message is what it printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = nursery()
    started = [
        context.Process(target=_child, args=(rank, processes, port, folder, function, args))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        if process.exitcode is None:
            process.kill()
    codes = [process.exitcode for process in started]
    assert codes == [0] * processes, "\n".join([str(codes), *printed(folder, processes)])
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def printed(folder: Path, processes: int = 2) -> list[str]:
    """What each process printed."""
    return [(folder / f"{rank}.txt").read_text() for rank in range(processes)]


def _child(
    rank: int, processes: int, port: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    values = (rank, rank, processes, "127.0.0.1", port)
    os.environ.update({name: str(value) for name, value in zip(NAMES, values, strict=True)})
    torch.set_num_threads(1)
    with (folder / f"{rank}.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            torch.save(function(*args), folder / f"{rank}.pt")
        except Exception:
            traceback.print_exc(file=sys.stdout)
            raise
        finally:
            file.flush()

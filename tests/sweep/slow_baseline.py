"""Baselines for a process of its own: they say what it is like, and wait until they may go on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np


def say(*what: Any) -> None:
    with Path(os.environ["SLOW_LOG"]).open("a") as file:
        file.write(" ".join(map(str, what)) + "\n")


class Grey:
    """Answers the same grey picture."""

    def reconstruct(self, betas: Any, *, stimulus_ids: Any, repeats: Any) -> np.ndarray:
        return np.full((len(betas), 1, 16, 16, 3), 128 + len(stimulus_ids), np.uint8) + np.arange(
            len(betas), dtype=np.uint8
        ).reshape(-1, 1, 1, 1, 1)


class Slow(Grey):
    """SLOW_LOG gets a line a fit with the process that fits, SLOW_UNTIL is a file."""

    @classmethod
    def fit(cls, dataset: Any, rows: Any, *, wait: bool = False) -> Slow:
        say(os.getpid())
        while wait and not Path(os.environ["SLOW_UNTIL"]).exists():
            time.sleep(0.05)
        return cls()


class Telling(Grey):
    """SLOW_LOG gets what the process that fits is like."""

    @classmethod
    def fit(cls, dataset: Any, rows: Any, *, name: str = "") -> Telling:
        about = {
            "name": name,
            "pid": os.getpid(),
            "group": os.getpgrp(),
            "parent": os.getppid(),
            "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
            "threads": threads(),
        }
        say(json.dumps(about))
        return cls()


def threads() -> dict[str, Any]:
    """How many threads libraries have, and how many torch really starts."""
    import scipy.linalg  # brings an OpenBLAS of its own
    import torch
    from threadpoolctl import threadpool_info

    assert scipy.linalg
    before = len(os.listdir("/proc/self/task"))
    torch.rand(2_000_000).exp()
    return {
        "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
        "torch": torch.get_num_threads(),
        "started": len(os.listdir("/proc/self/task")) - before,
        "pools": sorted((pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()),
    }


class Parent(Grey):
    """Starts a process that sleeps, says which, and waits."""

    @classmethod
    def fit(cls, dataset: Any, rows: Any) -> Parent:
        child = subprocess.Popen(["sleep", "1000"])
        say(os.getpid(), child.pid)
        time.sleep(1000)
        return cls()

"""Several processes that do one job: who they are, and what only the first of them does.

A launcher (`accelerate launch`, `torchrun`, `srun`) starts the same command N times and says in the environment which of them
each is. The first one, the main process, owns the disk and the screen: folders, locks, logs and sentences are its alone; the
others wait where they need what it made. Outside a launcher there is one process, and everything here does nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from cadiff.errors import ConfigError, UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""How long a process waits for the others: the main one may be reading or drawing pictures for hours."""
GRACE_S = 20.0
"""Seconds that another process leaves the main one to say what is wrong, before it says so itself."""
TOLD = "cadiff/told"
"""Key under which the main process notes that it has."""

_store: Any = None  # what the processes know of each other, once they are connected


def world() -> int:
    """Number of processes that a launcher started for this job; 1 without a launcher."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1"))) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def takes_part(*, together: bool) -> bool:
    """Whether this process has anything to do in a command; called once, before it begins.

    A command that processes do not do `together` is the main one's alone, which then forgets that there are others. What the
    others would print to the screen is dropped.
    """
    if world() == 1:
        return True
    if not together:
        taking_part = is_main()
        for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
        return taking_part
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.environ["TQDM_DISABLE"] = "1"
    return True


def start() -> torch.device:
    """Connects the processes, once, and gives the device of this one; NCCL on GPUs, gloo on CPUs.

    It is cuda or cpu, as everywhere in cadiff, whatever else a machine has (Apple's mps).

    Raises:
        ConfigError: more processes on this machine than it has GPUs.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    global _store
    gpus = torch.cuda.device_count()
    on_gpu = gpus > 0 and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
    if world() == 1:
        return torch.device("cuda" if on_gpu else "cpu")
    number = int(os.environ["LOCAL_RANK"])
    if on_gpu and number >= gpus:
        raise ConfigError(
            f"More than {gpus} processes were launched on a machine with {gpus} GPU{'s' * (gpus > 1)}: launch one for each GPU."
        )
    device = torch.device("cuda", number) if on_gpu else torch.device("cpu")
    if not dist.is_initialized():
        if on_gpu:
            torch.cuda.set_device(device)
        _store, number, size = next(rendezvous("env://", timeout=PATIENCE))
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=_store, rank=number, world_size=size, timeout=PATIENCE)
        atexit.register(_leave)
    return device


def on_main(work: Callable[[], T]) -> T:
    """`work()` of the main process, for all: the others wait for its result, or for its error.

    Every process must come here, in the same order. The result travels as a pickle between processes of one job.
    """
    if world() == 1:
        return work()
    import torch.distributed as dist

    start()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:
            told: Exception = (
                error if isinstance(error, UserError) else RuntimeError(f"the main process: {error!r}")
            )
            dist.broadcast_object_list([None, told], src=0)
            raise
    dist.broadcast_object_list(outcome, src=0)
    result, error = outcome
    if error is not None:
        error.from_main = True
        raise error
    return result


def say(sentence: str, error: BaseException) -> None:
    """Prints what went wrong to stderr, once for all processes, before this one leaves.

    Most mistakes are met by all alike: the main process says so. The others leave after it, because a launcher ends all when the
    first one leaves. What a single process met (a file that only its machine lacks) is said by that process.
    """
    if not is_main() and _main_said_it(error):
        return
    print(sentence, file=sys.stderr, flush=True)
    if is_main() and _store is not None:
        _store.set(TOLD, "1")


def _main_said_it(error: BaseException) -> bool:
    if _store is None:  # so early, it happens to all; the launcher ends this process while it waits
        time.sleep(GRACE_S)
        return False
    from torch.distributed import DistNetworkError, DistStoreError

    try:
        _store.wait([TOLD], timedelta(seconds=GRACE_S))
    except DistNetworkError:  # the main process has left
        return True
    except DistStoreError:
        return hasattr(error, "from_main")
    time.sleep(1)
    return True


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()

"""One cell in a process of its own: `python -m cadiff.sweep.work OUT CELL`. What is there already is not made again.

A stage that several cells share is made by whoever holds its lock; the others wait for it. cell.json says what is to be made,
status.json where the work stands, for the process that started this one and for the next.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from filelock import FileLock

from cadiff.artifacts import made_by, read_json, write_json
from cadiff.errors import UserError
from cadiff.experiments import Step
from cadiff.heap import keep_freed_memory
from cadiff.processes import is_main, takes_part
from cadiff.sweep.plan import STAGES_FOLDER, lock_of, restored

FAILED = 2


def make_cell(out: Path, folder: Path, *, processes: int = 1, only: str | None = None) -> int:
    """Makes every step of the cell in `folder` that is not there; 0, or `FAILED` with the reason in status.json."""
    with made_by(_command(out, folder)):
        return _make_cell(out, folder, processes, only)


def _command(out: Path, folder: Path) -> str | None:
    """The sweep's own command, with the cell behind it as a comment of the shell."""
    record = out / "sweep.json"
    if not record.is_file():
        return None
    return f"{read_json(record)['provenance']['command']}  # {folder.parent.name}/{folder.name}"


def _make_cell(out: Path, folder: Path, processes: int, only: str | None) -> int:
    steps, places = restored(read_json(folder / "cell.json"))
    stages = out / STAGES_FOLDER
    results: dict[str, Path] = {}
    for step in steps:
        results[step.name] = stages / places[step.name] / step.result
    if only is not None:  # one of several processes that train this step together
        step = next(step for step in steps if step.name == only)
        step.run(results, stages / places[only], True)
        return 0
    making = None
    try:
        for step in steps:
            making, target = step, stages / places[step.name]
            if step.done(target):
                continue
            write_json(folder / "status.json", {"status": "waiting", "step": step.name, "stage": target.name})
            lock = lock_of(target)
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                if step.done(target):
                    continue
                print(step.line or step.name, flush=True)
                write_json(
                    folder / "status.json", {"status": "making", "step": step.name, "stage": target.name}
                )
                for leftover in stages.glob(
                    f".{target.name}.*"
                ):  # of a process that was killed while it wrote
                    if leftover.suffix == ".work":  # a baseline's training, which goes on
                        continue
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                if step.trains and processes > 1:
                    _together(step, out, folder, processes)
                else:
                    step.run(results, target, True)
        write_json(folder / "status.json", {"status": "done"})
    except Exception as error:
        where = {"step": making.name, "stage": places[making.name]} if making else {}
        write_json(folder / "status.json", {"status": "failed", **where, "error": in_a_sentence(error)})
        if not isinstance(error, UserError):
            traceback.print_exc()
        print(f"error: {in_a_sentence(error)}", file=sys.stderr, flush=True)
        return FAILED
    return 0


def in_a_sentence(error: BaseException) -> str:
    """The last line of an error; a bug keeps its type."""
    text = str(error).strip().splitlines()
    last = text[-1] if text else "no message"
    return last if isinstance(error, UserError) else f"{type(error).__name__}: {last}"


def _together(step: Step, out: Path, folder: Path, processes: int) -> None:
    """A training step in several processes."""
    command = launch_command(
        processes, [str(out), str(folder), "--only", step.name, "--watch", str(os.getpid())]
    )
    (folder / "rank.json").unlink(missing_ok=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        told = read_json(folder / "rank.json")["error"] if (folder / "rank.json").is_file() else None
        raise UserError(
            told
            or f"The processes of {step.name} ended with {done.returncode}; its last words are in {folder / 'log.txt'}."
        )


def launch_command(processes: int, arguments: list[str]) -> list[str]:
    """The command that runs this module in several processes of one machine, whatever accelerate's own defaults are.

    Without GPUs `accelerate launch` starts one process only, so torchrun takes its place.
    """
    import torch

    module = ["-m", "cadiff.sweep.work", *arguments]
    if not torch.cuda.is_available():
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return [sys.executable, *launch, *module]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    fixed = [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    return [sys.executable, *launch, *fixed, *module]


def _watch(pid: int) -> None:
    """Ends this process, and what it started, when the process `pid` is gone: nobody would collect the result."""
    parent = os.getppid() == pid

    def gone() -> bool:
        if parent:
            return os.getppid() != pid
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    def loop() -> None:
        while not gone():
            time.sleep(0.2)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=loop, daemon=True).start()


def quieten() -> None:
    """Libraries that are imported from now on speak of errors only."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m cadiff.sweep.work`."""
    parser = argparse.ArgumentParser(prog="cadiff.sweep.work")
    parser.add_argument("out", type=Path)
    parser.add_argument("cell", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only")
    parser.add_argument("--watch", type=int)
    given: Any = parser.parse_args(arguments)
    if given.watch:
        _watch(given.watch)
    quieten()
    keep_freed_memory()
    if given.only:
        takes_part(together=True)
    try:
        return make_cell(given.out, given.cell, processes=given.processes, only=given.only)
    except Exception as error:
        told = given.cell / "rank.json"
        if is_main() or not told.exists():  # most mistakes are met by all processes alike
            write_json(told, {"error": in_a_sentence(error)})
        raise


if __name__ == "__main__":
    sys.exit(main())

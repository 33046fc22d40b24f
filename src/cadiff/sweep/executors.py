"""Where cells are made: processes of this machine, or jobs of a cluster through submitit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from cadiff.errors import ConfigError, MissingExtraError
from cadiff.sweep.warm import Warm, can_fork

SLURM = {
    "gpus": "slurm_gpus_per_node",
    "time": "slurm_time",
    "cpus": "slurm_cpus_per_task",
    "mem": "slurm_mem",
    "nodes": "slurm_nodes",
}
"""Short words of --slurm."""
OWN = ("partition", "account", "qos", "constraint", "exclude", "nodelist", "gres", "comment")
"""Words that submitit has under the same name."""


class Running(Protocol):
    """A cell that is being made."""

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        ...

    def stop(self) -> None:
        """Ends it."""
        ...


class Executor(Protocol):
    """Starts cells."""

    def start(self, out: Path, cell: Path, slot: int) -> Running:
        """Makes the cell in folder `cell`; `slot` counts from 0 and is free."""
        ...

    def close(self) -> None:
        """Gives back what it holds, after the last cell."""
        ...


def work_command(out: Path, cell: Path, processes: int, watch: int | None = None) -> list[str]:
    """The command that makes one cell."""
    together = ["--processes", str(processes)] if processes > 1 else []
    watched = ["--watch", str(watch)] if watch else []
    return [sys.executable, "-m", "cadiff.sweep.work", str(out), str(cell), *together, *watched]


class LocalRun:
    """A process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        """As `Running`."""
        return self.process.poll()

    def stop(self) -> None:
        """Ends it and what it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()


class Local:
    """`jobs` processes at a time, threads and GPUs divided among them."""

    def __init__(self, jobs: int, processes: int = 1) -> None:
        self.jobs, self.processes = jobs, processes
        self._warm: Warm | None = None

    def start(self, out: Path, cell: Path, slot: int) -> Running:
        """As `Executor`."""
        environment = {**os.environ, **shares(slot, self.jobs, self.processes, gpus(), os.environ)}
        log = cell / "log.txt"
        if can_fork() and self.processes == 1:
            if self._warm is None or self._warm.process.poll() is not None:
                self.close()
                self._warm = Warm(environment, log)
            with suppress(EOFError):  # a fresh interpreter will say what is wrong
                return self._warm.start(work_command(out, cell, 1), environment, log)
        command = work_command(out, cell, self.processes, os.getpid())
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        return LocalRun(process)

    def close(self) -> None:
        """As `Executor`."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None


def shares(
    slot: int, jobs: int, processes: int, devices: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Environment of the cell in `slot`: its share of the threads, and of the GPUs where there are several."""
    given = environment.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdigit() and int(given) else os.cpu_count() or 1
    found = {"OMP_NUM_THREADS": str(max(1, threads // (jobs * processes)))}
    if len(devices) > 1:
        own = [devices[(slot * processes + i) % len(devices)] for i in range(processes)]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(own))
    return found


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class ClusterRun:
    """A job of submitit."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        """As `Running`."""
        if not self.job.done():
            return None
        return 1 if self.job.exception() is not None else int(self.job.result())

    def stop(self) -> None:
        """Cancels it."""
        self.job.cancel()


class Cluster:
    """Jobs through submitit: Slurm, or with cluster=local and cluster=debug this machine."""

    def __init__(self, out: Path, settings: Mapping[str, str], processes: int = 1) -> None:
        try:
            import submitit
        except ModuleNotFoundError:
            raise MissingExtraError("--slurm needs submitit: pip install 'cadiff[slurm]'.") from None
        wanted = dict(settings)
        self._cluster = wanted.pop("cluster", "slurm")
        self._parameters, self._processes = slurm_parameters(wanted), processes
        self._folder, self._executor = out / "slurm" / "%j", None
        try:
            with TemporaryDirectory() as scratch:  # what submitit refuses is refused before a folder is made
                self._submitter(submitit, Path(scratch))
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise ConfigError(f"--slurm: submitit refuses it: {' '.join(str(error).split())}.") from None

    def _submitter(self, submitit: Any, folder: Path) -> Any:
        executor = submitit.AutoExecutor(folder=folder, cluster=self._cluster)
        executor.update_parameters(name="cadiff-sweep", **self._parameters)
        return executor

    def start(self, out: Path, cell: Path, slot: int) -> ClusterRun:
        """As `Executor`."""
        import submitit

        self._executor = self._executor or self._submitter(submitit, self._folder)
        command = work_command(out.resolve(), cell.resolve(), self._processes)
        return ClusterRun(self._executor.submit(ClusterCell(command, str(cell.resolve() / "log.txt"))))

    def close(self) -> None:
        """As `Executor`."""


class ClusterCell:
    """What a job runs; put back into the queue by Slurm it goes on from the last checkpoint."""

    def __init__(self, command: list[str], log: str) -> None:
        self.command, self.log = command, log

    def __call__(self) -> int:
        """The exit status of the cell."""
        with open(self.log, "ab") as log:
            return subprocess.run(self.command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode

    def checkpoint(self) -> Any:
        """Called by submitit before a job is preempted or out of time."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def slurm_parameters(settings: Mapping[str, str]) -> dict[str, Any]:
    """--slurm's words as submitit's parameters; what submitit does not know goes to sbatch as it is."""
    found: dict[str, Any] = {}
    further: dict[str, Any] = {}
    for key, text in settings.items():
        value: Any = int(text) if text.isdigit() else text
        if key in SLURM:
            found[SLURM[key]] = value
        elif key in OWN:
            found[f"slurm_{key}"] = value
        else:
            further[key] = value
    return {**found, **({"slurm_additional_parameters": further} if further else {})}


def parse_slurm(text: str) -> dict[str, str]:
    """`partition=gpu,gpus=1,time=04:00:00` -> a dict.

    Raises:
        ConfigError: a part without "=".
    """
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, sign, value = part.partition("=")
        if not sign or not key or not value:
            raise ConfigError(
                f"--slurm {part!r} is not of the form key=value: --slurm partition=gpu,gpus=1,time=04:00:00."
            )
        found[key.strip()] = value.strip()
    return found

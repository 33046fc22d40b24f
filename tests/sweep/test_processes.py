"""Runs in processes of their own: killed and gone on with, through submitit, and the commands that start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cadiff.artifacts import read_json
from cadiff.errors import ConfigError, MissingExtraError
from cadiff.sweep import Given, run_sweep
from cadiff.sweep.executors import Cluster, parse_slurm, shares, slurm_parameters, work_command
from cadiff.sweep.work import launch_command


@pytest.fixture
def slow(write, fits, linear_brain):
    """A table of a quick and a slow row, and the file that every fit writes a line into."""
    rows = "".join(
        f"  - {{name: {name}, baseline: 'slow_baseline:Slow', options: {{wait: {wait}}}}}\n"
        for name, wait in (("quick", "false"), ("slow", "true"))
    )
    return write(f"dataset: {linear_brain}\nrows:\n{rows}"), fits


def wait_for(condition, seconds=600.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_killed_and_run_again_it_goes_on_with_what_is_missing(slow, gone, tmp_path):
    table, log = slow
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cadiff", "sweep", str(table), "--out", str(out)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: log.is_file() and len(log.read_text().splitlines()) == 2)  # the slow one has begun
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "Another process is working in" in refused.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    orphan = int(log.read_text().splitlines()[1])
    assert gone(orphan, 600)
    assert not (out / "comparison.html").exists()
    (tmp_path / "go").touch()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(log.read_text().splitlines()) == 3  # the quick one was not made again
    assert (out / "comparison.html").is_file()
    left = [
        path.name
        for path in (out / "stages").iterdir()
        if path.name.startswith(".") and path.name != ".locks"
    ]
    assert left == []
    assert set(pd.read_csv(out / "results.tsv", sep="\t")["status"]) == {"done"}


@pytest.mark.slow
def test_submitit_runs_the_same_commands(slow, tmp_path):
    pytest.importorskip("submitit")
    table, log = slow
    (tmp_path / "go").touch()
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "cadiff",
        "sweep",
        str(table),
        "--out",
        str(out),
        "--slurm",
        "cluster=local",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "comparison.html").is_file() and list((out / "slurm").iterdir())  # submitit's own logs
    assert len(log.read_text().splitlines()) == 2
    assert read_json(out / "cells" / "slow" / "subject-seed-0" / "status.json") == {"status": "done"}


def test_a_cell_that_fails_in_a_job_is_told_by_its_last_sentence(write, linear_brain, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr("cadiff.sweep.executors.ClusterCell.__call__", lambda self: 2)
    out = tmp_path / "out"
    table = write(f"dataset: {linear_brain}\nrows:\n  - {{name: a, baseline: retrieval}}\n")
    monkeypatch.setattr(submitit.AutoExecutor, "submit", lambda self, cell: Done(cell()))
    outcome = run_sweep(table, out, Given(), executor=Cluster(out, {"cluster": "debug"}), show=False)
    assert "its process ended with 2" in outcome.failed["a/subject-seed-0"]


class Done:
    """A job that has ended."""

    def __init__(self, code: int) -> None:
        self.code = code

    def done(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def result(self) -> int:
        return self.code


def test_without_submitit_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cadiff\[slurm\]'"):
        Cluster(tmp_path, {})


def test_settings_of_slurm_become_those_of_submitit(tmp_path):
    submitit = pytest.importorskip("submitit")
    parsed = parse_slurm("partition=gpu,gpus=2,time=04:00:00,licenses=x")
    found = slurm_parameters(parsed)
    assert found == {
        "slurm_partition": "gpu",
        "slurm_gpus_per_node": 2,
        "slurm_time": "04:00:00",
        "slurm_additional_parameters": {"licenses": "x"},
    }
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="debug")
    executor.update_parameters(**found)  # submitit knows them all
    with pytest.raises(ConfigError, match="submitit refuses it"):
        Cluster(tmp_path, {"cluster": "cloud"})


def test_threads_and_gpus_are_divided():
    assert shares(0, 4, 1, ["0"], {"OMP_NUM_THREADS": "8"}) == {"OMP_NUM_THREADS": "2"}
    assert shares(0, 16, 1, [], {"OMP_NUM_THREADS": "8"}) == {"OMP_NUM_THREADS": "1"}
    own = [shares(slot, 2, 2, ["0", "1", "2", "3"], {})["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert own == ["0,1", "2,3"]


def test_a_stage_in_several_processes_is_launched_by_accelerate(tmp_path, monkeypatch):
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    arguments = ["out", "cell", "--only", "contrast"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    command = launch_command(3, arguments)
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    parsed = launch_command_parser().parse_args(command[3:])
    assert (parsed.num_processes, parsed.num_machines, parsed.multi_gpu, parsed.module) == (3, 1, True, True)
    assert [parsed.training_script, *parsed.training_script_args] == ["cadiff.sweep.work", *arguments]

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # where accelerate would start one process
    command = launch_command(3, arguments)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    parsed = get_args_parser().parse_args(command[3:])
    assert (parsed.nproc_per_node, parsed.module, parsed.training_script) == ("3", True, "cadiff.sweep.work")
    assert parsed.training_script_args == arguments

    cell = work_command(tmp_path, tmp_path / "cell", 3, watch=os.getpid())
    assert cell[-4:] == ["--processes", "3", "--watch", str(os.getpid())]
    assert "--processes" not in work_command(tmp_path, tmp_path / "cell", 1)

"""Cells that are forks: each a process of its own with its share of the machine, and none that outlives the sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cadiff.artifacts import read_json
from cadiff.sweep import run_sweep
from cadiff.sweep.drive import drive
from cadiff.sweep.executors import Local, LocalRun
from cadiff.sweep.warm import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes of this system do not fork")
PARENT = "rows:\n  - {name: a, baseline: 'slow_baseline:Parent'}\n"


@pytest.mark.parametrize(
    ("jobs", "gpus"), [pytest.param(1, ["5", "5"], marks=pytest.mark.slow), (2, ["5", "7"])]
)
def test_a_cell_is_a_process_of_its_own_with_its_share_of_threads_and_gpus(
    write, linear_brain, fits, gone, tmp_path, monkeypatch, jobs, gpus
):
    pytest.importorskip("threadpoolctl")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    rows = "".join(
        f"  - {{name: {name}, baseline: 'slow_baseline:Telling', options: {{name: {name}}}}}\n"
        for name in "ab"
    )
    table = write(f"dataset: {linear_brain}\nrows:\n{rows}")
    assert run_sweep(table, tmp_path / "out", executor=Local(jobs), jobs=jobs, show=False).failed == {}
    cells = sorted(
        (json.loads(line) for line in fits.read_text().splitlines()), key=lambda cell: cell["name"]
    )
    assert [cell["name"] for cell in cells] == ["a", "b"]
    assert [cell["gpus"] for cell in cells] == gpus
    fresh = [sys.executable, "-c", "import json, slow_baseline; print(json.dumps(slow_baseline.threads()))"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // jobs)}
    threads = json.loads(subprocess.check_output(fresh, env=environment))
    assert threads["started"] == threads["torch"] - 1  # the one that asks computes too
    for cell in cells:
        assert cell["group"] == cell["pid"] and cell["parent"] not in (cell["pid"], os.getpid())
        assert cell["threads"] == threads
        said = (tmp_path / "out" / "cells" / cell["name"] / "subject-seed-0" / "log.txt").read_text()
        assert said.startswith("baseline: slow_baseline:Telling")
    assert len({cell["pid"] for cell in cells}) == 2
    (server,) = {cell["parent"] for cell in cells}
    assert gone(server)  # with the sweep


def test_stopped_a_cell_takes_along_what_it_started(write, linear_brain, begun, fits, gone, tmp_path):
    def interrupt(running):
        if fits.is_file() and fits.read_text().endswith("\n"):
            raise KeyboardInterrupt

    work, executor = begun(write(f"dataset: {linear_brain}\n{PARENT}"), tmp_path / "out"), Local(1)
    with pytest.raises(KeyboardInterrupt):
        list(drive(work, executor, 1, watch=interrupt))
    cell, child = map(int, fits.read_text().split())
    assert gone(cell) and gone(child, 5)
    executor.close()


@pytest.mark.slow
def test_interrupted_at_the_keyboard_nothing_stays_behind(write, linear_brain, fits, gone, tmp_path):
    table = write(f"dataset: {linear_brain}\n{PARENT}")
    command = [sys.executable, "-m", "cadiff", "sweep", str(table), "--out", str(tmp_path / "out")]
    sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (fits.is_file() and fits.read_text().endswith("\n")):
        assert sweep.poll() is None
        time.sleep(0.05)
    cell, child = map(int, fits.read_text().split())
    server = int(Path(f"/proc/{cell}/stat").read_text().split()[3])
    sweep.send_signal(signal.SIGINT)
    _, said = sweep.communicate(timeout=60)
    assert sweep.returncode == 130 and "interrupted" in said
    assert all(gone(pid, 5) for pid in (cell, child, server))


@pytest.mark.slow
def test_a_server_that_is_killed_costs_the_cells_it_had_forked_and_no_others(
    write, linear_brain, begun, fits, gone, tmp_path
):
    rows = "".join(
        f"  - {{name: {name}, baseline: 'slow_baseline:Slow', options: {{wait: {wait}}}}}\n"
        for name, wait in (("a", "true"), ("b", "false"))
    )
    work, executor = begun(write(f"dataset: {linear_brain}\nrows:\n{rows}"), tmp_path / "out"), Local(1)
    killed = []

    def kill(running):
        if not killed and fits.is_file() and fits.read_text().endswith("\n"):
            killed.append(executor._warm)
            os.kill(killed[0].process.pid, signal.SIGKILL)

    events = {event.planned.cell.row: str(event.error) for event in drive(work, executor, 1, watch=kill)}
    executor.close()
    assert killed and "signal 9" in events["a"] and events["b"] == "None"
    assert gone(int(fits.read_text().splitlines()[0]), 5)
    assert read_json(work.folder(work.cells[1]) / "status.json") == {"status": "done"}


def test_where_an_import_has_touched_a_gpu_a_cell_is_a_fresh_interpreter(gone, tmp_path):
    """What CUDA was told before a fork does not hold after it, and torch refuses to go on."""
    code = (
        "import torch; torch.cuda._is_in_bad_fork = lambda: True\n"
        "from cadiff.sweep import serve; serve.PRELOAD = (); serve.main()"
    )
    command = [sys.executable, "-c", "import sys; print('fresh', sys.argv[1:])"]
    question = {"number": 1, "command": command, "environment": {}, "log": str(tmp_path / "log")}
    asked = [sys.executable, "-c", code]
    said = subprocess.run(
        asked, input=json.dumps(question) + "\n", capture_output=True, text=True, check=True
    )
    number, pid = json.loads(said.stdout)
    assert number == 1 and gone(pid, 60)
    assert (tmp_path / "log").read_text().startswith("fresh ['--watch'")


def test_the_answer_of_a_cell_that_has_ended_may_be_asked_for_again(tmp_path):
    """Ctrl-C may come between an answer and its reader; a server that ended then would take all other cells along."""
    code = (
        "import torch; torch.cuda._is_in_bad_fork = lambda: True\n"
        "from cadiff.sweep import serve; serve.PRELOAD = (); serve.main()"
    )
    asked = [sys.executable, "-c", code]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        questions, answers = server.stdin, server.stdout
        assert questions is not None and answers is not None

        def ask(**question):
            print(json.dumps({"number": 1, **question}), file=questions, flush=True)
            return json.loads(answers.readline() or '[1, "gone"]')[1]

        command = [sys.executable, "-c", "raise SystemExit(3)"]
        pid = ask(command=command, environment={}, log=str(tmp_path / "log"))
        while (status := ask(pid=pid)) is None:
            time.sleep(0.05)
        assert (status, ask(pid=pid)) == (3, 3)
        questions.close()
    assert server.returncode == 0


def test_where_the_server_cannot_start_a_cell_is_a_fresh_interpreter(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'cadiff.sweep.serve' in sys.orig_argv:\n    sys.exit('no server')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    executor, cell = Local(1), tmp_path / "cell"
    cell.mkdir()
    run = executor.start(tmp_path, cell, 0)
    while run.poll() is None:
        time.sleep(0.05)
    executor.close()
    assert isinstance(run, LocalRun)
    said = (cell / "log.txt").read_text()
    assert "no server" in said and "cell.json" in said.splitlines()[-1]  # which there is none

"""Run folders: refuse, resume, log."""

import json
import subprocess
import sys

import pytest

from cadiff.config import Config
from cadiff.errors import ArtifactError
from cadiff.runs import RunFolder


class Settings(Config):
    depth: int = 1


def test_a_run_is_never_overwritten_but_can_be_resumed(tmp_path):
    out = tmp_path / "run"
    RunFolder.open(out, stage="toy", config=Settings(), inputs={"data": "1"})
    with pytest.raises(ArtifactError, match="never overwritten"):
        RunFolder.open(out, stage="toy", config=Settings(), inputs={"data": "1"})
    assert not RunFolder.open(out, stage="toy", config=Settings(), inputs={"data": "1"}, resume=True).complete


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": Settings(depth=2)}, r"depth \(1 there, 2 now\)"),
        ({"stage": "other"}, "stage differ"),
        ({"inputs": {"data": "2"}}, "inputs differ"),
    ],
)
def test_resuming_something_else_is_refused(tmp_path, change, says):
    same = {"stage": "toy", "config": Settings(), "inputs": {"data": "1"}}
    RunFolder.open(tmp_path / "run", **same)
    with pytest.raises(ArtifactError, match=says):
        RunFolder.open(tmp_path / "run", **{**same, **change}, resume=True)


def test_a_run_older_than_a_setting_is_resumed_with_its_default(tmp_path):
    class Newer(Settings):
        width: int = 3

    RunFolder.open(tmp_path / "run", stage="toy", config=Settings())
    RunFolder.open(tmp_path / "run", stage="toy", config=Newer(), resume=True)
    with pytest.raises(ArtifactError, match=r"width \(3 there, 4 now\)"):
        RunFolder.open(tmp_path / "run", stage="toy", config=Newer(width=4), resume=True)


def test_the_log_is_kept_and_finishing_is_remembered(tmp_path):
    run = RunFolder.open(tmp_path / "run", stage="toy", config=Settings())
    run.log({"step": 1, "loss": 2.0})
    run.checkpoint.mkdir()
    run.finish()
    again = RunFolder.open(tmp_path / "run", stage="toy", config=Settings(), resume=True)
    assert again.complete
    assert again.history() == [{"step": 1, "loss": 2.0}]
    assert not again.checkpoint.exists()


def test_a_run_cut_off_before_its_first_file_can_be_resumed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.k3x").write_text("{")
    with pytest.raises(ArtifactError, match="never overwritten"):
        RunFolder.open(tmp_path / "run", stage="toy", config=Settings())
    assert not RunFolder.open(tmp_path / "run", stage="toy", config=Settings(), resume=True).complete
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", "run.json"]


def test_a_log_line_that_was_cut_off_is_taken_again(tmp_path):
    run = RunFolder.open(tmp_path / "run", stage="toy", config=Settings())
    run.log({"step": 1, "loss": 2.0})
    run.log({"step": 2, "loss": 1.5})
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    again = RunFolder.open(tmp_path / "run", stage="toy", config=Settings(), resume=True)
    assert [record["step"] for record in again.history()] == [1, 2]
    again.rewind(1)
    again.log({"step": 2, "loss": 1.0})
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_resuming_a_complete_run_removes_what_finishing_left(tmp_path):
    run = RunFolder.open(tmp_path / "run", stage="toy", config=Settings())
    run.finish()
    for name in ("trainer", "trainer.old", ".trainer.new.k3x"):  # killed before these were gone
        (tmp_path / "run" / name).mkdir()
    RunFolder.open(tmp_path / "run", stage="toy", config=Settings(), resume=True)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.json"]


HOLDER = """
import sys, time
from pathlib import Path
from cadiff.runs import lock_folder
held = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that works in tmp_path / "run"."""
    (tmp_path / "run").mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with process:
        yield process
        process.kill()


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_on_one_run_are_refused_and_a_killed_one_is_not_missed(tmp_path, other_process, resume):
    def start(resume):
        return RunFolder.open(tmp_path / "run", stage="toy", config=Settings(), resume=resume)

    with pytest.raises(ArtifactError, match="Another process is working in" if resume else "already exists"):
        start(resume)
    other_process.kill()
    other_process.wait()
    assert not start(resume=True).complete


def test_a_process_may_open_its_own_run_again_and_leaves_no_lock_behind(tmp_path):
    first = RunFolder.open(tmp_path / "run", stage="toy", config=Settings())
    again = RunFolder.open(tmp_path / "run", stage="toy", config=Settings(), resume=True)
    again.finish()
    assert first.complete
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.json"]

"""Run folders: refuse, resume, log."""

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


def test_the_log_is_kept_and_finishing_is_remembered(tmp_path):
    run = RunFolder.open(tmp_path / "run", stage="toy", config=Settings())
    run.log({"step": 1, "loss": 2.0})
    run.checkpoint.mkdir()
    run.finish()
    again = RunFolder.open(tmp_path / "run", stage="toy", config=Settings(), resume=True)
    assert again.complete
    assert again.history() == [{"step": 1, "loss": 2.0}]
    assert not again.checkpoint.exists()

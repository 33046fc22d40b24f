"""Checkpoints: killed at any moment, back in the memory layout and on the device of the parameters, never of another model."""

import shutil

import pytest
import torch
from torch import nn

from cadiff import checkpoints
from cadiff.checkpoints import load_checkpoint, save_checkpoint
from cadiff.config import Config
from cadiff.errors import ArtifactError
from cadiff.runs import RunFolder


def stepped(*shape: int, memory_format: torch.memory_format = torch.contiguous_format):
    """A parameter after one AdamW step, by name, and its optimiser."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(shape, generator=generator).contiguous(memory_format=memory_format)
    parameter = nn.Parameter(value)
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    (parameter**3).sum().backward()
    optimizer.step()
    return {"w": parameter}, optimizer


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def renames_and_removals(monkeypatch, stop_at: int) -> list[str]:
    """Kills before the `stop_at`-th rename or removal of a folder; a removal that is cut off has removed half."""
    done: list[str] = []
    rename, remove = checkpoints.Path.replace, shutil.rmtree

    def counted_rename(self, target):
        if self.suffix != ".safetensors" and self.is_dir():
            done.append("rename")
            if len(done) == stop_at:
                raise Killed
        return rename(self, target)

    def counted_removal(folder, ignore_errors=False):
        if folder.name in ("trainer.new", "trainer.old", "trainer") and folder.is_dir():
            done.append("remove")
            if len(done) == stop_at:
                (folder / "weights.safetensors").unlink(missing_ok=True)
                raise Killed
        return remove(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(checkpoints.Path, "replace", counted_rename)
    monkeypatch.setattr(shutil, "rmtree", counted_removal)
    return done


@pytest.mark.parametrize("first_kill", range(1, 6))
@pytest.mark.parametrize("second_kill", range(1, 9))
def test_two_kills_anywhere_in_saving_leave_a_whole_checkpoint(
    tmp_path, monkeypatch, first_kill, second_kill
):
    run = RunFolder.open(tmp_path / "run", stage="toy", config=Config())
    trained, optimizer = stepped(3, 2)
    save_checkpoint(run.checkpoint, 1, trained, {}, optimizer)
    reached = 1
    for step, kill in ((2, first_kill), (3, second_kill)):
        with monkeypatch.context() as patch:
            done = renames_and_removals(patch, kill)
            try:
                save_checkpoint(run.checkpoint, step, trained, {}, optimizer)
            except Killed:
                assert len(done) == kill
        again, other = stepped(3, 2)
        before, reached = reached, load_checkpoint(run.last_checkpoint, again, {}, other)
        assert before <= reached <= step  # never torn, and never older than what could be resumed before
    save_checkpoint(run.checkpoint, 4, trained, {}, optimizer)
    again, other = stepped(3, 2)
    assert load_checkpoint(run.last_checkpoint, again, {}, other) == 4


def test_moments_keep_the_memory_layout_of_their_parameter(tmp_path):
    trained, optimizer = stepped(4, 3, 2, 2, memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "trainer", 1, trained, {}, optimizer)
    again, other = stepped(4, 3, 2, 2, memory_format=torch.channels_last)
    other.state.clear()
    load_checkpoint(tmp_path / "trainer", again, {}, other)
    assert again["w"].is_contiguous(memory_format=torch.channels_last)
    for entry in ("exp_avg", "exp_avg_sq"):
        restored = other.state[again["w"]][entry]
        assert restored.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(restored, optimizer.state[trained["w"]][entry])


@pytest.mark.parametrize("option", ["fused", "capturable"])
@pytest.mark.parametrize("asked", [True, False])
def test_step_counts_are_where_the_optimiser_reads_them(tmp_path, option, asked):
    """The fused kernel reads them on the parameter's device; every other form, on the CPU. Here the device is "meta"."""
    trained, optimizer = stepped(3, 2)
    save_checkpoint(tmp_path / "trainer", 1, trained, {}, optimizer)
    parameter = nn.Parameter(torch.empty(3, 2, device="meta"))
    other = torch.optim.AdamW([parameter])
    other.defaults[option] = asked  # the constructor refuses fused on such a device
    load_checkpoint(tmp_path / "trainer", {"w": parameter}, {}, other)
    state = other.state[parameter]
    assert state["step"].device.type == ("meta" if asked else "cpu")
    assert state["exp_avg"].device.type == "meta"


@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (3, 3)])
def test_another_shape_is_refused_also_where_it_could_be_broadcast(tmp_path, shape):
    trained, optimizer = stepped(*shape)
    save_checkpoint(tmp_path / "trainer", 1, trained, {}, optimizer)
    other, fresh = stepped(3, 2)
    with pytest.raises(ArtifactError, match=r"another model \(first differing weight: w\)"):
        load_checkpoint(tmp_path / "trainer", other, {}, fresh)
    with pytest.raises(ArtifactError, match=r"another model \(first differing weight: v\)"):
        load_checkpoint(tmp_path / "trainer", {**trained, "v": other["w"]}, {}, fresh)

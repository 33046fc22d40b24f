"""Answers of frozen networks on disk: the same as without, made again where anything differs, and never in the way."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import frozen_work
from cadiff import frozen
from cadiff.frozen import cache_folder, kept, network_digest, tensor_digest
from frozen_work import network
from launched import launch, nursery


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    frozen._say_once.cache_clear()
    return tmp_path / "cache" / "frozen"


class Maker:
    """Random numbers, and how often they were asked for."""

    def __init__(self, shape=(5, 3), dtype=torch.float32) -> None:
        self.calls = 0
        self.values = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        return self.values.clone()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_what_is_kept_comes_back_bit_for_bit_and_is_made_once(folder, dtype):
    make = Maker(dtype=dtype)
    first = kept("answers", network(), {"a": 1}, make)
    again = kept("answers", network(), {"a": 1}, make)
    assert make.calls == 1
    assert first.dtype == again.dtype == dtype
    assert torch.equal(first, make.values) and torch.equal(again, make.values)
    assert [path.name.split("-")[0] for path in files(folder)] == [
        "answers"
    ]  # no lock, no temporary file is left


def test_another_network_or_task_is_another_answer():
    changed = network()
    with torch.no_grad():
        changed.weight[0, 0] += 1e-7
    renamed = nn.Sequential(network())
    make = Maker()
    asked = [
        ("answers", network(), {"a": 1}),
        ("others", network(), {"a": 1}),
        ("answers", network(), {"a": 2}),
        ("answers", network(1), {"a": 1}),
        ("answers", changed, {"a": 1}),
        ("answers", renamed, {"a": 1}),
    ]
    for times in (1, 2):
        for what, model, about in asked:
            kept(what, model, about, make)
        assert make.calls == len(asked), times


def test_settings_of_a_network_count_but_not_where_it_was_read():
    digests = []
    for config in ({"heads": 2, "_name_or_path": "/a"}, {"heads": 2, "_name_or_path": "/b"}, {"heads": 3}):
        model = network()
        model.__dict__["config"] = config
        digests.append(network_digest(model))
    assert digests[0] == digests[1] != digests[2]


def test_type_shape_and_values_are_in_a_digest():
    values = torch.arange(6.0)
    others = [values.reshape(2, 3), values.view(torch.int32), values + 1, values[:0], torch.tensor(0.0)]
    digests = {tensor_digest(other) for other in (values, *others)}
    assert len(digests) == 6
    assert tensor_digest(values.reshape(2, 3).T) == tensor_digest(values.reshape(2, 3).T.contiguous())


@pytest.mark.parametrize(
    "damage", ["cut", "half", "flipped", "empty", "garbage", "shape", "foreign", "folder"]
)
def test_a_damaged_file_is_made_again(folder, damage):
    make = Maker(shape=(5, 4))
    kept("answers", network(), {}, make)
    (path,) = files(folder)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-1]
    elif damage == "half":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-1] ^= 1
    elif damage == "empty":
        content = bytearray()
    elif damage == "garbage":
        content = bytearray(os.urandom(1000))
    elif damage == "shape":
        assert content.count(b"[5,4]") == 1
        content = content.replace(b"[5,4]", b"[4,5]")
    elif damage == "foreign":
        from safetensors.torch import save

        content = bytearray(save({"made": torch.zeros(5, 4)}))
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    assert torch.equal(kept("answers", network(), {}, make), make.values)
    assert make.calls == 2
    if damage != "folder":
        assert torch.equal(kept("answers", network(), {}, make), make.values)
        assert make.calls == 2


def test_writing_into_what_was_read_does_not_change_the_file(folder):
    make = Maker()
    kept("answers", network(), {}, make)
    before = files(folder)[0].read_bytes()
    kept("answers", network(), {}, make).zero_()
    assert files(folder)[0].read_bytes() == before
    assert torch.equal(kept("answers", network(), {}, make), make.values)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs /proc")
def test_what_was_read_is_memory_mapped(folder):
    make = Maker(shape=(1000, 100))
    kept("answers", network(), {}, make)
    read = kept("answers", network(), {}, make)
    starts = {
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in line
    }
    assert any(low <= read.data_ptr() < high for low, high in starts)


def test_where_it_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    for off in ("off", "OFF", "0"):
        monkeypatch.setenv("CADIFF_CACHE", off)
        assert cache_folder() is None
    monkeypatch.delenv("CADIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cadiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "cadiff"


def test_off_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CADIFF_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    make = Maker()
    for _ in range(2):
        assert torch.equal(kept("answers", network(), {}, make), make.values)
    assert make.calls == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line_and_no_failure(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "file"))
    make = Maker()
    for _ in range(2):
        assert torch.equal(kept("answers", network(), {}, make), make.values)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert str(tmp_path / "file") in said.err and "CADIFF_CACHE" in said.err


def test_a_full_disk_is_one_line_and_no_failure(tmp_path):
    """A process that may write no more than 4 KB into a file, as on a full disk."""
    process = nursery().Process(target=frozen_work.fill, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    said = (tmp_path / "said").read_text()
    assert said.count("\n") == 1 and "cannot be written" in said, said
    assert files(tmp_path / "cache" / "frozen") == []


def test_errors_of_the_work_are_its_own(folder):
    def make() -> torch.Tensor:
        raise OSError("the pictures are gone")

    with pytest.raises(OSError, match="the pictures are gone"):
        kept("answers", network(), {}, make)
    assert files(folder) == []


def test_what_was_used_longest_ago_goes_first(folder, monkeypatch):
    make = Maker(shape=(1000,))
    for i in range(3):
        kept("answers", network(), {"i": i}, make)
        os.utime(max(files(folder), key=lambda path: path.stat().st_mtime_ns), (1000 + i, 1000 + i))
    one = files(folder)[0].stat().st_size
    kept("answers", network(), {"i": 0}, make)  # used again
    monkeypatch.setattr(frozen, "LIMIT", 3 * one)
    kept("answers", network(), {"i": 3}, make)
    assert len(files(folder)) == 3 and make.calls == 4
    for i in (0, 2, 3):
        kept("answers", network(), {"i": i}, make)
    assert make.calls == 4
    kept("answers", network(), {"i": 1}, make)
    assert make.calls == 5


def test_what_is_larger_than_all_room_is_not_kept(folder, monkeypatch):
    make = Maker()
    kept("answers", network(), {}, make)
    monkeypatch.setattr(frozen, "LIMIT", make.values.nbytes - 1)
    kept("answers", network(), {"i": 1}, make)
    assert len(files(folder)) == 1


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(folder):
    folder.mkdir(parents=True)
    old, new = folder / ".a.safetensors.x1", folder / ".b.safetensors.x2"
    strange = folder.parent / "mine.safetensors"
    for path in (old, new, strange):
        path.write_text("")
    os.utime(old, (0, 0))
    kept("answers", network(), {}, Maker())
    assert not old.exists() and new.exists() and strange.exists()


def test_processes_at_once_make_it_once(tmp_path):
    context = nursery()
    processes = [context.Process(target=frozen_work.ask, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_without_locks_each_makes_it(monkeypatch):
    def none(*_, **__):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    make = Maker()
    kept("answers", network(), {}, make)
    assert torch.equal(kept("answers", network(), {}, make), make.values)
    assert make.calls == 1


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        (["{0}/shared", "{0}/shared"], [1, 0]),
        (["{0}/mine", "{0}/yours"], [1, 1]),
        (["off", "{0}/yours"], [1, 1]),
        (["{0}/mine", "off"], [1, 1]),
    ],
)
def test_of_processes_that_work_together_the_main_one_makes_it(tmp_path, where, calls):
    where = [name.format(tmp_path) for name in where]
    found = launch(frozen_work.together, tmp_path / "out", tmp_path, where, False)
    assert [one["calls"] for one in found] == calls
    assert all(torch.equal(one["values"], torch.arange(10.0)) for one in found)
    assert not (tmp_path / "yours").exists()  # only the main one writes


def test_processes_that_work_together_end_with_the_error_of_the_main_one(tmp_path):
    found = launch(frozen_work.together, tmp_path / "out", tmp_path, [str(tmp_path / "shared")] * 2, True)
    assert [one["error"] for one in found] == ["a picture is gone"] * 2

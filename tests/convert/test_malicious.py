"""Nothing in a file of weights is executed, wherever the call stands and whatever opcode makes it."""

import copyreg
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cadiff import cli
from cadiff.convert import describe, import_weights
from cadiff.convert.recognise import recognise
from cadiff.errors import ArtifactError, DataError, UserError
from cadiff.safe_pickle import StandIn, load_inert_pickle
from layouts import weights


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def calls(module: str, name: str, argument: str) -> dict[str, bytes]:
    """A call of module.name(argument), once with every opcode that can make one."""
    found, given = f"c{module}\n{name}\n".encode(), text(argument)
    stacked = short(module) + short(name) + b"\x93"
    return {
        "GLOBAL REDUCE": b"\x80\x02" + found + given + b"\x85R.",
        "STACK_GLOBAL REDUCE": b"\x80\x04" + stacked + given + b"\x85R.",
        "STACK_GLOBAL with a dotted name": b"\x80\x04"
        + short("torch")
        + short(f"{module}.{name}")
        + b"\x93"
        + given
        + b"\x85R.",
        "INST": b"(" + given + f"i{module}\n{name}\n".encode() + b".",
        "OBJ": b"(" + found + given + b"o.",
        "NEWOBJ": b"\x80\x02" + found + given + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + stacked + given + b"\x85}\x92.",
        "BUILD": b"\x80\x02cconfig\nC\n)\x81}" + text("__setstate__") + found + b"sb" + given + b"b.",
        "BUILD of slots": b"\x80\x02cconfig\nC\n)\x81N}"
        + text("__setstate__")
        + found
        + b"s\x86b"
        + given
        + b"b.",
        "BUILD of a class": b"\x80\x02cconfig\nC\nN}" + text("__reduce__") + found + b"s\x86b.",
    }


PLACES = ("config", "optimizer", "model", "the whole")


class Call:
    """Pickles as a call; the file is what an attacker would publish."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def with_pickle(path: Path, pickled: bytes, *, older: bool = False) -> Path:
    """A torch file whose object is this pickle."""
    if older:
        system = {
            "protocol_version": 1001,
            "little_endian": True,
            "type_sizes": {"short": 2, "int": 4, "long": 4},
        }
        head = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps(system, 2)]
        path.write_bytes(b"".join(head) + pickled + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3")
    return path


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("opcode", calls("posix", "system", ""))
def test_no_opcode_makes_a_call(tmp_path, opcode, older):
    marker = tmp_path / "code-ran"
    path = with_pickle(
        tmp_path / "evil.pth", calls("posix", "system", f"touch {marker}")[opcode], older=older
    )
    with pytest.raises(ArtifactError, match=r"asks for (torch\.)?posix\.system, which can run code"):
        describe(path)
    with pytest.raises(ArtifactError, match="nothing in it was executed"):
        import_weights(path, tmp_path / "out")
    assert not marker.exists()


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_no_place_in_a_checkpoint_makes_a_call(phase_1, tmp_path, place, older):
    import os

    marker = tmp_path / "code-ran"
    evil = Call(os.system, f"touch {marker}")
    content = {"model": phase_1, "optimizer": {}, "epoch": 1}
    content = evil if place == "the whole" else {**content, place: {**phase_1, "deep": [(evil,)]}}
    source = weights.save(tmp_path / "checkpoint.pth", content, older=older)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        cli.app, ["weights", "import", str(source), str(tmp_path / "out")]
    )
    assert result.exit_code == 2 and "posix.system, which can run code" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    assert not marker.exists()
    if place != "the whole":  # the test can fail: the usual way of reading runs it
        torch.load(source, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "nt.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.getattr",
        "__builtin__.eval", "builtins.__import__", "sys.exit", "shutil.rmtree", "importlib.import_module",
        "runpy._run_code", "webbrowser.open", "commands.getoutput", "urllib2.urlopen", "ctypes.CDLL", "socket.socket",
        "operator.methodcaller", "code.interact", "pty.spawn", "pickle.loads", "_pickle.loads", "marshal.loads",
        "multiprocessing.util.spawnv_passfds", "asyncio.unix_events.os", "io.open", "_io.FileIO", "pdb.run",
        "timeit.timeit", "cProfile.run", "zipimport.zipimporter", "distutils.spawn.spawn", "imp.load_source",
    ],
)  # fmt: skip
def test_what_can_run_code_is_refused_by_name(name):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(DataError, match=f"asks for {name}, which can run code"):
        load_inert_pickle(io.BytesIO(f"c{module}\n{attribute}\n.".encode()), what="it")


def test_unknown_classes_are_stood_in_for_and_never_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'code-ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = {}
    for opcode, pickled in calls("evil_module", "Config", "x").items():
        if opcode == "BUILD of a class":
            with pytest.raises(DataError, match="cannot be read"):
                load_inert_pickle(io.BytesIO(pickled), what="it")
        else:
            found[opcode] = load_inert_pickle(io.BytesIO(pickled), what="it")
    assert all(isinstance(value, StandIn) for value in found.values())
    for opcode in ("GLOBAL REDUCE", "STACK_GLOBAL REDUCE", "INST", "OBJ", "NEWOBJ"):
        assert (type(found[opcode]).__module__, type(found[opcode]).__name__) == ("evil_module", "Config")
        assert found[opcode].args == ("x",)
    for name in (
        "numpy.testing._private.utils.runstring",
        "torch.hub.load",
        "torch.storage._load_from_bytes",
        "torch.load",
        "numpy.load",
    ):
        module, _, attribute = name.rpartition(".")
        found = load_inert_pickle(io.BytesIO(calls(module, attribute, "x")["GLOBAL REDUCE"]), what="it")
        assert isinstance(found, StandIn) and found.args == ("x",)
    assert "evil_module" not in sys.modules and not (tmp_path / "code-ran").exists()


def test_stand_ins_record_what_settings_are_made_of():
    with weights.foreign_class("config", "Config") as kind:
        config = kind()
        config.__dict__.update(num_heads=4, paths=["a"], nested={"x": 1})
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            found = load_inert_pickle(io.BytesIO(pickle.dumps(config, protocol)), what="it")
            assert found.attributes == {"num_heads": 4, "paths": ["a"], "nested": {"x": 1}}
    import argparse
    import collections

    namespace = load_inert_pickle(io.BytesIO(pickle.dumps(argparse.Namespace(lr=0.1))), what="it")
    assert namespace.attributes == {"lr": 0.1}
    plain = collections.OrderedDict(b=1, a={1, 2}, c=frozenset("x"))
    found = load_inert_pickle(io.BytesIO(pickle.dumps(plain, 2)), what="it")
    assert list(found.items()) == list(plain.items())
    counted = load_inert_pickle(io.BytesIO(pickle.dumps(collections.defaultdict(list, k=[1]), 2)), what="it")
    assert counted.attributes == {"k": [1]}


def test_numbered_extensions_are_refused_even_where_this_process_knows_them(tmp_path):
    marker = tmp_path / "code-ran"
    copyreg.add_extension("posix", "system", 77)
    try:
        pickled = b"\x80\x02\x82\x4d" + text(f"touch {marker}") + b"\x85R."
        copyreg._extension_cache[77] = __import__("posix").system  # as after one honest use
        with pytest.raises(DataError, match="the step EXT1, which checkpoints do not need"):
            load_inert_pickle(io.BytesIO(pickled), what="it")
    finally:
        copyreg.remove_extension("posix", "system", 77)
        copyreg._extension_cache.pop(77, None)
    assert not marker.exists()


@pytest.mark.parametrize(
    "state",
    [
        b"N}" + text("_function") + b"I1\ns\x86",
        b"}" + text("__call__") + b"I1\ns",
        b"N}" + text("__class__") + b"cconfig\nC\ns\x86",
    ],
)
def test_functions_handed_to_the_pickle_cannot_be_changed(tmp_path, state):
    path = with_pickle(tmp_path / "evil.pth", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b.")
    with pytest.raises(ArtifactError, match="it changes a function"):
        recognise(path)
    good = weights.save(tmp_path / "good.pth", {"a": torch.ones(2)})
    with pytest.raises(ArtifactError, match="holds 1 weights"):
        recognise(good)


def test_attributes_of_a_state_dict_cannot_hide_its_methods(phase_1, tmp_path):
    pickled = (
        b"\x80\x02ccollections\nOrderedDict\n)R}("
        + text("items")
        + b"cconfig\nC\n"
        + text("keys")
        + b"I1\nub."
    )
    assert load_inert_pickle(io.BytesIO(pickled), what="it").items() == {}.items()


def test_names_in_the_file_do_not_reach_the_terminal_as_commands(tmp_path):
    pickled = b"\x80\x04" + short("conf\x1b]0;owned\x07") + short("C\x1b[2J") + b"\x93)\x81."
    with pytest.raises(ArtifactError) as error:
        recognise(with_pickle(tmp_path / "evil.pth", pickled))
    assert str(error.value).isprintable()
    with pytest.raises(ArtifactError, match="which can run code") as error:
        recognise(with_pickle(tmp_path / "evil.pth", b"\x80\x04" + short("os") + short("\x1b[2J") + b"\x93."))
    assert str(error.value).isprintable()
    state = {"model": {"w\x1b[2J": torch.ones(1)}, "\x1b[2J": 1}
    with pytest.raises(ArtifactError) as error:
        recognise(weights.save(tmp_path / "names.pth", state))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02]r\xff\xff\xff\x7f.", "numbers its parts beyond their count"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.", "expected|cannot be read"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.", "cannot be read"),
        (b"\x80\x05\x97.", "the step NEXT_BUFFER"),
        (b"\x80\x02" + b"]0" * 1_000_001 + b"N.", "more than 2,000,000 steps"),
        (
            b"\x80\x02(" + b"".join(f"cm\nc{i}\n".encode() for i in range(1100)) + b"t.",
            "more than 1000 classes",
        ),
        (b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".", None),
        (b"\x80\x02]Q.", "refers to"),
        (b"", "cannot be read"),
        (b"\x80\x02N", "cannot be read"),
        (b"\x80\x02}]Ns.", "unhashable"),
    ],
)
def test_pickles_made_to_exhaust_memory_or_to_confuse_are_refused(pickled, message):
    if message is None:  # deep, but finite
        load_inert_pickle(io.BytesIO(pickled), what="it")
        return
    with pytest.raises(DataError, match=message):
        load_inert_pickle(io.BytesIO(pickled), what="it")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        kind, place = int(rng.integers(5)), int(rng.integers(len(data)))
        if kind == 0:
            data[place] = int(rng.integers(256))
        elif kind == 1:
            del data[place : place + int(rng.integers(1, 40))]
        elif kind == 2:
            data[place:place] = bytes(rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8))
        elif kind == 3:
            data[place:place] = data[place // 2 : place // 2 + int(rng.integers(1, 60))]
        else:
            data = data[: max(8, place)]
    return bytes(data)


@pytest.mark.parametrize("form", ["zip", "older", "safetensors"])
def test_damaged_files_are_described_or_refused_in_one_sentence(tmp_path, form):
    rng, folder = np.random.default_rng(0), tmp_path / "files"
    folder.mkdir()
    shapes = {**weights.fmri_encoder(2, 4, 1, 2), **weights.fmri_decoder(2, 4, 4, 1, 2)}
    state = weights.fill(shapes)
    path = folder / ("c.safetensors" if form == "safetensors" else "c.pth")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        content = {"model": state, "optimizer": weights.optimizer_state(state), "epoch": 3}
        weights.save(path, content, older=form == "older", num_heads=2, decoder_num_heads=2)
    original, refused = path.read_bytes(), 0
    assert describe(path)
    for number in range(250):
        path.write_bytes(mutated(original, rng))
        try:
            describe(path)
            import_weights(path, tmp_path / f"out{number}")
        except UserError as error:
            refused += 1
            assert str(error).strip() and "\n" not in str(error).strip()
            assert not (tmp_path / f"out{number}").exists()
    assert refused > 100

"""What the command line says of weights, also of the odd things that checkpoints keep beside them."""

import collections
import pathlib

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cadiff import cli
from cadiff.convert import describe, import_weights
from layouts import weights

runner = CliRunner(env={"COLUMNS": "160", "TERM": "dumb"})


def run(*arguments):
    return runner.invoke(cli.app, ["weights", *map(str, arguments)])


def test_a_lightning_checkpoint_with_objects_of_many_libraries(label_ldm, config_yaml, tmp_path):
    with (
        weights.foreign_class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") as callback,
        weights.foreign_class("omegaconf.dictconfig", "DictConfig") as settings,
    ):
        hyper = settings()
        hyper.__dict__.update(_content={"lr": 1e-4}, _metadata=None)
        content = {
            "state_dict": collections.OrderedDict(label_ldm),
            "callbacks": {
                callback: {"best_model_path": pathlib.PurePosixPath("/a/b"), "best": np.float64(0.5)}
            },
            "hyper_parameters": hyper,
            "lr_schedulers": [collections.defaultdict(int, a=1)],
            "optimizer_states": [weights.optimizer_state(label_ldm)],
            "device": torch.device("cpu"),
            "array": np.arange(3.0),
            "epoch": 12,
            "global_step": 340,
        }
        source = weights.save(tmp_path / "model.ckpt", content)
    said = dict(describe(source))
    assert said["epoch"] == "12" and said["complete"]
    for part in (
        "callbacks (1 entries)",
        "an object of omegaconf.dictconfig.DictConfig, not run",
        "global_step (340)",
        "optimizer_states",
    ):
        assert part in said["beside"]
    assert import_weights(source, tmp_path / "prior").made


def test_every_fact_is_printed_and_the_next_command_can_be_pasted(phase_1, tmp_path):
    source = weights.save(
        tmp_path / "c.pth", {"model": phase_1, "epoch": 3}, num_heads=4, decoder_num_heads=2
    )
    shown = " ".join(run("describe", source).output.split())
    for label, text in describe(source):
        assert label in shown and " ".join(text.split()) in shown
    command = dict(describe(source))["next"].replace("OUT", str(tmp_path / "encoder")).split()
    result = runner.invoke(cli.app, command[1:])
    assert result.exit_code == 0
    assert (
        f"encoder: {tmp_path / 'encoder'}" in result.output and "cadiff attend ... --encoder" in result.output
    )
    again = run("import", tmp_path / "encoder", tmp_path / "other")
    assert again.exit_code == 0 and "already; nothing was written" in again.output
    assert not (tmp_path / "other").exists()


def test_an_encoder_without_decoder_says_what_it_is_good_for(phase_1, tmp_path):
    state = {
        name: value for name, value in phase_1.items() if not name.startswith(("decoder_", "mask_token"))
    }
    source = weights.save(tmp_path / "c.pth", {"model": state}, num_heads=4)
    output = run("import", source, tmp_path / "encoder").output
    assert "cadiff diffuse ... --encoder" in output and "attend" not in output
    image = weights.fill(weights.image_encoder(128, 1, 4, 16))
    output = run("import", weights.save(tmp_path / "i.pth", {"model": image}), tmp_path / "image_mae").output
    assert "no decoder, which phase 2 (attend) needs" in output


@pytest.mark.parametrize("verb", ["describe", "import"])
def test_mistakes_are_one_sentence_and_exit_code_2(verb, tmp_path):
    (tmp_path / "text.ckpt").write_text("not weights")
    for source in (tmp_path / "nowhere.pth", tmp_path / "text.ckpt", tmp_path):
        result = run(verb, source, *([tmp_path / "out"] if verb == "import" else []))
        if source is tmp_path:  # the only file that looks like weights in it
            assert "text.ckpt" in result.stderr
        assert result.exit_code == 2 and result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1 and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()

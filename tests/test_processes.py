"""Several processes are one: losses, gradients, logs, checkpoints and errors; gloo, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import killable
import together
from cadiff.processes import start
from launched import launch, printed

LOSSES = [
    *together.NEGATIVES,
    "attend",
    "diffuse",
    "image_mae",
    "denoiser",
    "autoencoder vq",
    "autoencoder kl",
]


def test_one_process_takes_a_gpu_of_nvidia_or_the_processor(monkeypatch):
    from accelerate import PartialState

    PartialState._reset_state()
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.backends.mps.is_built", lambda: True)
    for gpus, found in ((0, "cpu"), (1, "cuda")):
        monkeypatch.setattr("torch.cuda.device_count", lambda number=gpus: number)
        assert start() == torch.device(found)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert start() == torch.device("cpu")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Every loss and its gradients, of one process and of each of two."""
    one = together.all_gradients(LOSSES)
    return one, launch(together.all_gradients, tmp_path_factory.mktemp("losses"), LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_those_of_one_process_with_the_whole_batch(both, name):
    one, two = both
    exact = name.startswith(("contrast", "attend"))
    for found in two:
        assert found[name].keys() == one[name].keys()
        for key, expected in one[name].items():
            at_most = 1e-12 if exact else 1e-6
            torch.testing.assert_close(found[name][key], expected, rtol=10 * at_most, atol=at_most, msg=key)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trainings of one process, and of two."""
    folder = tmp_path_factory.mktemp("trained")
    one = {
        "plain": together.train(folder / "one"),
        "averaged": together.train(folder / "mean", ema_decay=0.9),
    }
    assert together.train_until(folder / "cut-one", 7, {})
    return folder, one, launch(together.trainings, folder / "out", folder, folder / "cut-one")


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_train_to_the_weights_of_one(trained):
    folder, one, two = trained
    for found in two:
        same(found["two"], one["plain"])
    expected = logged(folder / "one")
    assert [line["step"] for line in expected] == [2, 3, 4, 6, 8, 9, 10]
    for found, line in zip(logged(folder / "two"), expected, strict=True):
        assert found == pytest.approx(line, rel=1e-6)  # sums are kept in float32


def test_divided_blocks_train_to_the_same_weights_and_are_whole_afterwards(trained):
    _, one, two = trained
    for found in two:
        assert list(found["sharded"]) == list(one["averaged"])
        same(found["sharded"], one["averaged"])


def test_checkpoints_go_from_two_processes_to_one_and_back(trained):
    folder, one, two = trained
    for found in two:
        assert found["killed"] and found["killed sharded"]
        same(found["resumed"], one["plain"])
    same(together.train(folder / "cut"), one["plain"])
    same(together.train(folder / "cut-sharded", shard=True, ema_decay=0.9), one["averaged"])


def test_a_mean_over_hidden_patches_is_exact_where_processes_hide_different_numbers(trained):
    prediction, target, mask = together.unequal_masks()
    expected = (prediction - target)[mask].square().mean().item()
    assert [found["masked"] for found in trained[2]] == pytest.approx([expected] * 2)


def test_every_process_ends_with_the_same_sentence(trained):
    for found in trained[2]:
        assert found["uneven"].startswith(
            "ConfigError: fit.batch_size=5, the batch of all processes together,"
        )
        assert "set fit.batch_size=4" in found["uneven"]
        assert found["diverged"].startswith("DivergedError") and "not finite after step" in found["diverged"]
        assert (
            found["taken"].startswith("ArtifactError")
            and "differ in steps (10 there, 9 now)" in found["taken"]
        )


def test_only_the_main_process_shows_progress(trained):
    first, second = printed(trained[0] / "out")
    assert "training" in first and second == ""


def test_a_mistake_is_said_once_and_all_leave_with_2(tmp_path):
    killable.make_world(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    arguments = [
        "contrast",
        str(tmp_path / "subject"),
        "--out",
        str(tmp_path / "taken"),
        "--set",
        "fit.batch_size=4",
        "--set",
        "mae.patch_size=4",
    ]
    assert launch(together.command, tmp_path / "out", arguments) == [2, 2]
    first, second = printed(tmp_path / "out")
    assert first.count("error: ") == 1 and "already exists" in first and second == ""


@pytest.mark.slow
def test_every_stage_logs_what_one_process_logs(tmp_path):
    killable.make_world(tmp_path)
    one = together.stages(tmp_path, tmp_path)
    for two in launch(together.stages, tmp_path / "out", tmp_path, tmp_path / "two"):
        assert two.keys() == one.keys()
        for name, log in one.items():
            for line, expected in zip(two[name].splitlines(), log.splitlines(), strict=True):
                assert json.loads(line) == pytest.approx(json.loads(expected), rel=1e-4), name


@pytest.mark.slow
def test_under_torchrun_a_batch_that_does_not_divide_is_one_sentence_and_writes_nothing(tmp_path):
    killable.make_world(tmp_path)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "cadiff",
    ]
    stage = [
        "contrast",
        str(tmp_path / "subject"),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "fit.batch_size=5",
    ]
    done = subprocess.run([*launcher, *stage], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("error: fit.batch_size=5") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_divided_blocks_at_full_size_give_the_loss_of_whole_ones(tmp_path):
    expected = together.full_size(tmp_path / "one", False)
    found = launch(together.full_size, tmp_path / "out", tmp_path / "two", True)
    assert found == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.slow
def test_the_configuration_for_accelerate_is_one():
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(Path(__file__).parents[1] / "docs" / "accelerate.yaml"))
    assert found.num_processes == 4 and found.distributed_type.value == "MULTI_GPU"
    assert found.mixed_precision == "no"

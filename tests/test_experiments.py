"""A whole experiment in miniature: every stage runs, restarts skip what is done, other settings are refused."""

import json

import pytest
from filelock import FileLock

from cadiff.errors import ArtifactError, ConfigError, DataError, UserError
from cadiff.experiments import run_experiment
from cadiff.runs import LOCK

TINY = """
extends: demo
title: everything, as small as it gets
simulate:
  num_train_classes: 6
  images_per_class: 2
  num_test_images: 4
  test_repeats: 2
  voxels_per_roi: {V1: 40, LOC: 24}
  roi_dims: 4
corpus: {num_volumes: 12}
contrast: {fit: {steps: 2, batch_size: 4, warmup_steps: 0}}
attend: {fit: {steps: 2, batch_size: 4, warmup_steps: 0}}
diffuse: {context_length: 4, num_crops: 0, crop_probability: 0, fit: {steps: 2, batch_size: 4}}
reconstruct: {num_images_per_trial: 1, num_inference_steps: 2}
evaluate: {num_bootstrap: 200}
"""


def test_a_restart_skips_what_is_done_and_repeats_what_is_not(tmp_path):
    preset = tmp_path / "tiny.yaml"
    preset.write_text(TINY)
    out, said = tmp_path / "run", []
    page = run_experiment(preset, out, announce=said.append)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert [line.partition(":")[0] for line in said] == [
        "simulate",
        "contrast",
        "attend",
        "diffuse",
        "reconstruct",
        "evaluate",
        "report",
    ]
    with pytest.raises(ArtifactError, match="never overwritten"):
        run_experiment(preset, out)
    with pytest.raises(ArtifactError, match="other settings"):
        run_experiment(preset, out, overrides=["diffuse.fit.seed=5"], resume=True)

    weights = out / "diffuse" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    before = {path: path.stat().st_mtime_ns for path in (out / "subject" / "betas.npy", weights)}
    scores = (out / "evaluation" / "per_image.tsv").read_bytes()
    for name in ("evaluation", "reconstructions"):
        (out / name).rename(tmp_path / name)
    page.unlink()
    assert run_experiment(preset, out, resume=True) == page
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "evaluation" / "per_image.tsv").read_bytes() == scores


def test_an_override_must_begin_with_a_stage(tmp_path):
    with pytest.raises(ConfigError, match="must begin with a stage"):
        run_experiment("demo", tmp_path / "run", overrides=["fit.steps=5"])
    assert not (tmp_path / "run").exists()


def test_settings_are_recorded_before_anything_runs(tmp_path):
    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        run_experiment("demo", tmp_path / "run", announce=stop, overrides=["diffuse.fit.steps=7"])
    recorded = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert recorded["diffuse"]["fit"]["steps"] == 7


@pytest.mark.parametrize("wrong", [{"dataset": "nowhere"}, {"prior": "nowhere"}], ids=str)
def test_a_wrong_path_is_told_before_a_folder_is_made(tmp_path, wrong):
    with pytest.raises(UserError, match="nowhere"):
        run_experiment("demo", tmp_path / "run", **{key: tmp_path / path for key, path in wrong.items()})
    assert not (tmp_path / "run").exists()


def test_another_process_in_the_folder_is_refused_and_nothing_of_it_stays(tmp_path):
    preset = tmp_path / "tiny.yaml"
    preset.write_text(TINY)
    out = tmp_path / "run"
    out.mkdir()
    held = FileLock(
        out / LOCK
    )  # not the one of this process: another file descriptor, as another process has
    with held, pytest.raises(ArtifactError, match="Another process is working in"):
        run_experiment(preset, out)
    assert not (out / "experiment.json").exists()
    (out / LOCK).touch()  # as after kill -9, before the record was written: the folder counts as free
    with pytest.raises(DataError, match="Phase 1"):
        run_experiment(preset, out, overrides=["corpus.num_subjects=0", "corpus.include_studied=false"])
    assert not (out / LOCK).exists()


def test_batches_that_fit_a_small_gpu_are_recorded_and_announced(tmp_path):
    preset = tmp_path / "tiny.yaml"
    preset.write_text(TINY)
    with pytest.raises(
        ConfigError, match=r"contrast needs about .* GiB with batches of 4, and there are 0.3 GiB"
    ):
        run_experiment(preset, tmp_path / "run", vram=0.3)
    assert not (tmp_path / "run").exists()

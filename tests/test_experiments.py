"""A whole experiment in miniature: every stage runs, restarts skip what is done, other settings are refused."""

import json

import pytest

from cadiff.errors import ArtifactError, ConfigError, UserError
from cadiff.experiments import run_experiment

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

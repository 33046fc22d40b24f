"""A whole experiment in miniature: every stage runs, restarts skip what is done, other settings are refused."""

import json
import shutil

import pytest
from filelock import FileLock

from cadiff.artifacts import folder_digest
from cadiff.errors import ArtifactError, ConfigError, DataError, UserError
from cadiff.experiments import preset_configs, run_experiment
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


def test_phase_2_can_be_left_out_and_put_back_in_another_folder(tmp_path):
    """As in DC-LDM: masked modelling alone, and the encoder goes straight to the tuning."""
    preset = tmp_path / "tiny.yaml"
    modelling = "contrast: {gamma_c: 0, gamma_s: 0, masked_error_weight: 1, fit"
    preset.write_text(f"{TINY.replace('contrast: {fit', modelling)}stages: {{attend: false}}\n")
    out, said = tmp_path / "run", []
    run_experiment(preset, out, announce=said.append)
    assert "attend: left out, the encoder goes on as phase 1 made it" in said
    assert not (out / "attend").exists() and (out / "report.html").is_file()
    inputs = json.loads((out / "diffuse" / "run.json").read_text())["inputs"]
    assert inputs["encoder"] == folder_digest(out / "contrast" / "encoder")
    history = [json.loads(line) for line in (out / "contrast" / "log.jsonl").read_text().splitlines()]
    assert all(line["masked_error"] > 0 for line in history)
    assert [line["loss"] for line in history] == pytest.approx([line["masked_error"] for line in history])
    with pytest.raises(ArtifactError, match=r"other settings \(section stages"):
        run_experiment(preset, out, overrides=["stages.attend=true"], resume=True)


def test_records_that_are_older_than_a_section_can_be_gone_on_with(tmp_path):
    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        raise Stop

    preset, out = tmp_path / "tiny.yaml", tmp_path / "run"
    preset.write_text(TINY)
    with pytest.raises(Stop):
        run_experiment(preset, out, announce=stop)
    record = json.loads((out / "experiment.json").read_text())
    record.pop("stages")
    (out / "experiment.json").write_text(json.dumps(record))
    with pytest.raises(Stop):
        run_experiment(preset, out, announce=stop, resume=True)
    with pytest.raises(ArtifactError, match="section stages"):
        run_experiment(preset, out, announce=stop, resume=True, overrides=["stages.attend=false"])


@pytest.mark.parametrize(
    "setting",
    [
        "simulate.images=PATH",
        "reconstruct.class_images=PATH",
        "reconstruct.rerank=PATH",
        "evaluate.judge=timm:PATH",
        "evaluate.eyes={clip: PATH}",
    ],
)
def test_files_that_settings_name_are_looked_for_before_anything_is_made(tmp_path, setting):
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    with pytest.raises(ConfigError, match=rf"names {nowhere}, and there is no such file"):
        run_experiment("demo", out, overrides=[setting.replace("PATH", str(nowhere))])
    assert not out.exists()
    with pytest.raises(ConfigError, match=r"did you mean 'efficientnet-lite2'\?$"):
        run_experiment("demo", out, overrides=["evaluate.judge=efficientnet-lit2"])


@pytest.mark.parametrize(
    ("name", "base"),
    [("dc-ldm-demo", "demo"), ("dc-ldm-photos", "photos"), ("dc-ldm-god-sub-03", "paper/god-sub-03")],
)
def test_dc_ldm_differs_from_the_method_by_what_it_is(name, base):
    own, other = preset_configs(f"rivals/{name}"), preset_configs(base)
    phase_1, tuning = own["contrast"], own["diffuse"]
    assert not own["stages"].attend
    assert (phase_1.gamma_c, phase_1.gamma_s, phase_1.masked_error_weight, phase_1.mask_ratio) == (
        0,
        0,
        1,
        0.75,
    )
    assert (tuning.label_start, tuning.latent_start, phase_1.sparsify_rate, tuning.sparsify_rate) == (
        False,
        0,
        0,
        0,
    )
    assert phase_1.fit == other["contrast"].fit and phase_1.mae == other["contrast"].mae
    assert tuning.fit == other["diffuse"].fit and own["reconstruct"] == other["reconstruct"]


@pytest.mark.slow
def test_an_encoder_that_is_given_has_the_presets_preprocessing_without_phase_2_too(tmp_path):
    preset, out = tmp_path / "tiny.yaml", tmp_path / "run"
    preset.write_text(TINY)
    run_experiment(preset, out)
    weights = tmp_path / "weights"
    shutil.copytree(out / "contrast" / "encoder", weights / "phase1")
    given = ["stages.attend=false", "contrast.preprocess.normalise=scalar", "evaluate.judge=null"]
    second = tmp_path / "second"
    run_experiment(preset, second, dataset=out / "subject", weights=weights, overrides=given)
    stored = json.loads((second / "encoder" / "config.json").read_text())["config"]["preprocess"]
    assert stored["normalise"] == "scalar"
    assert json.loads((second / "diffuse" / "run.json").read_text())["inputs"]["encoder"] == folder_digest(
        second / "encoder"
    )

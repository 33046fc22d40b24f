"""Models that MinD-Vis or CAD tuned on fMRI become pipelines that compute what the original computes."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cadiff import cli
from cadiff.convert import describe, import_weights
from cadiff.data.dataset import BrainDataset
from cadiff.diffuse.pipeline import open_pipeline
from cadiff.errors import ArtifactError, ConfigError, DataError
from layouts import networks, weights

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SETTINGS = {"num_heads": 16, "ddim_steps": 250}


def checkpoint(path, state):
    return weights.save(path, {"model_state_dict": state, "state": torch.get_rng_state()}, **SETTINGS)


@torch.no_grad()
def test_pipeline_computes_what_the_original_does(brain_ldm, config_yaml, subject, tmp_path):
    made = import_weights(
        checkpoint(tmp_path / "finetuned.pth", brain_ldm), tmp_path / "pipeline", dataset=subject
    )
    assert made.kind == "pipeline"
    pipe, data = open_pipeline(tmp_path / "pipeline"), BrainDataset.open(subject)
    test = np.asarray(data.betas[data.rows("test")])
    condition = pipe.conditioner.encode(test, split="test")
    train = np.asarray(data.betas[data.rows("train")], dtype=np.float64)
    wrapped = np.pad(train, ((0, 0), (0, 2)), mode="wrap")
    ready = (np.pad(test, ((0, 0), (0, 2)), mode="wrap") - wrapped.mean()) / wrapped.std()
    parts = {
        name: networks.sub(brain_ldm, prefix)
        for name, prefix in (
            ("unet", "model.diffusion_model."),
            ("condition", "cond_stage_model."),
            ("mae", "cond_stage_model.mae."),
            ("vq", "first_stage_model."),
        )
    }
    tokens = networks.fmri_tokens(parts["mae"], torch.from_numpy(ready).float(), heads=16)
    context = networks.mapped_context(parts["condition"], tokens)
    torch.testing.assert_close(condition.context, context, **CLOSE)
    torch.testing.assert_close(condition.time, networks.time_condition(parts["unet"], context), **CLOSE)
    x, timesteps = (
        torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 400, 997]),
    )
    ours = pipe.unet(
        x, timesteps, encoder_hidden_states=condition.context, class_labels=condition.time
    ).sample
    torch.testing.assert_close(ours, networks.unet(parts["unet"], x, timesteps, context), **CLOSE)
    still = pipe.unet(
        x, timesteps, encoder_hidden_states=condition.context, class_labels=0 * condition.time
    ).sample
    assert (ours - still).abs().max() > 0.01  # the time condition matters
    torch.testing.assert_close(pipe.vqvae.decode(x).sample, networks.vq_decode(parts["vq"], x), **CLOSE)
    everyone = pipe.conditioner.encode(train.astype(np.float32), split="train")
    torch.testing.assert_close(pipe.conditioner.null_context, everyone.context.mean(0), **CLOSE)


def test_reconstruct_takes_the_pipeline(brain_ldm, config_yaml, subject, tmp_path):
    source = checkpoint(tmp_path / "checkpoint_best.pth", brain_ldm)
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    result = runner.invoke(
        cli.app, ["weights", "import", str(source), str(tmp_path / "pipeline"), "--dataset", str(subject)]
    )
    assert result.exit_code == 0, result.output
    assert f"next: cadiff reconstruct {subject} --pipeline {tmp_path / 'pipeline'}" in result.output
    quick = ["--set", "num_images_per_trial=1", "--set", "num_inference_steps=2", "--set", "max_stimuli=2"]
    out = tmp_path / "reconstructions"
    result = runner.invoke(
        cli.app,
        ["reconstruct", str(subject), "--pipeline", str(tmp_path / "pipeline"), "--out", str(out), *quick],
    )
    assert result.exit_code == 0, result.output
    assert len(list((out / "images" / "brain").iterdir())) == 2


def test_the_subject_is_asked_for_and_checked(brain_ldm, config_yaml, subject, linear_brain, tmp_path):
    source = checkpoint(tmp_path / "finetuned.pth", brain_ldm)
    with pytest.raises(
        ConfigError, match=r"add --dataset with that subject's dataset folder \(16 values a trial"
    ):
        import_weights(source, tmp_path / "pipeline")
    with pytest.raises(DataError, match=r"reads 16 values a trial, but the 40 voxels of .* come to 44"):
        import_weights(source, tmp_path / "pipeline", dataset=linear_brain)
    assert dict(describe(source))["next"].endswith("--dataset DATASET")
    assert "statistics" in dict(describe(source))["missing"]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cond_stage_model.channel_mapper.0.weight", None, "the heads of its condition are not those"),
        ("cond_stage_model.mae.norm.bias", None, "weight norm.bias is absent"),
        (
            "cond_stage_model.channel_mapper.0.weight",
            (2, 9, 1),
            "its encoder makes 4 tokens, its mapper reads 9",
        ),
        (
            "cond_stage_model.dim_mapper.weight",
            (24, 99),
            r"its head dim_mapper.weight is \(24, 99\), expected \(24, 32\)",
        ),
        ("model.diffusion_model.time_embed_condtion.2.bias", (7,), r"its head time_head.2.bias is \(7,\)"),
    ],
)
def test_what_is_incomplete_is_one_sentence(brain_ldm, config_yaml, subject, tmp_path, name, shape, message):
    brain_ldm.pop(name)
    if shape:
        brain_ldm[name] = torch.zeros(shape)
    source = checkpoint(tmp_path / "finetuned.pth", brain_ldm)
    assert "missing" in dict(describe(source))
    with pytest.raises(ArtifactError, match=message):
        import_weights(source, tmp_path / "pipeline", dataset=subject)
    assert not (tmp_path / "pipeline").exists()

"""Folders: what is ours or opens as it is is said so, other file formats become priors, and load_prior's refusals are kept."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file

import tiny_networks
from cadiff.contrast import FmriMae, save_encoder
from cadiff.convert import describe, import_weights
from cadiff.convert.fmri import preprocessor
from cadiff.errors import ArtifactError, ConfigError
from cadiff.priors.load import load_prior
from layouts import weights

WEIGHTS = "diffusion_pytorch_model"


def diffusers_folder(folder, *, kl=True, suffix=".bin", dtype=torch.float32, prediction="epsilon"):
    """As StableDiffusionPipeline.save_pretrained writes it: vae/ or vqvae/, unet/, scheduler/."""
    with tiny_networks.seeded(0):
        vae = (
            AutoencoderKL(latent_channels=3, scaling_factor=0.18215, **tiny_networks.AUTOENCODER)
            if kl
            else tiny_networks.vq_model(num_vq_embeddings=16)
        )
        unet = tiny_networks.unet()
    for name, part in (("vae" if kl else "vqvae", vae), ("unet", unet)):
        part.save_config(folder / name)
        state = {key: value.to(dtype) for key, value in part.state_dict().items()}
        if suffix == ".bin":
            torch.save(state, folder / name / f"{WEIGHTS}.bin")
        else:
            save_file(state, folder / name / f"{WEIGHTS}{suffix}", metadata={"format": "pt"})
    DDIMScheduler(prediction_type=prediction).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return unet, vae


@pytest.mark.parametrize("kl", [True, False])
@pytest.mark.parametrize(("suffix", "dtype"), [(".bin", torch.float32), (".fp16.safetensors", torch.float16)])
def test_other_file_formats_become_priors(tmp_path, kl, suffix, dtype):
    unet, vae = diffusers_folder(tmp_path / "sd", kl=kl, suffix=suffix, dtype=dtype)
    said = dict(describe(tmp_path / "sd"))
    assert said["next"] == f"cadiff weights import {tmp_path / 'sd'} OUT"
    assert (
        f"{sum(p.numel() for p in unet.parameters()):,} parameters" in said["unet"] and suffix in said["unet"]
    )
    made = import_weights(tmp_path / "sd", tmp_path / "prior")
    assert (made.kind, made.made) == ("prior", True)
    prior = load_prior(tmp_path / "prior")
    assert prior.scaling_factor == pytest.approx(0.18215)
    assert type(prior.vqvae).__name__ == ("AutoencoderKL" if kl else "VQModel") and not prior.classes
    for ours, theirs in ((prior.unet, unet), (prior.vqvae, vae)):
        expected = theirs.state_dict()
        assert all(
            torch.equal(value, expected[name].to(dtype).float()) for name, value in ours.state_dict().items()
        )
    stored = load_file(tmp_path / "prior" / "unet" / f"{WEIGHTS}.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prior", "sd"]  # nothing is left behind


def test_a_folder_that_opens_is_said_to_be_a_prior_and_left_alone(tmp_path):
    diffusers_folder(tmp_path / "sd", suffix=".safetensors")
    made = import_weights(tmp_path / "sd", tmp_path / "out")
    assert (made.folder, made.kind, made.made) == (tmp_path / "sd", "prior", False)
    assert not (tmp_path / "out").exists()
    assert "prior as it is" in dict(describe(tmp_path / "sd"))["next"]
    assert not import_weights(load_prior("shipped").folder, tmp_path / "out").made


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_v_prediction_is_refused_as_load_prior_does(tmp_path, suffix):
    diffusers_folder(tmp_path / "sd", suffix=suffix, prediction="v_prediction")
    with pytest.raises(ConfigError, match="sd: the denoiser predicts 'v_prediction'; expected epsilon"):
        import_weights(tmp_path / "sd", tmp_path / "prior")
    assert dict(describe(tmp_path / "sd"))["noise"] == "DDIMScheduler, predicts v_prediction"
    assert [p.name for p in tmp_path.iterdir()] == ["sd"]


def test_denoisers_that_ask_for_more_than_a_context_are_refused(tmp_path):
    diffusers_folder(tmp_path / "xl", suffix=".safetensors")
    path = tmp_path / "xl" / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "addition_embed_type": "text_time"}))
    with pytest.raises(ConfigError, match="asks for more than a context"):
        import_weights(tmp_path / "xl", tmp_path / "prior")
    assert "not possible" in dict(describe(tmp_path / "xl"))["import"]


def test_damaged_folders_are_one_sentence_about_the_users_folder(tmp_path):
    diffusers_folder(tmp_path / "sd")
    (tmp_path / "sd" / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ArtifactError, match=f"{tmp_path / 'sd'} lacks scheduler"):
        import_weights(tmp_path / "sd", tmp_path / "prior")
    state = torch.load(tmp_path / "sd" / "unet" / f"{WEIGHTS}.bin", weights_only=True)
    torch.save(dict(list(state.items())[:-1]), tmp_path / "sd" / "unet" / f"{WEIGHTS}.bin")
    with pytest.raises(ArtifactError, match=f"weights in {tmp_path / 'sd' / 'unet'} do not fit"):
        import_weights(tmp_path / "sd", tmp_path / "prior")
    (tmp_path / "sd" / "unet" / f"{WEIGHTS}.bin").unlink()
    with pytest.raises(ArtifactError, match="unet holds no weights"):
        import_weights(tmp_path / "sd", tmp_path / "prior")
    for i in (1, 2):
        save_file({"a": torch.ones(1)}, tmp_path / "sd" / "unet" / f"{WEIGHTS}-0000{i}-of-00002.safetensors")
    with pytest.raises(ArtifactError, match="in 2 pieces"):
        import_weights(tmp_path / "sd", tmp_path / "prior")


def test_a_malicious_bin_in_a_diffusers_folder_runs_nothing(tmp_path):
    diffusers_folder(tmp_path / "sd")
    marker = tmp_path / "code-ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"a": Evil()}, tmp_path / "sd" / "unet" / f"{WEIGHTS}.bin")
    for act in (describe, lambda source: import_weights(source, tmp_path / "prior")):
        with pytest.raises(
            ArtifactError, match=r"asks for (_io|io|__builtin__|builtins)\.open, which can run code"
        ):
            act(tmp_path / "sd")
    assert not marker.exists() and not (tmp_path / "prior").exists()


def test_our_own_folders_are_named(tmp_path):
    config = tiny_networks.fmri_mae_config(num_voxels=16)
    run = tmp_path / "run"
    save_encoder(run / "encoder", FmriMae(config), preprocessor(config, None), {})
    for source in (run, run / "encoder"):  # a run folder is as good as what it holds
        made = import_weights(source, tmp_path / "out")
        assert (made.folder, made.kind, made.made) == (run / "encoder", "encoder", False)
        assert "--encoder" in dict(describe(source))["is"]
        assert "num_voxels=16" in dict(describe(source))["sizes"]


def test_a_folder_with_one_file_is_that_file_and_with_two_is_asked_about(phase_1, tmp_path):
    folder = tmp_path / "GOD"
    folder.mkdir()
    with pytest.raises(ArtifactError, match=r"holds no weights that this knows \(found: nothing\)"):
        describe(folder)
    weights.save(folder / "fmri_encoder.pth", {"model": phase_1}, num_heads=4, decoder_num_heads=2)
    assert import_weights(folder, tmp_path / "encoder").kind == "encoder"
    weights.save(folder / "other.pth", {"model": phase_1})
    with pytest.raises(
        ArtifactError, match=r"holds 2 files of weights \(fmri_encoder\.pth, other\.pth\): name one"
    ):
        import_weights(folder, tmp_path / "again")


def test_nothing_is_overwritten(phase_1, tmp_path):
    source = weights.save(tmp_path / "c.pth", {"model": phase_1}, num_heads=4, decoder_num_heads=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ArtifactError, match="already exists and is never overwritten"):
        import_weights(source, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]

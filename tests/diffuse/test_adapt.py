"""`cadiff prior adapt`: what is trained, what is refused, and that the features are heeded."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cadiff.diffuse.adapt import AdaptConfig, adapt_prior
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.priors.load import load_prior
from cadiff.priors.seeing import picture_coordinates
from cadiff.training import FitConfig
from fake_cuda import fake_cuda
from tiny_networks import write_adapted


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name, level in (("cat", 40), ("dog", 120), ("car", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            picture = np.clip(level + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def small_eye(monkeypatch):
    """Mean colours of quarters instead of a network's features."""

    def see(prior, images, *, eye, eye_size):
        quarters = images.reshape(len(images), 2, 8, 2, 8, 3).mean((2, 4)).reshape(len(images), -1)
        latents = prior.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
        return torch.from_numpy(quarters).float() / 255, latents

    monkeypatch.setattr("cadiff.diffuse.adapt.see", see)
    monkeypatch.setattr("cadiff.priors.seeing.see", see)


def config(steps=3, **options):
    fit = FitConfig(steps=steps, batch_size=8, learning_rate=1e-2, log_every=1, checkpoint_every=2)
    small = {"num_heldout": 20, "feature_components": 3, "latent_components": 2, "num_tokens": 2, "width": 8}
    return AdaptConfig(**{**small, **options}, fit=fit)


def test_trains_transformer_blocks_on_the_way_up_and_nothing_else(pictures, prior_folder, tmp_path):
    made = adapt_prior(config(), pictures, tmp_path / "run", prior=prior_folder)
    before, after = load_prior(prior_folder), load_prior(made)
    old = before.unet.state_dict()
    changed = [key for key, value in after.unet.state_dict().items() if not torch.equal(value, old[key])]
    assert changed
    assert all(key.startswith("up_blocks.") and ".attentions." in key for key in changed)
    assert picture_coordinates(after, np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 5)
    about = json.loads((made / "prior.json").read_text())
    assert (about["num_images"], about["base"]) == (40, str(prior_folder))
    assert {"heldout_loss", "heldout_loss_other_features", "seconds"} <= set(about)
    with Image.open(tmp_path / "run" / "samples.png") as sheet:
        assert sheet.size[0] >= 16 * 16


def test_the_denoiser_is_prepared_as_in_tuning(pictures, prior_folder, tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr("cadiff.diffuse.adapt.write_out_wide_heads", prepared.append)
    monkeypatch.setattr("cadiff.diffuse.adapt.fit", lambda loss, modules, *_, **__: prepared.append(modules))
    with pytest.raises(AttributeError):  # there is no result
        adapt_prior(config(), pictures, tmp_path / "run", prior=prior_folder)
    unet, modules = prepared
    assert modules["model"].unet is unet
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_step_is_captured_and_pictures_are_drawn_on_a_gpu(pictures, prior_folder, tmp_path):
    with fake_cuda() as gpu:
        adapt_prior(config(steps=5), pictures, tmp_path / "run", prior=prior_folder)
    assert gpu.captured == 1


def test_the_same_seed_gives_the_same_prior_and_a_finished_run_is_left_alone(
    pictures, prior_folder, tmp_path
):
    first = adapt_prior(config(), pictures, tmp_path / "a", prior=prior_folder)
    second = adapt_prior(config(), pictures, tmp_path / "b", prior=prior_folder)
    for name in ("unet_changes.safetensors", "image_context/diffusion_pytorch_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    when = (first / "prior.json").stat().st_mtime_ns
    assert adapt_prior(config(), pictures, tmp_path / "a", prior=prior_folder, resume=True) == first
    assert (first / "prior.json").stat().st_mtime_ns == when


def test_features_are_heeded_after_some_training(pictures, prior_folder, tmp_path):
    made = adapt_prior(config(steps=150, condition_dropout=0), pictures, tmp_path / "run", prior=prior_folder)
    about = json.loads((made / "prior.json").read_text())
    assert about["heldout_loss"] < about["heldout_loss_other_features"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_heldout": 40}, DataError, "60 pictures are too few: 40 are held out"),
        ({"feature_components": 50}, DataError, "60 pictures are too few.*50 components"),
        ({"latent_components": 40}, DataError, "60 pictures are too few.*40 components"),
        ({"feature_components": 13}, DataError, "vary along 12 .* set feature_components=12"),
    ],
)
def test_too_few_pictures(pictures, prior_folder, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        adapt_prior(config(**options), pictures, tmp_path / "run", prior=prior_folder)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_before_pictures_are_seen(pictures, prior_folder, tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    monkeypatch.setattr("cadiff.diffuse.adapt.see", None)
    with pytest.raises(ArtifactError, match="never overwritten"):
        adapt_prior(config(), pictures, tmp_path / "used", prior=prior_folder)


def test_the_base_is_found_from_any_folder(pictures, prior_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(prior_folder.parent)
    made = adapt_prior(config(steps=1), pictures, tmp_path / "run", prior=prior_folder.name)
    monkeypatch.chdir(tmp_path / "photos")
    assert load_prior(made).image_context is not None


def test_a_prior_is_adapted_once_and_needs_labels(pictures, prior_folder, tmp_path):
    twice = write_adapted(tmp_path / "adapted", prior_folder)
    with pytest.raises(ConfigError, match="draws from features of pictures already"):
        adapt_prior(config(), pictures, tmp_path / "run", prior=twice)


@pytest.mark.parametrize(
    ("eye", "message"), [("efficientnet-lite2", "scored by its own eye"), ("vgg", "unknown eye")]
)
def test_the_judge_is_no_eye(eye, message):
    with pytest.raises(ValueError, match=message):
        AdaptConfig(eye=eye)

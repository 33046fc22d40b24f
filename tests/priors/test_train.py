from pathlib import Path

import numpy as np
import pytest
import torch

from cadiff.artifacts import read_json
from cadiff.config import load_config, load_preset
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.priors import train as train_module
from cadiff.priors.load import load_prior
from cadiff.priors.train import PriorConfig, train_prior
from cadiff.priors.train_ldm import build_unet
from cadiff.priors.train_mae import build_image_mae
from cadiff.priors.train_vq import build_autoencoder

TINY = [
    "image_size=16",
    "num_heldout=8",
    "vqvae={channels: [8, 16], norm_groups: 4, num_codes: 16, perceptual_weight: 0, codebook_start: 2, revive_every: 2}",
    "vqvae.fit={steps: 6, batch_size: 8, checkpoint_every: 2}",
    "diffusion={channels: [8, 16], cross_attention: [true, true], norm_groups: 4, head_dim: 8, context_dim: 8}",
    "diffusion.fit={steps: 4, batch_size: 8, checkpoint_every: 2, ema_decay: 0.9}",
    "image_mae={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2, decoder_embed_dim: 16, decoder_depth: 1}",
    "image_mae.decoder_num_heads=2",
    "image_mae.fit={steps: 4, batch_size: 8, checkpoint_every: 2}",
]


def tiny(*overrides):
    return load_config(PriorConfig, "prior", overrides=[*TINY, *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes_npz):
    """A run that was never interrupted."""
    return train_prior(tiny(), shapes_npz, tmp_path_factory.mktemp("whole") / "run").parent


def weights(folder):
    prior = load_prior(folder)
    return {**prior.unet.state_dict(), **{f"vq.{k}": v for k, v in prior.vqvae.state_dict().items()}}


def test_the_prior_opens_and_says_what_it_was_made_from(whole, shapes):
    folder = whole / "prior"
    prior = load_prior(folder)
    assert prior.image_size == 16 and prior.latent_shape == (3, 8, 8)
    assert prior.classes == ["0", "1"] and prior.null_label == 2 and prior.label_embedding.shape == (3, 8)
    images = torch.from_numpy(shapes[0]).permute(0, 3, 1, 2) / 127.5 - 1
    latents = prior.encode(images)
    assert latents.std().item() == pytest.approx(1, abs=0.1) and prior.decode(latents).shape == images.shape
    facts = read_json(folder / "prior.json")["training"]
    assert (
        facts["num_images"] == 40
        and facts["num_heldout"] == 8
        and sum(facts["images_per_class"].values()) == 40
    )
    assert facts["vqvae"]["heldout_psnr"] > 0 and facts["image_mae"]["heldout_loss"] > 0
    assert prior.image_mae is not None and (prior.image_mae / "input.json").is_file()
    for sheet in ("samples.png", "reconstructions.png"):
        assert (whole / sheet).stat().st_size > 0
    assert not (whole / "diffusion" / "latents.safetensors").exists()


def test_resuming_skips_finished_parts_and_ends_with_the_same_weights(
    whole, tmp_path, shapes_npz, monkeypatch
):
    calls = []

    def spy(name):
        original = getattr(train_module, name)

        def call(*arguments, **options):
            calls.append(name)
            if name == "train_image_mae" and calls.count(name) == 1:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        monkeypatch.setattr(train_module, name, call)

    for name in ("train_autoencoder", "train_diffusion", "train_image_mae"):
        spy(name)
    with pytest.raises(KeyboardInterrupt):
        train_prior(tiny(), shapes_npz, tmp_path / "cut")
    assert not (tmp_path / "cut" / "prior").exists()
    resumed = train_prior(tiny(), shapes_npz, tmp_path / "cut", resume=True)
    assert calls == ["train_autoencoder", "train_diffusion", "train_image_mae", "train_image_mae"]
    expected, found = weights(whole / "prior"), weights(resumed)
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    train_prior(tiny(), shapes_npz, tmp_path / "cut", resume=True)
    assert len(calls) == 4


@pytest.mark.parametrize("part", ["vqvae", "diffusion"])
def test_a_part_that_was_cut_off_goes_on_from_its_checkpoint(whole, tmp_path, shapes_npz, monkeypatch, part):
    log = train_module.RunFolder.log

    def dying(self, record):
        if self.path.name == part and record["step"] == 3:
            raise KeyboardInterrupt
        log(self, record)

    # every step is logged, so that training can be cut off between two checkpoints
    config = tiny(f"{part}.fit.log_every=1")
    monkeypatch.setattr(train_module.RunFolder, "log", dying)
    with pytest.raises(KeyboardInterrupt):
        train_prior(config, shapes_npz, tmp_path / "cut")
    monkeypatch.setattr(train_module.RunFolder, "log", log)
    resumed = weights(train_prior(config, shapes_npz, tmp_path / "cut", resume=True))
    assert all(torch.equal(value, resumed[key]) for key, value in weights(whole / "prior").items())


def test_a_run_is_neither_overwritten_nor_resumed_with_something_else(whole, tmp_path, shapes, shapes_npz):
    other = tmp_path / "other.npz"
    with pytest.raises(ArtifactError, match="already exists"):
        train_prior(tiny(), shapes_npz, whole)
    with pytest.raises(ArtifactError, match="config differ"):
        train_prior(tiny("seed=1"), shapes_npz, whole, resume=True)
    np.savez(other, images=255 - shapes[0], labels=shapes[1])
    with pytest.raises(ArtifactError, match="inputs differ"):
        train_prior(tiny(), other, whole, resume=True)


def test_too_few_pictures_leave_nothing_behind(tmp_path, shapes, shapes_npz):
    with pytest.raises(DataError, match="48 pictures leave none to train on"):
        train_prior(tiny("num_heldout=48"), shapes_npz, tmp_path / "run")
    np.savez(tmp_path / "rare.npz", images=shapes[0], labels=[7] + 47 * [1])
    held = next(seed for seed in range(200) if 0 in np.random.default_rng(seed).permutation(48)[:8])
    with pytest.raises(DataError, match="Class '7' has no picture left"):
        train_prior(tiny(f"seed={held}"), tmp_path / "rare.npz", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="image_size: input should be a multiple of 8"):
        tiny("image_size=20")
    with pytest.raises(ConfigError, match="image_size 16 must be a multiple of 3"):
        tiny("image_mae.patch_size=3")
    with pytest.raises(ConfigError, match="did you mean 'image_size'"):
        tiny("imagesize=16")


def recipes():
    return sorted((Path(__file__).parents[2] / "recipes").glob("prior_*.yaml"))


@pytest.mark.parametrize("recipe", recipes(), ids=lambda path: path.stem)
def test_every_recipe_builds(recipe):
    assert "prior" in load_preset(recipe)
    config = load_config(PriorConfig, "prior", recipe)
    size = config.image_size // config.vqvae.downsampling
    with torch.device("meta"):
        build_autoencoder(config.vqvae, config.image_size)
        build_unet(config.diffusion, (config.vqvae.latent_channels, size, size))
    assert build_image_mae(config.image_mae, config.image_size).config.image_size == config.image_size

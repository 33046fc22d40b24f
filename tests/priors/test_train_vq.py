import numpy as np
import pytest
import torch

from cadiff.config import load_config
from cadiff.errors import ConfigError
from cadiff.priors.train_vq import (
    AutoencoderConfig,
    Codebook,
    autoencoder_loss,
    build_autoencoder,
    centre_latents,
    decode,
    encode,
    psnr,
    reconstruct,
    to_bytes,
    to_range,
    train_autoencoder,
)
from cadiff.runs import RunFolder

TINY = [
    "channels=[8,16]",
    "norm_groups=4",
    "num_codes=16",
    "perceptual_weight=0",
    "codebook_start=10",
    "revive_every=10",
    "fit={steps: 40, batch_size: 8, learning_rate: 5.0e-3, weight_decay: 0, checkpoint_every: 20}",
]


def tiny(*overrides):
    return load_config(AutoencoderConfig, "vqvae", overrides=[*TINY, *overrides])


def seeded(config, image_size=16):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build_autoencoder(config, image_size)


def test_bytes_and_range_are_inverse(shapes):
    images = torch.from_numpy(shapes[0])
    x = to_range(images)
    assert x.shape == (48, 3, 16, 16) and x.min() >= -1 and x.max() <= 1
    np.testing.assert_array_equal(to_bytes(x), shapes[0])


def test_psnr_of_a_known_error():
    black = np.zeros((3, 4, 4, 3), np.uint8)
    assert psnr(black, black + 51) == pytest.approx(20 * np.log10(5))
    assert psnr(black, black) == 60


@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize(("channels", "factor"), [("[8,8]", 2), ("[8,8,8]", 4)])
def test_latents_have_the_shape_of_the_config(shapes, kind, channels, factor):
    config = tiny(f"kind={kind}", f"channels={channels}", "latent_channels=5")
    model = build_autoencoder(config, 16).eval()
    latents = encode(model, shapes[0][:3], batch_size=2)
    assert config.downsampling == factor and latents.shape == (3, 5, 16 // factor, 16 // factor)
    assert decode(model, latents).shape == (3, 16, 16, 3)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_centring_changes_the_latents_and_no_picture(shapes, kind):
    model = seeded(tiny(f"kind={kind}")).eval()
    torch.nn.init.constant_(model.quant_conv.bias, 0.7)
    before = reconstruct(model, shapes[0]).astype(int)
    centre_latents(model, shapes[0])
    latents = encode(model, shapes[0]) * model.config["scaling_factor"]
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert latents.std().item() == pytest.approx(1, abs=1e-2)
    assert abs(reconstruct(model, shapes[0]) - before).max() <= 1  # rounding


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_training_lowers_the_loss_and_stores_a_diffusers_model(tmp_path, shapes, kind):
    config = tiny(f"kind={kind}", "latent_channels=4")
    run = RunFolder.open(tmp_path / "vqvae", stage="test", config=config)
    facts = train_autoencoder(config, shapes[0][:40], shapes[0][40:], run=run)
    losses = [record["l1"] for record in run.history()]
    assert losses[-1] < 0.5 * losses[0]
    model = type(build_autoencoder(config, 16)).from_pretrained(run.path / "vqvae")
    assert psnr(shapes[0][40:], reconstruct(model, shapes[0][40:])) == pytest.approx(
        facts["heldout_psnr"], abs=0.2
    )


def test_codes_that_nobody_uses_move_onto_the_latents(shapes):
    config = tiny("codebook_start=0", "revive_every=2")
    model = seeded(config)
    codebook, generator = Codebook(model, config), torch.Generator().manual_seed(0)
    images = to_range(torch.from_numpy(shapes[0]))
    codebook.forward(images, 0, generator)
    with torch.no_grad():
        model.quantize.embedding.weight[3:] = 1e3  # far from everything
    codebook.used.zero_()
    codebook.forward(images, 1, generator)
    vectors = model.encode(images).latents.permute(0, 2, 3, 1).reshape(-1, 3)
    distances = torch.cdist(model.quantize.embedding.weight[3:], vectors).min(dim=1).values
    assert (distances < 0.05 * vectors.std()).all()
    assert not codebook.used.any()  # a checkpoint may be taken here


def test_loss_is_a_function_of_batch_and_generator(shapes):
    config = tiny("horizontal_flip=true")
    loss = autoencoder_loss(config, seeded(config))
    batch = {"index": 3, "images": torch.from_numpy(shapes[0])}
    values = [loss(batch, torch.Generator().manual_seed(seed))["loss"].item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="channels 8 is not a multiple of norm_groups 3"):
        tiny("norm_groups=3")
    with pytest.raises(ConfigError, match="checkpoint_every 20 must be a multiple of revive_every 15"):
        tiny("revive_every=15")

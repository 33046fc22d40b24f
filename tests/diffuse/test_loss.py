from dataclasses import replace

import numpy as np
import pytest
import torch

from cadiff.diffuse.latents import crop_latents, to_unit_range
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.diffuse.stage import EpsilonLoss


def evaluate(prior, conditioner, *, seed=0, **options):
    batch = {"betas": torch.ones(64, 32), "latents": torch.zeros(64, 2, *prior.latent_shape)}
    with torch.no_grad():
        loss = EpsilonLoss(DiffuseConfig(**options), prior, conditioner)
        return loss(batch, torch.Generator().manual_seed(seed))["loss"].item()


def silence(prior):
    """A denoiser that predicts no noise at all: its error is the noise itself."""
    torch.nn.init.zeros_(prior.unet.conv_out.weight)
    torch.nn.init.zeros_(prior.unet.conv_out.bias)


def test_predicting_no_noise_costs_its_variance(prior, conditioner):
    silence(prior)
    assert evaluate(prior, conditioner) == pytest.approx(1.0, abs=0.05)


def test_min_snr_weights(prior, conditioner):
    """The mean weight over uniform time steps, from the noise schedule alone (Hang et al. 2023, eq. 8)."""
    silence(prior)
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    snr = kept / (1 - kept)
    expected = (np.minimum(snr, 5) / snr).mean()
    found = np.mean([evaluate(prior, conditioner, min_snr_gamma=5.0, seed=s) for s in range(10)])
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("probability", "view"), [(0.0, 0), (1.0, 1)])
def test_who_knows_the_target_finds_the_noise(prior, conditioner, probability, view):
    """epsilon = (x - sqrt(abar_t) z) / sqrt(1 - abar_t), from the noise schedule alone, for z of the drawn view."""
    kept = torch.from_numpy(np.cumprod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)).float()
    views = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(5))

    def oracle(x, timesteps, **_):
        a = kept[timesteps].view(-1, 1, 1, 1)
        return ((x - a.sqrt() * views[view]) / (1 - a).sqrt(),)

    batch = {"betas": torch.ones(16, 32), "latents": views.expand(16, *views.shape)}
    loss = EpsilonLoss(DiffuseConfig(crop_probability=probability), replace(prior, unet=oracle), conditioner)
    assert loss(batch, torch.Generator().manual_seed(0))["loss"].item() < 1e-5


def test_draws_come_from_the_generator(prior, conditioner):
    assert evaluate(prior, conditioner, seed=1) == evaluate(prior, conditioner, seed=1)
    assert evaluate(prior, conditioner, seed=1) != evaluate(prior, conditioner, seed=2)


def test_dropping_every_condition_hides_the_betas(prior, conditioner):
    loss = EpsilonLoss(DiffuseConfig(condition_dropout=0.999999, sparsify_rate=0.0), prior, conditioner)
    values = []
    for betas in (torch.zeros(8, 32), 50 * torch.ones(8, 32)):
        batch = {"betas": betas, "latents": torch.zeros(8, 1, *prior.latent_shape)}
        values.append(loss(batch, torch.Generator().manual_seed(0))["loss"].item())
    assert values[0] == values[1]


def test_crops(prior, dataset):
    names = ["train0", "train1"]
    latents = crop_latents(dataset, names, prior, num_crops=3, crop_ratio=0.25, seed=0)
    assert latents.shape == (2, 4, *prior.latent_shape)
    whole = prior.encode(to_unit_range(dataset.images(names)))
    torch.testing.assert_close(latents[:, 0], whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(latents[:, 0], latents[:, 1])
    alone = crop_latents(dataset, names[1:], prior, num_crops=3, crop_ratio=0.25, seed=0)
    torch.testing.assert_close(alone[0], latents[1])  # a picture's crops do not depend on the others


def test_unit_range():
    ends = to_unit_range(np.array([[[[0, 255, 0]]]], dtype=np.uint8))
    assert ends.flatten().tolist() == [-1.0, 1.0, -1.0]

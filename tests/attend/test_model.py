"""The image side against transformers' own forward, and who learns what."""

import pytest
import torch

from cadiff.attend.image_mae import load_image_mae
from cadiff.attend.model import ImageCross, phase_2_loss
from cadiff.attend.stage import AttendConfig, join
from cadiff.contrast import load_encoder
from cadiff.contrast.masking import Masking
from cadiff.data.dataset import BrainDataset


@pytest.fixture
def sides(encoder, image_mae, generator):
    start, _ = load_encoder(encoder)
    images = load_image_mae(image_mae)
    fmri, image = join(start, images, AttendConfig(), generator, encoder)
    return fmri.eval(), image.eval()


def pictures(generator, count=2):
    return torch.randint(0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)


def test_pictures_are_normalised_exactly_once(subject, image_mae, sides):
    data = BrainDataset.open(subject)
    stored = torch.from_numpy(data.images(data.stimulus_ids("train"), 16))
    pixels = sides[1].normalise(stored)
    assert pixels.shape == (12, 3, 16, 16)
    assert 0.5 < pixels.std().item() < 2.0  # scaled twice it would be near 0.004
    expected = (stored[3, 5, 7].double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(pixels[3, :, 5, 7].double(), expected, atol=1e-6, rtol=0)
    with pytest.raises(TypeError, match="uint8"):
        sides[1].normalise(pixels)


def test_rescaled_twice_all_pictures_look_alike(encoder, image_mae, generator):
    """As through an image processor that divides by 255 what lies in [0, 1] already: pictures differ 255 times less."""
    start, _ = load_encoder(encoder)
    once, twice = (
        join(start, load_image_mae(image_mae), AttendConfig(rescale_twice=again), generator, encoder)[1]
        for again in (False, True)
    )
    stored = pictures(generator, 4)
    expected = (stored.double() / 255 / 255 - 0.5) / 0.25
    torch.testing.assert_close(twice.normalise(stored).double(), expected.movedim(-1, 1), atol=1e-6, rtol=0)
    spread = once.normalise(stored).std() / twice.normalise(stored).std()
    assert spread.item() == pytest.approx(255, rel=1e-3)


def test_support_is_what_transformers_computes_unmasked(sides, generator):
    image: ImageCross = sides[1]
    pixels = image.normalise(pictures(generator))
    image.mae.config.mask_ratio = 0.0
    noise = torch.arange(16.0).expand(2, 16)  # argsort of this keeps the order
    expected = image.mae.vit(pixels, noise=noise).last_hidden_state
    torch.testing.assert_close(image.support(pixels), expected)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_without_cross_blocks_it_is_the_plain_image_mae(sides, generator, norm_pix_loss, monkeypatch):
    image: ImageCross = sides[1]
    image.mae.config.norm_pix_loss = norm_pix_loss
    pixels = image.normalise(pictures(generator))
    noise = torch.rand(2, 16, generator=generator)
    image.mae.config.mask_ratio = 0.5
    expected = image.mae(pixels, noise=noise)
    keep = noise.argsort(1)[:, :8]
    masking = Masking(keep, torch.ones(2, 16, dtype=torch.bool).scatter(1, keep, False))
    monkeypatch.setattr("cadiff.attend.model.random_masking", lambda *a, **k: masking)
    image.cross_blocks = torch.nn.ModuleList()
    painted, mask = image(pixels, 0.5, generator, torch.zeros(2, 9, 16))
    torch.testing.assert_close(painted, expected.logits)
    assert torch.equal(mask.float(), expected.mask)
    error = (painted - image.target(pixels)).square().mean(-1)[mask].mean()
    torch.testing.assert_close(error, expected.loss)


def test_the_fmri_reaches_the_picture(sides, generator):
    image: ImageCross = sides[1]
    pixels = image.normalise(pictures(generator))
    supports = torch.randn(2, 2, 9, 16, generator=generator) * 20
    first, second = (image(pixels, 0.5, torch.Generator().manual_seed(1), s)[0] for s in supports)
    assert (first - second).abs().max() > 1e-6


def names(module, trained=True):
    return {n for n, p in module.named_parameters() if p.requires_grad is trained}


def test_trainable_sets(sides):
    fmri, image = sides
    cross = {n for n in names(image) | names(image, False) if n.startswith("cross_")}
    fixed = {"mae.vit.embeddings.position_embeddings", "mae.decoder.decoder_pos_embed"}
    everything = names(image) | names(image, False)
    image.set_trainable("code")
    assert names(image) == cross | {n for n in everything if n.startswith("mae.decoder.")} - fixed
    image.set_trainable("code", decoder_positions=True)
    assert names(image) == cross | {n for n in everything if n.startswith("mae.decoder.")}
    for positions in (False, True):
        image.set_trainable("paper", decoder_positions=positions)
        assert names(image) == cross | {n for n in everything if n.startswith("mae.vit.")} - fixed
    assert names(fmri, False) == {"pos_embed", "decoder_pos_embed"}


def test_gradients_reach_both_sides_and_no_frozen_weight(sides, generator):
    fmri, image = sides
    betas = torch.randn(2, 32, generator=generator)
    pixels = image.normalise(pictures(generator))
    options = {"mask_ratio": 0.75, "image_mask_ratio": 0.5, "gamma_f": 0.25, "gamma_i": 1.5}
    terms = phase_2_loss(fmri, image, betas, betas, pixels, torch.Generator().manual_seed(1), **options)
    expected = 0.25 * terms["fmri_error"] + 1.5 * terms["image_error"]
    assert terms["loss"].item() == pytest.approx(expected.item())
    terms["loss"].backward()
    for module in (fmri, image):
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    given = image.support(pixels)
    again = phase_2_loss(
        fmri, image, betas, betas, pixels, torch.Generator().manual_seed(1), **options, image_support=given
    )
    assert again["loss"].item() == terms["loss"].item()


def test_gamma_zero_leaves_one_modality(sides, generator):
    fmri, image = sides
    betas, pixels = torch.randn(2, 32, generator=generator), image.normalise(pictures(generator))
    options = {"mask_ratio": 0.5, "image_mask_ratio": 0.5, "gamma_f": 0.0, "gamma_i": 1.0}
    phase_2_loss(fmri, image, betas, betas, pixels, generator, **options)["loss"].backward()
    assert fmri.decoder_pred.weight.grad.abs().sum() == 0  # the fMRI's own reconstruction does not count
    assert fmri.patch_embed.proj.weight.grad.abs().sum() > 0  # but it guides the picture


@pytest.mark.parametrize("trainable", ["code", "paper"])
def test_bfloat16_reaches_the_networks_but_not_the_loss(sides, generator, trainable):
    fmri, image = sides
    image.set_trainable(trainable)
    betas, stored = torch.randn(2, 32, generator=generator), pictures(generator)
    options = {"mask_ratio": 0.5, "image_mask_ratio": 0.5, "gamma_f": 1.0, "gamma_i": 1.0}
    losses = []
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            draw = torch.Generator().manual_seed(2)
            losses.append(
                phase_2_loss(fmri, image, betas, betas, image.normalise(stored), draw, **options)["loss"]
            )
    losses[1].backward()
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)
    assert losses[1].item() != losses[0].item()

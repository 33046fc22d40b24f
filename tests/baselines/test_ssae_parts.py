"""The parts of SS-AE: losses and penalties against closed forms, networks by their contracts, the cycles in a linear world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cadiff.baselines.ssae.decoder import Decoder
from cadiff.baselines.ssae.encoder import Encoder, initialise_encoder, initialise_layers
from cadiff.baselines.ssae.eye import load_frozen_eye
from cadiff.baselines.ssae.losses import (
    ImageLoss,
    decoder_penalty,
    encoder_penalty,
    spread,
    total_variation,
    voxel_loss,
)
from cadiff.baselines.ssae.settings import PUBLISHED_VOXELS, SsAeConfig, schedule
from cadiff.baselines.ssae.train import Learnt, Weights, shifted, train_decoder
from cadiff.errors import ArtifactError
from cadiff.eyes.alexnet import ALEXNET, VGG16, Chain
from cadiff.runs import RunFolder

SIDE, CODES = 4, 8
PIXELS = 3 * SIDE * SIDE


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_error_of_voxels_is_squared_or_absolute_and_weighted():
    predicted, measured = (torch.randn(5, 7, generator=generator(seed)) for seed in (0, 1))
    p, m = predicted.double().numpy(), measured.double().numpy()
    cosine = (p * m).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(m, axis=1)
    squared = ((p - m) ** 2).mean() + 0.1 * (1 - cosine).mean()
    assert float(voxel_loss(predicted, measured, cosine_weight=0.1)) == pytest.approx(squared, rel=1e-5)
    weights = np.array([3.0, 0, 0, 0, 2, 1, 1])
    absolute = (weights * abs(p - m)).mean() + 0.3 * (1 - cosine).mean()
    found = voxel_loss(predicted, measured, cosine_weight=0.3, weights=torch.tensor(weights).float())
    assert float(found) == pytest.approx(absolute, rel=1e-5)
    assert float(voxel_loss(measured, measured, cosine_weight=1.0)) == pytest.approx(0.0, abs=1e-6)


def test_the_error_of_pictures_ignores_the_strength_of_maps_and_counts_their_direction():
    mean = torch.full((3, 1, 1), 0.5)
    loss = ImageLoss((2.0, 3.0), 1.0, 0.0, mean)
    shown = torch.rand(2, 3, 8, 8, generator=generator())
    maps = [torch.randn(2, 4, side, side, generator=generator(side)) for side in (4, 2)]
    assert float(loss(shown, shown, [7.0 * m for m in maps], maps)) == pytest.approx(0.0, abs=1e-5)
    assert float(loss(shown + 0.1, shown, maps, maps)) == pytest.approx(0.2, abs=1e-5)  # 0.1 / 0.5
    assert float(loss(shown, shown, [-m for m in maps], maps)) == pytest.approx(2 * (2.0 + 3.0), abs=1e-5)


def test_total_variation_of_a_ramp():
    ramp = torch.arange(6.0)[:, None].expand(6, 6) * 0.2 + torch.arange(6.0) * 0.1
    assert float(total_variation(ramp.expand(2, 3, 6, 6))) == pytest.approx((0.04 + 0.01) ** 1.25, rel=1e-5)
    assert float(total_variation(torch.full((1, 3, 4, 4), 0.3))) == 0.0


def test_spread_is_the_second_moment():
    mass = torch.zeros(2, 5, 5)
    mass[0, 3, 1] = 2.0
    mass[1, 2, 0], mass[1, 2, 4] = 1.0, 1.0
    assert spread(mass).tolist() == pytest.approx([0.0, 8.0], abs=1e-5)


def test_penalties_prefer_weights_that_lie_together():
    near, far = (Decoder(1, 16, channels=2, kernel_size=3) for _ in range(2))
    for decoder, places in (
        (near, (0, 1)),
        (far, (0, 3)),
    ):  # places of the 2 x 2 grid: neighbours, or a diagonal
        initialise_layers(decoder, generator())
        with torch.no_grad():
            decoder.places().zero_()
            for place in places:
                decoder.input.weight.view(2, -1, 1)[:, place] = 1.0
    one = torch.ones(1)
    assert decoder_penalty(near, one) < decoder_penalty(far, one)


def test_the_decoders_penalty_is_the_published_one_at_the_published_number_of_voxels():
    decoder = Decoder(3, 16, channels=2, kernel_size=3)
    initialise_layers(decoder, generator())
    weights = decoder.input.weight.detach().double().numpy().T.reshape(3, 2, 2, 2)
    squares = weights**2
    padded = np.pad(squares, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    around = (
        padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    ) / 4
    groups = np.sqrt(((squares + 0.5 * around) / 1.5).mean(axis=1)).mean()
    unreliability = np.array([0.5, 1.0, 1.5])
    lasso = (abs(weights) * unreliability[:, None, None, None]).mean()
    kernels = sum(float(c.weight.detach().abs().sum()) for c in decoder.modules() if isinstance(c, nn.Conv2d))
    expected = (40 * lasso + 400 * groups) * 3 / PUBLISHED_VOXELS + 1e-4 * kernels
    found = decoder_penalty(decoder, torch.tensor(unreliability).float()).detach()
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_the_encoder_is_its_equation():
    shapes = [torch.Size((1, 3, 8, 8)), torch.Size((1, 5, 2, 2))]
    encoder = Encoder(shapes, 16, 6, channels=4, dropout=0.5)
    initialise_encoder(encoder, generator())
    maps = [torch.randn(2, *shape[1:], generator=generator(3)) for shape in shapes]
    encoder.standardise([maps])
    expected = encoder.bias.double().expand(2, 6).clone()
    for number, (grid, conv) in enumerate(
        zip((4, 2), encoder.convs, strict=True)
    ):  # size / 4, or the map's own side
        x = maps[number].double()
        x = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / x.std(dim=(0, 2, 3), correction=0, keepdim=True)
        step = x.shape[-1] // grid
        x = x.unfold(2, step, step).unfold(3, step, step).mean(dim=(-1, -2))
        x = torch.relu(nn.functional.conv2d(x, conv.weight.double(), conv.bias.double(), padding=1))
        expected += torch.einsum(
            "bcp,vp,vc->bv", x.flatten(2), encoder.space[str(grid)].double(), encoder.mixes[number].double()
        )
    torch.testing.assert_close(encoder(maps).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder(maps, generator(1)), encoder(maps, generator(1)))
    assert not torch.equal(encoder(maps, generator(1)), encoder(maps))
    assert torch.isfinite(encoder_penalty(encoder))


@pytest.mark.parametrize("size", [16, 30, 64, 112])
def test_decoders_draw_pictures_of_any_size(size):
    decoder = Decoder(10, size, channels=4, kernel_size=3)
    drawn = decoder(torch.randn(2, 10, generator=generator()))
    assert drawn.shape == (2, 3, size, size)
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_shifts_move_whole_pictures_and_repeat_their_edges():
    place = torch.arange(8.0)
    picture = torch.stack([place[:, None].expand(8, 8), place.expand(8, 8), torch.zeros(8, 8)])
    moved = shifted(picture.expand(200, 3, 8, 8), 2, generator())
    down, right = (moved[:, channel, 4, 4] - 4 for channel in (0, 1))
    assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2}
    for row in range(5):
        expected = (place + down[row]).clamp(0, 7)[:, None].expand(8, 8)
        assert torch.equal(moved[row, 0], expected)
        assert torch.equal(moved[row, 1], (place + right[row]).clamp(0, 7).expand(8, 8))
    assert shifted(picture[None], 0, generator()) is not None


def test_eyes_give_five_maps_and_gradients_to_the_pixels():
    eye = load_frozen_eye("efficientnet-lite0", "efficientnet-lite2")
    images = torch.rand(2, 3, 32, 32, generator=generator()).to(eye.device).requires_grad_()
    maps = eye(images)
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2, 1]
    maps[-1].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert torch.equal(eye(images[:1])[0], eye(images[:1])[0])


@pytest.mark.parametrize(("plan", "name"), [(ALEXNET, "alexnet"), (VGG16, "vgg16")])
def test_eyes_from_files_of_weights(plan, name, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(Chain(plan, {}).state_dict(), path)
    eye = load_frozen_eye(str(path), "efficientnet-lite2")
    maps = eye(torch.rand(1, 3, 64, 64, generator=generator()).to(eye.device))
    assert eye.describe()["name"] == name
    assert len(maps) == 5
    sides = [m.shape[-1] for m in maps]
    assert sides == sorted(sides, reverse=True)
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="neither AlexNet nor VGG16"):
        load_frozen_eye(str(tmp_path / "other.safetensors"), None)


def draw(count, noise, seed, world):
    """Pictures uint8 (count, 3, S, S) of few degrees of freedom, and responses: a linear code and noise."""
    mix, code = world
    rng = generator(seed)
    pictures = torch.randn(count, CODES, generator=rng) @ mix / CODES**0.5 * 0.15 + 0.5
    pictures = (pictures.clamp(0, 1) * 255).round().byte().view(count, 3, SIDE, SIDE)
    clean = centred(pictures) @ code
    return pictures, clean + noise * torch.randn(clean.shape, generator=rng)


def centred(pictures):
    return pictures.flatten(1).float() / 255 - 0.5


def ridge(pictures, responses, penalty):
    x = centred(pictures)
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(PIXELS), x.T @ responses)


def linear_decoder(tmp_path, pairs, fmri, pictures, encoder, weights, steps=300):
    """A linear decoder trained by `train_decoder`, starting at the mean."""
    decoder = nn.Sequential(nn.Linear(fmri.shape[1], PIXELS), nn.Unflatten(1, (3, SIDE, SIDE)))
    with torch.no_grad():
        decoder[0].weight.zero_()
        decoder[0].bias.fill_(0.5)
    run = RunFolder.open(
        tmp_path / f"{weights}-{len(list(tmp_path.iterdir()))}", stage="test", config=SsAeConfig()
    )
    learnt = Learnt(pairs[1], torch.arange(len(pairs[0])), fmri, torch.cat([pairs[0], pictures]))
    train_decoder(
        decoder,
        lambda maps: (maps[0].flatten(1) - 0.5) @ encoder,
        lambda images: [images],
        learnt,
        schedule(steps, 24, 2e-2, 0),
        fmri_batch=24,
        images_batch=24,
        weights=Weights(*weights, cosine=0.0),
        snr=torch.ones(fmri.shape[1]),
        compare=lambda drawn, shown, *_: 100 * (drawn - shown).square().mean(),
        penalty=lambda: torch.zeros(()),
        run=run,
    )
    run.finish()
    return decoder


def unexplained(decoder, responses, pictures):
    """Share of the pictures' variance that reconstructions leave."""
    with torch.no_grad():
        error = (decoder(responses) - pictures.float() / 255).square().mean()
    return float(error / centred(pictures).square().mean())


@pytest.fixture
def world():
    rng = generator(11)
    return torch.randn(CODES, PIXELS, generator=rng), torch.randn(PIXELS, 40, generator=rng) * 0.6


def test_pictures_alone_teach_the_inverse_of_a_known_encoder(world, tmp_path):
    pictures, responses = draw(600, 0.0, 1, world)
    held_out, codes = draw(300, 0.0, 2, world)
    decoder = linear_decoder(
        tmp_path, (pictures[:1], responses[:1]), responses[:1], pictures, world[1], (0, 1, 0)
    )
    assert unexplained(decoder, codes, held_out) < 0.005


def test_the_cycles_lower_the_held_out_error_when_pairs_are_few(world, tmp_path):
    """With an encoder that is penalised enough; with one that is overfitted they need not (docs/ssae.md)."""
    alone, both = [], []
    for seed in (0, 10):
        pairs = draw(24, 0.3, seed + 1, world)
        pictures, _ = draw(600, 0.3, seed + 2, world)
        _, fmri = draw(600, 0.3, seed + 3, world)
        held_out, measured = draw(300, 0.3, seed + 4, world)
        encoder = ridge(*pairs, penalty=0.3)
        for found, weights in ((alone, (1, 0, 0)), (both, (1, 1, 1))):
            decoder = linear_decoder(tmp_path, pairs, fmri, pictures, encoder, weights, steps=150)
            found.append(unexplained(decoder, measured, held_out))
    assert np.mean(both) < 0.9 * np.mean(alone)
    assert all(b < a for a, b in zip(alone, both, strict=True))


def test_a_term_of_weight_zero_changes_nothing(world, tmp_path):
    pairs = draw(12, 0.3, 1, world)
    pictures, responses = draw(50, 0.3, 2, world)
    some = linear_decoder(tmp_path, pairs, responses, pictures, world[1], (1, 0, 0), steps=5)
    other = linear_decoder(tmp_path, pairs, 2 * responses, pictures[:7], 0 * world[1], (1, 0, 0), steps=5)
    assert torch.equal(some[0].weight, other[0].weight)

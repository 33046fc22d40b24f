"""Layers, networks, features and inversion of the instance-conditioned GAN: closed forms and properties.

What the whole generator computes is held against an independent one in tests/convert/test_icgan.py.
"""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cadiff.priors.icgan.features import FeatureConfig, nearest_neighbours
from cadiff.priors.icgan.invert import InversionConfig, invert
from cadiff.priors.icgan.layers import (
    Attention,
    ConditionalNorm,
    SpectralConv2d,
    SpectralLinear,
    StoredNorm,
    initialise,
    spectral_layers,
)
from cadiff.priors.icgan.networks import Discriminator, Generator, GeneratorConfig
from layouts import icgan

TINY = GeneratorConfig(image_size=32, channels=2, noise_dim=12, feature_dim=5, embed_dim=6, attention=(16,))


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def generator():
    network = Generator(TINY)
    initialise(network, 0)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("size", "ch", "attention"), [(32, 3, (16,)), (64, 2, (32,)), (128, 5, (64, 16)), (256, 1, ())]
)
@pytest.mark.parametrize("hier", [True, False])
def test_names_and_shapes_are_those_of_the_released_layout(size, ch, attention, hier):
    chunks = len(icgan.WIDTHS[size]) if hier else 1
    config = GeneratorConfig(
        image_size=size, channels=8 * ch, noise_dim=3 * chunks, hierarchical=hier, feature_dim=7, embed_dim=6,
        attention=attention,
    )  # fmt: skip
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in Generator(config).state_dict().items()}
    theirs = icgan.generator(size, 8 * ch, chunk=3, embed=6, features=7, attention=attention, hier=hier)
    del theirs["shared.weight"]
    assert ours == theirs


@pytest.mark.parametrize(
    "layer", [SpectralLinear(7, 4), SpectralLinear(3, 9), SpectralConv2d(3, 5), SpectralConv2d(2, 8, 1)]
)
def test_many_power_iterations_divide_by_the_largest_singular_value(layer, rng):
    torch.nn.init.normal_(layer.weight, generator=rng)
    largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
    layer.eval().fold(200)
    torch.testing.assert_close(layer.folded, layer.weight.detach() / largest, atol=1e-5, rtol=1e-4)


def test_the_stored_vector_moves_in_training_and_not_in_use(rng):
    layer = SpectralLinear(6, 4)
    before = layer.u0.clone()
    layer.eval()(torch.randn(2, 6, generator=rng))
    assert torch.equal(layer.u0, before)
    layer.train()(torch.randn(2, 6, generator=rng))
    assert not torch.equal(layer.u0, before)
    assert layer.u0.norm().item() == pytest.approx(1, abs=1e-5)


def test_sigma_is_part_of_the_gradient(rng):
    """W / sigma does not change when W is scaled, so the gradient is orthogonal to W once u has settled."""
    layer = SpectralLinear(6, 4).train()
    x = torch.randn(3, 6, generator=rng)
    for _ in range(300):
        layer(x)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    assert gradient.norm() > 0.01
    assert (gradient * layer.weight).sum().abs() < 1e-4 * gradient.norm() * layer.weight.norm()


def test_first_weights_are_orthogonal_and_given_by_the_seed():
    one, same, other = (Generator(TINY) for _ in range(3))
    for network, seed in ((one, 1), (same, 1), (other, 2)):
        initialise(network, seed)
    for layer in spectral_layers(one):
        matrix = layer.weight.detach().flatten(1)
        small = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(small, torch.eye(len(small)), atol=1e-5, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.linear.weight, other.linear.weight)


def test_attention_begins_as_the_identity_and_then_mixes_all_places(rng):
    layer, x = Attention(16).eval(), torch.randn(2, 16, 4, 4, generator=rng)
    assert torch.equal(layer(x), x)
    torch.nn.init.ones_(layer.gamma)
    changed = x.clone()
    changed[0, :, 0, 0] += 1
    moved = (layer(changed) - layer(x))[:, :, 2:, 2:]
    assert moved[0].abs().max() > 1e-4 and moved[1].abs().max() == 0


def test_conditional_norm_gives_every_picture_its_own_gain_and_bias(rng):
    norm = ConditionalNorm(3, 4).train()
    for layer in (norm.gain, norm.bias):
        layer.fold(5)
    x, condition = 5 + 2 * torch.randn(8, 3, 6, 6, generator=rng), torch.randn(8, 4, generator=rng)
    found = norm(x, condition)
    gain, bias = norm.gain(condition), norm.bias(condition)
    plain = (found - bias[..., None, None]) / (1 + gain)[..., None, None]
    assert plain.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(plain.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_standing_statistics_are_means_over_batches(rng):
    norm, batches = StoredNorm(3).train(), 4 + 3 * torch.randn(5, 7, 3, 2, 2, generator=rng)
    norm.stored_mean.fill_(1e6)  # what was there before counts for nothing
    for place, batch in enumerate(batches):
        norm.momentum = 1 / (place + 1)
        norm.standardise(batch)
    torch.testing.assert_close(norm.stored_mean, batches.mean((1, 3, 4)).mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(norm.stored_var, batches.var((1, 3, 4)).mean(0), atol=1e-3, rtol=0)


def test_the_discriminator_projects_on_features(rng):
    """D(x, h) - D(x, 0) is linear in h, up to the bias of linear_feat."""
    network = Discriminator(32, 2, 5, (16,)).eval()
    initialise(network, 0)
    x, one, two = torch.randn(3, 3, 32, 32, generator=rng), *torch.randn(2, 3, 5, generator=rng)
    with torch.no_grad():
        base, mixed = network(x, torch.zeros(3, 5)), network(x, 0.3 * one + 2 * two)
        parts = 0.3 * (network(x, one) - base) + 2 * (network(x, two) - base)
    assert mixed.shape == (3,)
    torch.testing.assert_close(mixed - base, parts, atol=1e-4, rtol=1e-4)
    assert (network(x, one) - network(x, two)).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "places"), [(32, 8), (64, 4), (128, 4), (256, 4)])
def test_the_discriminator_ends_at_the_released_size(size, places):
    network, seen = Discriminator(size, 1, 5, (size // 2,)), []
    network.blocks[-1].register_forward_hook(lambda module, given, out: seen.append(out.shape[2:]))
    assert network(torch.zeros(1, 3, size, size), torch.zeros(1, 5)).shape == (1,)
    assert seen == [(places, places)]


def test_a_dense_vector_takes_the_place_of_the_first_layer_alone(generator, rng):
    noise, features = torch.randn(2, 12, generator=rng), torch.randn(2, 5, generator=rng)
    dense = generator.dense(noise)
    assert dense.shape == (2, TINY.dense_dim)
    first = noise.clone()
    first[:, : TINY.chunk_dim] += 1
    assert torch.equal(generator(first, features, dense), generator(noise, features))
    assert not torch.equal(generator(first, features), generator(noise, features))
    other = noise.clone()
    other[:, TINY.chunk_dim :] += 1  # the other chunks reach the blocks
    assert not torch.equal(generator(other, features, dense), generator(noise, features))


def test_noise_that_cannot_be_cut_is_refused():
    with pytest.raises(ValidationError, match="4 chunks"):
        GeneratorConfig(image_size=32, noise_dim=10)


def test_neighbours_are_the_nearest_by_distance_and_never_oneself():
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[7] = rows[3]  # a duplicate is a neighbour; oneself is not
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    expected = np.sort(np.argsort(distance, axis=1)[:, :5], axis=1)
    found = nearest_neighbours(torch.from_numpy(rows), 6, rows_at_once=8)
    np.testing.assert_array_equal(np.sort(found.numpy(), axis=1), expected)
    assert 3 in found[7]
    assert nearest_neighbours(torch.from_numpy(rows[:4]), 50).shape == (4, 3)


@pytest.mark.parametrize(
    ("eye", "message"), [("efficientnet-lite2", "scored by its own eye"), ("lite", "unknown eye")]
)
def test_the_judge_and_unknown_eyes_are_refused(eye, message):
    with pytest.raises(ValidationError, match=message):
        FeatureConfig(eye=eye)


def test_inversion_redraws_what_the_generator_drew(generator, rng):
    noise = torch.randn(3, 12, generator=rng)
    features = torch.nn.functional.normalize(torch.randn(3, 5, generator=rng))
    generator.output_layer[2].weight.mul_(3)
    drawn = generator(noise, features)
    images = drawn.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    options = {"perceptual_weight": 0, "noise_weight": 0, "batch_size": 2}
    found = invert(generator, images, features, InversionConfig(noise_steps=60, dense_steps=0, **options))
    assert torch.equal(found.dense, generator.dense(found.noise))
    assert found.noise.shape == (3, 12) and found.dense.shape == (3, TINY.dense_dim)
    assert found.errors["noise"] < 0.1 * found.errors["start"]
    stripes = np.tile(np.uint8([[40], [200]]), (16, 32))[None, ..., None].repeat(
        3, axis=3
    )  # nothing that it draws
    config = InversionConfig(noise_steps=20, dense_steps=20, **options)
    both = invert(generator, np.concatenate([images[:2], stripes]), features, config)
    alone = invert(generator, stripes, features[2:], config)
    assert alone.errors["dense"] < alone.errors["noise"] < alone.errors["start"]
    torch.testing.assert_close(alone.dense, both.dense[2:], atol=1e-3, rtol=1e-3)

"""Gabor energy: right orientation, right place, blind to phase."""

import numpy as np

from cadiff.data import gabor

PIXELS = np.arange(gabor.FIELD)


def grating(angle, wavelength=8.0, phase=0.0):
    """uint8 (FIELD, FIELD, 3); `angle` is the direction along which luminance changes."""
    y, x = np.meshgrid(PIXELS, PIXELS, indexing="ij")
    wave = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
    return np.repeat(np.round(127 + 100 * wave)[..., None], 3, axis=2).astype(np.uint8)


def energies(*images):
    channels = gabor.local_channels(np.stack(images))[:, : gabor.NUM_ENERGY]
    return channels.reshape(len(images), len(gabor.WAVELENGTHS), gabor.ORIENTATIONS, gabor.GRID, gabor.GRID)


def test_each_grating_excites_its_own_filter_most():
    for scale, wavelength in enumerate(gabor.WAVELENGTHS):
        for orientation in range(gabor.ORIENTATIONS):
            middle = energies(grating(orientation * np.pi / gabor.ORIENTATIONS, wavelength))[
                0, :, :, 4:12, 4:12
            ].mean(axis=(2, 3))
            assert np.unravel_index(middle.argmax(), middle.shape) == (scale, orientation)


def test_energy_does_not_depend_on_phase_or_mean():
    a, b = energies(grating(0.0), grating(0.0, phase=np.pi / 2))
    np.testing.assert_allclose(a[1, 0, 4:12, 4:12], b[1, 0, 4:12, 4:12], rtol=0.1)
    flat = np.stack([np.full((64, 64, 3), 40, np.uint8), np.full((64, 64, 3), 200, np.uint8)])
    channels = gabor.local_channels(flat)
    assert channels[:, : gabor.NUM_ENERGY].max() < 1e-4
    np.testing.assert_allclose(
        channels[:, gabor.NUM_ENERGY], np.array([[40], [200]]) / 255 - 0.5 + np.zeros(256), atol=1e-5
    )


def test_colour_channels_are_opponent():
    red, blue = np.zeros((2, 64, 64, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    channels = gabor.local_channels(np.stack([red, blue]))[:, gabor.NUM_ENERGY :, 0]
    np.testing.assert_allclose(channels[:, 1:], [[1, -0.5], [0, 1]], atol=1e-6)


def test_a_field_responds_to_its_own_place():
    image = np.full((64, 64, 3), 0, np.uint8)
    image[40:56, 8:24] = 255  # lower left
    channels = gabor.local_channels(image[None])
    weights = np.zeros((3, gabor.NUM_CHANNELS), np.float32)
    weights[:, gabor.NUM_ENERGY] = 1
    x, y = np.array([-0.25, 0.25, -0.25]), np.array([0.25, 0.25, -0.25])
    responses = gabor.field_responses(channels, gabor.ReceptiveFields(x, y, np.full(3, 0.05), weights))[0]
    assert responses[0] > 0.4 and responses[1] < -0.4 and responses[2] < -0.4


def test_fields_are_in_order_along_the_sheet():
    fields = gabor.draw_fields(400, 0.05, 0.3, np.random.default_rng(0))
    steps = np.hypot(np.diff(fields.x), np.diff(fields.y))
    shuffled = np.random.default_rng(1).permutation(400)
    assert np.median(steps) < 0.3 * np.median(
        np.hypot(np.diff(fields.x[shuffled]), np.diff(fields.y[shuffled]))
    )
    assert (fields.channel_weights[:, : gabor.NUM_ENERGY] >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(fields.channel_weights, axis=1), 1, rtol=1e-5)


def test_other_sizes_are_brought_to_the_field():
    assert gabor.to_field(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 64, 64, 3)

"""What early visual cortex is taken to see: local Gabor energy, luminance and colour, read through receptive fields.

The energy model of complex cells (Adelson & Bergen 1985), as in the encoding models of Kay et al. (2008) and Nishimoto
et al. (2011): the modulus of a one-sided (analytic) log-Gabor filter (Field 1987) is the root energy of a quadrature
pair. Letters in shapes: n pictures, C channels, P = GRID * GRID places, V voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

FIELD = 64  # pixels: pictures are seen at this size
GRID = 16  # places a side at which channels are kept
ORIENTATIONS = 6
WAVELENGTHS = (4.0, 8.0, 16.0)  # pixels of FIELD
NUM_ENERGY = ORIENTATIONS * len(WAVELENGTHS)
COLOURS = ("luminance", "red-green", "blue-yellow")
NUM_CHANNELS = NUM_ENERGY + len(COLOURS)
MARGIN = 8  # pixels of mirrored border, so that filters do not see the opposite edge
BATCH = 32


@dataclass(frozen=True, eq=False)
class ReceptiveFields:
    """Places and tuning of V voxels; positions and sizes in picture widths, (0, 0) the centre."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    """(V,) standard deviation of the Gaussian field."""
    channel_weights: np.ndarray
    """(V, C) float32; energy weights are >= 0, colour weights signed."""


def local_channels(images: np.ndarray) -> np.ndarray:
    """Channel values float32 (n, C, P) of uint8 pictures (n, FIELD, FIELD, 3).

    The first `NUM_ENERGY` channels are root Gabor energies (wavelength by wavelength, orientations 0..pi inside each), then
    local means of luminance and the two colour-opponent axes.
    """
    filters = _log_gabors(FIELD + 2 * MARGIN)
    parts = []
    for start in range(0, len(images), BATCH):
        rgb = images[start : start + BATCH].astype(np.float32) / 255.0  # (B, H, W, 3)
        red, green, blue = np.moveaxis(rgb, -1, 0)
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        colours = np.stack([luminance - 0.5, red - green, blue - (red + green) / 2], axis=1)  # (B, 3, H, W)
        padded = np.pad(luminance, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), mode="reflect")
        spectrum = np.fft.fft2(padded).astype(np.complex64)
        inside = slice(MARGIN, MARGIN + FIELD)
        energy = [np.abs(np.fft.ifft2(spectrum * kernel))[:, inside, inside] for kernel in filters]
        maps = np.concatenate([np.stack(energy, axis=1), colours], axis=1)  # (B, C, H, W)
        parts.append(_pool(maps).astype(np.float32))
    return np.concatenate(parts) if parts else np.zeros((0, NUM_CHANNELS, GRID * GRID), np.float32)


def to_field(images: np.ndarray) -> np.ndarray:
    """Pictures uint8 (n, H, W, 3) at the size `local_channels` takes, (n, FIELD, FIELD, 3)."""
    if images.shape[1:3] == (FIELD, FIELD):
        return images
    size = (FIELD, FIELD)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
    )


def draw_fields(count: int, size: float, colour: float, rng: np.random.Generator) -> ReceptiveFields:
    """Receptive fields of `count` voxels of one visual area.

    size: field size at the fovea in picture widths; it grows with eccentricity, with the preferred wavelength.
    colour: how much of a voxel's response is luminance and colour rather than energy, in 0..1.
    Voxels are sorted along the cortical sheet (log eccentricity, polar angle), so that neighbours in the list
    see neighbouring places, as neighbours in a scan do.
    """
    eccentricity = (
        0.6 * rng.random(count) ** 1.3
    )  # more cortex for the fovea; .6 reaches beyond the picture's edge
    angle = rng.uniform(-np.pi, np.pi, count)
    order = np.argsort(_sheet_position(np.log(eccentricity + 0.05), angle))
    eccentricity, angle = eccentricity[order], angle[order]
    preferred = rng.uniform(0, np.pi, count)[:, None]
    orientation = np.exp(1.5 * (np.cos(2 * (preferred - np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS)) - 1))
    # finer filters near the fovea, coarser ones outside and in areas with larger fields
    wavelength = np.log2(WAVELENGTHS)[None]
    best = (2.0 + 3.0 * eccentricity + 2.0 * size + rng.normal(0, 0.5, count))[:, None]
    scale = np.exp(-0.5 * (wavelength - best) ** 2)
    energy = (scale[:, :, None] * orientation[:, None, :]).reshape(count, NUM_ENERGY)
    opponent = rng.normal(size=(count, len(COLOURS)))
    weights = np.concatenate(
        [np.sqrt(1 - colour) * _unit_rows(energy), np.sqrt(colour) * _unit_rows(opponent)], axis=1
    )
    return ReceptiveFields(
        x=eccentricity * np.cos(angle),
        y=eccentricity * np.sin(angle),
        size=size + 0.15 * eccentricity,
        channel_weights=weights.astype(np.float32),
    )


def field_responses(channels: np.ndarray, fields: ReceptiveFields) -> np.ndarray:
    """Voxel responses float32 (n, V): sum over channels and places of weight x Gaussian field x channel value."""
    place = (np.arange(GRID) + 0.5) / GRID - 0.5
    dy = place[:, None, None] - fields.y  # (GRID, 1, V)
    dx = place[None, :, None] - fields.x
    gauss = np.exp(-(dx**2 + dy**2) / (2 * fields.size**2)).reshape(GRID * GRID, -1)
    gauss = (gauss / gauss.sum(axis=0)).astype(np.float32)  # (P, V)
    out = np.zeros((len(channels), len(fields.x)), np.float32)
    for channel in range(channels.shape[1]):
        out += (channels[:, channel] @ gauss) * fields.channel_weights[:, channel]
    return out


def _log_gabors(size: int) -> np.ndarray:
    """Analytic log-Gabor filters in the frequency domain, float32 (NUM_ENERGY, size, size)."""
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    radius, direction = np.hypot(fx, fy), np.arctan2(fy, fx)
    radius[0, 0] = 1.0  # no log of 0; the mean is taken out below
    filters = []
    for wavelength in WAVELENGTHS:
        radial = np.exp(-(np.log(radius * wavelength) ** 2) / (2 * 0.5**2))  # about 1.6 octaves wide
        radial[0, 0] = 0.0
        for orientation in range(ORIENTATIONS):
            turn = direction - orientation * np.pi / ORIENTATIONS
            turn = np.arctan2(np.sin(turn), np.cos(turn))
            # Gaussian around one direction only: half of the plane, hence a quadrature pair as real and imaginary part
            filters.append(2.0 * radial * np.exp(-(turn**2) / (2 * (np.pi / ORIENTATIONS / 1.2) ** 2)))
    return np.stack(filters).astype(np.float32)


def _pool(maps: np.ndarray) -> np.ndarray:
    """(B, C, FIELD, FIELD) -> (B, C, P) by means over squares."""
    step = FIELD // GRID
    batch, channels = maps.shape[:2]
    return (
        maps.reshape(batch, channels, GRID, step, GRID, step).mean(axis=(3, 5)).reshape(batch, channels, -1)
    )


def _sheet_position(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Rank along a Z-order curve through the plane (u, v): a walk on which near ranks are near places."""
    code = np.zeros(len(u), np.int64)
    for axis, values in enumerate((u, v)):
        span = max(float(np.ptp(values)), 1e-12) if len(values) else 1.0
        cell = np.minimum((values - values.min(initial=np.inf)) / span * 64, 63).astype(np.int64)
        for bit in range(6):
            code |= ((cell >> bit) & 1) << (2 * bit + axis)
    return code


def _unit_rows(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)

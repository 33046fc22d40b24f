"""Simulated voxels: pictures -> signals that voxels of an area share -> noisy betas with a known noise ceiling.

Letters in shapes: n pictures, t trials, V voxels, F features, k shared dimensions of an area.

    early areas (V1-V4, EarlyVis)   Gabor energy, luminance and colour through receptive fields (`gabor.py`)
    all others (LOC, FFA, PPA ...)  random mixtures of a pretrained classifier's features; which layers: `FEATURES`

Real encoding weights are low-dimensional (an effective 3-13 dimensions an area in BOLD5000): the voxels of an area are projected
on their first k shared components. What is not modelled: category preferences (an FFA voxel here is a random mixture that
differs from a PPA voxel's, not a face detector), adaptation, attention, eye movements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.data.gabor import ReceptiveFields, draw_fields, field_responses


@dataclass(frozen=True)
class EarlyArea:
    """Receptive-field statistics of an early area."""

    field_size: float
    """Standard deviation at the fovea in picture widths."""
    colour: float
    """Share of luminance and colour in the response, 0..1."""


EARLY: dict[str, EarlyArea] = {
    "V1": EarlyArea(0.05, 0.3),
    "V2": EarlyArea(0.07, 0.3),
    "V3": EarlyArea(0.10, 0.3),
    "V4": EarlyArea(0.14, 0.6),
    "EarlyVis": EarlyArea(0.08, 0.3),
}

FEATURES: dict[str, tuple[str, ...]] = {"V4": ("middle",), "LOC": ("middle", "late")}
"""Classifier layers (`vision.LAYERS`) that an area reads; V4 adds them to its receptive fields."""
LATE_FEATURES = ("late", "pooled")
"""What every area without an entry reads (FFA, PPA, OPA, RSC, VC ...)."""

GROUPS: dict[str, tuple[str, ...]] = {
    "LVC": ("V1", "V2", "V3"),
    "HVC": ("LOC", "FFA", "PPA"),
}
"""Unions of areas as in the Generic Object Decoding data; every voxel is also in VC."""

NEIGHBOURS = 4.0  # voxels: width (sd) over which tuning and shared noise change along the voxel order


def roi_names(area: str) -> str:
    """The `rois` entry of an area's voxels: itself, its unions, VC ("V1,LVC,VC")."""
    unions = [union for union, members in GROUPS.items() if area in members]
    return ",".join(dict.fromkeys([area, *unions, "VC"]))


def layers_of(area: str) -> tuple[str, ...]:
    """Classifier layers that an area reads; none for purely early areas."""
    return FEATURES.get(area, () if area in EARLY else LATE_FEATURES)


def area_signals(
    area: str,
    count: int,
    dims: int,
    channels: np.ndarray,
    features: dict[str, np.ndarray],
    reference: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, ReceptiveFields | None]:
    """Noise-free responses float32 (n, V) of one area, mean 0 and variance 1 over the reference pictures.

    channels: (n, C, P) of `gabor.local_channels`; features: layer -> (n, F); reference: rows of the pictures that define
    means and variances (the training pictures). Also gives the receptive fields of an early area.
    """
    parts, fields = [], None
    if area in EARLY:
        fields = draw_fields(count, EARLY[area].field_size, EARLY[area].colour, rng)
        parts.append(standardise(field_responses(channels, fields), reference))
    for layer in layers_of(area):
        parts.append(standardise(_mixtures(standardise(features[layer], reference), count, rng), reference))
    raw = sum(parts[1:], start=parts[0])
    return standardise(share_dimensions(raw, dims, reference, rng), reference), fields


def share_dimensions(
    signals: np.ndarray, dims: int, reference: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Projects voxels (n, V) on their first `dims` principal components over the reference pictures.

    The standard deviation of component i is set to i ** -1/2, a shallower spectrum than the raw one, so that an area's
    effective dimension (participation ratio) is near half of `dims` for 3-13 of them and not always near 1.
    """
    dims = min(dims, signals.shape[1], max(len(reference) - 1, 1))
    centred = signals - signals[reference].mean(axis=0)
    axes, strength = _leading_axes(centred[reference], dims, rng)
    wanted = np.arange(1, dims + 1) ** -0.5
    # components without variance (fewer pictures than dimensions) are left out, not blown up
    gain = np.where(strength > 1e-4 * strength[0], wanted / np.maximum(strength, 1e-12), 0.0)
    return ((centred @ axes.astype(np.float32)) * gain.astype(np.float32)) @ axes.T.astype(np.float32)


def draw_snr(
    count: int, mean: float, spread: float, zero_fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """SNR = signal sd / noise sd (V,) of single trials: `zero_fraction` of voxels at 0, the rest gamma-distributed.

    Over all voxels the mean is `mean` and the standard deviation `spread * mean` in expectation. That needs
    (1 + spread^2) (1 - zero_fraction) > 1: zeros alone already bring some spread.
    """
    active = 1.0 - zero_fraction
    relative = (1 + spread**2) / active - 1 / active**2  # variance of the active voxels, in units of mean^2
    shape = (1 / active) ** 2 / relative
    snr = rng.gamma(shape, mean * relative * active, count)
    return np.where(rng.random(count) < zero_fraction, 0.0, snr)


def ceiling_of_snr(snr: np.ndarray) -> np.ndarray:
    """Noise ceiling: the signal's fraction of single-trial variance, SNR^2 / (1 + SNR^2)."""
    return snr**2 / (1 + snr**2)


def structured_noise(
    sessions: np.ndarray,
    runs: np.ndarray,
    count: int,
    drift: float,
    correlation: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Noise float32 (t, V) of unit variance in expectation.

    drift: share of variance that is slow: half an offset of the voxel in each run, a quarter one in each session, a quarter
    a linear trend through each run. correlation: share of the rest that neighbouring voxels have in common.
    """
    trials = len(runs)
    noise = rng.standard_normal((trials, count), dtype=np.float32)
    if correlation > 0:
        shared = smooth_columns(rng.standard_normal((trials, count), dtype=np.float32))
        noise = np.float32(np.sqrt(1 - correlation)) * noise + np.float32(np.sqrt(correlation)) * shared
    if drift == 0:
        return noise
    _, session = np.unique(sessions, return_inverse=True)
    _, run = np.unique(np.stack([sessions, runs], axis=1), axis=0, return_inverse=True)
    run = run.reshape(-1)
    slow = np.sqrt(0.25) * rng.standard_normal((session.max() + 1, count))[session]
    slow += np.sqrt(0.5) * rng.standard_normal((run.max() + 1, count))[run]
    slow += np.sqrt(0.25) * rng.standard_normal((run.max() + 1, count))[run] * _ramps(run)[:, None]
    return (np.sqrt(1 - drift) * noise + np.sqrt(drift) * slow).astype(np.float32)


def signals_to_betas(
    signals: np.ndarray, snr: np.ndarray, noise: np.ndarray, baseline: np.ndarray, amplitude: np.ndarray
) -> np.ndarray:
    """Betas float32 (t, V) in percent signal change: baseline + amplitude x single trial of unit variance.

    signals, noise: (t, V) of unit variance; snr, baseline, amplitude: (V,). A trial is sqrt(c) signal + sqrt(1 - c) noise
    with c the noise ceiling, so a voxel of SNR 0 is noise only.
    """
    ceiling = ceiling_of_snr(snr)
    trial = np.sqrt(ceiling).astype(np.float32) * signals + np.sqrt(1 - ceiling).astype(np.float32) * noise
    return (baseline + amplitude * trial).astype(np.float32)


def rest_signals(volumes: int, viewing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spontaneous activity float32 (volumes, V) of about unit variance that lives in the space of evoked responses.

    Rest resembles what pictures evoke (Kenet et al. 2003): random mixtures of viewing responses (n, V), with first-order
    autocorrelation .8 from volume to volume.
    """
    keep = 0.8
    latent = rng.standard_normal((volumes, len(viewing)), dtype=np.float32) / np.float32(
        np.sqrt(len(viewing))
    )
    for step in range(1, volumes):
        latent[step] = keep * latent[step - 1] + np.sqrt(1 - keep**2) * latent[step]
    return (latent @ viewing).astype(np.float32)


def standardise(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 of each column over the reference rows, float32; constant columns become 0."""
    mean = values[reference].mean(axis=0, dtype=np.float64)
    std = values[reference].std(axis=0, dtype=np.float64)
    gain = np.divide(
        1.0, std, out=np.zeros_like(std), where=std > 1e-6 * max(float(std.max(initial=0.0)), 1e-12)
    )
    return ((values - mean.astype(np.float32)) * gain.astype(np.float32)).astype(np.float32)


def smooth_columns(values: np.ndarray, width: float = NEIGHBOURS) -> np.ndarray:
    """Gaussian smoothing (rows, V) along the voxel order, in a circle; white input keeps unit variance."""
    count = values.shape[1]
    distance = np.minimum(np.arange(count), count - np.arange(count))
    kernel = np.exp(-0.5 * (distance / width) ** 2)
    kernel /= np.linalg.norm(kernel)
    spectrum = np.fft.rfft(values, axis=1) * np.fft.rfft(kernel)
    return np.fft.irfft(spectrum, n=count, axis=1).astype(np.float32)


def _mixtures(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Responses (n, V): random weights on (n, F), most of them shared by neighbouring voxels.

    Each feature has an area-wide gain (log-normal), so that two areas reading the same layer carry different parts of it.
    """
    gain = rng.lognormal(0.0, 1.0, features.shape[1]).astype(np.float32)
    weights = rng.standard_normal((features.shape[1], count), dtype=np.float32)
    weights = np.float32(0.8) * smooth_columns(weights) + np.float32(0.6) * rng.standard_normal(
        weights.shape, dtype=np.float32
    )
    return (features * gain) @ weights


def _leading_axes(matrix: np.ndarray, dims: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """First right singular vectors (V, dims) and singular values (dims,) of (n, V), by subspace iteration.

    Halko, Martinsson & Tropp (2011), algorithm 4.4 with 8 extra directions and 6 rounds: seconds less than a full
    decomposition, and the axes need to be typical of the area, not exact.
    """
    width = min(dims + 8, *matrix.shape)
    basis = rng.standard_normal((matrix.shape[1], width), dtype=np.float32)
    for _ in range(6):
        basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    _, strength, turn = np.linalg.svd(matrix @ basis, full_matrices=False)
    return (basis @ turn.T)[:, :dims], strength[:dims]


def _ramps(run: np.ndarray) -> np.ndarray:
    """(t,) a line through the trials of each run with mean 0 and variance 1 (0 for a run of one trial)."""
    ramp = np.zeros(len(run))
    for number in range(run.max() + 1):
        rows = np.flatnonzero(run == number)
        line = np.arange(len(rows)) - (len(rows) - 1) / 2
        ramp[rows] = line / max(float(line.std()), 1e-12)
    return ramp

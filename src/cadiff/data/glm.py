"""Trial-wise betas by ordinary least squares: pure functions on arrays.

LSA ("least squares, all"): one model, one regressor a trial. LSS ("least squares, separate"; Mumford et al. 2012,
NeuroImage 59:2636): one model a trial, with a regressor for that trial and one for all other trials together; steadier
when responses overlap. Nuisance columns (constant, drift, confounds) are the same in every model, so they are projected
out once; what is left of LSS is a model of two regressors a trial, solved in closed form.

Regressors come from nilearn: a boxcar of height 1 convolved with a response function of area 1. A beta is therefore the
height of the plateau that an endless trial would reach, in the units of the data. Noise is taken to be white: betas
are unbiased all the same, t values are too large where noise is correlated in time.

Letters in shapes: T volumes, V voxels, n trials, k basis functions of the response (1 without derivatives), m nuisance
columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from cadiff.errors import DataError, MissingExtraError

Method = Literal["lss", "lsa"]
Units = Literal["percent signal change", "raw", "t"]
HRFS = tuple(
    name + more for name in ("spm", "glover") for more in ("", " + derivative", " + derivative + dispersion")
)
EARLIEST_S = -24.0  # as in nilearn: what begins earlier, relative to the first volume, is not modelled
RESPONSE_S = 32.0  # length of the response functions
CHUNK_VOXELS = 4096
MAX_CONDITION = 1e4  # of a model's normalised columns; above, its trials cannot be told apart
MIN_MEAN_TO_SD = 1.0  # median over voxels; scans have 30 and more, series without their mean about 0


class Solution(NamedTuple):
    """What turns a run into betas: `betas = weights @ bold`."""

    weights: np.ndarray
    """(n, T); orthogonal to the nuisance columns."""
    bases: np.ndarray
    """Orthonormal columns that each trial's model fits, without the nuisance: (n, T, 2k) for LSS, (1, T, nk) for LSA."""
    nuisance: np.ndarray
    """Orthonormal nuisance columns (T, rank)."""
    degrees_of_freedom: int
    """Of the residuals."""


def trial_regressors(
    onsets_s: np.ndarray, durations_s: np.ndarray, frame_times_s: np.ndarray, hrf: str = "spm"
) -> np.ndarray:
    """Expected responses, float64 (T, n, k); zeros for trials out of the run's reach.

    Args:
        onsets_s: (n,), from the beginning of the first volume.
        durations_s: (n,).
        frame_times_s: (T,), when each volume was taken.
        hrf: one of `HRFS`. The first of the k columns is the response itself, then follow its derivatives, orthogonal.
    """
    try:
        from nilearn.glm.first_level import compute_regressor
    except ImportError:
        raise MissingExtraError(
            'Regressors for trials need nilearn: pip install "cadiff[neuro]" brings it.'
        ) from None
    columns = np.zeros((len(frame_times_s), len(onsets_s), hrf.count("+") + 1))
    for i, (onset, duration) in enumerate(zip(onsets_s, durations_s, strict=True)):
        if frame_times_s[0] + EARLIEST_S <= onset < frame_times_s[-1]:
            event = np.array([[onset], [duration], [1.0]])
            columns[:, i] = compute_regressor(event, hrf, frame_times_s)[0]
    return columns


def share_of_response(
    regressors: np.ndarray, durations_s: np.ndarray, frame_times_s: np.ndarray, hrf: str = "spm"
) -> np.ndarray:
    """How much of each trial's response the run still saw: its peak inside the run over its full peak, (n,) in 0..1."""
    step = float(frame_times_s[1] - frame_times_s[0])
    durations = np.minimum(durations_s, float(frame_times_s[-1]) + step)
    full = {}
    for duration in np.unique(durations):
        times = np.arange(0.0, float(duration) + RESPONSE_S, step)
        alone = trial_regressors(np.zeros(1), np.array([duration]), times, hrf)
        full[duration] = float(np.abs(alone[:, 0, 0]).max())
    peaks = np.abs(regressors[:, :, 0]).max(axis=0)
    return np.array([min(peak / full[d], 1.0) for peak, d in zip(peaks, durations, strict=True)])


def cosine_drift(num_volumes: int, tr_s: float, high_pass_s: float | None) -> np.ndarray:
    """A constant and the discrete cosines with periods above `high_pass_s` (None: no cosines), float64 (T, m)."""
    order = 0 if high_pass_s is None else int(2 * num_volumes * tr_s / high_pass_s)
    order = min(order, num_volumes - 1)
    steps = (np.arange(num_volumes) + 0.5) * np.pi / num_volumes
    return np.cos(steps[:, None] * np.arange(order + 1))


def solve(trials: np.ndarray, nuisance: np.ndarray, method: Method = "lss") -> Solution:
    """Prepares the estimation of `trials` (T, n, k) beside `nuisance` (T, m); nothing of the data is needed.

    Raises:
        DataError: more regressors than volumes, a trial that the nuisance explains, or trials that cannot be told apart.
    """
    num_volumes, n, k = trials.shape
    project = _orthonormal(nuisance)
    size = np.linalg.norm(trials[:, :, 0], axis=0)
    rest = trials - np.einsum("tr,rnk->tnk", project, np.einsum("tr,tnk->rnk", project, trials))
    left = np.linalg.norm(rest[:, :, 0], axis=0)
    if lost := np.flatnonzero(left <= 1e-6 * np.maximum(size, 1e-12)).tolist():
        raise DataError(
            f"the response to trial {lost[0] + 1} cannot be told from the confounds and the drift "
            f"({len(lost)} such trials): use fewer confounds or a longer high_pass_s."
        )
    columns = n * k if method == "lsa" else k * min(n, 2)
    degrees_of_freedom = num_volumes - project.shape[1] - columns
    if degrees_of_freedom < 1:
        raise DataError(
            f"{num_volumes} volumes are too few for {columns} trial regressors ({method}, {n} trials) beside "
            f"{project.shape[1]} of confounds and drift: use fewer confounds{', or glm=lss' * (method == 'lsa')}."
        )
    weights, bases = _lsa(rest) if method == "lsa" else _lss(rest)
    return Solution(weights, bases, project, degrees_of_freedom)


def trial_betas(bold: np.ndarray, solution: Solution, units: Units = "percent signal change") -> np.ndarray:
    """Betas float32 (n, V) of a run `bold` (T, V), in pieces of voxels; NaN where a voxel is constant or not finite.

    "percent signal change" divides by each voxel's mean over the run (NaN where it is not above 0), "raw" leaves the
    units of the data, "t" divides by the standard error.

    Raises:
        DataError: percent signal change of series whose mean was taken away.
    """
    if bold.shape[0] != solution.weights.shape[1]:
        raise DataError(f"the run has {bold.shape[0]} volumes, the model {solution.weights.shape[1]}.")
    if units == "percent signal change":
        _refuse_demeaned(bold)
    betas = np.empty((len(solution.weights), bold.shape[1]), dtype=np.float32)
    for start in range(0, bold.shape[1], CHUNK_VOXELS):
        with np.errstate(all="ignore"):  # voxels that overflow or hold NaN come out as NaN
            part = np.array(bold[:, start : start + CHUNK_VOXELS], dtype=np.float64)
            bad = ~np.isfinite(part).all(axis=0)
            part[:, bad] = 0.0
            bad |= np.ptp(part, axis=0) == 0
            found = solution.weights @ part
            if units == "percent signal change":
                mean = part.mean(axis=0)
                bad |= mean <= 0
                found *= 100.0 / mean
            elif units == "t":
                found /= _standard_error(part, solution)
            found[:, bad] = np.nan
            betas[:, start : start + CHUNK_VOXELS] = found
    return betas


def _lsa(rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    num_volumes, n, k = rest.shape
    flat = rest.reshape(num_volumes, n * k)
    if _condition(flat) > MAX_CONDITION:
        raise _alike(rest, "use glm=lss, or leave one of them out")
    return np.linalg.pinv(flat)[::k], np.linalg.qr(flat)[0][None]


def _lss(rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total, weights, bases = rest.sum(axis=1), [], []
    for i in range(rest.shape[1]):
        own = rest[:, i]
        model = np.concatenate([own, total - own], axis=1) if rest.shape[1] > 1 else own
        if _condition(model) > MAX_CONDITION:
            raise _alike(rest, "leave one of them out")
        weights.append(np.linalg.pinv(model)[0])
        bases.append(np.linalg.qr(model)[0])
    return np.stack(weights), np.stack(bases)


def _alike(rest: np.ndarray, advice: str) -> DataError:
    """Names the two trials whose responses are most alike."""
    unit = rest[:, :, 0] / np.linalg.norm(rest[:, :, 0], axis=0)
    alike = np.triu(np.abs(unit.T @ unit), k=1)
    first, second = (int(i) + 1 for i in np.unravel_index(alike.argmax(), alike.shape))
    return DataError(
        f"the trials' responses cannot be told apart; most alike are trials {first} and {second} "
        f"(correlation {alike.max():.3f}): {advice}."
    )


def _standard_error(part: np.ndarray, solution: Solution) -> np.ndarray:
    """(n, voxels) from the residuals of each trial's model."""
    total = (part**2).sum(axis=0) - ((solution.nuisance.T @ part) ** 2).sum(axis=0)
    residual = np.stack([total - ((basis.T @ part) ** 2).sum(axis=0) for basis in solution.bases])
    variance = np.where(residual > 1e-12 * total, residual, np.nan) / solution.degrees_of_freedom
    return np.sqrt(variance * (solution.weights**2).sum(axis=1)[:, None])


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis (T, rank) of the columns (T, m), whatever their scales."""
    size = np.abs(columns).max(axis=0, initial=0.0)
    scaled = columns[:, size > 0] / size[size > 0]
    u, s, _ = np.linalg.svd(scaled / np.linalg.norm(scaled, axis=0), full_matrices=False)
    return u[:, s > 1e-8 * s.max(initial=0.0)]


def _condition(columns: np.ndarray) -> float:
    size = np.linalg.norm(columns, axis=0)
    return float(np.linalg.cond(columns / size)) if (size > 0).all() else np.inf


def _refuse_demeaned(bold: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        some = np.asarray(bold[:, :: 1 + bold.shape[1] // CHUNK_VOXELS], dtype=np.float64)
        ratio = np.abs(some.mean(axis=0)) / some.std(axis=0)
    ratio = ratio[np.isfinite(ratio)]
    if len(ratio) and np.median(ratio) < MIN_MEAN_TO_SD:
        raise DataError(
            f"the mean of half the voxels is below {np.median(ratio):.2g} standard deviations, as if it had been taken "
            'away, and percent signal change needs it: use units="raw" or "t".'
        )


def condition_regressors(
    events: Sequence[tuple[np.ndarray, np.ndarray]], frame_times_s: np.ndarray, hrf: str = "spm"
) -> np.ndarray:
    """Responses to events that are no trials, all (onsets_s, durations_s) of a kind together: float64 (T, kinds * k)."""
    columns = [trial_regressors(*event, frame_times_s, hrf).sum(axis=1) for event in events]
    return np.concatenate([np.empty((len(frame_times_s), 0)), *columns], axis=1)

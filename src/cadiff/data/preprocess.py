"""From raw betas to what the encoder reads: ROI choice, z-score fitted on training trials only, length policy.

Letters in shapes: n trials, V voxels on disk, K voxels that the ROI choice keeps, L = `num_voxels` values handed to the
encoder (a multiple of the patch size). The statistics of the training trials are applied unchanged to every other trial.
What the released code of Sun et al. 2023 does instead can be had for comparison (docs/protocols.md): it leaves the test
trials of GOD as they are, lets the statistics of BOLD5000 include the test trials, and has a length rule of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cadiff.config import Config
from cadiff.errors import ConfigError, DataError

CHUNK_ROWS = 1024  # betas are memory-mapped and may be larger than memory
Split = Literal["train", "test"]
LengthPolicy = Literal["wrap", "pad", "stretch", "truncate", "official"]
TINY_STD = 1e-6  # relative: a voxel that varies less than this is constant, and stays at 0


class PreprocessConfig(Config):
    """How betas become encoder input."""

    normalise: Literal["scalar", "voxel", "none"] = "voxel"
    """One mean and std for all voxels (scalar), one a voxel, or none; of the training trials."""
    test_normalisation: Literal["train", "raw", "pooled"] = "train"
    """Test trials: scaled as training trials are; left raw (released code, GOD: a mistake); or all trials scaled by statistics
    of training and test trials together (released code, BOLD5000: a leak)."""
    length_policy: LengthPolicy = "wrap"
    """How to reach a whole number of patches or a checkpoint's length: repeat from the start, append zeros, interpolate
    between neighbouring voxels, or cut. official: as the released code, which wraps to whole patches, adding a whole one where
    none is missing, takes a scalar mean and std of the result, and wraps that once more to a checkpoint's length."""
    match_repeat_spread: bool = False
    """Rescale averages of repeats per voxel to the spread of single training trials (needs noise ceilings)."""
    rois: list[str] | None = None
    """Keep voxels in any of these ROIs; nothing keeps all."""


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """A fitted map from betas (n, V) to encoder input (n, L). Make one with `Preprocessor.fit`."""

    config: PreprocessConfig
    num_input_voxels: int
    """V: voxels a trial must have."""
    patch_size: int
    num_voxels: int
    """L: values a preprocessed trial has, a multiple of `patch_size`."""
    voxel_index: np.ndarray
    """(K,) int64: the voxels kept."""
    mean: np.ndarray
    """(K,) float32, or (1,) for `scalar` and `none`: what is subtracted."""
    std: np.ndarray
    """Same shape as `mean`: what is divided by."""
    voxel_mean: np.ndarray
    """(K,) float32: each voxel's mean over training trials, after normalisation (0 for `voxel`)."""
    noise_ceiling: np.ndarray
    """(K,) float32 in [0, 1]: signal's share of a single trial's variance; 1 where no ceiling is known for any."""

    @classmethod
    def fit(
        cls,
        betas_train: np.ndarray,
        config: PreprocessConfig | None = None,
        patch_size: int = 16,
        num_voxels: int | None = None,
        voxels: Any = None,
        noise_ceiling: np.ndarray | Sequence[float] | None = None,
    ) -> Preprocessor:
        """Measures the statistics of the training trials.

        betas_train: (n, V), any float type, memory maps welcome; training trials only (`pooled`: with test trials).
        num_voxels: the length a checkpoint was made for; by default the next multiple of `patch_size`
            (the one below for `truncate`), so nothing is added to a count that divides already (but by `official`).
        voxels: table with a column `rois` ("V1,VC"), needed for `config.rois`.
        noise_ceiling: (V,) single-trial ceilings in [0, 1], NaN where unknown (those take the median of the known ones).
        Raises DataError for values that are not finite, unknown ROIs, and lists of the wrong length.
        """
        config = config or PreprocessConfig()
        if betas_train.ndim != 2 or min(betas_train.shape) == 0:
            raise DataError(
                f"Training betas have the shape {tuple(betas_train.shape)}; expected (trials, voxels) with at least one of each."
            )
        index = choose_voxels(betas_train.shape[1], config.rois, voxels)
        means, stds = _moments(betas_train, index)
        if config.normalise == "voxel":
            mean, std = means, stds
        elif config.normalise == "scalar":
            weights = np.ones(len(index))
            if config.length_policy == "official":  # it wraps first
                weights = np.bincount(_wrapped(len(index), patch_size)).astype(float)
            mean = np.average(means, weights=weights, keepdims=True)
            std = np.sqrt(np.average(stds**2 + (means - mean) ** 2, weights=weights, keepdims=True))
        else:
            mean, std = np.zeros(1), np.ones(1)
        floor = TINY_STD * max(float(np.median(stds)), float(np.abs(means).max()) * TINY_STD)
        std = np.where(std <= floor, 1.0, std)
        return cls(
            config=config,
            num_input_voxels=betas_train.shape[1],
            patch_size=patch_size,
            num_voxels=target_length(len(index), patch_size, num_voxels, config.length_policy),
            voxel_index=index,
            mean=mean.astype(np.float32),
            std=std.astype(np.float32),
            voxel_mean=((means - mean) / std).astype(np.float32),
            noise_ceiling=_fill_ceiling(noise_ceiling, betas_train.shape[1])[index],
        )

    def __call__(
        self,
        betas: np.ndarray,
        repeats: int | np.ndarray | None = None,
        *,
        split: Split = "train",
    ) -> np.ndarray:
        """Encoder input float32 (n, L) from betas (n, V) or one trial (V,).

        repeats: how many presentations each row averages, a number or (n,); only `match_repeat_spread` looks at it.
        split: which trials these are; only `test_normalisation=raw` looks at it, and leaves test trials unscaled.
        Raises DataError for another voxel count and for values that are not finite.
        """
        betas = np.asarray(betas)
        betas = betas[None] if betas.ndim == 1 else betas
        if betas.ndim != 2 or betas.shape[1] != self.num_input_voxels:
            raise DataError(
                f"These betas have {betas.shape[-1]} voxels, but the preprocessing was fitted on {self.num_input_voxels}. "
                "Use the dataset it was fitted on, or fit the stage again on this one."
            )
        kept = betas[:, self.voxel_index].astype(np.float32)
        _refuse_non_finite(kept, self.voxel_index)
        if split == "test" and self.config.test_normalisation == "raw":
            return self.to_length(kept)
        kept = (kept - self.mean) / self.std
        if self.config.match_repeat_spread and repeats is not None:
            # around the voxel's own mean, which is 0 only where voxels are normalised one by one
            scale = repeat_scale(self.noise_ceiling, np.asarray(repeats))
            kept = self.voxel_mean + (kept - self.voxel_mean) * scale
        return self.to_length(kept.astype(np.float32, copy=False))

    def to_length(self, values: np.ndarray) -> np.ndarray:
        """Values of the voxels kept (n, K) at the encoder's length (n, L)."""
        return fit_length(values, self.num_voxels, self.config.length_policy, patch_size=self.patch_size)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Everything but the config as arrays, for a checkpoint folder; `from_tensors` is the inverse."""
        return {
            "voxel_index": self.voxel_index,
            "mean": self.mean,
            "std": self.std,
            "voxel_mean": self.voxel_mean,
            "noise_ceiling": self.noise_ceiling,
            "lengths": np.array([self.num_input_voxels, self.patch_size, self.num_voxels], np.int64),
        }

    @classmethod
    def from_tensors(cls, config: PreprocessConfig, tensors: Mapping[str, Any]) -> Preprocessor:
        """The inverse of `to_tensors` (numpy arrays or CPU tensors)."""
        arrays = {name: np.array(value) for name, value in tensors.items()}
        num_input_voxels, patch_size, num_voxels = (int(length) for length in arrays.pop("lengths"))
        return cls(config, num_input_voxels, patch_size, num_voxels, **arrays)


def repeat_scale(noise_ceiling: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Factor (n, K), or (1, K) for one count, that gives an average of r repeats the spread of a single trial.

    A single z-scored trial is signal + noise with variances s2 + n2 = 1, s2 the noise ceiling. Noise is independent
    between repeats, so their average has the variance s2 + n2 / r <= 1: at r = 35 and s2 = .06 a quarter of the spread the
    encoder was trained on. Dividing by its root restores the spread; r = 1 or s2 = 1 changes nothing.
    """
    repeats = np.asarray(repeats, dtype=np.float64).reshape(-1, 1)
    if (repeats < 1).any():
        raise DataError(f"The smallest number of repeats is {repeats.min():g}; expected at least 1.")
    signal = np.asarray(noise_ceiling, dtype=np.float64)
    return 1.0 / np.sqrt(signal + (1.0 - signal) / repeats)


def fit_length(
    values: np.ndarray, num_voxels: int, policy: LengthPolicy, *, patch_size: int = 16
) -> np.ndarray:
    """values (n, K) as (n, num_voxels). `stretch` interpolates linearly along the voxel axis, first and last voxel kept.

    Otherwise too long is cut at the end; too short repeats from the start (more than once where needed), or with `pad`
    ends in zeros, which is the training mean of a normalised voxel. `official` repeats from the start what it has already
    wrapped to whole patches of `patch_size`, the only policy that looks at it.
    """
    count = values.shape[1]
    if policy == "stretch" and count != num_voxels:
        place = np.linspace(0, count - 1, num_voxels)
        before = np.minimum(place.astype(int), max(count - 2, 0))
        share = (place - before).astype(values.dtype)
        return values[:, before] * (1 - share) + values[:, np.minimum(before + 1, count - 1)] * share
    if count >= num_voxels:
        return np.ascontiguousarray(values[:, :num_voxels])
    if policy == "pad":
        return np.pad(values, ((0, 0), (0, num_voxels - count)))
    source = _wrapped(count, patch_size) if policy == "official" else np.arange(count)
    return values[:, source[np.arange(num_voxels) % len(source)]]


def length_remark(count: int, num_voxels: int, policy: LengthPolicy, *, patch_size: int = 16) -> str | None:
    """What `fit_length` does to `count` voxels that are read at the length `num_voxels`, in words.

    None where it does no more than come to whole patches.
    """
    missing = num_voxels - count
    if (-patch_size < missing if policy == "truncate" else missing >= 0) and missing <= patch_size:
        return None
    if policy == "stretch":
        return "they are interpolated to it"
    if missing < 0:
        return f"the last {-missing:,} are left out"
    return f"its last {missing:,} places {'hold zeros' if policy == 'pad' else 'repeat them'}"


def _wrapped(count: int, patch_size: int) -> np.ndarray:
    """Voxels (whole patches,) after the released code's first wrap: V + P - V mod P of them."""
    return np.arange(count + patch_size - count % patch_size) % count


def target_length(count: int, patch_size: int, num_voxels: int | None, policy: LengthPolicy) -> int:
    """L, values a trial of `count` voxels comes to: `num_voxels` where that is set, else whole patches.

    Raises ConfigError when `num_voxels` is not a multiple of `patch_size`, DataError when `truncate` leaves no patch.
    """
    if num_voxels is None:
        if policy == "official":
            return len(_wrapped(count, patch_size))
        patches = count // patch_size if policy == "truncate" else -(-count // patch_size)
        if patches == 0:
            raise DataError(
                f"{count} voxels are fewer than one patch of {patch_size}, and the length policy cuts to whole patches. "
                "Use length_policy=wrap or a smaller patch size."
            )
        return patches * patch_size
    if num_voxels < 1 or num_voxels % patch_size:
        raise ConfigError(f"num_voxels={num_voxels} is not a multiple of patch_size={patch_size}.")
    return num_voxels


def choose_voxels(count: int, rois: list[str] | None, voxels: Any) -> np.ndarray:
    """Positions (K,) int64 of the voxels in any of these ROIs, of all when `rois` is None.

    voxels: table of `count` rows with a column `rois` ("V1,VC"). Raises DataError for unknown ROIs and no table.
    """
    if rois is None:
        return np.arange(count, dtype=np.int64)
    if voxels is None or len(voxels) != count:
        found = "no voxel table" if voxels is None else f"a voxel table of {len(voxels)} rows"
        raise DataError(
            f"ROIs {rois} were asked for, with {found} for {count} voxels: expected one row a voxel."
        )
    memberships = [{name.strip() for name in str(entry).split(",")} for entry in voxels["rois"]]
    present = sorted(set().union(*memberships) - {"", "nan", "n/a"})
    unknown = [roi for roi in rois if roi not in present]
    if unknown or not rois:
        raise DataError(
            f"ROI {', '.join(unknown) or '(none named)'} has no voxel here; this dataset has: {', '.join(present) or 'none'}."
        )
    return np.flatnonzero([not member.isdisjoint(rois) for member in memberships]).astype(np.int64)


def _chunks(betas: np.ndarray, index: np.ndarray) -> Iterable[np.ndarray]:
    everything = len(index) == betas.shape[1]
    for start in range(0, len(betas), CHUNK_ROWS):
        rows = np.asarray(betas[start : start + CHUNK_ROWS], dtype=np.float64)
        yield rows if everything else rows[:, index]


def _moments(betas: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population std (K,) float64 over rows, in two passes of bounded memory."""
    total = np.zeros(len(index))
    bad = np.zeros(len(index), np.int64)
    for rows in _chunks(betas, index):
        bad += (~np.isfinite(rows)).sum(axis=0)
        total += np.where(np.isfinite(rows), rows, 0.0).sum(axis=0)
    if bad.any():
        _refuse(bad, index)
    mean = total / len(betas)
    squares = sum(((rows - mean) ** 2).sum(axis=0) for rows in _chunks(betas, index))
    return mean, np.sqrt(squares / len(betas))


def _refuse_non_finite(values: np.ndarray, index: np.ndarray) -> None:
    if not np.isfinite(values).all():
        _refuse((~np.isfinite(values)).sum(axis=0), index)


def _refuse(bad: np.ndarray, index: np.ndarray) -> None:
    raise DataError(
        f"{int(bad.sum())} beta values are NaN or infinite, in {int((bad > 0).sum())} of {len(index)} voxels "
        f"(first: voxel {int(index[np.argmax(bad > 0)]) + 1}). Leave those voxels out, or choose ROIs without them."
    )


def _fill_ceiling(noise_ceiling: np.ndarray | Sequence[float] | None, count: int) -> np.ndarray:
    """(V,) float32 with the gaps at the median of the known ceilings; all 1 (no rescaling) where none is known."""
    if noise_ceiling is None:
        return np.ones(count, np.float32)
    ceiling = np.asarray(noise_ceiling, dtype=np.float64)
    if ceiling.shape != (count,):
        raise DataError(
            f"{ceiling.size} noise ceilings for {count} voxels: expected one each (NaN where unknown)."
        )
    known = ceiling[np.isfinite(ceiling)]
    if known.size and (known.min() < 0 or known.max() > 1):
        raise DataError(
            f"Noise ceilings run from {known.min():.3g} to {known.max():.3g}; expected fractions of variance in 0..1 "
            "(divide percentages by 100)."
        )
    fill = float(np.median(known)) if known.size else 1.0
    return np.where(np.isfinite(ceiling), ceiling, fill).astype(np.float32)

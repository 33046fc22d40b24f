"""How much each voxel moves the condition that pictures are drawn from: one number a voxel, from gradients.

A voxel's importance is the mean over trials of the squared change of the condition when this voxel alone goes to its mean
over training trials and all others stay, to first order, as a share of the sum over voxels:

    I_v  ~  mean over trials n of  || dc/dbeta_v (beta_nv - mean_v) ||^2,     sum over v of I_v = 1

With a condition that is linear in the betas this is occlusion, exactly; occlusion itself takes a pass of the encoder for every
voxel and trial. The condition c is made of context tokens and time vector (label start included), and of the latents to begin
from where they are used. Each of these parts counts alike: it is divided by its own mean squared distance from the condition
of a trial in which every voxel is at its training mean.

The squared length of a column of the Jacobian is estimated without the Jacobian: E (u^T J_v)^2 = ||J_v||^2 for random signs u
(Hutchinson 1990), one backward pass for all voxels. The relative standard error of a voxel is about
sqrt(2 / (trials x probes)) where trials weigh alike, and larger where a few of them outweigh the rest.

What it says: which voxels this model listens to on these trials. What it does not say: that a voxel carries information about
the picture (one that only adds noise to the condition counts as well), that the others could not do without it (voxels that
tell the same share the importance, and what two voxels do together is not seen), how much the drawn picture changes, or anything
about the brain of which the model knows nothing. A model that has learnt nothing has a map too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor, Split
from cadiff.data.splits import average_repeats

if TYPE_CHECKING:
    from cadiff.diffuse.conditioner import FmriConditioner
    from cadiff.diffuse.pipeline import FmriToImagePipeline

DRAWS = 512
"""Trials x probes aimed at: a standard error of about 6 % of a voxel's importance."""
MAX_PROBES = 16
"""Backward passes a batch of trials at most, so that a handful of trials costs no more than many."""
COORDINATES = ("x", "y", "z")


def voxel_importance(
    pipe: FmriToImagePipeline,
    data: BrainDataset,
    split: Split = "test",
    *,
    rows: np.ndarray | None = None,
    with_guess: bool = False,
    num_probes: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> np.ndarray:
    """The importance of every voxel of a dataset, repeats of a stimulus averaged: float64 (voxels,), sum 1.

    Args:
        pipe: of the subject.
        data: its dataset; only betas are read.
        split: whose trials.
        rows: these trials instead of a whole split.
        with_guess, num_probes, batch_size, seed: see `condition_importance`.

    Raises:
        DataError: no trials, another number of voxels than the pipeline reads, or values that are not finite.
    """
    betas, _, repeats = average_repeats(data, split, rows)
    return condition_importance(
        pipe.conditioner,
        betas,
        repeats,
        split=split,
        with_guess=with_guess,
        num_probes=num_probes,
        batch_size=batch_size,
        seed=seed,
    )


def condition_importance(
    conditioner: FmriConditioner,
    betas: np.ndarray,
    repeats: np.ndarray | None = None,
    *,
    split: Split = "test",
    with_guess: bool = False,
    num_probes: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> np.ndarray:
    """The importance of every voxel for the condition of these trials: float64 (V,), all >= 0, sum 1.

    Voxels that the model does not read have 0; all have 0 when none moves the condition.

    Args:
        conditioner: of a tuned pipeline.
        betas: (n, V) raw betas.
        repeats: (n,) how many trials each row averages; matters with `match_repeat_spread`.
        split: which the trials are of, as the encoder's input depends on it.
        with_guess: the latents to begin from are part of the condition, as with strength below 1.
        num_probes: backward passes a trial; by default as many as give `DRAWS` draws, `MAX_PROBES` at most.
        batch_size: trials at a time; changes memory and speed, not the result.
        seed: of the random signs, which depend on (seed, trial) alone.

    Raises:
        DataError: another number of voxels, or values that are not finite.
    """
    preprocessor = conditioner.preprocessor
    # a copy without length policy gives one value a voxel, scaled for repeats as the encoder's input is
    kept = replace(preprocessor, num_voxels=len(preprocessor.voxel_index))(betas, repeats, split=split)
    change = kept.astype(np.float64) - preprocessor.voxel_mean
    ready = conditioner.prepare(betas, repeats, split=split)
    num_probes = num_probes or min(MAX_PROBES, -(-DRAWS // len(ready)))
    weights = _part_weights(conditioner, preprocessor, ready, with_guess, batch_size)
    spread = length_map(preprocessor)
    total = np.zeros(len(preprocessor.voxel_index))
    with _same_every_time():
        for start in range(0, len(ready), batch_size):
            trials = range(start, min(start + batch_size, len(ready)))
            part = slice(trials.start, trials.stop)
            for gradient in _probe(conditioner, ready[part], trials, weights, num_probes, seed):
                total += np.square((gradient @ spread) * change[part]).sum(axis=0)
    importance = np.zeros(preprocessor.num_input_voxels)
    importance[preprocessor.voxel_index] = total
    return importance / importance.sum() if importance.sum() > 0 else importance


def importance_table(voxels: pd.DataFrame, importance: np.ndarray) -> pd.DataFrame:
    """The table of voxel_importance.tsv: voxel, rois, importance, and x, y, z where the dataset knows them."""
    known = [axis for axis in COORDINATES if axis in voxels]
    table = voxels.loc[:, ["voxel", "rois"]].assign(importance=importance)
    return table.join(voxels.loc[:, known])


def length_map(preprocessor: Preprocessor) -> Any:
    """The length policy as a matrix (L, K): encoder input = matrix @ values of the K voxels that the ROI choice keeps."""
    count, length = len(preprocessor.voxel_index), preprocessor.num_voxels
    # every policy reads a place between two neighbouring voxels, so a ramp shows which; it starts at 1, as padding is 0
    ramp = np.arange(1, count + 1, dtype=np.float64)[None]
    place = preprocessor.to_length(ramp)[0] - 1
    before = np.clip(np.floor(place).astype(int), 0, count - 1)
    after = np.minimum(before + 1, count - 1)
    share = place - before
    share[place < 0] = 0
    values = np.concatenate([np.where(place < 0, 0, 1 - share), share])
    rows = np.tile(np.arange(length), 2)
    matrix = csr_array((values, (rows, np.concatenate([before, after]))), shape=(length, count))
    matrix.eliminate_zeros()
    return matrix


def voxels_read(preprocessor: Preprocessor) -> np.ndarray:
    """Which voxels of a trial reach the encoder, bool (V,): the ROI choice without what the length policy cuts."""
    read = np.zeros(preprocessor.num_input_voxels, dtype=bool)
    read[preprocessor.voxel_index[np.unique(length_map(preprocessor).indices)]] = True
    return read


def _parts(conditioner: FmriConditioner, ready: Tensor, with_guess: bool) -> list[Tensor]:
    """Encoder input (B, L) -> the parts of its condition, each (B, values)."""
    condition = conditioner(ready)
    parts = [condition.context.flatten(1), condition.time.flatten(1)]
    latent_start = conditioner.latent_start if with_guess else None
    return parts if latent_start is None else [*parts, latent_start(ready)]


@torch.no_grad()
def _part_weights(
    conditioner: FmriConditioner, preprocessor: Preprocessor, ready: Tensor, with_guess: bool, batch_size: int
) -> list[float | None]:
    """1 / root of the mean squared distance of each part from that of mean betas; None for one that never moves."""
    mean = torch.from_numpy(preprocessor.to_length(preprocessor.voxel_mean[None]))
    still = _parts(conditioner, mean.to(ready), with_guess)
    squares = np.zeros(len(still))
    for some in ready.split(batch_size):
        moved = _parts(conditioner, some, with_guess)
        squares += [(a - b).double().square().sum().item() for a, b in zip(moved, still, strict=True)]
    return [float((len(ready) / square) ** 0.5) if square > 0 else None for square in squares]


def _probe(
    conditioner: FmriConditioner,
    ready: Tensor,
    trials: range,
    weights: list[float | None],
    num_probes: int,
    seed: int,
) -> Iterator[np.ndarray]:
    """For every probe the gradient (B, L) float64 of the weighted parts, each value with a random sign."""
    if all(weight is None for weight in weights):
        return
    inputs = ready.detach().requires_grad_()
    parts = _parts(conditioner, inputs, with_guess=len(weights) > 2)
    values = torch.cat([part * w for part, w in zip(parts, weights, strict=True) if w is not None], 1)
    draws = [torch.Generator().manual_seed((seed * 1_000_003 + trial) % 2**63) for trial in trials]
    for probe in range(num_probes):
        signs = torch.stack([torch.randint(0, 2, values.shape[1:], generator=g) for g in draws])
        target = (2 * signs - 1).to(values)
        (gradient,) = torch.autograd.grad(values, inputs, target, retain_graph=probe + 1 < num_probes)
        yield gradient.double().cpu().numpy()


@contextmanager
def _same_every_time() -> Iterator[None]:
    """Gradients whose sums run in a fixed order: on a GPU the fast kernels of attention and convolution do not."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            yield
    finally:
        torch.backends.cudnn.deterministic = before

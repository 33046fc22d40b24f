"""What the betas say of the latents, heeded in every step of denoising: the prior draws, the measurement pulls.

An encoding model that is linear in the latents z of the prior's own auto-encoder, betas = A z + noise, is fitted on the training
trials (`cadiff.encoding`: ridge chosen voxel by voxel, held-out noise covariance). It makes decoding a linear inverse problem,
and those are solved by a diffusion model without training (Kawar et al. 2022, DDRM; Song et al. 2023, Pi-GDM; Zhu et al. 2023,
DiffPIR): in each step the denoiser's guess z0 of the clean latents is replaced by its posterior mean given the betas,

    z0' = z0 + (S_t^-1 + w A^T N^-1 A)^-1 w A^T N^-1 (betas - A z0),     S_t = (C^-1 + abar_t / (1 - abar_t) I)^-1

where S_t is how far z0 may still be off: exact if latents were normal with the covariance C of the training pictures. In a world
where they are, samples are exact draws from the posterior (tests/diffuse/test_likelihood.py). No network is asked more often.

All happens in the span of the leading principal components of training latents; what is outside stays the denoiser's.

Letters in shapes: n training stimuli, m rows of betas, B rows of latents (c, h, w) with D = c h w numbers, V voxels,
k components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor
from cadiff.data.splits import check_disjoint
from cadiff.encoding import gram as grams
from cadiff.encoding.banded import final_dual
from cadiff.encoding.calibrate import measure, spread
from cadiff.encoding.model import noise_variance
from cadiff.encoding.noise import NoiseCovariance
from cadiff.encoding.responses import Responses, normalised
from cadiff.errors import DataError

NUM_COMPONENTS = 512
"""At most: a step solves a system of that size."""
LEAST = 1e-4
"""Of the largest variance: components below it are left to the denoiser."""

LatentsOf = Callable[[Sequence[str]], Tensor]
"""Stimulus ids -> scaled latents (n, c, h, w) of their pictures."""


class Evidence(NamedTuple):
    """What betas say of latents, as a normal likelihood in the components: exp(score d - weight/2 d^T curvature d)."""

    score: Tensor
    """(m, k) float64."""
    weight: Tensor
    """(m,) float64; 0 for rows that read no betas."""

    def rows(self, index: Any) -> Evidence:
        """Some rows, by slice or index."""
        return Evidence(self.score[index], self.weight[index])


@dataclass(frozen=True, eq=False)
class LatentLikelihood:
    """A fitted model of betas given latents. Make one with `LatentLikelihood.fit`."""

    voxels: np.ndarray
    """(V,) which of the subject's voxels are read."""
    preprocessor: Preprocessor
    """Of those."""
    mean: Tensor
    """(D,) mean latent of the training pictures, float64."""
    components: Tensor
    """(D, k), orthonormal columns."""
    variance: Tensor
    """(k,) of the training latents along the components."""
    betas_mean: np.ndarray
    """(V,) mean response to the training stimuli."""
    readers: np.ndarray
    """(k, V): A^T, the response to a component."""
    noise: NoiseCovariance
    """Of single trials."""
    misfit: float
    """Share of the noise that averaging repeats leaves; 1 where the training trials do not tell."""
    curvature: Tensor
    """(k, k): A^T N^-1 A of single trials."""
    facts: dict[str, Any]
    """What it was fitted on and how well it predicts held out, as JSON values."""
    _bases: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        data: BrainDataset,
        rows: np.ndarray,
        latents_of: LatentsOf,
        *,
        voxels: np.ndarray | None = None,
        seed: int = 0,
    ) -> LatentLikelihood:
        """Fits on training trials.

        Args:
            data: the subject. rows: its training trials.
            latents_of: latents of their pictures.
            voxels: which of the subject's voxels to read; all by default.
            seed: of the folds.

        Raises:
            DataError: fewer than 3 training stimuli, a leak between the splits, or betas that are not finite.
        """
        check_disjoint(data)
        ids = [str(name) for name in data.trials["stimulus_id"].to_numpy()[rows]]
        names = list(dict.fromkeys(ids))
        if len(names) < 3:
            raise DataError(
                f"{data.folder}: {len(names)} training stimuli; a likelihood of latents needs at least 3."
            )
        voxels = np.arange(data.betas.shape[1]) if voxels is None else voxels
        betas = data.betas[rows]
        betas = betas if np.array_equal(voxels, np.arange(betas.shape[1])) else betas[:, voxels]
        preprocessor, betas = normalised(betas)
        place = {name: i for i, name in enumerate(names)}
        shown = np.array([place[name] for name in ids])
        responses = Responses.of(betas, shown)
        mean, components, variance, d = _components(latents_of(names).flatten(1).cpu())
        kernel = d @ d.T
        ceiling = data.voxels["noise_ceiling"].to_numpy(dtype=float)[voxels][preprocessor.voxel_index]
        within = noise_variance(ceiling)
        found = measure([kernel], responses, within=within, min_r2=None, num_folds=5, seed=seed)
        repeated = bool((responses.repeats > 1).any())
        known = repeated or within is not None
        means = responses.means
        del betas, responses
        betas_mean = means.mean(axis=0, dtype=np.float64)
        readers = d.T @ final_dual([kernel], means, found.choice)
        whitened = torch.from_numpy(found.noise.whitened(readers))
        misfit = found.misfit if known else 1.0
        facts = {
            "trials": len(ids),
            "stimuli": len(names),
            "voxels": len(voxels),
            "components": len(variance),
            "held_out_r2": {"median": float(np.median(found.r2)), "p90": float(np.quantile(found.r2, 0.9))},
            "misfit": misfit,
            "misfit_from": "repeats" if repeated else "noise ceilings" if known else "unknown",
            "shrinkage": found.noise.shrinkage,
        }
        return cls(
            voxels=voxels,
            preprocessor=preprocessor,
            mean=mean,
            components=components,
            variance=variance,
            betas_mean=betas_mean,
            readers=readers,
            noise=found.noise,
            misfit=misfit,
            curvature=whitened @ whitened.T,
            facts=facts,
        )

    def evidence(self, betas: np.ndarray, repeats: np.ndarray, weight: float = 1.0) -> Evidence:
        """What raw betas of the subject (m, all its voxels), each row the average of `repeats` trials (m,), say.

        `weight` is a factor of the log likelihood: 1 believes the model's own noise.
        """
        missed = self.noise.whitened(self.preprocessor(betas[:, self.voxels]) - self.betas_mean)
        each = weight / spread(repeats, self.misfit)
        score = (missed @ self.noise.whitened(self.readers).T) * each[:, None]
        return Evidence(torch.from_numpy(score), torch.from_numpy(each))

    def corrected(self, clean: Tensor, evidence: Evidence, kept: float) -> Tensor:
        """Guesses of clean latents (B, c, h, w) -> their posterior means given the evidence of B rows.

        Args:
            kept: abar_t, the share of the signal in the noisy latents that the guess was made of.

        Rows without evidence come back as they are, to the bit.
        """
        return self.correction(evidence, clean.device)(clean, kept)

    def correction(self, evidence: Evidence, device: torch.device) -> Callable[[Tensor, float], Tensor]:
        """`corrected` for all steps of a batch with this evidence, in float64 on the device of its latents.

        What the steps share is brought there beforehand: in them, nothing waits for a GPU.
        """
        mean, components, variance = (x.to(device) for x in (self.mean, self.components, self.variance))
        groups = []
        for weight in evidence.weight[evidence.weight > 0].unique().tolist():
            rows = (evidence.weight == weight).nonzero().flatten()
            groups.append([x.to(device) for x in (rows, evidence.score[rows], *self._basis(weight))])

        def corrected(clean: Tensor, kept: float) -> Tensor:
            d = (clean.flatten(1).double() - mean) @ components
            signal = kept / max(1 - kept, 1e-12)
            known = 1 / variance + signal  # S_t^-1, along the components
            change = torch.zeros_like(d)
            for rows, score, precision, basis in groups:
                towards = (d[rows] * known + score) @ basis
                change[rows] = (towards / (precision + signal)) @ basis.T - d[rows]
            return clean + (change @ components.T).view(clean.shape).to(clean.dtype)

        return corrected

    def _basis(self, weight: float) -> tuple[Tensor, Tensor]:
        """Eigenvalues and vectors of C^-1 + w A^T N^-1 A: the same for all steps, which only add to the diagonal."""
        if weight not in self._bases:
            self._bases[weight] = torch.linalg.eigh(torch.diag(1 / self.variance) + weight * self.curvature)
        return self._bases[weight]


def _components(latents: Tensor) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Of latents (n, D), in float64: mean (D,), the leading principal components (D, k), the variance (k,) along each, and
    where the latents lie (n, k). From the smaller Gram matrix, whose rounding is far below `LEAST`."""
    x = latents.double().clone()
    mean = x.mean(0)
    x -= mean
    table = x.numpy()
    few = len(table) <= table.shape[1]
    gram = grams.zeros(min(table.shape))
    grams.add(gram, table.T if few else table)
    squares, vectors = grams.decompose(gram, LEAST, NUM_COMPONENTS)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    components = table.T @ (vectors / np.sqrt(squares)) if few else np.ascontiguousarray(vectors)
    variance = torch.from_numpy(squares / len(table))
    return mean, torch.from_numpy(components), variance, table @ components

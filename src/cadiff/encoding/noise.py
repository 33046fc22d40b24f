"""Covariance of what an encoding model misses, well-conditioned with more voxels than trials.

    Sigma = D ((1 - s) Z^T Z / n + s I) D,    Z = residuals / D (n trials, V voxels), D their root mean square a voxel

The shrinkage s towards independent voxels is the closed form of Ledoit & Wolf (2004, J. Multivariate Analysis 88:365), on
the scaled residuals, whose target is then exactly the identity. Z is kept by its right singular vectors, so Sigma is
inverted by Woodbury's identity and no (V, V) matrix is ever made where trials are fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY = 1e-6


@dataclass(frozen=True, eq=False)
class NoiseCovariance:
    """Sigma = D (shrinkage I + U diag(values) U^T) D."""

    scale: np.ndarray
    """D (V,): root mean square of each voxel's residual."""
    shrinkage: float
    vectors: np.ndarray
    """U (V, r), orthonormal columns."""
    values: np.ndarray
    """(r,), above 0."""

    @classmethod
    def fit(cls, residuals: np.ndarray) -> NoiseCovariance:
        """Measures residuals (n, V) of held-out trials, whose mean is taken to be 0."""
        x = np.asarray(residuals, dtype=np.float64)
        scale = np.sqrt(np.einsum("nv,nv->v", x, x) / len(x))  # without a table of squares
        scale = np.where(scale > TINY * max(float(scale.max(initial=0.0)), TINY), scale, 1.0)
        z = x / scale
        gram = _gram(z)
        shrinkage = max(ledoit_wolf(z, gram), TINY)  # with as few trials as one, never without
        squares, vectors = _right_singular(z, gram)
        return cls(scale, shrinkage, vectors, (1 - shrinkage) * squares / len(z))

    def squared_distances(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mahalanobis distances (x - y)^T Sigma^-1 (x - y) of rows x (m, V) and y (k, V): (m, k)."""
        inner = self._whitened(x) @ self._scaled(y).T
        own = np.einsum("mv,mv->m", self._whitened(x), self._scaled(x))
        other = np.einsum("kv,kv->k", self._whitened(y), self._scaled(y))
        return np.maximum(own[:, None] + other - 2 * inner, 0.0)

    def whitened(self, x: np.ndarray) -> np.ndarray:
        """Rows x (m, V) times Sigma^-1/2: noise of this covariance becomes independent, of variance 1."""
        z = self._scaled(x)
        inside = z @ self.vectors
        gains = 1 / np.sqrt(self.values + self.shrinkage) - 1 / np.sqrt(self.shrinkage)
        return z / np.sqrt(self.shrinkage) + (inside * gains) @ self.vectors.T

    def log_determinant(self) -> float:
        """log |Sigma|."""
        rest = len(self.scale) - len(self.values)
        inside = np.log(self.values + self.shrinkage).sum() + rest * np.log(self.shrinkage)
        return float(inside + 2 * np.log(self.scale).sum())

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, dtype=np.float64) / self.scale

    def _whitened(self, x: np.ndarray) -> np.ndarray:
        """Rows times (shrinkage I + U diag(values) U^T)^-1, after scaling; the other side of a product is `_scaled`."""
        z = self._scaled(x)
        share = self.values / (self.values + self.shrinkage)
        return (z - ((z @ self.vectors) * share) @ self.vectors.T) / self.shrinkage


def ledoit_wolf(z: np.ndarray, gram: np.ndarray | None = None) -> float:
    """The shrinkage in 0..1 of the second moment of rows z (n, V), mean 0, towards a multiple of the identity.

    gram: z z^T or z^T z where it is at hand; both have the same sum of squares.
    """
    n, v = z.shape
    gram = _gram(z) if gram is None else gram
    mu = float(np.trace(gram)) / (n * v)
    squares = float(np.vdot(gram, gram))
    distance = squares / n**2 - v * mu**2  # |S - mu I|^2
    # mean over trials of |z_i z_i^T - S|^2, over n: how far S itself scatters
    lengths = np.einsum("nv,nv->n", z, z)
    scatter = (float((lengths**2).sum()) / n - squares / n**2) / n
    return min(max(scatter / distance, 0.0), 1.0) if distance > 0 else 1.0


def _gram(z: np.ndarray) -> np.ndarray:
    """The smaller of z z^T (n, n) and z^T z (V, V)."""
    return z @ z.T if len(z) <= z.shape[1] else z.T @ z


def _right_singular(z: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values (r,) and right singular vectors (V, r) of z (n, V), through its `_gram`."""
    squares, vectors = np.linalg.eigh(gram)
    keep = squares > TINY**2 * max(float(squares[-1]), TINY)
    squares, vectors = squares[keep], vectors[:, keep]
    return squares, z.T @ vectors / np.sqrt(squares) if len(z) <= z.shape[1] else vectors

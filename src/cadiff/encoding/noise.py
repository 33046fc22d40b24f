"""Covariance of what an encoding model misses, well-conditioned with more voxels than trials.

    Sigma = D ((1 - s) Z^T Z / n + s I) D,    Z = residuals / D (n trials, V voxels), D their root mean square a voxel

The shrinkage s towards independent voxels is the closed form of Ledoit & Wolf (2004, J. Multivariate Analysis 88:365), on
the scaled residuals, whose target is then exactly the identity. Z is kept by its right singular vectors, so Sigma is
inverted by Woodbury's identity and no (V, V) matrix is ever made where trials are fewer; Z itself is worked out in parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.encoding.gram import Table, add, decompose, parts, zeros

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
    def fit(cls, residuals: Table) -> NoiseCovariance:
        """Measures residuals (n, V) of held-out trials, whose mean is taken to be 0; an array, or what makes its parts."""
        n, v = residuals.shape
        scale = np.empty(v)
        for part in parts(v, n):
            x = np.asarray(residuals[:, part], dtype=np.float64)
            scale[part] = np.sqrt(np.einsum("nv,nv->v", x, x) / n)
        scale = np.where(scale > TINY * max(float(scale.max(initial=0.0)), TINY), scale, 1.0)
        gram, lengths = _gram(residuals, scale)
        shrinkage = max(ledoit_wolf(gram, lengths, v), TINY)  # with as few trials as one, never without
        squares, vectors = decompose(gram, TINY**2)
        del gram
        if n <= v:
            left, vectors = vectors / np.sqrt(squares), np.empty((v, len(squares)))
            for part in parts(v, n):
                vectors[part] = (residuals[:, part] / scale[part]).T @ left
        return cls(scale, shrinkage, np.ascontiguousarray(vectors), (1 - shrinkage) * squares / n)

    def squared_distances(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mahalanobis distances (x - y)^T Sigma^-1 (x - y) of rows x (m, V) and y (k, V): (m, k)."""
        white = self._whitened(x)
        inner = white @ self._scaled(y).T
        own = np.einsum("mv,mv->m", white, self._scaled(x))
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


def ledoit_wolf(gram: np.ndarray, lengths: np.ndarray, num_voxels: int) -> float:
    """The shrinkage in 0..1 of the second moment of rows z (n, V), mean 0, towards a multiple of the identity.

    gram: z z^T or z^T z, both have the same sum of squares; the lower triangle of it. lengths: (n,) squared, of the rows.
    """
    n, v = len(lengths), num_voxels
    diagonal = gram.diagonal()
    mu = float(diagonal.sum()) / (n * v)
    squares = 2 * float(np.vdot(gram.T, gram.T)) - float(diagonal @ diagonal)
    distance = squares / n**2 - v * mu**2  # |S - mu I|^2
    # mean over trials of |z_i z_i^T - S|^2, over n: how far S itself scatters
    scatter = (float((lengths**2).sum()) / n - squares / n**2) / n
    return min(max(scatter / distance, 0.0), 1.0) if distance > 0 else 1.0


def _gram(residuals: Table, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower triangle of the smaller of z z^T (n, n) and z^T z (V, V), z = residuals / scale; squared lengths (n,) of z."""
    n, v = residuals.shape
    gram, lengths = zeros(min(n, v)), np.zeros(n)
    for part in parts(v, n) if n <= v else parts(n, v):
        rows, voxels = (slice(n), part) if n <= v else (part, slice(v))
        z = np.asarray(residuals[rows, voxels], dtype=np.float64) / scale[voxels]
        lengths[rows] += np.einsum("nv,nv->n", z, z)
        add(gram, z.T if n <= v else z)
    return gram, lengths

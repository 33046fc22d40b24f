"""Which class was seen: the likelihood of betas under what pictures of each class would evoke.

    p(betas | class c) = N(m_c, S + share Sigma),   m_c and S: mean and common covariance of the encoding model's predictions
                                                     for pictures of class c, Sigma: its noise, share: 1 for single trials

A linear discriminant (Fisher 1936) whose classes are described by pictures instead of trials, so it also names classes that no
training trial showed, as long as there are pictures of them: those that a label-conditioned image prior draws will do.
After Naselaris et al. 2009 (Neuron 63:902), who put a category model on top of an encoding model. The space is that of the
noise made white, cut to the directions in which predictions vary most.

Letters in shapes: m rows of betas, V voxels read, C classes, k pictures, d directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.encoding.calibrate import spread
from cadiff.encoding.model import EncodingModel
from cadiff.errors import DataError

DIRECTIONS = 150
"""Of predictions, at most: on simulated subjects 60 to 200 name classes equally well (docs/results.md)."""


@dataclass(frozen=True, eq=False)
class ClassPosterior:
    """The classes of a set of pictures, told apart by betas. Make one with `ClassPosterior.fit`."""

    model: EncodingModel
    classes: np.ndarray
    """(C,) int64, ascending."""
    centre: np.ndarray
    """(V,) mean of the predictions, whitened."""
    directions: np.ndarray
    """(V, d), orthonormal columns."""
    means: np.ndarray
    """(C, d) of the classes."""
    within: np.ndarray
    """(d, d) covariance of predictions around the mean of their class."""

    @classmethod
    def fit(
        cls, model: EncodingModel, images: np.ndarray, labels: np.ndarray, *, directions: int = DIRECTIONS
    ) -> ClassPosterior:
        """Describes classes by pictures.

        Args:
            model: fitted on the subject.
            images: uint8 (k, H, W, 3). labels: (k,) integers, two pictures or more a class.
            directions: d; fewer where the pictures do not allow it.

        Raises:
            DataError: fewer than two classes, or one with a single picture.
        """
        classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(classes) < 2 or counts.min() < 2:
            raise DataError(
                f"{len(classes)} classes with {counts.min()} to {counts.max()} pictures each: telling classes apart needs two or "
                "more classes, and two or more pictures of each."
            )
        predicted = model.noise.whitened(model.predict(images)[:, model.voxels])
        centre = predicted.mean(axis=0)
        scatter = predicted - centre
        limit = max(1, min(directions, len(images) - len(classes), scatter.shape[1]))
        values, vectors = np.linalg.eigh(scatter @ scatter.T)
        order = np.argsort(values)[::-1][:limit]
        order = order[values[order] > 1e-9 * values[order[0]]]
        basis = scatter.T @ vectors[:, order] / np.sqrt(values[order])
        found = scatter @ basis
        means = np.stack([found[place == c].mean(axis=0) for c in range(len(classes))])
        rest = found - means[place]
        return cls(
            model=model,
            classes=classes.astype(np.int64),
            centre=centre,
            directions=basis,
            means=means,
            within=rest.T @ rest / (len(images) - len(classes)),
        )

    def log_likelihood(self, betas: np.ndarray, repeats: int | np.ndarray = 1) -> np.ndarray:
        """log p(betas | class) in the d directions, (m, C).

        Args:
            betas: (m, V) raw betas of the subject.
            repeats: how many trials each row averages, a number or (m,).
        """
        measured = self.model.noise.whitened(self.model.preprocessor(betas)[:, self.model.voxels])
        z = (measured - self.centre) @ self.directions
        shares = spread(np.broadcast_to(repeats, len(z)), self.model.misfit)
        result = np.empty((len(z), len(self.classes)))
        for share in np.unique(shares):
            rows = shares == share
            covariance = self.within + share * np.eye(len(self.within))
            root = np.linalg.cholesky(covariance)
            far = np.linalg.solve(root, (z[rows][:, None] - self.means).reshape(-1, len(root)).T)
            squares = (far**2).sum(axis=0).reshape(-1, len(self.classes))
            volume = 2 * np.log(np.diag(root)).sum() + len(root) * np.log(2 * np.pi)
            result[rows] = -0.5 * (squares + volume)
        return result

    def most_likely(self, betas: np.ndarray, repeats: int | np.ndarray = 1) -> np.ndarray:
        """(m,) the class of each row, equally probable beforehand."""
        return self.classes[self.log_likelihood(betas, repeats).argmax(axis=1)]

"""The most likely class, found through an encoding model, drawn by the image prior.

Ridge from betas to label embeddings (`ridge-label`) can hardly leave the classes that it was trained on. Here the way leads
through pictures: the prior draws some of each of its classes, an encoding model says what they would evoke, and the class whose
pictures explain the betas best is drawn (`cadiff.encoding.classes`; after Naselaris et al. 2009, Neuron 63:902).

m test rows, V voxels, k samples a row, H x W pixels, C classes of the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.baselines.fitted import State, put, take
from cadiff.baselines.labels import Drawing
from cadiff.data.dataset import BrainDataset
from cadiff.encoding import EncodingModel
from cadiff.encoding.classes import ClassPosterior
from cadiff.encoding.pictures import pictures_of_classes
from cadiff.errors import DataError
from cadiff.priors.load import ImagePrior, load_prior

PARTS = ("classes", "centre", "directions", "means", "within")


@dataclass(frozen=True)
class BayesLabel:
    """The most likely class of the prior, drawn by the prior."""

    posterior: ClassPosterior
    drawing: Drawing

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        prior: str | Path = "shipped",
        features: str | Sequence[str] | None = None,
        pictures: str | Path | None = None,
        pictures_per_class: int = 12,
        num_images_per_trial: int = 5,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        scheduler: str = "dpm++",
        batch_size: int = 50,
        seed: int = 0,
    ) -> BayesLabel:
        """Fits the encoding model on training trials, and draws pictures of every class of the prior.

        Args:
            prior: the image prior.
            features: what voxels are predicted from, see `EncodingModel.fit`.
            pictures: labelled pictures that describe the classes: a folder of class folders or an .npz, as for
                `cadiff prior train`; drawn by the prior when absent.
            pictures_per_class: that describe a class, drawn with the settings below; 2 or more.
            num_images_per_trial: samples of each test stimulus.
            num_inference_steps, guidance_scale, scheduler, batch_size: of all drawing.
            seed: of every draw; the pictures that describe classes have the noise of another one.

        Raises:
            DataError: a prior without labels.
        """
        opened = load_prior(prior)
        side = opened.image_size
        settings = (num_inference_steps, guidance_scale, scheduler, batch_size)
        table = _table(opened)
        if pictures is None:
            drawn = Drawing(opened, pictures_per_class, *settings, seed=seed + 1)(table)
            images, labels = (
                drawn.reshape(-1, *drawn.shape[2:]),
                np.repeat(np.arange(len(drawn)), pictures_per_class),
            )
        else:
            images, labels = pictures_of_classes(pictures, opened.classes, dataset, side)
        asked = [features] if isinstance(features, str) else features
        model = EncodingModel.fit(dataset, rows, features=asked, prior=prior, size=side, seed=seed)
        posterior = ClassPosterior.fit(model, images, labels)
        return cls(posterior, Drawing(opened, num_images_per_trial, *settings, seed=seed))

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, k, H, W, 3)."""
        rows = self.posterior.most_likely(betas, repeats)
        return self.drawing(_table(self.drawing.prior)[torch.from_numpy(rows)])

    def facts(self) -> dict[str, Any]:
        """The encoding model's, and the number of classes."""
        return {"classes": len(self.posterior.classes), **self.posterior.model.facts}

    def state(self) -> State:
        """See `Baseline.state`; the prior is named, not copied."""
        model = self.posterior.model
        parts = {name: torch.from_numpy(getattr(self.posterior, name)) for name in PARTS}
        config = {**self.drawing.state(), "encoding": model.to_config()}
        return State(config, put("encoding", model.to_tensors()) | put("posterior", parts))

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> BayesLabel:
        """See `Baseline.from_state`."""
        model = EncodingModel.from_tensors(state.config["encoding"], take("encoding", state.tensors))
        parts = {name: value.numpy() for name, value in take("posterior", state.tensors).items()}
        return cls(ClassPosterior(model, **parts), Drawing.from_state(state))


def _table(prior: ImagePrior) -> Tensor:
    """The embeddings (C, width) of the prior's classes, without that of "no label"."""
    if prior.label_embedding is None or not prior.classes:
        raise DataError("This prior has no label_embedding.safetensors with classes: bayes-label needs one.")
    return prior.label_embedding.float()[: len(prior.classes)]

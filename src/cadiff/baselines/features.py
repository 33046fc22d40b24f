"""Ridge regression from voxels to features of the picture, drawn by an image prior that was adapted to them.

The linear road that the strongest published systems take (Takagi & Nishimoto 2023; Ozcelik & VanRullen 2023; Scotti et al.
2023, with CLIP): no encoder, no tuning on the subject. Here with a prior of `cadiff prior adapt`.

m test rows, V voxels, k samples a row, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadiff.baselines.fitted import State, preprocessor_of, preprocessor_state, put, take
from cadiff.baselines.labels import Drawing
from cadiff.baselines.ridge import prepare
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.start import ImageStart
from cadiff.encoding.simulated import warn_of_the_truth
from cadiff.priors.load import load_prior
from cadiff.priors.seeing import picture_coordinates


@dataclass(frozen=True)
class RidgeFeatures:
    """Ridge voxels -> coordinates of the picture, each shrunk by how badly it is predicted -> pictures."""

    preprocessor: Preprocessor
    start: ImageStart
    drawing: Drawing
    ridge: dict[str, Any]
    """Penalties chosen and the held-out variance explained."""

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        prior: str | Path = "shipped",
        num_images_per_trial: int = 5,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        scheduler: str = "ddim",
        match_repeat_spread: bool = True,
        seed: int = 0,
    ) -> RidgeFeatures:
        """Fits on training trials; the other options are of the drawing.

        Raises:
            ConfigError: a prior that draws from labels alone.
        """
        opened = load_prior(prior)
        if opened.image_context is not None:
            warn_of_the_truth([opened.image_context.config["eye"]], dataset)
        preprocessor, betas, ids = prepare(dataset, rows, match_repeat_spread)
        names = sorted(set(ids))
        known = picture_coordinates(opened, dataset.images(names, size=opened.image_size))
        place = {name: i for i, name in enumerate(names)}
        coordinates = known[torch.tensor([place[name] for name in ids])]
        start, _, ridge = ImageStart.fit(betas, coordinates, ids, seed=seed)
        drawing = Drawing(
            opened, num_images_per_trial, num_inference_steps, guidance_scale, scheduler, seed=seed
        )
        return cls(preprocessor, start, drawing, ridge.facts())

    @torch.no_grad()
    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, k, H, W, 3)."""
        context = self.drawing.prior.image_context
        assert context is not None  # `fit` refused any other prior
        coordinates = self.start(torch.from_numpy(self.preprocessor(betas, repeats)))
        return self.drawing.draw(Condition(*context(coordinates)))

    def facts(self) -> dict[str, Any]:
        """Penalties, held-out variance explained, and the network whose features are drawn from."""
        context = self.drawing.prior.image_context
        return self.ridge if context is None else {**self.ridge, "eye": {"name": context.config["eye"]}}

    def state(self) -> State:
        """See `Baseline.state`; the prior is named, not copied."""
        own = preprocessor_state(self.preprocessor)
        config = {**own.config, **self.drawing.state(), "ridge": self.ridge}
        return State(config, own.tensors | put("start", vars(self.start)))

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> RidgeFeatures:
        """See `Baseline.from_state`."""
        start = ImageStart(**take("start", state.tensors))
        return cls(preprocessor_of(state), start, Drawing.from_state(state), state.config["ridge"])

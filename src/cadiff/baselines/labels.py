"""Label embeddings that an image prior draws from: read from the betas by ridge regression, or told (the oracle).

m test rows, V voxels, k samples a row, C context width, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.baselines.fitted import (
    State,
    check_prior,
    preprocessor_of,
    preprocessor_state,
    prior_state,
    put,
    take,
)
from cadiff.baselines.ridge import prepare
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.pipeline import to_uint8
from cadiff.diffuse.sampling import denoise, make_scheduler, trial_noise
from cadiff.diffuse.start import LabelStart
from cadiff.errors import ConfigError, DataError
from cadiff.priors.load import ImagePrior, load_prior

DRAWING = (
    "num_images_per_trial",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "batch_size",
    "seed",
)
"""Settings of a `Drawing`."""


@dataclass(frozen=True)
class Drawing:
    """How an image prior draws from label embeddings."""

    prior: ImagePrior
    num_images_per_trial: int = 5
    num_inference_steps: int = 50
    guidance_scale: float = 2.0
    scheduler: str = "ddim"
    batch_size: int = 16
    seed: int = 0

    def __call__(self, embeddings: Tensor) -> np.ndarray:
        """Embeddings (m, C) -> uint8 (m, k, H, W, 3); sample s of row i has the noise of (seed, i, s)."""
        return self.draw(self._condition(embeddings[:, None]))

    def draw(self, condition: Condition) -> np.ndarray:
        """The same from a condition of m rows."""
        prior = self.prior
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for network in (prior.unet, prior.vqvae):
            torch.nn.Module.to(network, device)
        shape = prior.latent_shape
        trials, length = condition.context.shape[:2]
        noise = trial_noise(trials, self.num_images_per_trial, shape, self.seed).flatten(0, 1)
        condition = condition.repeat(self.num_images_per_trial)
        pieces = []
        for start in range(0, len(noise), self.batch_size):
            part = slice(start, start + self.batch_size)
            count = len(noise[part])
            latents = denoise(
                prior.unet,
                make_scheduler(self.scheduler, prior.scheduler.config),
                noise[part].to(device),
                Condition(*(values.to(device) for values in condition.rows(part))),
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                null=self._null(count, length) if self.guidance_scale != 1.0 else None,
            )
            pieces.append(to_uint8(prior.decode(latents)))
        joined = np.concatenate(pieces)
        return joined.reshape(trials, self.num_images_per_trial, *joined.shape[1:])

    def state(self) -> dict[str, Any]:
        """The settings as JSON values, the prior by its name; `from_state` is the inverse."""
        return {**{key: getattr(self, key) for key in DRAWING}, **prior_state(self.prior)}

    @classmethod
    def from_state(cls, state: State) -> Drawing:
        """Drawing with the prior and the settings that a state names."""
        return cls(check_prior(state), **{key: state.config[key] for key in DRAWING})

    def _condition(self, context: Tensor) -> Condition:
        """Context (B, L, C) with the time vector that leaves the prior as it was trained."""
        context = context.to(self.prior.unet.device)
        return Condition(context, context.new_zeros(len(context), self.prior.time_dim))

    def _null(self, count: int, length: int) -> Condition:
        table, row = self.prior.label_embedding, self.prior.null_label
        if table is None or row is None:
            raise ConfigError("This prior has no 'no label' row to guide away from: use guidance_scale=1.")
        return self._condition(table[row].expand(count, length, -1))


@dataclass(frozen=True)
class RidgeLabel:
    """The rival to beat: ridge voxels -> label embedding, rescaled to the embeddings' length, drawn by the prior."""

    preprocessor: Preprocessor
    start: LabelStart
    drawing: Drawing
    ridge: dict[str, Any]
    """The penalty chosen and its held-out cosine."""

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
    ) -> RidgeLabel:
        """Fits on training trials; the other options are of the drawing.

        Raises:
            DataError: a training stimulus whose class the prior does not know.
        """
        preprocessor, betas, ids = prepare(dataset, rows, match_repeat_spread)
        opened = load_prior(prior)
        table, labels = _label_rows(dataset, opened, ids)
        start, _, ridge = LabelStart.fit(betas, torch.tensor(labels), table, ids, seed=seed)
        drawing = Drawing(
            opened, num_images_per_trial, num_inference_steps, guidance_scale, scheduler, seed=seed
        )
        return cls(preprocessor, start, drawing, ridge.facts())

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, k, H, W, 3)."""
        return self.drawing(self.start(torch.from_numpy(self.preprocessor(betas, repeats))))

    def facts(self) -> dict[str, Any]:
        """Penalty and held-out cosine."""
        return self.ridge

    def state(self) -> State:
        """See `Baseline.state`; the prior is named, not copied."""
        own = preprocessor_state(self.preprocessor)
        config = {**own.config, **self.drawing.state(), "ridge": self.ridge}
        return State(config, own.tensors | put("start", vars(self.start)))

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> RidgeLabel:
        """See `Baseline.from_state`."""
        start = LabelStart(**take("start", state.tensors))
        return cls(preprocessor_of(state), start, Drawing.from_state(state), state.config["ridge"])


@dataclass(frozen=True)
class TrueLabel:
    """Oracle: what the prior draws when it is given the true label. The ceiling of the generator, not a method."""

    dataset: BrainDataset
    drawing: Drawing

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
        seed: int = 0,
    ) -> TrueLabel:
        """Learns nothing; the options are of the drawing."""
        drawing = Drawing(
            load_prior(prior), num_images_per_trial, num_inference_steps, guidance_scale, scheduler, seed=seed
        )
        return cls(dataset, drawing)

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Stimulus ids (m,) -> uint8 (m, k, H, W, 3)."""
        table, labels = _label_rows(self.dataset, self.drawing.prior, list(stimulus_ids))
        return self.drawing(table[torch.tensor(labels)])

    def facts(self) -> dict[str, Any]:
        """Nothing was fitted."""
        return {}

    def state(self) -> State:
        """See `Baseline.state`: the drawing alone."""
        return State(self.drawing.state(), {})

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> TrueLabel:
        """See `Baseline.from_state`."""
        return cls(dataset, Drawing.from_state(state))


def _label_rows(
    dataset: BrainDataset, prior: ImagePrior, stimulus_ids: Sequence[str]
) -> tuple[Tensor, list[int]]:
    """The prior's label table (classes, C) and the row of each stimulus in it."""
    if prior.label_embedding is None:
        raise DataError("This prior has no label_embedding.safetensors: the label baselines need one.")
    stimuli = dataset.stimuli.loc[list(stimulus_ids)]
    index = [
        None if number != number or number is None else int(number)
        for number in stimuli["imagenet_index"].astype(float)
    ]
    rows = prior.label_rows(list(stimuli["label"]), index)
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        stranger = stimulus_ids[rows.index(None)]
        raise DataError(
            f"The prior does not know the class of stimulus {stranger!r} ({dataset.stimuli.at[stranger, 'label']!r}); it knows "
            f"{len(prior.classes)} classes ({', '.join(prior.classes[:3])}, ...). Use a prior that was trained on it."
        )
    return prior.label_embedding.float(), known

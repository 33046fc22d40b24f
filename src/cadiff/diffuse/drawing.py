"""Drawing the samples of trials under several conditions, a batch at a time.

A picture is named by (trial, condition, sample). All conditions of a trial share the noise of its samples, so that a picture
and its control differ by the condition alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cadiff.blocks import compiled_blocks
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.controls import Rows
from cadiff.diffuse.likelihood import Evidence, LatentLikelihood
from cadiff.diffuse.pipeline import Correct, FmriToImagePipeline, to_uint8
from cadiff.diffuse.precision import autocast
from cadiff.diffuse.sampling import make_scheduler, num_calls, sample_noise
from cadiff.diffuse.settings import ReconstructConfig
from cadiff.priors.load import decode
from cadiff.progress import counted

COMPILED = 40_000
"""Network calls, counted a picture, from which compiling is won back: at the published sizes an H100 then saves about 43 s
of 71, and compiling the whole U-Net took it under a minute; blocks, which are compiled here, were not timed."""


class Pick(NamedTuple):
    """One picture to draw."""

    trial: int
    condition: str
    sample: int


class Drawing:
    """What there is to draw, and how."""

    def __init__(
        self,
        config: ReconstructConfig,
        pipe: FmriToImagePipeline,
        rows: Mapping[str, Rows],
        num_trials: int,
        likelihood: LatentLikelihood | None = None,
    ) -> None:
        self.config, self.pipe, self.rows, self.num_trials = config, pipe, rows, num_trials
        self.likelihood = likelihood

    @property
    def total(self) -> int:
        """Pictures of all trials and conditions, one generation."""
        return self.num_trials * len(self.rows) * self.config.num_images_per_trial

    def calls(self, strength: float) -> int:
        """Network calls that one batch takes."""
        sampler = make_scheduler(self.config.scheduler, self.pipe.scheduler.config)
        return num_calls(sampler, self.config.num_inference_steps, strength)

    def compiled(self, network_calls: int) -> AbstractContextManager[object]:
        """Compiles the networks' blocks inside the context where that pays, or as the settings say."""
        pays = self.pipe.unet.device.type == "cuda" and network_calls >= COMPILED
        wanted = pays if self.config.compile is None else self.config.compile
        return compiled_blocks([self.pipe.unet, self.pipe.vqvae]) if wanted else nullcontext()

    def all(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Condition, number of the picture in it, and the picture uint8 (H, W, 3), one by one.

        They come in the order (trial, condition, sample).
        """
        names, samples, size = list(self.rows), self.config.num_images_per_trial, self.config.batch_size
        starts, calls = range(0, self.total, size), self.calls(self.config.strength)
        with (
            self.compiled(self.total * calls),
            counted("pictures", len(starts) * calls) as step,
        ):
            for start in starts:
                flat = np.arange(start, min(start + size, self.total))
                where = np.unravel_index(flat, (self.num_trials, len(names), samples))
                picks = [Pick(int(t), names[k], int(s)) for t, k, s in zip(*where, strict=True)]
                for pick, picture in zip(picks, self.decoded(self.latents(picks, step)), strict=True):
                    yield pick.condition, pick.trial * samples + pick.sample, picture

    def latents(
        self,
        picks: Sequence[Pick],
        step: Callable[[], None],
        *,
        parents: Tensor | None = None,
        strength: float | None = None,
        generation: int = 0,
    ) -> Tensor:
        """One batch, latents (B, c, h, w) on the CPU.

        Args:
            step: called after every call of the network.
            parents: latents (B, c, h, w) to begin from in place of the pipeline's own guess.
            strength: share of the steps taken; the settings' by default.
            generation: of samples, each with noise of its own.
        """
        device, config = self.pipe.unet.device, self.config
        found = [(self.rows[p.condition], int(self.rows[p.condition].of_trial[p.trial])) for p in picks]
        condition = Condition(
            torch.stack([rows.condition.context[i] for rows, i in found]).to(device),
            torch.stack([rows.condition.time[i] for rows, i in found]).to(device),
        )
        guesses = [rows.guess[i] for rows, i in found if rows.guess is not None]
        begin = parents if parents is not None else torch.stack(guesses) if guesses else None
        shape = self.pipe.latent_shape
        noise = [sample_noise(p.trial, p.sample, shape, config.seed, generation) for p in picks]
        return self.pipe(
            condition=condition,
            guess=None if begin is None else begin.to(device),
            noise=torch.stack(noise)[:, None],
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            scheduler=config.scheduler,
            strength=config.strength if strength is None else strength,
            batch_size=config.batch_size,
            precision=config.precision,
            correct=self._correction(found),
            output_type="latent",
            on_step=step,
        )[:, 0]

    def _correction(self, found: Sequence[tuple[Rows, int]]) -> Correct | None:
        """What pulls a batch towards the betas of its rows; nothing where none of them reads any."""
        model = self.likelihood
        if model is None or all(rows.evidence is None for rows, _ in found):
            return None
        silent = torch.zeros(len(model.variance), dtype=torch.float64)
        parts = [(silent, silent[0]) if rows.evidence is None else rows.evidence.rows(i) for rows, i in found]
        evidence = Evidence(*(torch.stack(column) for column in zip(*parts, strict=True)))
        return lambda index: model.correction(evidence.rows(index.cpu()), index.device)

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> np.ndarray:
        """Latents (B, c, h, w) -> pictures uint8 (B, H, W, 3)."""
        device, vqvae = self.pipe.unet.device, self.pipe.vqvae
        with autocast(self.config.precision, device):
            return to_uint8(decode(vqvae, latents.to(device), vqvae.config["scaling_factor"]))

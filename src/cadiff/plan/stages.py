"""One step of each stage on fake tensors: what `memory.count_step` counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cadiff.diffuse.reconstruct import ReconstructConfig
from cadiff.plan.amounts import DRAWN_ONCE
from cadiff.plan.memory import Step, count_step
from cadiff.plan.workloads import WORKLOADS, Models, build_prior
from cadiff.priors.load import decode


def training_step(stage: str, config: Any, models: Models, batch: int, *, bf16: bool) -> Step:
    """One step of training."""

    def build() -> nn.Module:
        network: Any = nn.ModuleDict()
        network.work = WORKLOADS[stage](config, models)
        network.update(network.work.modules)
        return network.train()

    def step(network: Any) -> Tensor:
        return network.work.loss(network.work.batch(batch), torch.Generator())["loss"]

    return count_step(build, step, bf16=bf16)


contrast_step = partial(training_step, "contrast")
attend_step = partial(training_step, "attend")
diffuse_step = partial(training_step, "diffuse")


def reconstruct_step(config: ReconstructConfig, models: Models, batch: int, *, bf16: bool) -> Step:
    """One step of the sampler for `batch` pictures, and their decoding."""
    return _drawing(config, models, batch, bf16, sampler=True, decoder=True)


def sampler_step(config: ReconstructConfig, models: Models, batch: int, *, bf16: bool) -> Step:
    """One step of the sampler alone."""
    return _drawing(config, models, batch, bf16, sampler=True)


def decoder_step(config: ReconstructConfig, models: Models, batch: int, *, bf16: bool) -> Step:
    """The decoding of `batch` pictures alone."""
    return _drawing(config, models, batch, bf16, decoder=True)


def _drawing(
    config: ReconstructConfig,
    models: Models,
    batch: int,
    bf16: bool,
    *,
    sampler: bool = False,
    decoder: bool = False,
) -> Step:
    def build() -> nn.Module:
        prior = build_prior(models)
        network: Any = nn.ModuleDict({"unet": prior.unet, "vqvae": prior.vqvae})
        network.prior = prior
        return network.requires_grad_(False)

    def step(network: Any) -> None:
        prior = network.prior
        rows = batch + guided_rows(config, batch)
        with torch.no_grad():
            latents = torch.randn(rows, *prior.latent_shape)
            context = torch.randn(rows, models.context_length, prior.context_dim)
            time = torch.randn(rows, prior.time_dim)
            if sampler:
                prior.unet(latents, torch.zeros(rows), encoder_hidden_states=context, class_labels=time)
            if decoder:
                decode(prior.vqvae, latents[:batch], prior.scaling_factor)

    return count_step(build, step, bf16=bf16)


def guided_rows(config: ReconstructConfig, batch: int) -> int:
    """Of a batch of pictures, those that the network sees twice, also under the null: not those of `prior_only`, which are."""
    if config.guidance_scale == 1:
        return 0
    conditions = 1 + len({*config.controls} - {DRAWN_ONCE}) + len(config.repeats)
    return batch - ("prior_only" in config.controls) * batch // conditions


STEPS: dict[str, Callable[..., Step]] = {
    "contrast": contrast_step,
    "attend": attend_step,
    "diffuse": diffuse_step,
    "reconstruct": reconstruct_step,
}

"""Pictures from betas, timed: encoder, sampler and decoder as `cadiff reconstruct` calls them, on random weights and data."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cadiff.benchmark.machine import forget_peak, peak_memory, training_device
from cadiff.benchmark.record import Measurement
from cadiff.benchmark.training import write_profile
from cadiff.blocks import compiled_blocks
from cadiff.diffuse.pipeline import FmriToImagePipeline
from cadiff.diffuse.precision import resolved
from cadiff.diffuse.sampling import make_scheduler, num_calls
from cadiff.plan.machines import Machine, synchronise
from cadiff.plan.time import drawing_cost
from cadiff.plan.workloads import Models, build_conditioner, build_prior

FLOAT32 = 4


def time_drawing(
    config: Any,
    models: Models,
    batch: int,
    machine: Machine,
    *,
    context_length: int = 77,
    compiled: bool | None = None,
    repeats: int = 5,
    budget: float = 60.0,
    profile_to: Path | None = None,
) -> Measurement:
    """Times batches of pictures: `config.num_images_per_trial` samples of as many trials as fill a batch.

    Args:
        config: settings of `reconstruct`: scheduler, steps, guidance, precision.
        models: sizes.
        batch: pictures drawn at a time.
        machine: rates that the time is compared with.
        context_length: of the conditioner.
        compiled: with the repeated blocks of the networks compiled; by default on CUDA, as where there is much to draw.
        repeats: the median is taken over so many batches, or as many as the budget allows, one at least.
        budget: seconds after which no further batch is begun.
        profile_to: file for a table of the calls that take longest, in a few steps of the sampler.
    """
    device = training_device()
    precision = resolved(config.precision, device)
    compiled = device.type == "cuda" if compiled is None else compiled
    calls = num_calls(make_scheduler(config.scheduler, {}), config.num_inference_steps, config.strength)
    # random betas: no picture is under the null
    config, models = (
        config.model_copy(update={"controls": ()}),
        replace(models, context_length=context_length),
    )
    cost = drawing_cost(config, models, batch, bf16=precision == "bf16")
    forget_peak(device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = build_prior(models)
        conditioner = build_conditioner(models, prior, context_length).eval()
        pipe = FmriToImagePipeline(prior.vqvae, prior.unet, prior.scheduler, conditioner)
        pipe = pipe.to(device)
        samples = min(config.num_images_per_trial, batch)
        trials = -(-batch // samples)
        betas = torch.randn(trials, models.mae.num_voxels)
        noise = torch.randn(trials * samples, *pipe.latent_shape)[:batch]
    noise = noise.unflatten(0, (trials, samples)) if batch == trials * samples else noise[:, None]

    @torch.no_grad()
    def draw(steps: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        condition = pipe.conditioner(betas.to(device))
        if len(condition.context) != len(noise):
            condition = condition.repeat(samples).rows(slice(len(noise)))
        pipe(
            condition=condition,
            noise=noise,
            num_inference_steps=steps,
            guidance_scale=config.guidance_scale,
            scheduler=config.scheduler,
            batch_size=batch,
            precision=config.precision,
            on_step=lambda: None,
        )
        synchronise(device)
        return time.perf_counter() - start

    few = min(4, config.num_inference_steps)
    times: list[float] = []
    with compiled_blocks([pipe.unet, pipe.vqvae]) if compiled else nullcontext():
        first = draw(few)
        draw(few)
        while len(times) < repeats and sum(times) + (times[-1] if times else 0) <= budget:
            times.append(draw(config.num_inference_steps))
        memory, reserved = peak_memory(device)
        if profile_to is not None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
            with profile(activities=activities) as profiler:
                draw(few)
            write_profile(profiler, profile_to, device)
    return Measurement(
        "reconstruct",
        f"{config.scheduler}, {config.num_inference_steps} steps, batch {batch}",
        batch,
        precision,
        compiled,
        "images",
        median(times),
        max(times),
        first,
        len(times),
        calls,
        memory,
        reserved,
        cost.flops,
        machine.floor(cost, FLOAT32 * calls * sum(p.numel() for p in pipe.unet.parameters())),
        machine.op_by_op(cost),
    )

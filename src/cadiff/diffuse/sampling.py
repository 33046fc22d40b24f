"""Drawing latents from a conditioned denoiser, with any diffusers scheduler.

The published sampler is PLMS (Liu et al. 2022, PNDM without Runge-Kutta steps) with 250 steps, which calls the network 251
times; `make_scheduler("pndm")` is its exact equivalent, and the other schedulers reach similar images in 20 to 50.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.precision import Precision, autocast, cast_once
from cadiff.diffuse.static import is_compiled, static_context
from cadiff.errors import ConfigError
from cadiff.onednn import onednn_linears

SchedulerName = Literal["pndm", "ddim", "dpm++", "unipc", "euler"]
ROWS = 32
"""Rows that the network is given at once on a CPU: 80 are no faster, and a fourth slower where freed memory is not kept."""
BEGIN = 0.85
"""Share of the noise levels above which sampling has to begin, since it begins with pure noise."""
FEW = 10
"""Steps below which sampling is coarse however they are spaced."""
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
SCHEDULERS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "pndm": (PNDMScheduler, {**LEADING, "skip_prk_steps": True}),
    "ddim": (DDIMScheduler, {**LEADING, "clip_sample": False}),
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "timestep_spacing": "linspace"}),
    "unipc": (UniPCMultistepScheduler, {"timestep_spacing": "linspace"}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
}
NOISE_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
)


def make_scheduler(name: str, noise_schedule: Mapping[str, Any]) -> Any:
    """A sampler by name, with the noise schedule of any diffusers scheduler's config.

    Raises:
        ConfigError: no such name.
    """
    if name not in SCHEDULERS:
        raise ConfigError(f"No scheduler {name!r}; there are {', '.join(SCHEDULERS)}.")
    cls, options = SCHEDULERS[name]
    kept = {key: noise_schedule[key] for key in NOISE_SCHEDULE if noise_schedule.get(key) is not None}
    return cls(**kept, **options)


def draw_noise(
    num_trials: int, num_samples: int, shape: tuple[int, int, int], generator: torch.Generator | None
) -> Tensor:
    """Noise (num_trials, num_samples, *shape) on the CPU, one draw a sample in order of trials.

    The noise of a trial does not depend on how many trials follow, nor on batches or devices.
    """
    rows = [torch.randn(shape, generator=generator) for _ in range(num_trials * num_samples)]
    return torch.stack(rows).unflatten(0, (num_trials, num_samples))


def trial_noise(num_trials: int, num_samples: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Noise (num_trials, num_samples, *shape) in which sample s of trial i depends on (seed, i, s) alone."""
    rows = [
        sample_noise(trial, sample, shape, seed)
        for trial in range(num_trials)
        for sample in range(num_samples)
    ]
    return torch.stack(rows).unflatten(0, (num_trials, num_samples))


def sample_noise(
    trial: int, sample: int, shape: tuple[int, int, int], seed: int, generation: int = 0
) -> Tensor:
    """Noise of this shape, another one for every trial, sample and seed, and for every generation of a search.

    The first generation's is seeded by one number, of which PyTorch's generator heeds 32 bits on a CPU: no two agree in them
    whose seeds differ by up to 1,000, trials by 10,000 and samples by 64. Later ones are seeded by all four numbers.
    """
    if generation:
        rng = np.random.default_rng([generation, trial, sample, seed % 2**63])
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    mixed = (seed * 1_000_003 + trial) * 10_007 + sample
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed % 2**63))


@torch.no_grad()
def denoise(
    unet: UNet2DConditionModel,
    scheduler: Any,
    noise: Tensor,
    condition: Condition,
    *,
    num_inference_steps: int,
    guidance_scale: float = 1.0,
    null: Condition | None = None,
    guess: Tensor | None = None,
    strength: float = 1.0,
    precision: Precision = "auto",
    correct: Callable[[Tensor, float], Tensor] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """One batch from noise to latents.

    Args:
        noise: (B, c, h, w), standard normal.
        condition: of B rows.
        guidance_scale: w of classifier-free guidance, null + w (condition - null) (Ho and Salimans 2022); 1 is plain.
        null: the condition of B rows that is guided away from; needed unless `guidance_scale` is 1.
        guess: (B, c, h, w), latents to begin from, noised to the level where sampling begins.
        strength: share of the steps taken, in (0, 1]; below 1 a guess is needed. 1 starts at pure noise.
        precision: of the network, see `cadiff.diffuse.precision`; sums over steps are float32 always.
        correct: (guess of the clean latents (B, c, h, w), abar of the step) -> a better guess, from which the step goes on.
        on_step: called after every call of the network.
    """
    device = noise.device
    compiled = is_compiled(unet)
    guided = torch.arange(0, device=device)
    if guidance_scale != 1.0:
        if null is None:
            raise ValueError("guidance needs a null condition")
        # of a compiled network every number of rows would be compiled anew
        guided = torch.arange(len(noise), device=device) if compiled else _other_than(null, condition)
        away = null.rows(guided)
        condition = Condition(
            torch.cat([away.context, condition.context]), torch.cat([away.time, condition.time])
        )
    latents, timesteps = _begin(scheduler, noise, guess, strength, num_inference_steps, device)
    # caches of a CPU hold a few rows; compiled networks are called as they are
    pieces = 1 if compiled or device.type != "cpu" else -(-len(condition.context) // ROWS)
    contexts, times = condition.context.tensor_split(pieces), condition.time.tensor_split(pieces)
    with ExitStack() as within:
        within.enter_context(autocast(precision, device))
        within.enter_context(onednn_linears([] if compiled or device.type != "cpu" else [unet]))
        within.enter_context(cast_once([] if compiled else [unet]))
        for context in contexts:
            within.enter_context(static_context(unet, context))
        # schedulers look at the step in Python: on the CPU it is there, on a GPU they would wait for it in every step
        for timestep, step in zip(timesteps, timesteps.cpu(), strict=True):
            x = scheduler.scale_model_input(torch.cat([latents[guided], latents]), step)
            parts = x.to(memory_format=torch.channels_last).tensor_split(pieces)
            found = [
                unet(part, timestep, encoder_hidden_states=context, class_labels=time, return_dict=False)
                for part, context, time in zip(parts, contexts, times, strict=True)
            ]
            epsilon = torch.cat([part for (part,) in found]).float()
            away, epsilon = epsilon[: len(guided)], epsilon[len(guided) :]
            further = away + guidance_scale * (epsilon[guided] - away)
            epsilon = epsilon.index_copy(0, guided, further)
            if correct is not None:
                epsilon = _corrected(scheduler, x[len(guided) :], epsilon, step, correct)
            latents = scheduler.step(epsilon, step, latents, return_dict=False)[0]
            on_step()
    return latents


def _corrected(
    scheduler: Any,
    noisy: Tensor,
    epsilon: Tensor,
    timestep: Tensor,
    correct: Callable[[Tensor, float], Tensor],
) -> Tensor:
    """The noise that leads to a better guess of the clean latents; rows that are left as they are keep theirs to the bit."""
    table = scheduler.alphas_cumprod
    kept = float(
        np.interp(float(timestep), np.arange(len(table)), table.cpu().numpy())
    )  # Euler's steps lie in between
    clean = (noisy.float() - (1 - kept) ** 0.5 * epsilon) / kept**0.5
    moved = correct(clean, kept) - clean
    return epsilon - moved * (kept / (1 - kept)) ** 0.5


def _other_than(null: Condition, condition: Condition) -> Tensor:
    """Rows of a condition that are not the null: guided away from itself, a prediction stays what it is."""
    context, time = condition.context != null.context, condition.time != null.time
    return (context.flatten(1).any(1) | time.flatten(1).any(1)).nonzero().flatten()


def num_calls(scheduler: Any, num_inference_steps: int, strength: float) -> int:
    """How often `denoise` calls the network.

    Raises:
        ConfigError: so many steps are more than the scheduler has, or leave out where noise is highest.
    """
    _set_timesteps(scheduler, num_inference_steps, None)
    return len(_kept_timesteps(scheduler, strength)[0])


def _set_timesteps(scheduler: Any, steps: int, device: torch.device | None) -> None:
    """Also resets what a multi-step scheduler remembers."""
    levels = scheduler.config.num_train_timesteps
    # leading: steps a whole number of levels apart from the lowest one up, so a count that divides badly begins far down
    first = levels // steps * (steps - 1) + 1
    leads = scheduler.config.get("timestep_spacing") == "leading" and steps >= FEW
    if steps > levels or (leads and not BEGIN * levels <= first < levels):
        good = [n for n in range(FEW, levels // 2 + 1) if levels % n == 0]
        near = sorted(sorted(good, key=lambda n: abs(n - steps))[:2])
        why = (
            f"it would begin at level {first} of {levels}"
            if steps < levels
            else f"there are {levels} levels of noise"
        )
        raise ConfigError(
            f"num_inference_steps={steps} is no good with {type(scheduler).__name__}: {why}, and sampling begins in pure noise. "
            f"Take {' or '.join(map(str, near))}, or a few dozen with scheduler=dpm++."
        )
    with warnings.catch_warnings():
        # diffusers hands tensors to numpy functions, which numpy 2 dislikes; nothing that a user could mend
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler.set_timesteps(steps, device=device)


def _begin(
    scheduler: Any, noise: Tensor, guess: Tensor | None, strength: float, steps: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Latents and time steps to start with: pure noise, or a noised guess further down."""
    _set_timesteps(scheduler, steps, device)
    if strength >= 1.0 or guess is None:
        return noise * scheduler.init_noise_sigma, scheduler.timesteps
    timesteps, index = _kept_timesteps(scheduler, strength)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
    return scheduler.add_noise(guess, noise, timesteps[:1].expand(len(noise))), timesteps


def _kept_timesteps(scheduler: Any, strength: float) -> tuple[Tensor, int]:
    """The last `strength` of the time steps, and the index of the first of them."""
    timesteps = scheduler.timesteps
    if strength >= 1.0:
        return timesteps, 0
    if isinstance(scheduler, PNDMScheduler):
        # PLMS begins with two calls for its first step, the second at the next time step, which is listed twice
        single = torch.cat([timesteps[:1], timesteps[2:]])
        index = len(single) - max(1, round(len(single) * strength))
        kept = single[index:]
        return torch.cat([kept[:2], kept[1:]]) if len(kept) > 1 else kept, index
    index = len(timesteps) - max(1, round(len(timesteps) * strength))
    return timesteps[index:], index

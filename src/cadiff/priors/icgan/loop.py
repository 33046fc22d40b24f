"""The adversarial training loop: `fit` in two halves, with the same checkpoints, log and promise.

Hinge loss (Lim & Ye 2017), as BigGAN: in every step the discriminator takes `discriminator_steps` batches, the generator one.
    L_D = mean max(0, 1 - D(x, h)) + mean max(0, 1 + D(G(z, h'), h'))        L_G = -mean D(G(z, h'), h')
x is a neighbour of the instance with features h, and h' are features of other instances.

A batch, and every draw in it, is a function of the seed and the batch number, so a resumed run needs weights, buffers and
moments only: 10 steps = 5 + kill + 5, bit for bit on the CPU. One Adam holds both networks, in two groups with their own
learning rates: a parameter without a gradient is not touched, so it works as two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cadiff.checkpoints import load_checkpoint, save_checkpoint
from cadiff.config import Config
from cadiff.errors import DivergedError
from cadiff.priors.icgan.networks import Discriminator, Generator
from cadiff.progress import Bar, progress
from cadiff.runs import RunFolder
from cadiff.sharing import to_device
from cadiff.training import Decay, FitResult, all_finite, step_generator, update_average

Batch = dict[str, Tensor]
"""images (B, 3, S, S) in [-1, 1]; features (B, F) of their instances; others (B, F), of the instances to draw."""


class GanFitConfig(Config):
    """How both networks are trained."""

    steps: int = Field(default=10000, ge=1)
    """Generator steps."""
    batch_size: int = Field(default=256, ge=2)
    """Pictures in one batch."""
    generator_learning_rate: float = Field(default=1e-4, gt=0)
    """Of the generator's Adam."""
    discriminator_learning_rate: float = Field(default=1e-4, gt=0)
    """Of the discriminator's Adam."""
    betas: tuple[Decay, Decay] = (0.0, 0.999)
    """Moment decay rates of both."""
    discriminator_steps: int = Field(default=1, ge=1)
    """Discriminator batches in one step."""
    ema_decay: float = Field(default=0.9999, gt=0, lt=1)
    """Of the moving average of the generator's weights, which is what is kept."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA, fp32 elsewhere."""
    compile: bool = False
    """Compile both networks, for a GPU: a minute at the start, faster steps."""
    log_every: int = Field(default=50, ge=1)
    """Steps between log lines; each line is the mean since the last one."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between checkpoints."""
    seed: int = Field(default=0, ge=0)
    """Seeds batches and noise."""


def fit_gan(
    generator: Generator,
    discriminator: Discriminator,
    batches: Callable[[int, torch.Generator], Batch],
    config: GanFitConfig,
    *,
    run: RunFolder,
) -> FitResult:
    """Trains both networks and leaves the generator with the averaged weights.

    Args:
        generator: left in training mode: its stored statistics still belong to the weights before averaging.
        discriminator: its adversary.
        batches: batch number and generator of its draws -> batch, on the networks' device.
        config: see `GanFitConfig`.
        run: where the log and the checkpoints go; a checkpoint found there is continued.

    Raises:
        DivergedError: a loss or a weight is not finite.
    """
    device = next(generator.parameters()).device
    networks: dict[str, nn.Module] = {"generator": generator.train(), "discriminator": discriminator.train()}
    kept = {
        f"{name}.{key}": value for name, module in networks.items() for key, value in _tensors(module).items()
    }
    drawn = {name: p for name, p in _parameters(generator).items()}
    average = {name: p.detach().clone() for name, p in drawn.items()}
    rates = (config.generator_learning_rate, config.discriminator_learning_rate)
    groups = [
        {"params": list(m.parameters()), "lr": lr} for m, lr in zip(networks.values(), rates, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, betas=config.betas, eps=1e-6, fused=device.type == "cuda")
    first = load_checkpoint(run.last_checkpoint, kept, average, optimizer)
    run.rewind(first)
    draw, score = (torch.compile(m, dynamic=False) if config.compile else m for m in networks.values())
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    sums: dict[str, Tensor] = {}
    started, since_log = time.perf_counter(), 0

    def half(index: int, of_generator: bool) -> None:
        chance = step_generator(config.seed, index)
        batch = batches(index, chance)
        noise = torch.randn(len(batch["others"]), generator.config.noise_dim, generator=chance)
        noise = to_device(noise, device)
        discriminator.requires_grad_(not of_generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.set_grad_enabled(of_generator):
                fakes = draw(noise, batch["others"])
            if of_generator:
                loss = -score(fakes, batch["others"]).mean()
                terms = {"generator_loss": loss}
            else:
                scores = score(
                    torch.cat([fakes, batch["images"]]), torch.cat([batch["others"], batch["features"]])
                )
                fake, real = scores.split([len(fakes), len(batch["images"])])
                loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
                terms = {"discriminator_loss": loss, "score_real": real.mean(), "score_fake": fake.mean()}
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for key, value in terms.items():
            share = 1 if of_generator else config.discriminator_steps
            sums[key] = sums.get(key, 0) + value.detach().float() / share

    with progress() as display:
        bar = Bar(display, "IC-GAN", config.steps, config.batch_size, "compiling" if config.compile else "")
        bar.begin(first)
        for step in range(first, config.steps):
            start = step * (config.discriminator_steps + 1)
            for part in range(config.discriminator_steps):
                half(start + part, of_generator=False)
            half(start + config.discriminator_steps, of_generator=True)
            update_average(average, drawn, config.ema_decay, step)
            since_log, done = since_log + 1, step + 1
            if step == first:
                bar.first_step(device)
            save = done % config.checkpoint_every == 0 and done < config.steps
            if done % config.log_every == 0 or done == config.steps or save:  # never checkpoint an unseen NaN
                means = {key: value.item() / since_log for key, value in sums.items()}
                last = save or done == config.steps
                if not all(map(math.isfinite, means.values())) or (last and not all_finite(kept)):
                    raise DivergedError(
                        f"A loss or a weight is not finite after step {done}: try smaller learning rates "
                        "(icgan.fit.generator_learning_rate, icgan.fit.discriminator_learning_rate) or "
                        "icgan.fit.precision=fp32 in a new --out."
                    )
                run.log({"step": done, **means})
                bar.show(done, means["discriminator_loss"])
                sums, since_log = {}, 0
            if save:
                save_checkpoint(run.checkpoint, done, kept, average, optimizer)

    for name, value in average.items():
        drawn[name].data.copy_(value)
    return FitResult(config.steps, time.perf_counter() - started, run.history())


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def _tensors(module: nn.Module) -> dict[str, Any]:
    """Parameters and the buffers that training moves on: vectors of the spectral norms, stored statistics."""
    return {
        **_parameters(module),
        **{name: value for name, value in module.named_buffers() if value is not None},
    }

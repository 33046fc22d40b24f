"""The published sampler, from the paper: Liu et al. 2022 (PNDM), pseudo linear multi-step with a Heun-like first step."""

import pytest
import torch

from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.sampling import denoise, make_scheduler
from layouts import compvis

STEPS = 250


class Toy(torch.nn.Module):
    """Any smooth function of latents and time; also notes when it is asked."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.randn(3, 3, generator=generator) / 3
        self.seen = []

    def forward(self, x, timestep, **_):
        self.seen.append(int(timestep))
        return (
            torch.tanh(torch.einsum("oc,bchw->bohw", self.mix.to(x), x)) * (1 + timestep / 1000) + 0.3 * x,
        )


def plms(model, x, alphas):
    """Transfer from abar to abar' by the estimated noise (eq. 11): Heun-like first, then Adams-Bashforth of order 2 to 4."""
    times = list(range(1, 1000, 1000 // STEPS))  # 1, 5, ..., 997
    before = [alphas[0], *(alphas[t] for t in times[:-1])]

    def transfer(x, noise, now, then):
        start = (x - (1 - now).sqrt() * noise) / now.sqrt()
        return then.sqrt() * start + (1 - then).sqrt() * noise

    kept = []
    for time, then in zip(reversed(times), reversed(before), strict=True):
        now, noise = alphas[time], model(x, torch.tensor(time))[0]
        if not kept:
            ahead = model(transfer(x, noise, now, then), torch.tensor(max(times[-2], 1)))[0]
            estimate = (noise + ahead) / 2
        elif len(kept) == 1:
            estimate = (3 * noise - kept[-1]) / 2
        elif len(kept) == 2:
            estimate = (23 * noise - 16 * kept[-1] + 5 * kept[-2]) / 12
        else:
            estimate = (55 * noise - 59 * kept[-1] + 37 * kept[-2] - 9 * kept[-3]) / 24
        kept.append(noise)
        x = transfer(x, estimate, now, then)
    return x


def test_sampler_is_the_papers(dtype=torch.float32):
    buffers = compvis.noise_buffers()
    alphas = (1 - buffers["betas"].double()).cumprod(0)
    schedule = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "beta_schedule": "scaled_linear",
    }
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ours, theirs = Toy(), Toy()
    none = Condition(torch.zeros(2, 1, 1), torch.zeros(2, 1))
    sampled = denoise(
        ours, make_scheduler("pndm", schedule), noise, none, num_inference_steps=STEPS, precision="fp32"
    )
    expected = plms(theirs, noise.double(), alphas)
    assert ours.seen == theirs.seen == [997, 993, 993, *range(989, 0, -4)]
    assert len(ours.seen) == 251 and ours.seen[-1] == 1
    scale = expected.abs().max()
    assert ((sampled - expected) / scale).abs().max() < 1e-5
    assert (sampled - noise).abs().max() > 0.1


def test_first_and_last_abar_are_the_published_ones():
    scheduler = make_scheduler(
        "pndm", {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    )
    assert scheduler.alphas_cumprod[0].item() == pytest.approx(0.9985, abs=1e-6)
    assert scheduler.alphas_cumprod[999].item() == pytest.approx(1.423e-4, rel=1e-3)
    assert scheduler.final_alpha_cumprod.item() == pytest.approx(
        0.9985, abs=1e-6
    )  # what the last step goes to

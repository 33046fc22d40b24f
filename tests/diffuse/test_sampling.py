import pytest
import torch

from cadiff.diffuse import sampling
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.sampling import SCHEDULERS, denoise, draw_noise, make_scheduler, num_calls
from cadiff.errors import ConfigError

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
}


class PointModel(torch.nn.Module):
    """The exact noise predictor when all images are one point: epsilon = (x - sqrt(abar) point) / sqrt(1 - abar)."""

    def __init__(self, point, alphas):
        super().__init__()
        self.point, self.alphas, self.seen = point, alphas, []

    def forward(self, x, timestep, **kwargs):
        self.seen.append(float(timestep))
        position = float(timestep)
        low = int(position)
        part = position - low
        a = (
            self.alphas[low] * (1 - part) + self.alphas[min(low + 1, 999)] * part
        )  # euler and dpm ask in between
        return ((x - a.sqrt() * self.point) / (1 - a).sqrt(),)


def run(name, steps, **options):
    scheduler = make_scheduler(name, SCHEDULE)
    point = torch.linspace(-1, 1, 12).view(1, 3, 2, 2)
    model = PointModel(point, scheduler.alphas_cumprod)
    noise = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    none = Condition(torch.zeros(2, 1, 1), torch.zeros(2, 1))
    latents = denoise(model, scheduler, noise, none, num_inference_steps=steps, precision="fp32", **options)
    return model, point, latents, scheduler


def test_plms_visits_the_published_time_steps():
    model, _, _, _ = run("pndm", 250)
    assert model.seen[:4] == [997, 993, 993, 989]
    assert model.seen == [997, 993, *range(993, 0, -4)]
    assert model.seen[-1] == 1
    assert len(model.seen) == 251
    assert make_scheduler("pndm", SCHEDULE).final_alpha_cumprod == pytest.approx(1 - 0.0015)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_finds_the_only_picture_there_is(name):
    model, point, latents, scheduler = run(name, 50)
    # DDIM and PLMS end at abar_0 instead of 1, which leaves noise of std 0.04
    torch.testing.assert_close(latents, point.expand_as(latents), atol=0.2, rtol=0)
    assert len(model.seen) == num_calls(scheduler, 50, 1.0)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.02, 0.3, 0.98])
def test_starting_from_a_guess_ends_at_the_same_picture_with_fewer_calls(name, strength):
    guess = torch.zeros(2, 3, 2, 2)
    model, point, latents, scheduler = run(name, 50, guess=guess, strength=strength)
    whole, _, _, _ = run(name, 50)
    assert len(model.seen) == num_calls(scheduler, 50, strength) < len(whole.seen)
    assert set(model.seen) <= set(whole.seen)
    if strength > 0.1:
        torch.testing.assert_close(latents, point.expand_as(latents), atol=0.2, rtol=0)


def test_plms_from_a_guess_repeats_its_first_step_like_a_full_run():
    model, _, _, _ = run("pndm", 250, guess=torch.zeros(2, 3, 2, 2), strength=0.1)
    assert model.seen == [97, 93, *range(93, 0, -4)]


def test_noise_is_drawn_in_order_of_trials():
    small = draw_noise(2, 3, (1, 2, 2), torch.Generator().manual_seed(0))
    large = draw_noise(5, 3, (1, 2, 2), torch.Generator().manual_seed(0))
    assert torch.equal(small, large[:2])


class Listening(torch.nn.Module):
    """A predictor that hears its condition; remembers how many rows it was given at a time."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, timestep, *, encoder_hidden_states, class_labels, return_dict):
        self.rows.append(len(x))
        told = encoder_hidden_states.mean((1, 2)) + class_labels.mean(1)
        return (0.9 * x + torch.tanh(x * told.view(-1, 1, 1, 1)),)


def listened(**options):
    """Four rows, the second of them under the null itself."""
    rng = torch.Generator().manual_seed(0)
    condition = Condition(torch.randn(4, 2, 3, generator=rng), torch.randn(4, 5, generator=rng))
    null = Condition(torch.zeros(1, 2, 3).expand(4, -1, -1), torch.zeros(1, 5).expand(4, -1))
    for part in condition:
        part[1] = 0
    model, noise = Listening(), torch.randn(4, 3, 2, 2, generator=rng)
    options = {"num_inference_steps": 5, "guidance_scale": 2.0, "null": null, **options}
    return model, denoise(model, make_scheduler("dpm++", SCHEDULE), noise, condition, **options)


def test_a_row_under_the_null_goes_through_once_and_is_what_it_is_without_guidance(monkeypatch):
    model, found = listened()
    assert set(model.rows) == {4 + 3}
    _, plain = listened(guidance_scale=1.0)
    assert torch.equal(found[1], plain[1])
    monkeypatch.setattr(sampling, "_other_than", lambda null, condition: torch.arange(len(condition.context)))
    twice, expected = listened()
    assert set(twice.rows) == {4 + 4}
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found[0], plain[0], atol=1e-2)


def test_on_a_cpu_rows_go_through_in_pieces_of_about_equal_size(monkeypatch):
    _, whole = listened()
    monkeypatch.setattr(sampling, "ROWS", 3)
    model, pieces = listened()
    assert model.rows == [3, 2, 2] * 5
    assert torch.equal(pieces, whole)


@pytest.mark.parametrize("name", ["pndm", "ddim"])
def test_steps_that_would_not_begin_in_pure_noise_are_refused_with_those_that_do(name):
    scheduler = make_scheduler(name, SCHEDULE)
    for steps in (10, 16, 50, 100, 250, 500):
        num_calls(scheduler, steps, 1.0)
        assert scheduler.timesteps[0] >= 850
    for steps, near in ((350, "200 or 250"), (400, "250 or 500"), (600, "250 or 500"), (1000, "250 or 500")):
        with pytest.raises(ConfigError, match=f"num_inference_steps={steps} is no good.*Take {near}"):
            num_calls(scheduler, steps, 1.0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_more_steps_than_levels_of_noise_are_refused(name):
    with pytest.raises(ConfigError, match="there are 1000 levels of noise"):
        num_calls(make_scheduler(name, SCHEDULE), 1001, 1.0)


def test_unknown_scheduler():
    with pytest.raises(
        ConfigError, match=r"No scheduler 'ddpm'; there are pndm, ddim, dpm\+\+, unipc, euler"
    ):
        make_scheduler("ddpm", SCHEDULE)

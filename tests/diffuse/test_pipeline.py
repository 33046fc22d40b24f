import numpy as np
import pytest
import torch

from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.pipeline import FmriToImagePipeline, find_pipeline, open_pipeline, to_uint8
from cadiff.diffuse.sampling import draw_noise
from cadiff.errors import ArtifactError, ConfigError, DataError


def draw(pipe, betas=None, *, seed=0, **options):
    options = {"num_inference_steps": 4, "num_images_per_trial": 2, "output_type": "latent", **options}
    return pipe(betas, generator=torch.Generator().manual_seed(seed), **options)


@pytest.fixture
def betas(dataset):
    return np.array(dataset.betas[dataset.rows("test")][:3])


def test_gives_uint8_pictures_of_every_trial_and_sample(pipeline, betas):
    pictures = draw(pipeline, betas, output_type="uint8")
    assert pictures.dtype == np.uint8
    assert pictures.shape == (3, 2, 16, 16, 3)
    assert draw(pipeline, betas[0], output_type="pt").shape == (1, 2, 3, 16, 16)


def test_the_same_generator_gives_the_same_pictures_and_another_does_not(pipeline, betas):
    first = draw(pipeline, betas)
    assert torch.equal(first, draw(pipeline, betas))
    assert not torch.allclose(first, draw(pipeline, betas, seed=1))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("batch_size", [1, 4, 5])
def test_batch_size_does_not_change_the_result(pipeline, betas, batch_size, guidance_scale):
    whole = draw(pipeline, betas, batch_size=6, guidance_scale=guidance_scale)
    chunked = draw(pipeline, betas, batch_size=batch_size, guidance_scale=guidance_scale)
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=1e-4)


def test_a_trial_does_not_depend_on_the_trials_after_it(pipeline, betas):
    torch.testing.assert_close(draw(pipeline, betas)[:2], draw(pipeline, betas[:2]), atol=1e-4, rtol=1e-4)


def test_guidance_of_one_is_the_condition_and_of_zero_the_null(pipeline, betas):
    null = pipeline.conditioner.null(3)
    torch.testing.assert_close(draw(pipeline, betas, guidance_scale=0.0), draw(pipeline, condition=null))
    # 1 + 1e-7 goes through the guided branch
    close = draw(pipeline, betas, guidance_scale=1 + 1e-7)
    torch.testing.assert_close(close, draw(pipeline, betas), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(draw(pipeline, betas, guidance_scale=3.0), draw(pipeline, betas), atol=1e-3)


def test_context_and_time_vector_each_change_the_picture(pipeline, betas):
    condition, _ = pipeline.condition(betas)
    base = draw(pipeline, condition=condition)
    for other in (
        Condition(condition.context, condition.time + 1.0),
        Condition(condition.context + torch.randn(condition.context.shape), condition.time),
    ):
        assert not torch.allclose(draw(pipeline, condition=other), base, atol=1e-4)


def test_ready_conditions_equal_betas(pipeline, betas):
    condition, _ = pipeline.condition(betas)
    assert torch.equal(draw(pipeline, condition=condition), draw(pipeline, betas))
    assert torch.equal(draw(pipeline, torch.from_numpy(betas)), draw(pipeline, betas))


def test_noise_can_be_given(pipeline, betas):
    noise = draw_noise(3, 2, pipeline.latent_shape, torch.Generator().manual_seed(0))
    assert torch.equal(draw(pipeline, betas, noise=noise), draw(pipeline, betas))


@pytest.mark.parametrize("scheduler", ["pndm", "ddim", "dpm++", "unipc", "euler"])
def test_every_scheduler_draws_finite_latents(pipeline, betas, scheduler):
    latents = draw(pipeline, betas, scheduler=scheduler, num_inference_steps=6)
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "unipc", "euler", "pndm"])
def test_strength_stays_near_the_guess(pipeline, betas, scheduler):
    condition, _ = pipeline.condition(betas)
    guess = torch.randn(3, *pipeline.latent_shape, generator=torch.Generator().manual_seed(5))
    distances = [
        (draw(pipeline, condition=condition, guess=guess, strength=s, scheduler=scheduler, num_inference_steps=50)
         - guess[:, None]).norm().item()
        for s in (0.04, 0.5, 1.0)
    ]  # fmt: skip
    assert distances[0] < 0.5 * distances[1]
    assert distances[0] < 0.5 * distances[2]


def test_bf16_is_close_to_float32(pipeline, betas):
    half, full = draw(pipeline, betas, precision="bf16"), draw(pipeline, betas, precision="fp32")
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.2, rtol=0.1)


def test_round_trip_is_exact(pipeline, betas, tmp_path):
    before = draw(pipeline, betas, output_type="uint8")
    pipeline.save_pretrained(tmp_path / "pipe")
    again = FmriToImagePipeline.from_pretrained(tmp_path / "pipe")
    assert np.array_equal(draw(again, betas, output_type="uint8"), before)
    for part in ("conditioner", "unet", "vqvae"):
        old, new = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert old.keys() == new.keys()
        for key, value in old.items():
            assert torch.equal(value, new[key]), key
            assert value.dtype == new[key].dtype, key
    assert again.scheduler.config["skip_prk_steps"] is True
    assert find_pipeline(tmp_path / "pipe") == tmp_path / "pipe"


def test_uint8_is_clamped_and_truncated():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_refuses_what_it_cannot_use(pipeline, betas, tmp_path):
    with pytest.raises(DataError, match="29 voxels"):
        draw(pipeline, betas[:, 1:])
    broken = betas.copy()
    broken[0, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        draw(pipeline, broken)
    with pytest.raises(ConfigError, match="pndm, ddim"):
        draw(pipeline, betas, scheduler="plms")
    with pytest.raises(ConfigError, match="not both"):
        draw(pipeline)
    with pytest.raises(ConfigError, match="latent_start"):
        draw(pipeline, betas, strength=0.5)
    with pytest.raises(ArtifactError, match="holds no pipeline"):
        open_pipeline(tmp_path)

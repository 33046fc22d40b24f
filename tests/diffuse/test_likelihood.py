"""Denoising that heeds a linear measurement: exact in a Gaussian world, silent where no betas are read, fitted on training."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.likelihood import LEAST, Evidence, LatentLikelihood, _components
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct
from cadiff.diffuse.sampling import denoise, make_scheduler
from cadiff.diffuse.stage import DiffuseConfig, DiffuseFit, diffuse
from cadiff.encoding.noise import NoiseCovariance
from cadiff.errors import DataError
from fake_cuda import fake_cuda

SHAPE, VOXELS = (1, 2, 2), 3


@pytest.fixture
def world():
    """Latents N(mean, Q diag(variance) Q^T) of 4 numbers, and 3 voxels that measure them: everything is known."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    noise = NoiseCovariance.fit(rng.normal(size=(500, VOXELS)) @ np.diag([0.3, 0.5, 1.0]))
    readers = rng.normal(size=(4, VOXELS))
    whitened = torch.from_numpy(noise.whitened(readers))
    identity = Preprocessor.fit(rng.normal(size=(2000, VOXELS)), PreprocessConfig(), patch_size=1)
    return LatentLikelihood(
        voxels=np.arange(VOXELS),
        preprocessor=identity,
        mean=torch.tensor([0.5, -0.2, 0.1, 0.3], dtype=torch.float64),
        components=torch.from_numpy(axes),
        variance=torch.tensor([1.5, 0.8, 0.4, 0.2], dtype=torch.float64),
        betas_mean=np.zeros(VOXELS),
        readers=readers,
        noise=noise,
        misfit=0.2,
        curvature=whitened @ whitened.T,
        facts={},
    )


class ExactDenoiser:
    """E[noise | noisy latents] where latents are normal; stands for a network that was trained to perfection."""

    device, config = torch.device("cpu"), {}

    def __init__(self, world, scheduler):
        self.world, self.table = world, scheduler.alphas_cumprod.double()

    def modules(self):
        return iter(())

    def parameters(self):
        return iter(())

    def __call__(self, x, timestep, **_):
        kept = self.table[int(timestep)]
        d = (x.flatten(1).double() - kept.sqrt() * self.world.mean) @ self.world.components
        gain = kept.sqrt() * self.world.variance / (kept * self.world.variance + 1 - kept)
        clean = self.world.mean + (d * gain) @ self.world.components.T
        epsilon = (x.flatten(1).double() - kept.sqrt() * clean) / (1 - kept).sqrt()
        return (epsilon.view_as(x).to(x.dtype),)


NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


def draw(world, evidence, scheduler="ddim", steps=250, count=4000):
    sampler = make_scheduler(scheduler, NOISE_SCHEDULE)
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    nothing = Condition(torch.zeros(count, 1, 1), torch.zeros(count, 1))
    every = Evidence(evidence.score.expand(count, -1), evidence.weight.expand(count))
    return (
        denoise(
            ExactDenoiser(world, sampler),
            sampler,
            noise,
            nothing,
            num_inference_steps=steps,
            correct=lambda clean, kept: world.corrected(clean, every, kept),
        )
        .flatten(1)
        .double()
    )


def posterior(world, evidence):
    precision = torch.diag(1 / world.variance) + evidence.weight * world.curvature
    covariance = torch.linalg.inv(precision)
    mean = world.mean + world.components @ (covariance @ evidence.score[0])
    return mean, world.components @ covariance @ world.components.T


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "pndm", "euler"])
@pytest.mark.parametrize("repeats", [1, 35])
def test_samples_are_those_of_the_posterior_where_latents_are_normal(world, scheduler, repeats):
    evidence = world.evidence(np.array([[0.8, -1.0, 0.4]]), np.array([repeats]))
    samples = draw(world, evidence, scheduler)
    mean, covariance = posterior(world, evidence)
    torch.testing.assert_close(samples.mean(0), mean, atol=0.03, rtol=0)
    found = torch.from_numpy(np.cov(samples.numpy().T))
    torch.testing.assert_close(found, covariance, atol=0.05, rtol=0.1)


def test_repeats_are_believed_as_far_as_noise_shrinks(world):
    betas = np.array([[1.0, 0.0, 0.0]])
    one, many = (world.evidence(betas, np.array([n])) for n in (1, 10_000_000))
    torch.testing.assert_close(many.score, one.score / world.misfit, rtol=1e-5, atol=0)
    assert float(many.weight[0]) == pytest.approx(1 / world.misfit)
    half = world.evidence(betas, np.array([1]), weight=0.5)
    torch.testing.assert_close(half.score, one.score / 2)


def test_rows_without_evidence_stay_as_they_are_to_the_bit(world):
    given = world.evidence(np.array([[0.8, -1.0, 0.4]]), np.array([1]))
    both = Evidence(
        torch.cat([given.score, torch.zeros_like(given.score)]), torch.cat([given.weight, torch.zeros(1)])
    )
    clean = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    moved = world.corrected(clean, both, 0.3)
    assert torch.equal(moved[1], clean[1])
    assert not torch.allclose(moved[0], clean[0])
    alone = world.corrected(clean[:1], given, 0.3)
    torch.testing.assert_close(moved[:1], alone)


def test_nothing_waits_for_a_gpu_in_the_steps_whatever_the_rows_are_believed(world):
    given = world.evidence(np.array([[0.8, -1.0, 0.4]]).repeat(4, 0), np.array([1, 35, 1, 3]))
    given.weight[2] = 0
    clean = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    expected = world.corrected(clean, given, 0.3)
    alone = [world.corrected(clean[i : i + 1], given.rows(slice(i, i + 1)), 0.3) for i in range(4)]
    torch.testing.assert_close(expected, torch.cat(alone))
    with fake_cuda() as gpu:
        correct, on_gpu = world.correction(given, torch.device("cuda")), clean.to("cuda")
        gpu.waits.clear()
        found = correct(on_gpu, 0.3)
        assert not gpu.waits
        assert found.device.type == "cuda"
        assert torch.equal(found.cpu(), expected)


def test_a_nearly_clean_guess_is_not_moved_by_betas(world):
    evidence = world.evidence(np.array([[0.8, -1.0, 0.4]]), np.array([1]))
    clean = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(world.corrected(clean, evidence, 1.0), clean, atol=1e-6, rtol=0)


@pytest.fixture
def linear_subject(tmp_path):
    """Betas that are linear in mean colours of quarters, which are linear in these "latents"."""
    rng = np.random.default_rng(3)
    names = [f"s{i}" for i in range(90)]
    colours = rng.integers(40, 216, (90, 2, 2, 3))
    images = {
        name: colour.repeat(8, 0).repeat(8, 1).astype(np.uint8)
        for name, colour in zip(names, colours, strict=True)
    }
    betas = colours.reshape(90, 12) @ rng.normal(size=(12, 20)) / 50 + 0.1 * rng.normal(size=(90, 20))
    trials = pd.DataFrame(
        {"stimulus_id": names, "split": ["train"] * 80 + ["test"] * 10, "session": 1, "run": 1, "repeat": 1}
    )
    return BrainDataset.open(
        write_dataset(
            tmp_path / "subject",
            name="linear",
            subject="sub-01",
            betas=betas,
            trials=trials,
            voxels=pd.DataFrame({"rois": ["V1"] * 20}),
            stimuli=pd.DataFrame({"stimulus_id": names, "label": "x"}),
            images=images,
        )
    )


def colours(images):
    """Mean colours of quarters (n, 3, 2, 2), the "latents" here."""
    return (
        torch.from_numpy(images.reshape(len(images), 2, 8, 2, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2)) / 64
        - 2
    )


def quarters(data):
    return lambda names: colours(data.images(names, 16))


def test_a_linear_brain_is_inverted(linear_subject):
    data = linear_subject
    model = LatentLikelihood.fit(data, data.rows("train"), quarters(data))
    assert model.facts["held_out_r2"]["median"] > 0.95
    rows = data.rows("test")
    truth = colours(data.images(data.trials["stimulus_id"].iloc[rows], 16)).float()
    evidence = model.evidence(data.betas[rows], np.ones(len(rows)))
    nothing_known = model.mean.view(1, 3, 2, 2).expand(len(rows), -1, -1, -1).float()
    found = model.corrected(nothing_known, evidence, 0.0)
    assert (found - truth).square().mean() < 0.02 * (nothing_known - truth).square().mean()
    others = model.corrected(nothing_known, evidence.rows(torch.arange(len(rows)).roll(1)), 0.0)
    assert (others - truth).square().mean() > (nothing_known - truth).square().mean()


def test_only_the_given_voxels_are_read(linear_subject):
    data, few = linear_subject, np.arange(5, 15)
    model = LatentLikelihood.fit(data, data.rows("train"), quarters(data), voxels=few)
    betas = np.array(data.betas[data.rows("test")])
    elsewhere = betas.copy()
    elsewhere[:, [0, 1, 19]] = 1e6
    one = np.ones(len(betas))
    assert torch.equal(model.evidence(betas, one).score, model.evidence(elsewhere, one).score)
    assert model.facts["voxels"] == 10


def test_averages_are_believed_like_single_trials_where_noise_is_unknown(linear_subject):
    model = LatentLikelihood.fit(linear_subject, linear_subject.rows("train"), quarters(linear_subject))
    assert (model.misfit, model.facts["misfit_from"]) == (1.0, "unknown")
    betas = linear_subject.betas[linear_subject.rows("test")]
    assert model.evidence(betas, np.full(len(betas), 35)).weight.tolist() == [1.0] * len(betas)


def test_only_training_trials_are_learnt_from(linear_subject, tmp_path):
    data = linear_subject
    before = LatentLikelihood.fit(data, data.rows("train"), quarters(data))
    betas = np.array(data.betas)
    betas[data.rows("test")] *= -1
    changed = write_dataset(
        tmp_path / "changed",
        name="linear",
        subject="sub-01",
        betas=betas,
        trials=data.trials,
        voxels=data.voxels,
        stimuli=data.stimuli.reset_index(),
        images={name: data.image(name) for name in data.stimuli.index},
    )
    other = BrainDataset.open(changed)
    after = LatentLikelihood.fit(other, other.rows("train"), quarters(other))
    assert torch.equal(before.curvature, after.curvature)
    with pytest.raises(DataError, match="2 training stimuli"):
        LatentLikelihood.fit(data, data.rows("train")[:2], quarters(data))


@pytest.fixture
def tuned(dataset_folder, encoder_folder, prior_folder, tmp_path):
    fit = DiffuseFit(epochs=None, steps=2, batch_size=4, log_every=1)
    settings = DiffuseConfig(context_length=6, num_crops=1, fit=fit)
    return diffuse(settings, dataset_folder, encoder_folder, tmp_path / "tuned", prior=prior_folder)


def drawn(tuned, dataset_folder, out, **options):
    settings = {"num_inference_steps": 3, "num_images_per_trial": 2, "importance": False, **options}
    folder = reconstruct(ReconstructConfig(**settings), tuned, dataset_folder, out)
    pictures: dict[str, list[np.ndarray]] = {}
    for row in pd.read_csv(folder / "samples.tsv", sep="\t").itertuples():
        with Image.open(folder / str(row.file)) as picture:
            pictures.setdefault(str(row.condition), []).append(np.array(picture))
    return folder, {name: np.stack(found).astype(int) for name, found in pictures.items()}


def test_brain_and_shuffled_are_pulled_and_what_reads_no_betas_is_not(tuned, dataset_folder, tmp_path):
    options = {"repeats": [1], "controls": ("prior_only", "shuffled", "label_oracle"), "guidance_scale": 2.0}
    _, plain = drawn(tuned, dataset_folder, tmp_path / "plain", **options)
    folder, pulled = drawn(tuned, dataset_folder, tmp_path / "pulled", likelihood=1, **options)
    for name in ("prior_only", "label_oracle"):
        assert np.array_equal(pulled[name], plain[name]), name
    for name in ("brain", "shuffled", "repeats_1"):
        assert not np.array_equal(pulled[name], plain[name]), name
    about = json.loads((folder / "config.json").read_text())["provenance"]["likelihood"]
    assert (about["trials"], about["stimuli"], about["misfit_from"]) == (16, 8, "repeats")
    _, in_threes = drawn(tuned, dataset_folder, tmp_path / "batches", likelihood=1, batch_size=3, **options)
    assert max(np.abs(in_threes[name] - pulled[name]).max() for name in pulled) <= 1
    _, again = drawn(tuned, dataset_folder, tmp_path / "again", likelihood=1, **options)
    assert all(np.array_equal(again[name], pulled[name]) for name in pulled)


def test_a_search_goes_on_around_what_was_pulled(tuned, dataset_folder, tmp_path):
    search = {"rerank": "encoding", "rerank_features": ("pixels",), "rerank_rounds": 2, "controls": ()}
    search |= {"num_images_per_trial": 4, "num_inference_steps": 4}
    _, plain = drawn(tuned, dataset_folder, tmp_path / "plain", **search)
    folder, pulled = drawn(tuned, dataset_folder, tmp_path / "pulled", likelihood=1, **search)
    assert pulled["brain"].shape == plain["brain"].shape == (4, 16, 16, 3)
    assert not np.array_equal(pulled["brain"], plain["brain"])
    table = pd.read_csv(folder / "rerank.tsv", sep="\t")
    assert len(table) == 4 * 8
    assert (
        table["weight"].isna().all()
    )  # the betas drew these samples: weighing them by the betas counts them twice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only_rois": ("V1",)}, "likelihood is not known of silenced voxels"),
        ({"split": "train"}, "likelihood is fitted on the training trials"),
        ({"rerank": "encoding", "rerank_mode": "mean"}, "which drew them already"),
        ({"likelihood": float("inf")}, "finite"),
    ],
)
def test_what_would_ask_the_betas_twice_or_not_at_all_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReconstructConfig(**{"likelihood": 1, **options})


@pytest.mark.parametrize("shape", [(20, 60), (60, 20)])
@pytest.mark.parametrize("most", [512, 7])
def test_components_are_those_of_a_singular_value_decomposition(shape, most, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr("cadiff.diffuse.likelihood.NUM_COMPONENTS", most)
    latents = torch.from_numpy(rng.normal(2, 1, size=shape) * np.logspace(0, -8, shape[1])).float()
    before = latents.clone()
    mean, components, variance, places = _components(latents)
    assert torch.equal(latents, before)
    centred = latents.double() - latents.double().mean(0)
    left, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = min(most, int((lengths**2 > LEAST * lengths[0] ** 2).sum()))
    assert kept < min(shape) - 1  # or nothing would be left out
    assert components.shape == (shape[1], kept)
    torch.testing.assert_close(mean, latents.double().mean(0))
    torch.testing.assert_close(variance, lengths[:kept] ** 2 / len(latents), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        (components.T @ axes[:kept].T).abs(), torch.eye(kept, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        torch.from_numpy(places) @ components.T, (left[:, :kept] * lengths[:kept]) @ axes[:kept]
    )

"""The condition starts at features that the betas tell: the stage, the saved pipeline, and the linear baseline."""

import json
import shutil

import numpy as np
import pytest
import torch

from cadiff.baselines import run_baseline
from cadiff.baselines.features import RidgeFeatures
from cadiff.data.dataset import BrainDataset
from cadiff.data.splits import average_repeats
from cadiff.diffuse.pipeline import open_pipeline
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct
from cadiff.diffuse.stage import DiffuseConfig, DiffuseFit, diffuse
from cadiff.diffuse.start import ImageStart
from cadiff.errors import ConfigError
from cadiff.evaluate.circular import choosers, refuse_circular
from cadiff.evaluate.settings import EvaluateConfig
from cadiff.priors.load import load_prior, prior_without_weights
from tiny_networks import seeded, write_adapted


@pytest.fixture(autouse=True)
def small_eye(monkeypatch):
    def see(prior, images, *, eye, eye_size):
        latents = prior.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
        return torch.from_numpy(images.reshape(len(images), -1)[:, :7]).float() / 255, latents

    monkeypatch.setattr("cadiff.priors.seeing.see", see)


@pytest.fixture
def adapted(prior_folder, tmp_path):
    with seeded(3):
        return write_adapted(tmp_path / "adapted", prior_folder)


def settings(**options):
    fit = DiffuseFit(epochs=None, steps=1, batch_size=4, learning_rate=1e-2, log_every=1)
    return DiffuseConfig(**{"context_length": 6, "num_crops": 1, "image_start": True, "fit": fit, **options})


def test_a_tuned_pipeline_begins_at_the_ridge_prediction(adapted, dataset_folder, encoder_folder, tmp_path):
    pipe = open_pipeline(diffuse(settings(), dataset_folder, encoder_folder, tmp_path / "run", prior=adapted))
    own, data = pipe.conditioner, BrainDataset.open(dataset_folder)
    assert own.image_start is not None
    assert own.start is None
    assert own.image_context is not None
    betas = own.prepare(np.array(data.betas[data.rows("test")]))
    with torch.no_grad():
        tokens, time = own.image_context(own.image_start(betas))
        found = own(betas)  # after one step of Adam, from zero
        given = own(betas, start=torch.zeros(len(betas), 5))
    assert 0 < (found.context - tokens).abs().max() < 2 * tokens.std()
    assert (found.time - time).abs().max() < 1
    assert not torch.allclose(given.context, found.context)


def test_the_features_of_the_prior_are_not_tuned(adapted, dataset_folder, encoder_folder, tmp_path):
    pipe = open_pipeline(diffuse(settings(), dataset_folder, encoder_folder, tmp_path / "run", prior=adapted))
    before = load_prior(adapted).image_context
    assert before is not None
    assert pipe.conditioner.image_context is not None
    for name, value in pipe.conditioner.image_context.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "use_adapted", "message"),
    [
        ({}, False, "needs a prior that was adapted"),
        ({"context_length": 8}, True, "makes 6 context tokens .* --set diffuse.context_length=6"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    adapted, prior_folder, dataset_folder, encoder_folder, tmp_path, options, use_adapted, message
):
    prior = adapted if use_adapted else prior_folder
    with pytest.raises(ConfigError, match=message):
        diffuse(settings(**options), dataset_folder, encoder_folder, tmp_path / "run", prior=prior)
    assert not (tmp_path / "run").exists()


def test_two_starts_are_one_too_many():
    with pytest.raises(ValueError, match="label_start and image_start"):
        settings(label_start=True)


def test_a_start_without_noise_reads_the_coordinates_and_a_useless_brain_says_nothing():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(120, 5, generator=rng)
    names = [str(i) for i in range(120)]
    clear, held_out, _ = ImageStart.fit(z @ torch.randn(5, 9, generator=rng), z, names)
    torch.testing.assert_close(held_out, z, atol=0.05, rtol=0)
    assert clear.weight.shape == (9, 5)
    _, held_out, _ = ImageStart.fit(torch.randn(120, 9, generator=rng), z, names)
    assert held_out.var() < 0.1 * z.var()


def test_the_baseline_draws_the_same_after_saving(adapted, dataset_folder):
    data = BrainDataset.open(dataset_folder)
    fitted = RidgeFeatures.fit(
        data, data.rows("train"), prior=adapted, num_images_per_trial=2, num_inference_steps=2
    )
    betas, ids, repeats = average_repeats(data)
    drawn = fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)
    assert drawn.shape == (4, 2, 16, 16, 3)
    again = RidgeFeatures.from_state(fitted.state(), data)
    assert np.array_equal(drawn, again.reconstruct(betas, stimulus_ids=ids, repeats=repeats))
    other = fitted.reconstruct(np.roll(betas, 1, axis=0), stimulus_ids=ids, repeats=repeats)
    assert not np.array_equal(drawn, other)


def test_the_network_that_was_drawn_from_is_named_and_refused_as_judge(
    adapted, dataset_folder, encoder_folder, tmp_path
):
    pipeline = diffuse(settings(), dataset_folder, encoder_folder, tmp_path / "run", prior=adapted)
    drawing = ReconstructConfig(num_inference_steps=2, num_images_per_trial=1, importance=False, controls=())
    reconstruct(drawing, pipeline, dataset_folder, tmp_path / "drawn")
    run_baseline("ridge-features", dataset_folder, tmp_path / "ridge", prior=adapted, num_inference_steps=2)
    for folder in (tmp_path / "drawn", tmp_path / "ridge"):
        named = choosers(json.loads((folder / "config.json").read_text()))
        assert named == ["efficientnet-lite0"]
        with pytest.raises(ConfigError, match="efficientnet-lite0 had a say"):
            refuse_circular(EvaluateConfig(judge="efficientnet-lite0"), named, folder)


def test_the_simulators_own_network_is_pointed_out(adapted, dataset_folder, encoder_folder, tmp_path):
    folder = shutil.copytree(dataset_folder, tmp_path / "simulated")
    about = json.loads((folder / "dataset_description.json").read_text())
    about |= {"simulated": True, "classifier": "efficientnet-lite0"}
    (folder / "dataset_description.json").write_text(json.dumps(about))
    data = BrainDataset.open(folder)
    with pytest.warns(UserWarning, match="efficientnet-lite0, .* is the truth itself"):
        diffuse(settings(), folder, encoder_folder, tmp_path / "run", prior=adapted)
    with pytest.warns(UserWarning, match="efficientnet-lite0, .* is the truth itself"):
        RidgeFeatures.fit(data, data.rows("train"), prior=adapted)
    data.description["classifier"] = "efficientnet-lite1"
    RidgeFeatures.fit(data, data.rows("train"), prior=adapted)


def test_planning_counts_the_base(adapted, prior_folder):
    sizes = [
        sum(p.numel() for p in prior_without_weights(folder).unet.parameters())
        for folder in (adapted, prior_folder)
    ]
    assert sizes[0] == sizes[1]


def test_the_baseline_needs_an_adapted_prior(prior_folder, dataset_folder):
    data = BrainDataset.open(dataset_folder)
    with pytest.raises(ConfigError, match="`cadiff prior adapt` makes one"):
        RidgeFeatures.fit(data, data.rows("train"), prior=prior_folder)

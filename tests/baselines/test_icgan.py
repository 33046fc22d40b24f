"""ic-gan on a brain that is linear in the instance features: what it predicts, what it draws, what it refuses."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge

from cadiff.artifacts import read_json
from cadiff.baselines import icgan as module
from cadiff.baselines import run_baseline
from cadiff.baselines.icgan import IcGan
from cadiff.baselines.matched import Regression
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.splits import average_repeats
from cadiff.errors import ArtifactError, ConfigError
from cadiff.evaluate import EvaluateConfig
from cadiff.evaluate.circular import choosers, refuse_circular
from cadiff.priors.icgan.features import FeatureConfig
from cadiff.priors.icgan.folder import load_generator, save_generator
from cadiff.priors.icgan.layers import initialise
from cadiff.priors.icgan.networks import Generator, GeneratorConfig

SIZES = GeneratorConfig(image_size=32, channels=2, noise_dim=8, feature_dim=5, embed_dim=6, attention=())
NUM_VOXELS, NUM_TRAIN, NUM_TEST = 12, 60, 6
WEIGHTS = b"the file of a network"


class Corners:
    """Stands in for the network that sees instances: five numbers that are written into the pictures."""

    def digest(self):
        return {"swav.pth": hashlib.sha256(WEIGHTS).hexdigest()}

    def features(self, images, layers, *, progress=False):
        return {layers[0]: images[:, 0, :5, 0].astype(np.float32)}


@pytest.fixture(autouse=True)
def corners(monkeypatch):
    monkeypatch.setattr(module, "open_eye", lambda features, weights: Corners())


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    network = Generator(SIZES)
    initialise(network, 3)
    with torch.no_grad():
        network.output_layer[2].weight.mul_(4)
    return save_generator(
        tmp_path_factory.mktemp("gan") / "generator",
        SIZES, network.state_dict(), features=FeatureConfig(), about={}, provenance={},
    )  # fmt: skip


def make_brain(folder, *, noise=0.0, seed=0):
    """Voxels that are a linear map of the unit-length features, plus noise."""
    rng = np.random.default_rng(seed)
    ids = [f"train-{i}" for i in range(NUM_TRAIN)] + [f"test-{i}" for i in range(NUM_TEST)]
    images = rng.integers(20, 250, (len(ids), 32, 32, 3), dtype=np.uint8)
    values = Corners().features(images, ("pooled",))["pooled"]
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    betas = 3 + unit @ rng.normal(size=(5, NUM_VOXELS))
    trials = [(name, "train", 1) for name in ids[:NUM_TRAIN]]
    trials += [(name, "test", r) for r in (1, 2) for name in ids[NUM_TRAIN:]]
    shown = [ids.index(name) for name, _, _ in trials]
    measured = betas[shown] + noise * betas.std() * rng.normal(size=(len(shown), NUM_VOXELS))
    return write_dataset(
        folder,
        name="features",
        subject="sub-01",
        betas=measured.astype(np.float32),
        trials=pd.DataFrame(trials, columns=["stimulus_id", "split", "repeat"]).assign(session=1, run=1),
        voxels=pd.DataFrame({"rois": ["V1"] * NUM_VOXELS}),
        stimuli=pd.DataFrame({"stimulus_id": ids}),
        images=dict(zip(ids, images, strict=True)),
    )


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return BrainDataset.open(make_brain(tmp_path_factory.mktemp("exact") / "brain"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    return BrainDataset.open(make_brain(tmp_path_factory.mktemp("noisy") / "brain", noise=1.0))


def truth(data, ids):
    values = torch.from_numpy(Corners().features(data.images(ids), ("pooled",))["pooled"])
    return values / values.norm(dim=1, keepdim=True)


def fit(data, generator, **options):
    return IcGan.fit(data, data.rows("train"), generator=generator, **{"noise": "drawn", **options})


@pytest.mark.parametrize("matching", ["training", "length", "none"])
def test_without_noise_features_are_exact_and_so_are_the_pictures(exact, generator, matching):
    betas, ids, repeats = average_repeats(exact)
    fitted = fit(exact, generator, matching=matching, num_images_per_trial=3, seed=4)
    features = truth(exact, ids)
    torch.testing.assert_close(fitted.predict(betas, repeats=repeats), features, atol=2e-3, rtol=0)
    found = fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)
    assert found.shape == (NUM_TEST, 3, 32, 32, 3) and found.dtype == np.uint8
    noise = module.trial_noise(NUM_TEST, 3, (1, 1, 8), 4).view(-1, 8)
    drawn = load_generator(generator, "cpu").draw(noise, features.repeat_interleave(3, dim=0))
    assert np.abs(found.reshape(drawn.shape).astype(int) - drawn).max() <= 3
    assert drawn.std() > 10
    assert fitted.facts()["features"]["held_out_r2"] > 0.999


def test_matching_gives_the_spread_of_the_training_features_back(noisy):
    """Held-out predictions vary too little; matched ones have mean and deviation of the targets, whatever the test set."""
    rows = noisy.rows("train")
    ids = [str(i) for i in noisy.trials["stimulus_id"].to_numpy()[rows]]
    betas, targets = torch.from_numpy(noisy.betas[rows] - 3.0), truth(noisy, ids)
    fitted = Regression.fit(betas, targets, ids, seed=0)
    assert (fitted.guess_std < 0.9 * fitted.std).all()
    one = fitted(betas[:1], "training")
    torch.testing.assert_close(one, fitted(betas, "training")[:1])  # a row does not depend on the others
    guess = fitted.start(betas)
    expected = (guess - fitted.guess_mean) / fitted.guess_std * targets.std(0, correction=0) + targets.mean(0)
    expected = expected / expected.norm(dim=1, keepdim=True)  # targets are of unit length
    torch.testing.assert_close(fitted(betas, "training"), expected)
    torch.testing.assert_close(fitted(betas, "length").norm(dim=1), torch.ones(len(betas)))
    loaded = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in fitted.tensors().items()
    }
    again = Regression.from_tensors(loaded, fitted.found)
    assert torch.equal(again(betas, "training"), fitted(betas, "training"))  # to the last bit
    over_test = fitted(betas[:7], "test")
    torch.testing.assert_close(over_test.mean(0), targets.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        over_test.std(0, correction=0), targets.std(0, correction=0), atol=1e-5, rtol=0
    )


def test_a_fixed_penalty_is_that_of_scikit_learn(noisy):
    rows = noisy.rows("train")
    ids = [str(i) for i in noisy.trials["stimulus_id"].to_numpy()[rows]]
    betas, targets = noisy.betas[rows] - 3.0, truth(noisy, ids)
    fitted = Regression.fit(torch.from_numpy(betas), targets, ids, seed=0, alpha=50.0)
    expected = Ridge(alpha=50.0).fit(betas.astype(float), targets.double().numpy()).predict(betas[:9])
    np.testing.assert_allclose(fitted(torch.from_numpy(betas[:9]), "none"), expected, atol=1e-5)
    assert fitted.found == {"alpha": 50.0}


def test_the_folder_has_both_conditions_and_the_fit_can_be_used_again(exact, generator, tmp_path):
    out = run_baseline(
        "ic-gan",
        exact.folder,
        tmp_path / "out",
        generator=str(generator),
        noise="drawn",
        num_images_per_trial=2,
    )
    table = pd.read_csv(out / "samples.tsv", sep="\t")
    assert table.groupby("condition").size().to_dict() == {"brain": 2 * NUM_TEST, "shuffled": 2 * NUM_TEST}
    about = json.loads((out / "config.json").read_text())
    assert about["provenance"]["fitted"]["features"]["held_out_r2"] > 0.999
    again = run_baseline("ic-gan", exact.folder, tmp_path / "again", fitted=out / "model")

    def pictures(folder):
        return [np.asarray(Image.open(folder / file)) for file in table["file"]]

    assert all((a == b).all() for a, b in zip(pictures(out), pictures(again), strict=True))


def test_the_networks_that_had_a_say_are_recorded_and_do_not_judge(exact, generator, tmp_path):
    """The one that the features are of always, that of the inversion where it was asked."""
    weights = tmp_path / "swav.pth"
    weights.write_bytes(WEIGHTS)
    state = load_generator(generator, "cpu").generator.state_dict()
    swav = FeatureConfig(eye="swav", layer="avgpool")
    other = save_generator(tmp_path / "swav", SIZES, state, features=swav, about={}, provenance={})
    inverted = {"noise_steps": 1, "dense_steps": 1}
    judges = {
        "swav": EvaluateConfig(judge=None, eyes={"swav": "elsewhere"}),
        "bytes": EvaluateConfig(judge=None, eyes={"another": str(weights)}),
        "inversion": EvaluateConfig(judge="efficientnet-lite0"),
        "none": EvaluateConfig(),
    }
    for options, refused in (
        ({"noise": "drawn", "num_images_per_trial": 1}, {"swav", "bytes"}),
        ({**inverted, "perceptual_weight": 0.0}, {"swav", "bytes"}),
        (inverted, {"swav", "bytes", "inversion"}),
    ):
        out = tmp_path / "-".join(options)
        run_baseline("ic-gan", exact.folder, out, generator=other, eye_weights=weights, **options)
        again = run_baseline("ic-gan", exact.folder, tmp_path / f"{out.name}-again", fitted=out / "model")
        for folder in (out, again):
            said = choosers(read_json(folder / "config.json"))
            for name, judge in judges.items():
                with pytest.raises(ConfigError, match="circular") if name in refused else nullcontext():
                    refuse_circular(judge, said, folder)


def test_shuffled_brains_draw_something_else(exact, generator):
    betas, ids, repeats = average_repeats(exact)
    fitted = fit(exact, generator, num_images_per_trial=1)
    own = fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats).astype(int)
    rolled = fitted.reconstruct(np.roll(betas, 1, axis=0), stimulus_ids=ids, repeats=repeats)
    assert (np.abs(own - rolled).mean((1, 2, 3, 4)) > 1).all()


def test_predicted_noise_and_dense_vectors_come_from_the_regressions(exact, generator):
    """One picture a trial, and it depends on the brain through all three."""
    betas, ids, repeats = average_repeats(exact)
    options = {"noise_steps": 3, "dense_steps": 2, "perceptual_weight": 0.0}
    alone = fit(exact, generator, noise=None, **options)  # the default: dense vectors are made of the noise
    assert set(alone.regressions) == {"features", "noise"} and alone.num_images_per_trial == 1
    fitted = fit(exact, generator, noise="predicted", dense="predicted", **options)
    assert set(fitted.regressions) == {"features", "noise", "dense"} and fitted.num_images_per_trial == 1
    errors = fitted.facts()["inversion_error"]
    assert errors["dense"] < errors["noise"] < errors["start"]
    ready = torch.from_numpy(fitted.preprocessor(betas, repeats))
    expected = fitted.gan.draw(
        fitted.regressions["noise"](ready, "none"),
        fitted.regressions["features"](ready, "training"),
        fitted.regressions["dense"](ready, "none"),
    )
    found = fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)
    np.testing.assert_array_equal(found[:, 0], expected)
    restored = IcGan.from_state(fitted.state(), exact)
    np.testing.assert_array_equal(restored.reconstruct(betas, stimulus_ids=ids, repeats=repeats), found)


def test_the_official_protocol_is_stamped_and_matches_over_the_test_set(noisy, generator, tmp_path):
    options = {"noise_steps": 1, "dense_steps": 1, "perceptual_weight": 0.0}
    out = run_baseline(
        "ic-gan", noisy.folder, tmp_path / "out", generator=str(generator), protocol="official", **options
    )
    about = json.loads((out / "config.json").read_text())
    assert about["config"]["options"]["protocol"] == "official"
    fitted = {key: about["provenance"]["fitted"][key] for key in ("features", "noise", "dense")}
    assert fitted == {"features": {"alpha": 500.0}, "noise": {"alpha": 1.0}, "dense": {"alpha": 100.0}}
    betas, ids, repeats = average_repeats(noisy)
    official = fit(noisy, generator, protocol="official", noise=None, **options)
    features = official.predict(betas, repeats=repeats)
    shown = truth(noisy, noisy.stimulus_ids("train"))
    torch.testing.assert_close(features.mean(0), shown.mean(0), atol=1e-4, rtol=0)
    assert not torch.allclose(official.predict(betas[:3], repeats=repeats[:3]), features[:3], atol=1e-3)
    with pytest.raises(ConfigError, match="single stimulus"):
        official.reconstruct(betas[:1], stimulus_ids=ids[:1], repeats=repeats[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "generator=FOLDER"),
        ({"matching": "test"}, "no matching='test'"),
        ({"noise": "guessed"}, "no noise='guessed'"),
        ({"protocol": "paper"}, "default and official"),
        ({"protocol": "official", "matching": "length"}, "fixes 'matching'"),
        ({"num_images_per_trial": 5}, "would be the same picture"),
        ({"noise": "drawn", "num_images_per_trial": 0}, "at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused_and_nothing_is_written(
    exact, generator, tmp_path, options, message
):
    options = {"generator": str(generator), **options} if options else {}
    with pytest.raises(ConfigError, match=message):
        run_baseline("ic-gan", exact.folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_fit_does_not_go_with_another_generator(exact, generator, tmp_path):
    state = fit(exact, generator).state()
    with pytest.raises(ArtifactError, match="holds no instance-gan"):
        IcGan.from_state(state._replace(config={**state.config, "generator": str(tmp_path)}), exact)
    with pytest.raises(ArtifactError, match="another generator"):
        IcGan.from_state(state._replace(config={**state.config, "digest": "0" * 64}), exact)


def test_an_eye_that_is_not_at_hand_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.undo()
    from cadiff.priors.icgan.features import open_eye

    swav = FeatureConfig(eye="swav", layer="avgpool")
    with pytest.raises(ConfigError, match=r"swav_800ep_pretrain.pth.tar.*eye_weights"):
        open_eye(swav, None)
    with pytest.raises(ArtifactError, match=r"not at .*swav\.pth"):
        open_eye(swav, str(tmp_path / "swav.pth"))

"""Adversarial training: the losses by their equations, the same weights after a kill, and what the folder says."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cadiff.config import load_config
from cadiff.errors import ArtifactError, ConfigError, DivergedError
from cadiff.priors import train as train_module
from cadiff.priors.icgan import train as icgan_train
from cadiff.priors.icgan.folder import load_generator
from cadiff.priors.icgan.loop import GanFitConfig, fit_gan
from cadiff.priors.icgan.networks import Discriminator, Generator, GeneratorConfig
from cadiff.priors.train import PriorConfig, train_prior
from cadiff.runs import RunFolder

from .conftest import coloured_shapes

TINY = [
    "kind=icgan",
    "image_size=32",
    "num_heldout=8",
    "dtype=float32",
    "icgan={channels: 2, discriminator_channels: 2, noise_dim: 9, embed_dim: 8, num_neighbours: 8, attention: [16]}",
    "icgan.standing_batches=2",
    "icgan.fit={steps: 6, batch_size: 4, checkpoint_every: 2, log_every: 1}",
]


class Colours:
    """Stands in for a network: the mean colour of each quarter of the picture."""

    def features(self, images, layers, *, progress=False):
        cells = images.reshape(len(images), 2, images.shape[1] // 2, 2, images.shape[2] // 2, 3)
        return {layers[0]: cells.mean((2, 4)).reshape(len(images), -1).astype(np.float32) + 1}

    def digest(self):
        return {"colours.pth": "0123456789abcdef"}


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.setattr(icgan_train, "open_eye", lambda features, weights: Colours())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "shapes.npz"
    images, labels = coloured_shapes(48, 32)
    np.savez(path, images=images, labels=labels)
    return path


def tiny(*overrides):
    return load_config(PriorConfig, "prior", overrides=[*TINY, *overrides])


def weights(folder):
    return load_generator(folder, "cpu").generator.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_folder_opens_draws_and_says_what_it_was_made_from(pictures, tmp_path):
    folder = train_prior(tiny(), pictures, tmp_path / "run")
    assert folder == tmp_path / "run" / "generator"
    gan = load_generator(tmp_path / "run")
    assert (gan.features.eye, gan.features.layer, gan.features.sha256) == (
        "efficientnet-lite0",
        "pooled",
        "0123456789abcdef",
    )
    assert gan.generator.config.noise_dim == 8  # 9 cut down to 4 chunks of 2
    assert gan.about["num_images"] == 40 and gan.about["steps"] == 6
    assert -1 <= gan.about["cosine_own_instance"] <= 1
    drawn = gan.draw(torch.zeros(3, 8), torch.eye(12)[:3], batch_size=2)
    assert drawn.shape == (3, 32, 32, 3) and drawn.dtype == np.uint8
    assert [path.name for path in sorted((tmp_path / "run").iterdir()) if path.name != "tensorboard"] == [
        "generator",
        "log.jsonl",
        "run.json",
        "samples.png",
    ]
    with Image.open(tmp_path / "run" / "samples.png") as sheet:
        assert sheet.size == (8 * 34 - 2, 8 * 34 - 2)  # 8 held-out pictures, each with 7 drawings


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(pictures, tmp_path):
    one, again = (weights(train_prior(tiny(), pictures, tmp_path / name)) for name in ("one", "again"))
    assert same(one, again)
    other = weights(train_prior(tiny("seed=1"), pictures, tmp_path / "other"))
    drawn_otherwise = weights(train_prior(tiny("icgan.fit.seed=1"), pictures, tmp_path / "drawn"))
    assert not same(one, other) and not same(one, drawn_otherwise)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(pictures, tmp_path, monkeypatch, step):
    expected = weights(train_prior(tiny(), pictures, tmp_path / "whole"))
    log = RunFolder.log

    def dying(self, record):
        if record["step"] == step:
            raise KeyboardInterrupt
        log(self, record)

    monkeypatch.setattr(RunFolder, "log", dying)
    with pytest.raises(KeyboardInterrupt):
        train_prior(tiny(), pictures, tmp_path / "cut")
    assert not (tmp_path / "cut" / "generator").exists()
    monkeypatch.setattr(RunFolder, "log", log)
    assert same(weights(train_prior(tiny(), pictures, tmp_path / "cut", resume=True)), expected)
    lines = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_half_precision_is_for_matrices_alone_and_hardly_changes_the_pictures(pictures, tmp_path):
    full = load_generator(train_prior(tiny(), pictures, tmp_path / "full"), "cpu")
    half_folder = train_prior(tiny("dtype=float16"), pictures, tmp_path / "half")
    stored = load_file(half_folder / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.ndim > 1} == {torch.float16}
    assert {value.dtype for value in stored.values() if value.ndim <= 1} == {torch.float32}
    noise, features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.eye(12)[:4]
    drawn, rounded = full.draw(noise, features), load_generator(half_folder, "cpu").draw(noise, features)
    assert np.abs(drawn.astype(int) - rounded).max() <= 2


def test_the_recipe_is_a_generator_of_the_released_kind():
    """Half the released width at 64 pixels; its settings are all known."""
    recipe = Path(__file__).parents[2] / "recipes" / "icgan_tiny_imagenet.yaml"
    config = load_config(PriorConfig, "prior", recipe)
    sizes = icgan_train.generator_config(config.icgan, config.image_size, 1280)
    assert config.kind == "icgan" and (sizes.channels, sizes.noise_dim, sizes.embed_dim) == (32, 120, 512)
    with torch.device("meta"):
        count = sum(p.numel() for p in Generator(sizes).parameters())
    assert 5e6 < count < 20e6


def test_a_finished_run_is_left_alone_and_not_overwritten(pictures, tmp_path, monkeypatch):
    train_prior(tiny(), pictures, tmp_path / "run")
    with pytest.raises(ArtifactError, match="already exists"):
        train_prior(tiny(), pictures, tmp_path / "run")
    monkeypatch.setattr(train_module, "train_icgan", None)
    assert train_prior(tiny(), pictures, tmp_path / "run", resume=True) == tmp_path / "run" / "generator"
    with pytest.raises(ArtifactError, match="differ"):
        train_prior(tiny("icgan.num_neighbours=9"), pictures, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image_size=48", "draws 32, 64, 128, 256 pixels; image_size is 48"),
        ("icgan.eye=efficientnet-lite2", "scored by its own eye"),
        ("icgan.noise_dim=3", "less than the 4 chunks"),
        ("kind=gan", "kind"),
    ],
)
def test_settings_that_cannot_be_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        tiny(override)


class Still(torch.nn.Module):
    """A generator or discriminator of few numbers, so that losses and steps can be computed by hand."""

    def __init__(self, weight, score=False):
        super().__init__()
        self.weight, self.score = torch.nn.Parameter(torch.tensor(weight)), score
        self.config = GeneratorConfig(image_size=32, noise_dim=4)

    def forward(self, x, features):
        if self.score:
            return self.weight * x.mean((1, 2, 3)) + features[:, 0]
        return (self.weight * x[:, :1, None, None]).expand(-1, 3, 2, 2)


def test_losses_and_steps_are_those_of_the_equations(tmp_path):
    """One step by hand: hinge losses, and Adam's first step of each network by its own learning rate."""
    config = GanFitConfig(
        steps=1, batch_size=4, generator_learning_rate=0.03, discriminator_learning_rate=0.2
    )
    generator, discriminator = Still(0.7), Still(0.5, score=True)
    rng = torch.Generator().manual_seed(5)
    images, features, others = (torch.randn(4, *shape, generator=rng) for shape in ((3, 2, 2), (1,), (1,)))
    noises = []

    def batches(index, chance):
        noises.append(torch.randn(4, 4, generator=chance.clone_state()))
        return {"images": images, "features": features, "others": others}

    run = RunFolder.open(tmp_path / "run", stage="prior", config=config)
    fit_gan(generator, discriminator, batches, config, run=run)  # pyright: ignore[reportArgumentType]
    real = 0.5 * images.mean((1, 2, 3)) + features[:, 0]
    fake = 0.5 * 0.7 * noises[0][:, 0] + others[:, 0]
    hinge = (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()
    record = run.history()[0]
    assert record["discriminator_loss"] == pytest.approx(hinge.item(), abs=1e-6)
    slope = -((real < 1) * images.mean((1, 2, 3))).mean() + ((fake > -1) * 0.7 * noises[0][:, 0]).mean()
    stepped = 0.5 - 0.2 * slope.sign().item()
    assert discriminator.weight.item() == pytest.approx(stepped, abs=1e-4)
    theirs = (
        stepped * 0.7 * noises[1][:, 0] + others[:, 0]
    )  # the generator meets the discriminator after its step
    assert record["generator_loss"] == pytest.approx(-theirs.mean().item(), abs=1e-4)
    direction = (stepped * noises[1][:, 0]).mean().sign().item()
    moved = 0.7 + 0.03 * direction
    averaged = 0.7 + 0.9 * (moved - 0.7)  # the average of the first step takes 9 tenths of it
    assert generator.weight.item() == pytest.approx(averaged, abs=1e-4)


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    config = GanFitConfig(steps=3, batch_size=4, log_every=1)
    batch = {
        "images": torch.full((4, 3, 2, 2), math.nan),
        "features": torch.zeros(4, 1),
        "others": torch.zeros(4, 1),
    }
    run = RunFolder.open(tmp_path / "run", stage="prior", config=config)
    with pytest.raises(DivergedError, match="after step 1: try smaller learning rates"):
        fit_gan(Still(0.7), Still(0.5, score=True), lambda index, chance: batch, config, run=run)  # pyright: ignore[reportArgumentType]


def test_real_pictures_are_neighbours_of_the_instance_whose_features_come_with_them():
    """Pictures that are all one grey, features that say which: the nearest ones have the next greys."""
    greys = np.arange(0, 240, 10)
    images = np.broadcast_to(greys[:, None, None, None], (24, 32, 32, 3)).astype(np.uint8)
    angle = torch.from_numpy(greys / 240)
    features = torch.stack([angle.cos(), angle.sin()], dim=1).float()
    config = icgan_train.ICGanConfig.model_validate({"num_neighbours": 3, "fit": {"batch_size": 24}})
    instances = icgan_train.Instances(images, features, config, torch.device("cpu"))
    batch = instances.batch(0, torch.Generator().manual_seed(0))
    grey = ((batch["images"][:, 0, 0, 0] + 1) * 127.5).round()
    own = torch.atan2(batch["features"][:, 1], batch["features"][:, 0]) * 240
    assert sorted(own.round().tolist()) == greys.tolist()  # an epoch shows every instance once
    inside = (own > 5) & (own < 225)
    assert ((grey - own).abs()[inside].round() == 10).all()
    assert ((grey - own).abs().round() >= 10).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_compiled_networks_train_as_plain_ones(tmp_path, monkeypatch):
    """Both are traced whole, and buffers that move inside a forward pass move as they do outside; no code is generated here."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    sizes = GeneratorConfig(
        image_size=32, channels=2, noise_dim=8, feature_dim=5, embed_dim=6, attention=(16,)
    )
    rng = torch.Generator().manual_seed(1)
    batch = {
        "images": torch.rand(4, 3, 32, 32, generator=rng) * 2 - 1,
        "features": torch.randn(4, 5, generator=rng),
    }
    batch["others"] = batch["features"].roll(1, 0)
    found = []
    for compiled in (False, True):
        config = GanFitConfig(steps=2, batch_size=4, compile=compiled)
        networks = Generator(sizes), Discriminator(32, 2, 5, (16,))
        for place, network in enumerate(networks):
            icgan_train.initialise(network, place)
        run = RunFolder.open(tmp_path / str(compiled), stage="prior", config=config)
        fit_gan(*networks, lambda index, chance: batch, config, run=run)
        found.append(networks[0].state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-4, msg=name)

"""Latents of pictures and crops: those of each picture alone, the same bit for bit with and without what is kept on disk."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cadiff.artifacts import folder_checksums
from cadiff.data.dataset import BrainDataset
from cadiff.diffuse.latents import crop_latents, to_unit_range
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.diffuse.stage import diffuse
from cadiff.priors.load import ImagePrior

NAMES = [f"train{i}" for i in range(8)]
GIVEN = {"num_crops": 2, "crop_ratio": 0.25, "seed": 0}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frozen"


@pytest.fixture
def encodings(monkeypatch):
    """Number of pictures in each call of the auto-encoder."""
    calls, encode = [], ImagePrior.encode

    def counted(self, images, **options):
        calls.append(len(images))
        return encode(self, images, **options)

    monkeypatch.setattr(ImagePrior, "encode", counted)
    return calls


def test_each_picture_has_the_latents_of_its_own_views(prior, dataset):
    """Another implementation, one picture at a time, from the sentence in the docs alone."""
    found = crop_latents(dataset, NAMES, prior, **GIVEN)
    for name, row in zip(NAMES, found, strict=True):
        picture = dataset.image(name)
        rng = np.random.default_rng([0, *name.encode()])
        views = [picture]
        for _ in range(2):
            top, left = rng.integers(0, 16 - 12 + 1, 2)
            crop = Image.fromarray(picture[top : top + 12, left : left + 12])
            views.append(np.asarray(crop.resize((16, 16), Image.Resampling.BICUBIC)))
        alone = prior.encode(to_unit_range(np.stack(views)))
        assert torch.equal(row, alone)


@pytest.mark.parametrize(("pixels", "calls"), [(16 * 16 * 7, [6, 6, 6, 6]), (1, [3] * 8), (2**20, [24])])
def test_a_gpu_takes_as_many_pictures_at_once_as_fit(prior, dataset, encodings, monkeypatch, pixels, calls):
    """Only the decision is tried here, on a CPU that is taken for a GPU."""
    alone = crop_latents(dataset, NAMES, prior, **GIVEN)
    assert encodings == [3] * 8
    encodings.clear()
    monkeypatch.setattr("cadiff.diffuse.latents.MOST_PIXELS", pixels)
    monkeypatch.setattr("cadiff.diffuse.latents.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(prior.vqvae, "to", lambda **_: prior.vqvae)
    together = crop_latents(dataset, NAMES, prior, **GIVEN)
    assert encodings == calls
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_kept_latents_are_the_same_bit_for_bit(prior, dataset, cache, encodings, monkeypatch):
    made = crop_latents(dataset, NAMES, prior, **GIVEN)
    assert encodings == [3] * 8
    assert torch.equal(crop_latents(dataset, NAMES, prior, **GIVEN), made)
    assert len(encodings) == 8
    monkeypatch.setenv("CADIFF_CACHE", "off")
    assert torch.equal(crop_latents(dataset, NAMES, prior, **GIVEN), made)
    assert len(encodings) == 16
    assert len(list(cache.iterdir())) == 1


def test_what_differs_is_encoded_again(prior, dataset, cache, encodings):
    asked = [
        GIVEN,
        {**GIVEN, "seed": 1},
        {**GIVEN, "crop_ratio": 0.5},
        {**GIVEN, "num_crops": 1},
        {**GIVEN, "num_crops": 0},
    ]
    found = [crop_latents(dataset, NAMES, prior, **options) for options in asked]
    assert len(list(cache.iterdir())) == len(asked)
    assert not torch.equal(found[0], found[1])
    crop_latents(dataset, NAMES[::-1], prior, **GIVEN)
    prior.vqvae.encoder.conv_in.weight[0, 0, 0, 0] += 1e-6
    crop_latents(dataset, NAMES, prior, **GIVEN)
    assert len(list(cache.iterdir())) == len(asked) + 2
    encodings.clear()
    crop_latents(dataset, NAMES, prior, num_crops=0, crop_ratio=0.5, seed=5)  # nothing is cropped
    assert len(encodings) == 8  # other weights than above
    crop_latents(dataset, NAMES, prior, num_crops=0, crop_ratio=0.25, seed=0)
    assert len(encodings) == 8


def test_a_picture_that_was_changed_is_encoded_again(prior, dataset_folder, cache, tmp_path):
    shutil.copytree(dataset_folder, tmp_path / "copy")
    copied = BrainDataset.open(tmp_path / "copy")
    before = crop_latents(copied, NAMES, prior, **GIVEN)
    file = tmp_path / "copy" / "stimuli" / str(copied.stimuli.at[NAMES[3], "file"])
    Image.fromarray(255 - copied.image(NAMES[3])).save(file)
    after = crop_latents(copied, NAMES, prior, **GIVEN)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [name == NAMES[3] for name in NAMES]


def test_a_training_is_the_same_with_and_without_what_is_kept(
    dataset_folder, encoder_folder, prior_folder, cache, encodings, tmp_path, monkeypatch
):
    config = DiffuseConfig.model_validate({"fit": {"steps": 2, "batch_size": 4, "epochs": None}})
    weights = []
    for name in ("off", "made", "read"):
        monkeypatch.setenv("CADIFF_CACHE", "off" if name == "off" else str(cache.parent))
        encodings.clear()
        out = diffuse(config, dataset_folder, encoder_folder, tmp_path / name, prior=prior_folder)
        assert len(encodings) == (0 if name == "read" else 8)
        sums = folder_checksums(out)
        weights.append({file: sha for file, sha in sums.items() if file.endswith(".safetensors")})
    assert weights[0] == weights[1] == weights[2] != {}

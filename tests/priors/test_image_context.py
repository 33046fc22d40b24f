"""Features of a picture, as well known as they are: calibrated uncertainty, coordinates, and the folder of an adapted prior."""

import json

import numpy as np
import pytest
import torch

from cadiff.errors import ArtifactError, DataError
from cadiff.priors.adapted import save_adapted
from cadiff.priors.image_context import ImageContext, uncertain
from cadiff.priors.load import load_prior, prior_without_weights
from tiny_networks import seeded, write_adapted, write_prior


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_uncertain_coordinates_are_what_can_be_expected_given_themselves(generator):
    z, other = torch.randn(2, 100_000, 6, generator=generator)
    y = uncertain(z, other, (4, 2), generator)
    slope = (z * y).mean(0) / (y * y).mean(0)  # E[z | y] = y: regressing the truth on them gives slope 1
    torch.testing.assert_close(slope, torch.ones(6), atol=0.02, rtol=0)
    variance = y.var(0)
    assert (variance[:3] > variance[1:4]).all()  # later components are known less, each kind anew
    assert variance[4] > variance[3]


def test_what_is_shrunk_most_is_known_least(generator):
    z, other = torch.randn(2, 200_000, 1, generator=generator)
    y = uncertain(z, other, (1,), generator)[:, 0]
    for part in (y.abs() < 0.2, (y.abs() > 0.5) & (y.abs() < 1.0)):  # calibrated everywhere, not on average
        slope = float((z[part, 0] * y[part]).mean() / (y[part] ** 2).mean())
        assert slope == pytest.approx(1, abs=0.05)


def sample_pictures(generator, n=400):
    mixing = torch.randn(7, 7, generator=generator)
    return torch.randn(n, 7, generator=generator) @ mixing + 3, torch.randn(n, 3, 8, 8, generator=generator)


def make(**changes):
    with seeded(0):
        return ImageContext(
            **{
                "num_features": 7,
                "num_latents": 192,
                "context_dim": 12,
                "time_dim": 32,
                "sizes": (3, 2),
                "num_tokens": 4,
                "width": 9,
                **changes,
            }
        )


def test_coordinates_are_white_and_those_of_largest_variance(generator):
    features, latents = sample_pictures(generator)
    context = make()
    context.fit_coordinates(features, latents)
    found = context.coordinates(features, latents)
    torch.testing.assert_close(found.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, :3].T @ found[:, :3] / 400, torch.eye(3), atol=1e-3, rtol=0)
    left, *_ = np.linalg.svd((features - features.mean(0)).numpy(), full_matrices=False)
    same = np.abs(left[:, :3].T @ found[:, :3].numpy()) / np.sqrt(400)
    np.testing.assert_allclose(same, np.eye(3), atol=1e-3)  # numpy's principal components, signs apart


def test_it_starts_at_the_labels_that_the_coordinates_tell(generator):
    context = make()
    z = torch.randn(500, 5, generator=generator)
    embedding = z @ torch.randn(5, 12, generator=generator)  # a class is a linear map of the coordinates
    context.fit_base(z, embedding, penalty=1e-6)
    tokens, time = context(z)
    assert tokens.shape == (500, 4, 12)
    torch.testing.assert_close(tokens, tokens[:, :1].expand(-1, 4, -1))
    assert not time.any()
    cosine = torch.nn.functional.cosine_similarity(tokens[:, 0], embedding)
    assert cosine.min() > 0.9999
    torch.testing.assert_close(tokens[:, 0].norm(dim=1).mean(), embedding.norm(dim=1).mean())


@pytest.fixture
def base(tmp_path):
    table = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    names = ["cat", "dog", "car", "tree"]
    with seeded(0):
        return write_prior(
            tmp_path / "base",
            table,
            {"classes": names, "names": names, "null_label": 4},
            scaling_factor=0.5,
        )


@pytest.fixture
def adapted(base, tmp_path):
    with seeded(1):
        return write_adapted(tmp_path / "adapted", base)


def test_an_adapted_prior_is_its_base_but_for_what_was_trained(base, adapted):
    before, after = load_prior(base), load_prior(adapted)
    old = before.unet.state_dict()
    changed = [key for key, value in after.unet.state_dict().items() if not torch.equal(value, old[key])]
    assert changed == ["up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    assert after.image_context is not None
    assert before.image_context is None
    assert after.digest != before.digest
    assert (after.image_size, after.null_label) == (16, 4)
    y = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    again = load_prior(adapted).image_context
    assert again is not None
    for first, second in zip(after.image_context(y), again(y), strict=True):
        assert torch.equal(first, second)


def test_another_base_and_damaged_weights_are_one_sentence(base, adapted):
    about = json.loads((adapted / "prior.json").read_text())
    (adapted / "prior.json").write_text(json.dumps({**about, "base_digest": "0" * 64}))
    with pytest.raises(ArtifactError, match="made of another prior"):
        load_prior(adapted)
    (adapted / "prior.json").write_text(json.dumps(about))
    whole = (adapted / "unet_changes.safetensors").read_bytes()
    (adapted / "unet_changes.safetensors").write_bytes(whole[:-20])
    with pytest.raises(
        ArtifactError, match=r"unet_changes.safetensors cannot be read .* copy the prior again"
    ):
        load_prior(adapted)


def test_a_missing_base_is_one_sentence_that_names_the_adapted_folder(base, adapted, tmp_path):
    base.rename(tmp_path / "elsewhere")
    for opened in (load_prior, prior_without_weights):
        with pytest.raises(
            ArtifactError, match=r"adapted is made of .*base, .* set base in .*adapted/prior.json"
        ):
            opened(adapted)
    about = json.loads((adapted / "prior.json").read_text())
    (adapted / "prior.json").write_text(json.dumps({**about, "base": str(adapted)}))
    with pytest.raises(ArtifactError, match="adapted prior itself"):
        load_prior(adapted)


def test_a_folder_that_is_not_there_is_no_prior(tmp_path):
    for opened in (load_prior, prior_without_weights):
        with pytest.raises(ArtifactError, match="No prior at"):
            opened(tmp_path / "gone")


def test_more_components_than_pictures_vary_along_are_refused(generator):
    features, latents = sample_pictures(generator)
    flat = features.clone()
    flat[:, 2:] = 1 + 1e-5 * features[:, 2:]  # two directions, the others as good as constant
    with pytest.raises(DataError, match=r"vary along 2 .* feature_components=3"):
        make().fit_coordinates(flat, latents)
    with pytest.raises(DataError, match=r"vary along 7 .* feature_components=9"):
        make(sizes=(9, 2)).fit_coordinates(features, latents)
    with pytest.raises(DataError, match=r"vary along 59 .* latent_components=64"):
        make(sizes=(3, 64)).fit_coordinates(features[:60], latents[:60])
    with pytest.raises(DataError, match=r"vary along 0 .* latent_components=2"):
        make().fit_coordinates(features, torch.ones(400, 3, 8, 8))


def test_coordinates_survive_a_folder_of_half_precision(base, tmp_path, generator):
    features, latents = sample_pictures(generator)
    context = make()
    context.fit_coordinates(features, latents * 1e-6)  # axes beyond float16
    about = {"base": str(base), "base_digest": load_prior(base).digest}
    again = load_prior(save_adapted(tmp_path / "half", context, {}, about)).image_context
    assert again is not None
    found = again.coordinates(features, latents * 1e-6)
    assert torch.equal(found, context.coordinates(features, latents * 1e-6))

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cadiff.data.preprocess import PreprocessConfig, Preprocessor, fit_length
from cadiff.data.splits import average_repeats
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.importance import (
    condition_importance,
    importance_table,
    length_map,
    voxel_importance,
    voxels_read,
)

POLICIES = ("wrap", "pad", "stretch", "truncate")


class LinearConditioner(nn.Module):
    """Context, time vector and latents as linear maps of the encoder input."""

    def __init__(self, preprocessor, context=1, time=0, latents=0):
        super().__init__()
        self.preprocessor = preprocessor
        rng = torch.Generator().manual_seed(5)
        sizes = (context, time, latents)
        self.maps = [torch.randn(preprocessor.num_voxels, size, generator=rng) for size in sizes]
        self.maps[1] = 7 * self.maps[1]  # parts of very different sizes count alike
        self.latent_start = (lambda ready: ready @ self.maps[2] + 3) if latents else None

    def prepare(self, betas, repeats=None, *, split="test"):
        return torch.from_numpy(self.preprocessor(betas, repeats, split=split))

    def forward(self, ready):
        return Condition((ready @ self.maps[0] + 1)[:, None], ready @ self.maps[1] - 2)


def fitted(*, policy="wrap", normalise="voxel", voxels=10, rois=None, match=False, seed=0):
    rng = np.random.default_rng(seed)
    scale, centre = rng.uniform(0.5, 3, voxels), rng.normal(size=voxels)
    draw = [(centre + scale * rng.normal(size=(n, voxels))).astype(np.float32) for n in (40, 6)]
    table = pd.DataFrame({"rois": ["V1" if v % 3 else "V2" for v in range(voxels)]})
    config = PreprocessConfig(length_policy=policy, normalise=normalise, rois=rois, match_repeat_spread=match)
    ceiling = rng.uniform(0.1, 0.9, voxels)
    return Preprocessor.fit(draw[0], config, patch_size=4, voxels=table, noise_ceiling=ceiling), *draw


def occlusion(conditioner, betas, repeats, means, *, with_guess=False):
    """The same quantity by its definition: raw betas, one voxel at a time at the mean of the training trials."""

    def parts(raw):
        ready = conditioner.prepare(raw, repeats)
        condition = conditioner(ready)
        found = [condition.context.flatten(1), condition.time]
        found += [conditioner.latent_start(ready)] if with_guess else []
        return [part.double().detach().numpy() for part in found]

    usual, still = parts(betas), parts(np.tile(means, (len(betas), 1)))
    size = [np.square(a - b).sum() for a, b in zip(usual, still, strict=True)]
    changes = np.zeros(betas.shape[1])
    for voxel in range(betas.shape[1]):
        raw = betas.copy()
        raw[:, voxel] = means[voxel]
        changes[voxel] = sum(
            np.square(a - b).sum() / s for a, b, s in zip(usual, parts(raw), size, strict=True) if s > 1e-9
        )
    return changes / changes.sum()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("normalise", ["voxel", "scalar", "none"])
def test_a_linear_condition_gives_occlusion_exactly(policy, normalise):
    """One value only: then the sign of a probe does not matter, and nothing is estimated."""
    preprocessor, train, betas = fitted(policy=policy, normalise=normalise, match=True)
    conditioner, repeats = LinearConditioner(preprocessor), np.array([1, 2, 3, 9, 1, 5])
    found = condition_importance(conditioner, betas, repeats, num_probes=1)
    expected = occlusion(conditioner, betas, repeats, train.mean(0))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)
    assert found.sum() == pytest.approx(1)


def test_training_trials_are_scaled_also_where_test_trials_are_left_raw():
    scaled, train, _ = fitted()
    raw = replace(scaled, config=scaled.config.model_copy(update={"test_normalisation": "raw"}))
    expected = condition_importance(LinearConditioner(scaled), train)
    np.testing.assert_array_equal(
        condition_importance(LinearConditioner(raw), train, split="train"), expected
    )
    assert not np.allclose(condition_importance(LinearConditioner(raw), train), expected)


def test_closed_form_of_one_weight_per_voxel():
    """c = sum of w_v z_v: the importance is w_v^2 times the mean of z_v^2 over the trials."""
    preprocessor, _, betas = fitted(policy="pad", voxels=8)
    conditioner = LinearConditioner(preprocessor)
    z = preprocessor(betas).astype(float)
    expected = np.square(conditioner.maps[0][:, 0].numpy()) * np.square(z).mean(0)
    np.testing.assert_allclose(condition_importance(conditioner, betas), expected / expected.sum(), rtol=1e-5)


def test_parts_of_many_values_are_estimated_and_count_alike():
    preprocessor, train, betas = fitted(policy="stretch")
    conditioner = LinearConditioner(preprocessor, context=9, time=4, latents=6)
    for with_guess in (False, True):
        found = condition_importance(conditioner, betas, with_guess=with_guess, num_probes=600)
        expected = occlusion(conditioner, betas, None, train.mean(0), with_guess=with_guess)
        # 3600 draws: 2.4 % standard error where trials weigh alike, about twice that here
        np.testing.assert_allclose(found, expected, rtol=0.2)
        assert abs(np.log(found / expected)).mean() < 0.06
    conditioner.maps[0] = 100 * conditioner.maps[0]
    same = condition_importance(conditioner, betas, with_guess=True, num_probes=600)
    np.testing.assert_allclose(same, found, rtol=1e-3)


def test_the_real_conditioner_agrees_with_small_occlusions(conditioner, dataset):
    """Near the training mean a transformer is linear; its importances are those of leaving out one voxel after another."""
    train = np.asarray(dataset.betas[dataset.rows("train")])
    means = train.mean(0, dtype=np.float64).astype(np.float32)
    betas = (means + 0.05 * (train[:8] - means)).astype(np.float32)
    found = condition_importance(conditioner, betas, num_probes=150, batch_size=8)
    expected = occlusion(conditioner, betas, None, means)
    # 1200 draws
    assert abs(np.log(found / expected)).mean() < 0.08
    assert np.corrcoef(found, expected)[0, 1] > 0.97


def test_the_same_again_whatever_the_batch(pipeline, dataset):
    with torch.no_grad():
        found = voxel_importance(pipeline, dataset, seed=2)
    assert np.array_equal(found, voxel_importance(pipeline, dataset, seed=2))
    np.testing.assert_allclose(found, voxel_importance(pipeline, dataset, seed=2, batch_size=1), rtol=1e-4)
    assert not np.allclose(found, voxel_importance(pipeline, dataset, seed=3), rtol=1e-4)
    betas, _, repeats = average_repeats(dataset, "test")
    assert np.array_equal(found, condition_importance(pipeline.conditioner, betas, repeats, seed=2))
    assert found.shape == (len(dataset.voxels),)
    assert (found > 0).all() and found.sum() == pytest.approx(1)
    assert all(parameter.grad is None for parameter in pipeline.conditioner.parameters())
    assert not torch.backends.cudnn.deterministic


def test_voxels_that_are_not_read_have_none():
    preprocessor, _, betas = fitted(rois=["V2"], policy="truncate", voxels=16)
    assert len(preprocessor.voxel_index) == 6 and preprocessor.num_voxels == 4
    read = np.flatnonzero(voxels_read(preprocessor))
    assert read.tolist() == [0, 3, 6, 9]
    found = condition_importance(LinearConditioner(preprocessor), betas)
    assert np.flatnonzero(found).tolist() == [0, 3, 6, 9]


def test_a_condition_that_never_moves_has_a_map_of_zeros():
    preprocessor, _, betas = fitted()
    conditioner = LinearConditioner(preprocessor)
    conditioner.maps[0] = torch.zeros_like(conditioner.maps[0])
    assert not condition_importance(conditioner, betas).any()


@given(
    st.sampled_from(POLICIES), st.integers(1, 30), st.integers(1, 12), st.integers(0, 9), st.integers(1, 5)
)
def test_the_matrix_of_a_length_policy(policy, count, patches, seed, patch_size):
    preprocessor = Preprocessor.fit(np.ones((2, count)), patch_size=1)
    config = PreprocessConfig(length_policy=policy)
    preprocessor = replace(preprocessor, config=config, num_voxels=patches * patch_size)
    values = np.random.default_rng(seed).normal(size=(3, count))
    expected = fit_length(values, patches * patch_size, policy)
    np.testing.assert_allclose((length_map(preprocessor) @ values.T).T, expected, atol=1e-9)


def test_table_has_coordinates_where_they_are_known():
    voxels = pd.DataFrame({"voxel": [1, 2], "rois": ["V1,VC", ""], "noise_ceiling": [0.1, np.nan]})
    table = importance_table(voxels, np.array([0.25, 0.75]))
    assert list(table.columns) == ["voxel", "rois", "importance"]
    assert table["importance"].tolist() == [0.25, 0.75]
    table = importance_table(voxels.assign(z=[3, 4], x=[1, 2], y=0.5), np.array([0.25, 0.75]))
    assert list(table.columns) == ["voxel", "rois", "importance", "x", "y", "z"]
    assert table["z"].tolist() == [3, 4]

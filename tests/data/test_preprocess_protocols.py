"""What the released code does to betas, each mistake behind its own setting; the oracle is `cadiff data prepare`."""

import numpy as np
import pytest

from cadiff.contrast.encoder_folder import fit_preprocessor
from cadiff.data.dataset import BrainDataset
from cadiff.data.prepare import PrepareConfig, prepare
from cadiff.data.preprocess import PreprocessConfig, Preprocessor, fit_length


@pytest.fixture
def data(linear_brain):
    return BrainDataset.open(linear_brain)


def test_test_trials_are_scaled_as_training_trials_unless_told_otherwise(data):
    fitted = fit_preprocessor(data, PreprocessConfig(), patch_size=16)
    betas = np.asarray(data.betas[data.rows("test")])
    np.testing.assert_array_equal(fitted(betas, split="test"), fitted(betas))


def test_raw_leaves_test_trials_as_they_are_and_scales_the_others(data):
    usual = fit_preprocessor(data, PreprocessConfig(), patch_size=16)
    raw = fit_preprocessor(data, PreprocessConfig(test_normalisation="raw"), patch_size=16)
    test, train = (np.asarray(data.betas[data.rows(split)]) for split in ("test", "train"))
    np.testing.assert_array_equal(raw(train), usual(train))
    np.testing.assert_array_equal(raw(test, split="test"), np.pad(test, ((0, 0), (0, 8)), mode="wrap"))
    assert np.abs(raw(test, split="test") - usual(test)).max() > 0.1


def test_pooled_statistics_are_those_of_training_and_test_trials(data):
    pooled = fit_preprocessor(data, PreprocessConfig(test_normalisation="pooled"), patch_size=16)
    rows = np.concatenate([data.rows("train"), data.rows("test")])
    np.testing.assert_allclose(pooled.mean, data.betas[rows].mean(0), atol=1e-5)
    np.testing.assert_allclose(pooled.std, data.betas[rows].std(0), atol=1e-5)
    usual = fit_preprocessor(data, PreprocessConfig(), patch_size=16)
    assert np.abs(pooled.mean - usual.mean).max() > 0.01  # the test trials count


@pytest.mark.parametrize(("quirk", "normalise"), [("raw", "official_god"), ("pooled", "official_bold5000")])
def test_inside_the_stages_as_by_preparing_the_dataset(data, tmp_path, quirk, normalise):
    """Two implementations of what the released code does, one on a dataset and one in the preprocessing."""
    prepared = BrainDataset.open(prepare(data, tmp_path / "prepared", PrepareConfig(normalise=normalise)))
    config = PreprocessConfig(normalise="scalar", test_normalisation=quirk, length_policy="official")
    fitted = fit_preprocessor(data, config, patch_size=16)
    for split in ("train", "test"):
        rows = data.rows(split)
        found = fitted(np.asarray(data.betas[rows]), split=split)[:, : data.betas.shape[1]]
        np.testing.assert_allclose(found, prepared.betas[rows], atol=1e-5)


@pytest.mark.parametrize(
    ("voxels", "length"),
    [
        (4466, 4480),
        (4404, 4416),
        (4643, 4656),
        (4133, 4144),
        (4370, 4384),
        (4183, 4192),
        (1685, 1696),
        (208, 224),
    ],
)
def test_the_released_length_rule(voxels, length):
    """V + 16 - V mod 16: the subjects of GOD, HCP and CSI1, and a multiple of 16, which gets a patch that it does not need."""
    betas = np.random.default_rng(0).normal(size=(3, voxels)).astype(np.float32)
    official = Preprocessor.fit(betas, PreprocessConfig(length_policy="official"))
    assert official.num_voxels == length == voxels + 16 - voxels % 16
    assert Preprocessor.fit(betas).num_voxels == -(-voxels // 16) * 16


@pytest.mark.parametrize("length", [16, 32, 48, 96, 160])
@pytest.mark.parametrize("voxels", [20, 32])
def test_the_released_code_wraps_twice(voxels, length):
    values = np.random.default_rng(0).normal(size=(2, voxels))
    whole = np.pad(values, ((0, 0), (0, 16 - voxels % 16)), mode="wrap")
    more = np.pad(whole, ((0, 0), (0, max(0, length - whole.shape[1]))), mode="wrap")
    np.testing.assert_array_equal(fit_length(values, length, "official"), more[:, :length])
    if length > whole.shape[1] and voxels % 16:
        assert (fit_length(values, length, "wrap") != more[:, :length]).any()


def test_the_released_scalar_statistics_count_wrapped_voxels_twice():
    rng = np.random.default_rng(0)
    betas = (rng.normal(size=(50, 20)) + np.arange(20)).astype(np.float32)  # the first voxels are the lowest
    wrapped = np.pad(betas, ((0, 0), (0, 12)), mode="wrap")
    config = PreprocessConfig(normalise="scalar", length_policy="official")
    out = Preprocessor.fit(betas, config)(betas)
    np.testing.assert_allclose(out, (wrapped - wrapped.mean()) / wrapped.std(), atol=1e-5)
    plain = Preprocessor.fit(betas, PreprocessConfig(normalise="scalar"))
    assert plain.mean[0] == pytest.approx(betas.mean()) and plain.mean[0] > wrapped.mean() + 1


@pytest.mark.parametrize("quirk", ["train", "raw", "pooled"])
def test_settings_come_back_from_a_folder(data, quirk):
    config = PreprocessConfig(test_normalisation=quirk, length_policy="official", normalise="scalar")
    fitted = fit_preprocessor(data, config, patch_size=16)
    again = Preprocessor.from_tensors(PreprocessConfig(**config.model_dump()), fitted.to_tensors())
    betas = np.asarray(data.betas)
    for split in ("train", "test"):
        np.testing.assert_array_equal(again(betas, split=split), fitted(betas, split=split))

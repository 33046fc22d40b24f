"""Statistics come from training trials, lengths follow the rule, averages get a single trial's spread."""

import numpy as np
import pandas as pd
import pytest

from cadiff.data.preprocess import PreprocessConfig, Preprocessor, fit_length, length_remark, repeat_scale
from cadiff.errors import ConfigError, DataError


def betas(trials=40, voxels=37, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(trials, voxels)) * rng.uniform(0.5, 3, voxels) + rng.normal(size=voxels)).astype(
        np.float32
    )


def test_voxel_normalisation_uses_training_statistics_on_everything():
    train, test = betas(), betas(seed=1) * 2 + 5
    fitted = Preprocessor.fit(train, PreprocessConfig(length_policy="pad"))
    out = fitted(train)[:, :37]
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(
        fitted(test)[:, :37], (test - train.mean(axis=0)) / train.std(axis=0), rtol=1e-4, atol=1e-4
    )
    assert abs(fitted(test).mean()) > 1  # its own mean was not removed


def test_scalar_normalisation_is_one_mean_and_one_std():
    train = betas()
    out = Preprocessor.fit(train, PreprocessConfig(normalise="scalar"))(train)[:, :37]
    np.testing.assert_allclose(out, (train - train.mean()) / train.std(), rtol=1e-4, atol=1e-5)


def test_none_leaves_the_values():
    train = betas()
    np.testing.assert_array_equal(
        Preprocessor.fit(train, PreprocessConfig(normalise="none"))(train)[:, :37], train
    )


def test_constant_voxels_stay_finite_and_zero():
    train = betas()
    train[:, 3] = 7.3
    out = Preprocessor.fit(train)(train)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, 3], 0, atol=1e-5)
    assert np.isfinite(Preprocessor.fit(np.full((5, 16), 2.0))(np.full((1, 16), 2.0))).all()


@pytest.mark.parametrize(("voxels", "expected"), [(37, 48), (32, 32), (1, 16), (16, 16)])
def test_length_is_the_next_multiple_and_never_an_extra_patch(voxels, expected):
    assert Preprocessor.fit(betas(voxels=voxels), patch_size=16).num_voxels == expected


def test_wrap_agrees_with_numpy_also_more_than_once():
    values = betas(3, 7)
    np.testing.assert_array_equal(
        fit_length(values, 32, "wrap"), np.pad(values, ((0, 0), (0, 25)), mode="wrap")
    )


@pytest.mark.parametrize("policy", ["wrap", "pad", "truncate"])
def test_a_checkpoint_length_is_reached_from_both_sides(policy):
    config = PreprocessConfig(length_policy=policy)
    long, short = betas(voxels=70), betas(voxels=20)
    np.testing.assert_array_equal(
        Preprocessor.fit(long, config, num_voxels=64)(long),
        Preprocessor.fit(long, config, patch_size=2)(long)[:, :64],
    )
    assert Preprocessor.fit(short, config, num_voxels=64)(short).shape == (40, 64)


def test_pad_ends_in_zeros_and_truncate_cuts_to_whole_patches():
    train = betas()
    assert (Preprocessor.fit(train, PreprocessConfig(length_policy="pad"))(train)[:, 37:] == 0).all()
    assert Preprocessor.fit(train, PreprocessConfig(length_policy="truncate")).num_voxels == 32
    with pytest.raises(DataError, match="fewer than one patch"):
        Preprocessor.fit(betas(voxels=9), PreprocessConfig(length_policy="truncate"))
    with pytest.raises(ConfigError, match="not a multiple"):
        Preprocessor.fit(train, num_voxels=50)


def test_rois_are_chosen_by_membership():
    voxels = pd.DataFrame({"rois": ["V1,VC", "V1v", "LOC,VC", "", "VC"]})
    train = betas(voxels=5)
    fitted = Preprocessor.fit(
        train, PreprocessConfig(rois=["V1", "LOC"], normalise="none"), patch_size=2, voxels=voxels
    )
    np.testing.assert_array_equal(fitted(train), train[:, [0, 2]])
    with pytest.raises(DataError, match=r"FFA.*this dataset has: LOC, V1, V1v, VC"):
        Preprocessor.fit(train, PreprocessConfig(rois=["FFA"]), voxels=voxels)
    with pytest.raises(DataError, match="no voxel table"):
        Preprocessor.fit(train, PreprocessConfig(rois=["V1"]))


def test_bad_values_and_shapes_are_counted_and_named():
    train = betas()
    fitted = Preprocessor.fit(train)
    with pytest.raises(DataError, match=r"38 voxels.*fitted on 37"):
        fitted(betas(voxels=38))
    train[2, 5], train[3, 5], train[0, 9] = np.nan, np.inf, np.nan
    for attempt in (lambda: fitted(train), lambda: Preprocessor.fit(train)):
        with pytest.raises(
            DataError, match=r"3 beta values are NaN or infinite, in 2 of 37 voxels \(first: voxel 6\)"
        ):
            attempt()
    with pytest.raises(DataError, match="at least one of each"):
        Preprocessor.fit(np.zeros((0, 5), np.float32))


def test_averaged_repeats_get_the_spread_of_single_trials():
    rng = np.random.default_rng(0)
    ceiling = np.array([0.0, 0.06, 0.5, 1.0] * 4)
    signal, repeats = rng.normal(size=(4000, 16)), 35

    def trial():
        return 3 + 2 * (np.sqrt(ceiling) * signal + np.sqrt(1 - ceiling) * rng.normal(size=signal.shape))

    averaged = sum(trial() for _ in range(repeats)) / repeats
    for normalise in ("voxel", "scalar", "none"):
        config = PreprocessConfig(match_repeat_spread=True, normalise=normalise)
        train = trial()
        fitted = Preprocessor.fit(train, config, noise_ceiling=ceiling)
        out, single = fitted(averaged, repeats=repeats), fitted(train)
        np.testing.assert_allclose(out.std(axis=0), single.std(axis=0), rtol=0.05)
        np.testing.assert_allclose(out.mean(axis=0), single.mean(axis=0), atol=0.35 * single.std())
        np.testing.assert_allclose(fitted(train, repeats=1), single, atol=1e-6)


def test_unknown_ceilings_take_the_median_and_none_at_all_means_no_rescaling():
    train, config = betas(voxels=4), PreprocessConfig(match_repeat_spread=True)
    fitted = Preprocessor.fit(train, config, patch_size=2, noise_ceiling=[0.1, np.nan, 0.3, 0.2])
    np.testing.assert_allclose(fitted.noise_ceiling, [0.1, 0.2, 0.3, 0.2], rtol=1e-6)
    for nothing in (None, [np.nan] * 4):
        fitted = Preprocessor.fit(train, config, patch_size=2, noise_ceiling=nothing)
        np.testing.assert_array_equal(fitted(train, repeats=35), fitted(train))
    with pytest.raises(DataError, match="divide percentages by 100"):
        Preprocessor.fit(train, config, noise_ceiling=[10, 20, 30, 40])


def test_repeat_scale_limits():
    assert repeat_scale(np.array([0.3]), np.array([1]))[0, 0] == 1
    np.testing.assert_allclose(repeat_scale(np.array([0.0]), np.array([4, 9])), [[2.0], [3.0]])
    assert np.isclose(repeat_scale(np.array([0.25]), np.array(10**9))[0, 0], 2.0)
    with pytest.raises(DataError, match="at least 1"):
        repeat_scale(np.array([0.5]), np.array([0]))


def test_tensors_round_trip():
    voxels = pd.DataFrame({"rois": ["V1"] * 30 + ["V2"] * 7})
    config = PreprocessConfig(rois=["V1"], match_repeat_spread=True)
    fitted = Preprocessor.fit(betas(), config, voxels=voxels, noise_ceiling=np.linspace(0, 1, 37))
    again = Preprocessor.from_tensors(config, fitted.to_tensors())
    test = betas(seed=2)
    np.testing.assert_array_equal(again(test, repeats=5), fitted(test, repeats=5))
    np.testing.assert_array_equal(again(test[0]), fitted(test[:1]))  # one trial is a batch of one


def test_chunks_do_not_change_the_statistics(monkeypatch):
    whole = Preprocessor.fit(betas())
    monkeypatch.setattr("cadiff.data.preprocess.CHUNK_ROWS", 7)
    np.testing.assert_allclose(Preprocessor.fit(betas()).std, whole.std, rtol=1e-6)


def test_stretching_interpolates_between_neighbours(rng):
    values = rng.normal(size=(3, 7))
    stretched = fit_length(values, 25, "stretch")
    for row, expected in zip(stretched, values, strict=True):
        np.testing.assert_allclose(row, np.interp(np.linspace(0, 6, 25), np.arange(7), expected), atol=1e-12)
    np.testing.assert_array_equal(fit_length(values, 7, "stretch"), values)
    np.testing.assert_array_equal(
        fit_length(values[:, :1], 4, "stretch"), np.repeat(values[:, :1], 4, axis=1)
    )


@pytest.mark.parametrize("policy", ["wrap", "pad", "truncate", "official"])
@pytest.mark.parametrize("count", [33, 40, 48, 49, 60, 64, 90])
def test_the_remark_on_a_length_says_what_becomes_of_the_voxels(policy, count):
    """Counted on the output: how many of the voxels are not there, how many places are not the voxels' own."""
    values = np.arange(1.0, count + 1)[None]
    there = fit_length(values, 64, policy)[0]
    lost, filled = count - len(set(there) - {0.0}), 64 - min(count, 64)
    remark = length_remark(count, 64, policy)
    if lost and not (policy == "truncate" and lost < 16):
        assert remark == f"the last {lost} are left out" and not set(values[0, -lost:]) & set(there)
    elif filled > 16:
        zeros = int((there == 0).sum())
        assert remark == f"its last {filled} places {'hold zeros' if zeros else 'repeat them'}"
        assert zeros in (0, filled)
    else:
        assert remark is None


def test_the_remark_on_a_length_knows_interpolation():
    assert (
        length_remark(40, 16, "stretch") == length_remark(40, 64, "stretch") == "they are interpolated to it"
    )
    assert length_remark(64, 64, "stretch") is None

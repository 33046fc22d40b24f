"""SS-AE as a baseline: what is refused, what it may learn from, that it resumes, and that it decodes a simulated brain."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cadiff.baselines import run_baseline
from cadiff.baselines.ssae import stage as ssae_stage
from cadiff.baselines.ssae.pools import gather, voxel_snr
from cadiff.baselines.ssae.settings import SsAeConfig, steps
from cadiff.baselines.ssae.stage import SsAe
from cadiff.data.dataset import BrainDataset
from cadiff.data.splits import average_repeats
from cadiff.errors import ConfigError, DataError

QUICK: dict[str, Any] = {
    **{
        "images": "none",
        "encoder_channels": 4,
        "decoder_channels": 4,
        "encoder_steps": 3,
        "decoder_steps": 3,
    },
    **{"encoder_batch": 4, "pairs_batch": 4, "fmri_batch": 2, "images_batch": 2},
}


@pytest.fixture
def brain(linear_brain):
    return BrainDataset.open(linear_brain)


@pytest.fixture
def photos(linear_brain, tmp_path):
    """The same trials with pictures that have details."""
    shutil.copytree(linear_brain, tmp_path / "brain")
    rng = np.random.default_rng(3)
    for path in sorted((tmp_path / "brain" / "stimuli").iterdir()):
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return BrainDataset.open(tmp_path / "brain")


def pictures_of(fitted, brain):
    betas, ids, repeats = average_repeats(brain)
    return fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)


def pcc(a, b):
    a, b = (x.reshape(len(x), -1).astype(float) for x in (a, b))
    return np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])


def test_the_judge_is_never_the_eye(brain):
    rows = brain.rows("train")
    with pytest.raises(ConfigError, match="will judge the pictures"):
        SsAe.fit(brain, rows, eye="efficientnet-lite2", **QUICK)
    with pytest.raises(ConfigError, match="will judge the pictures"):
        SsAe.fit(brain, rows, judge="efficientnet-lite0", **QUICK)


def test_unknown_options_and_eyes_are_refused_by_name(brain):
    rows = brain.rows("train")
    with pytest.raises(ConfigError, match="decoder_steps"):
        SsAe.fit(brain, rows, decoder_step=3)
    with pytest.raises(ConfigError, match="efficientnet-lite0"):
        SsAe.fit(brain, rows, eye="resnet", **QUICK)


def test_a_picture_without_fmri_that_shows_a_held_out_stimulus_is_refused_by_name(photos, tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
            tmp_path / f"photos/{number}.png"
        )
    config = SsAeConfig(images=str(tmp_path / "photos"))
    pools = gather(photos, photos.rows("train"), config, 0)
    assert pools.facts["pictures_without_fmri"]["others"] == 3
    assert len(pools.pictures) == 33
    Image.fromarray(photos.image("test-4")).resize((40, 40)).save(
        tmp_path / "photos/deep/copy.jpg", quality=90
    )
    with pytest.raises(DataError, match=r"deep/copy\.jpg .* 'test-4'"):
        gather(photos, photos.rows("train"), config, 0)
    # a stimulus that this fit leaves out is held out as well
    Image.fromarray(photos.image("train-3")).save(tmp_path / "photos/deep/copy.jpg", quality=95)
    gather(photos, photos.rows("train"), config, 0)
    fewer = photos.rows("train")[photos.trials["stimulus_id"].to_numpy()[photos.rows("train")] != "train-3"]
    with pytest.raises(DataError, match="'train-3'"):
        gather(photos, fewer, config, 0)


def test_paths_may_be_paths(photos, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "photos/red.png")
    options = {**QUICK, "images": tmp_path / "photos"}
    SsAe.check_options(options)
    fitted = SsAe.fit(photos, photos.rows("train"), **options)
    assert fitted.config.images == str(tmp_path / "photos")
    assert SsAe.from_state(fitted.state(), photos).facts() == fitted.facts()
    weights = tmp_path / "weights.pth"
    assert SsAeConfig.model_validate({"eye": weights, "judge": weights}).eye == str(weights)
    with pytest.raises(ConfigError, match="images"):
        SsAe.check_options({"images": 3})


def test_where_all_pictures_are_alike_a_look_alike_is_left_out_instead(photos, tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    Image.fromarray(photos.image("test-4")).save(tmp_path / "digits" / "copy.png")
    Image.fromarray(photos.image("train-4")).save(tmp_path / "digits" / "other.png")
    monkeypatch.setattr("cadiff.fingerprints.LookAlikes.may_be_chance", True)
    found = gather(photos, photos.rows("train"), SsAeConfig(images=str(tmp_path / "digits")), 0)
    assert found.facts["pictures_without_fmri"]["left_out_as_held_out"] == 1
    np.testing.assert_array_equal(found.pictures[-1], photos.image("train-4"))


def test_a_folder_without_pictures_is_refused(brain, tmp_path):
    for folder, what in ((tmp_path / "no", "is no folder"), (tmp_path, "holds no picture")):
        with pytest.raises(DataError, match=what):
            gather(brain, brain.rows("train"), SsAeConfig(images=str(folder)), 0)


def test_by_default_nothing_depends_on_the_test_trials(linear_brain, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(linear_brain, changed)
    betas = np.load(changed / "betas.npy")
    tested = BrainDataset.open(linear_brain).rows("test")
    betas[tested] += 3.0
    np.save(changed / "betas.npy", betas)
    plain, other = (BrainDataset.open(folder) for folder in (linear_brain, changed))
    rows = plain.rows("train")
    for protocol, same in (("default", True), ("official", False)):
        config = SsAeConfig(protocol=protocol, images="none")
        a, b = gather(plain, rows, config, 0), gather(other, rows, config, 0)
        assert (a.digest() == b.digest()) is same
        assert a.facts["test_fmri_was_trained_on"] is not same
        np.testing.assert_array_equal(a.pictures, b.pictures)  # of the test trials never the pictures
        assert len(a.pictures) == len(plain.stimulus_ids("train"))


def test_test_fmri_is_stamped_into_the_folder(linear_brain, tmp_path):
    out = run_baseline("ssae", linear_brain, tmp_path / "out", protocol="official", **QUICK)
    about = json.loads((out / "config.json").read_text())
    assert "TEST" in about["config"]["warning"]
    facts = about["provenance"]["fitted"]
    assert facts["test_fmri_was_trained_on"] is True
    assert "TEST" in facts["fmri_without_pictures"]["source"]
    assert facts["settings"]["protocol"] == "official"
    assert (out / "training" / "decoder" / "log.jsonl").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    table = pd.read_csv(out / "samples.tsv", sep="\t")
    assert set(table["condition"]) == {"brain", "shuffled"}
    for file in table["file"]:
        with Image.open(out / file) as picture:
            assert picture.size == (16, 16)
    plain = run_baseline("ssae", linear_brain, tmp_path / "plain", **QUICK)
    assert "warning" not in json.loads((plain / "config.json").read_text())["config"]
    again = run_baseline("ssae", linear_brain, tmp_path / "again", fitted=plain / "model")
    for file in sorted((plain / "images").rglob("*.png")):
        assert file.read_bytes() == (again / file.relative_to(plain)).read_bytes()


def test_unlabelled_trials_serve_the_cycle_of_responses(brain, monkeypatch):
    rows = brain.rows("train")
    pools = gather(brain, rows, SsAeConfig(images="none"), 0)
    assert len(pools.fmri) == len(rows)
    brain.trials.loc[rows[:10], "split"] = "unlabelled"
    more = gather(brain, rows[10:], SsAeConfig(images="none"), 0)
    assert (len(more.betas), len(more.fmri)) == (20, 30)


def test_snr_is_signal_over_noise_of_repeats():
    rng = np.random.default_rng(0)
    signal, noise = np.array([1.0, 2.0, 0.0]), np.array([1.0, 0.5, 1.0])
    ids = np.repeat(np.arange(2000).astype(str), 2)
    betas = np.repeat(signal * rng.normal(size=(2000, 3)), 2, axis=0) + noise * rng.normal(size=(4000, 3))
    means = signal**2 + noise**2 / 2  # variance of the mean of two
    expected = means / noise**2
    np.testing.assert_allclose(voxel_snr(betas, ids), expected / expected.mean(), rtol=0.1)
    assert voxel_snr(betas, np.arange(4000).astype(str)) is None


def test_steps_are_the_published_epochs_but_neither_many_for_small_pictures_nor_few_for_few_trials():
    assert steps(None, 150, 1200, 24, 112, 400) == 7500
    assert steps(None, 150, 1200, 24, 64, 400) == 400
    for size in (64, 112):  # epochs would be 23
        assert steps(None, 50, 30, 64, size, 300) == 300
    assert steps(7, 150, 1200, 24, 112, 400) == 7


def test_it_saves_what_reconstructs_the_same(brain):
    fitted = SsAe.fit(brain, brain.rows("train"), seed=1, **QUICK)
    again = SsAe.from_state(fitted.state(), brain)
    np.testing.assert_array_equal(pictures_of(again, brain), pictures_of(fitted, brain))
    assert again.facts() == fitted.facts()
    other = SsAe.fit(brain, brain.rows("train"), seed=2, **QUICK)
    assert (pictures_of(other, brain) != pictures_of(fitted, brain)).any()


def test_global_random_state_is_neither_read_nor_changed(brain):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(pictures_of(SsAe.fit(brain, brain.rows("train"), seed=3, **QUICK), brain))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("cut_off", ["encoder", "decoder"])
def test_a_fit_that_was_cut_off_goes_on_bit_for_bit(brain, tmp_path, monkeypatch, cut_off):
    options = {**QUICK, f"{cut_off}_steps": 56, "fmri_weight": 0.0 if cut_off == "encoder" else 1.0}
    rows = brain.rows("train")
    whole = SsAe.fit(brain, rows, work=tmp_path / "whole", seed=4, **options)

    plain = getattr(ssae_stage, f"train_{cut_off}")

    def dies(network, *args, **kwargs):
        steps = 0

        def penalty():
            nonlocal steps
            steps += 1
            if steps == 53:  # a checkpoint is written every 50 steps
                raise KeyboardInterrupt
            return kept()

        kept = kwargs.pop("penalty")
        plain(network, *args, penalty=penalty, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ssae_stage, f"train_{cut_off}", dies)
        SsAe.fit(brain, rows, work=tmp_path / "cut", seed=4, **options)
    assert (tmp_path / "cut" / cut_off / "trainer" / "state.json").is_file()
    resumed = SsAe.fit(brain, rows, work=tmp_path / "cut", seed=4, **options)
    for name, value in whole.state().tensors.items():
        assert torch.equal(value, resumed.state().tensors[name]), name


def test_it_beats_the_mean_picture_and_the_wrong_brain(brain):
    some = {"encoder_steps": 20, "decoder_steps": 40, "pairs_batch": 16, "pixel_weight": 30.0}
    fitted = SsAe.fit(brain, brain.rows("train"), **{**QUICK, **some})
    drawn = pictures_of(fitted, brain)[:, 0]
    shown = brain.images(brain.stimulus_ids("test"))
    mean = brain.images(brain.stimulus_ids("train")).mean(axis=0)
    score = pcc(drawn, shown)
    assert score > pcc(np.stack([mean] * len(shown)), shown) + 0.2
    assert score > pcc(np.roll(drawn, 1, axis=0), shown) + 0.2

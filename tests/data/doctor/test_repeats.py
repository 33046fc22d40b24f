import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from cadiff.data.dataset import BrainDataset
from cadiff.data.doctor import repeats
from cadiff.data.doctor.folder import open_folder
from cadiff.data.doctor.scan import scan_betas
from cadiff.data.reliability import noise_ceiling


def judge(ward):
    folder = open_folder(ward.folder)
    found = repeats.examine_repeats(folder, scan_betas(folder, progress=False))
    return repeats.check_reliability(folder, found), found, folder


def test_ceilings_are_those_of_the_repeated_split(ward):
    finding, found, _ = judge(ward)
    dataset = BrainDataset.open(ward.folder)
    rows = dataset.rows("test")
    wanted = noise_ceiling(dataset.betas[rows], list(dataset.trials["stimulus_id"].iloc[rows]))
    np.testing.assert_allclose(found.ceilings, wanted)
    assert finding.verdict == "ok" and finding.details["split"] == "test"


def test_blocks_of_voxels_change_nothing(ward, monkeypatch):
    _, whole, _ = judge(ward)
    monkeypatch.setattr(repeats, "BLOCK_VOXELS", 17)
    _, blocks, _ = judge(ward)
    np.testing.assert_allclose(whole.ceilings, blocks.ceilings)
    np.testing.assert_allclose(whole.halves, blocks.halves)


def test_many_repeats_are_sampled_and_that_is_said(ward, monkeypatch):
    monkeypatch.setattr(repeats, "MAX_TRIALS", 30)
    finding, found, _ = judge(ward)
    assert found.trials == 30 and found.stimuli == 5
    assert finding.sample == "30 trials of 5 stimuli at random"


def test_repeats_that_are_not_alike_are_a_warning(ward):
    ward.betas = np.random.default_rng(3).normal(size=ward.betas.shape)
    assert judge(ward)[0].verdict == "warning"


def test_nothing_repeated_is_not_asked(ward):
    trials = ward.table("trials")
    ward.betas = ward.betas[(trials["split"] == "train").to_numpy()]
    ward.put("trials", trials[trials["split"] == "train"])
    finding, _, folder = judge(ward)
    assert finding.verdict == "not applicable"
    assert "noise ceilings come with the dataset" in finding.found
    assert repeats.roi_table(folder, repeats.Repeats())[0]["roi"] == "V1"


def test_ceilings_of_other_voxels_are_noticed(ward):
    voxels = ward.table("voxels")
    ward.put("voxels", voxels.assign(noise_ceiling=voxels["noise_ceiling"].to_numpy()[::-1]))
    finding = judge(ward)[0]
    assert finding.verdict == "warning" and "order of the betas" in finding.do


def test_alike_is_uniform_without_signal_and_sure_with_it(rng):
    names = np.tile(np.arange(10), 4).astype(str)
    trials = pd.DataFrame({"session": 1, "run": np.repeat([1, 2, 3, 4], 10)})
    runs = repeats.run_numbers(trials)
    noise = [repeats.clean_patterns(trials, rng.normal(size=(40, 30))) for _ in range(80)]
    found = [repeats.repeats_alike(patterns, names, runs, rng, 39).p for patterns in noise]
    assert kstest(found, "uniform").pvalue > 0.01  # although the means of runs were taken off
    signal = np.tile(rng.normal(size=(10, 30)), (4, 1))
    sure = repeats.repeats_alike(signal + rng.normal(size=(40, 30)), names, runs, rng, 99)
    assert sure.p == pytest.approx(0.01) and sure.pairs == 60
    assert repeats.repeats_alike(signal, np.full(40, "one"), runs, rng) is None
    assert repeats.repeats_alike(signal, names, np.arange(40) % 10, rng) is None  # all repeats in one run


def test_clean_patterns_lose_levels_and_trends_of_runs(rng):
    trials = pd.DataFrame({"session": 1, "run": np.repeat([1, 2, 3], 20)})
    response = rng.normal(size=(60, 5))
    ramp = np.tile(np.linspace(-30, 30, 20), 3)[:, None]
    drifting = response + 100.0 * trials[["run"]].to_numpy() + ramp
    np.testing.assert_allclose(
        repeats.clean_patterns(trials, drifting), repeats.clean_patterns(trials, response), atol=1e-3
    )


def test_roi_table_has_areas_before_their_unions(ward):
    _, found, folder = judge(ward)
    table = repeats.roi_table(folder, found)
    assert [row["roi"] for row in table] == ["V1", "V2", "LVC", "VC", "all"]
    assert all(sum(row["histogram"]) == row["known"] == row["voxels"] for row in table)

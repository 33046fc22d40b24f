"""Components from Gram matrices of distinct stimuli against a singular value decomposition of all trials."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from cadiff.baselines import components
from cadiff.baselines.components import fit_components
from cadiff.baselines.stage import run_baseline
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.diffuse.start import LatentStart
from cadiff.errors import DataError


def trials(rng, stimuli, voxels=12):
    """Betas, the stimulus of each trial, and its name; stimuli are shown once to three times."""
    which = rng.permutation(np.repeat(np.arange(stimuli), rng.integers(1, 4, stimuli)))
    betas = torch.from_numpy(rng.normal(size=(len(which), voxels)).astype(np.float32))
    return betas, torch.from_numpy(which), [f"s{i}" for i in which]


@pytest.mark.parametrize("shape", [(15, 6, 5, 3), (40, 2, 3, 3)], ids=["few stimuli", "few pixels"])
@pytest.mark.parametrize("count", [None, 5])
@pytest.mark.parametrize("per_target", [False, True])
def test_they_are_those_of_all_trials(shape, count, per_target, rng, monkeypatch):
    monkeypatch.setattr(components, "SLICE", 150)  # so that several slices are summed
    pictures = rng.integers(0, 256, shape, dtype=np.uint8)
    betas, which, ids = trials(rng, len(pictures))
    options = {"per_target": per_target, "seed": 3}
    found, ridge = fit_components(betas, pictures, which, ids, scale=1 / 255, num_components=count, **options)
    flat = torch.from_numpy(pictures.reshape(len(pictures), -1) / 255.0)[which]
    every, expected = LatentStart.fit(betas, flat, ids, num_components=count or len(flat), **options)
    k = len(found.components)
    assert k == (count or min(shape[0] - 1, 18))
    signs = (found.components * every.components[:k]).sum(1).sign()[:, None]
    np.testing.assert_allclose(signs * found.components, every.components[:k], atol=1e-6)
    np.testing.assert_allclose(found.mean, every.mean, atol=1e-7)
    assert (
        ridge.penalty == expected.penalty or per_target
    )  # there the median counts components of no variance too
    if per_target:
        assert ridge.penalties is not None and expected.penalties is not None
        np.testing.assert_array_equal(ridge.penalties, expected.penalties[:k])
    assert ridge.score == pytest.approx(expected.score, abs=1e-9)
    np.testing.assert_allclose(found(betas), every(betas), atol=2e-6)


def test_nothing_is_copied_for_every_trial(rng):
    pictures = rng.integers(0, 256, (20, 60, 60, 3), dtype=np.uint8)
    which = torch.arange(20).repeat(10)
    betas, ids = torch.from_numpy(rng.normal(size=(200, 5))), [str(int(i)) for i in which]
    tracemalloc.start()
    fit_components(betas, pictures, which, ids, scale=1 / 255)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.7 * 200 * 10800 * 8  # pixels of all trials in float64


def test_equal_pictures_and_a_single_stimulus_are_one_sentence(rng, tmp_path):
    alike = np.full((4, 8, 8, 3), 7, np.uint8)
    with pytest.raises(DataError, match="All training pictures are the same"):
        fit_components(torch.eye(4), alike, torch.arange(4), list("abcd"))
    ids = ["only", "test-0", "test-1"]
    write_dataset(
        tmp_path / "data",
        name="one",
        subject="sub-01",
        betas=rng.normal(size=(3, 4)),
        trials=pd.DataFrame(
            {"stimulus_id": ids, "split": ["train", "test", "test"], "session": 1, "run": 1, "repeat": 1}
        ),
        voxels=pd.DataFrame({"rois": ["V1"] * 4}),
        stimuli=pd.DataFrame({"stimulus_id": ids}),
        images={name: rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) for name in ids},
    )
    assert BrainDataset.open(tmp_path / "data").stimulus_ids("train") == ["only"]
    with pytest.raises(
        DataError, match=r"one training stimulus or class \(only\), and ridge regression needs two or more"
    ):
        run_baseline("ridge-pixels", tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()

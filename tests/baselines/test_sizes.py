"""Training pictures of different sizes or no squares: every baseline takes the side that `bayes` takes, and says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from cadiff.artifacts import read_json
from cadiff.baselines.bayes import Bayes
from cadiff.baselines.stage import find_baseline, run_baseline
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.encoding import EncodingModel
from cadiff.encoding.pictures import common_side, shown_pictures
from cadiff.evaluate.pictures import open_reconstructions

FEATURES: dict[str, dict[str, Any]] = {
    "bayes": {"features": "pixels"},
    "ridge-retrieval": {"features": "pixels"},
}
NAMES = ["ridge-pixels", "retrieval", "ridge-retrieval", "mean-image", "class-mean", "bayes"]


def world(folder, rng, extents):
    ids = [f"s{i}" for i in range(len(extents))]
    images = {
        name: rng.integers(1, 255, (*e, 3)).astype(np.uint8) for name, e in zip(ids, extents, strict=True)
    }
    split = ["train"] * (len(ids) - 2) + ["test"] * 2
    write_dataset(
        folder,
        name="sizes",
        subject="sub-01",
        betas=rng.normal(size=(len(ids), 6)),
        trials=pd.DataFrame({"stimulus_id": ids, "split": split, "session": 1, "run": 1, "repeat": 1}),
        voxels=pd.DataFrame({"rois": ["V1"] * 6}),
        stimuli=pd.DataFrame({"stimulus_id": ids, "label": ["a", "b"] * (len(ids) // 2)}),
        images=images,
    )
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_different_sizes_are_brought_to_the_side_of_the_first(name, tmp_path, rng):
    folder = world(tmp_path / "data", rng, [(16 + i, 20) for i in range(10)])
    data, options = BrainDataset.open(folder), FEATURES.get(name, {})
    side = Bayes.fit(data, data.rows("train"), features="pixels").images.shape[1]
    assert side == 16
    out = run_baseline(name, folder, tmp_path / "out", **options)
    found = open_reconstructions(out)
    assert found.images(found.conditions[0]).shape == (2, 1, side, side, 3)
    about = read_json(out / "config.json")
    assert about["config"]["options"]["size"] == side
    assert "16, the shorter side of the first training picture" in about["provenance"]["picture_size"]
    asked = run_baseline(name, folder, tmp_path / "asked", size=side, **options)
    assert "picture_size" not in read_json(asked / "config.json")["provenance"]
    for file in found.table["file"]:
        assert (out / file).read_bytes() == (asked / file).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_without_the_stage_takes_the_same_side(name, tmp_path, rng):
    data = BrainDataset.open(world(tmp_path / "data", rng, [(16 + i, 20) for i in range(10)]))
    rows, test = data.rows("train"), data.stimulus_ids("test")
    fitted = find_baseline(name).fit(data, rows, **FEATURES.get(name, {}))
    shown = fitted.reconstruct(data.betas[data.rows("test")], stimulus_ids=test, repeats=np.ones(2, int))
    assert shown.shape == (2, 1, 16, 16, 3)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_squares_of_one_size_stay_as_they_are_and_others_give_their_middle_squares(name, tmp_path, rng):
    folder = world(tmp_path / "squares", rng, [(12, 12)] * 10)
    out = run_baseline(name, folder, tmp_path / "as-they-are", **FEATURES.get(name, {}))
    found, about = open_reconstructions(out), read_json(out / "config.json")
    assert found.images(found.conditions[0]).shape[2:4] == (12, 12)
    assert "size" not in about["config"]["options"] and "picture_size" not in about["provenance"]
    folder = world(tmp_path / "wide", rng, [(12, 20)] * 10)
    out = run_baseline(name, folder, tmp_path / "middle", **FEATURES.get(name, {}))
    found, about = open_reconstructions(out), read_json(out / "config.json")
    assert found.images(found.conditions[0]).shape[2:4] == (12, 12)
    assert about["config"]["options"]["size"] == 12 and "no squares" in about["provenance"]["picture_size"]


def test_an_encoding_model_takes_pictures_of_different_sizes(tmp_path, rng):
    data = BrainDataset.open(world(tmp_path / "data", rng, [(16 + i, 20) for i in range(10)]))
    assert EncodingModel.fit(data, data.rows("train"), features=["pixels"]).image_shape == (16, 16)


def test_shown_pictures_are_those_of_the_dataset(tmp_path, rng):
    data = BrainDataset.open(world(tmp_path / "data", rng, [(12, 12)] * 4))
    names = data.stimulus_ids("train")
    assert common_side(data, names) is None
    np.testing.assert_array_equal(shown_pictures(data, names), data.images(names))
    np.testing.assert_array_equal(shown_pictures(data, names, 9), data.images(names, 9))

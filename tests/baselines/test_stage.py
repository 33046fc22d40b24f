"""Running a baseline: what lies in the folder, what is refused, and the contract that each one keeps."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.baselines import BASELINES, find_baseline, run_baseline
from cadiff.errors import ArtifactError, ConfigError, DataError

WITHOUT_PRIOR = [name for name, entry in BASELINES.items() if name not in ("ridge-label", "true-label")]


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_of_the_table_has_both_functions(name):
    cls = find_baseline(name)
    assert callable(cls.fit)
    assert callable(cls.reconstruct)


@pytest.mark.parametrize("name", WITHOUT_PRIOR)
def test_the_folder_is_one_that_evaluate_reads(name, linear_brain, tmp_path):
    out = run_baseline(name, linear_brain, tmp_path / "out")
    about = json.loads((out / "config.json").read_text())
    assert (about["provenance"]["trials"], about["provenance"]["stimuli"]) == (30, 30)
    assert about["kind"] == "reconstructions"
    assert about["config"]["baseline"] == name
    table = pd.read_csv(out / "samples.tsv", sep="\t")
    condition = BASELINES[name].condition
    assert set(table["condition"]) == ({"brain", "shuffled"} if condition == "brain" else {condition})
    for file in table["file"]:
        with Image.open(out / file) as picture:
            assert picture.size == (16, 16)


def test_nobody_is_decoded_from_the_right_brain_in_the_shuffled_control(linear_brain, tmp_path):
    out = run_baseline("ridge-pixels", linear_brain, tmp_path / "out")
    table = pd.read_csv(out / "samples.tsv", sep="\t")

    def pictures(condition):
        rows = table[table["condition"] == condition]
        return {r.stimulus_id: np.asarray(Image.open(out / r.file)) for r in rows.itertuples()}

    brain, shuffled = pictures("brain"), pictures("shuffled")
    assert all((shuffled[name] != brain[name]).any() for name in brain)
    key = lambda images: sorted(image.tobytes() for image in images.values())  # noqa: E731
    assert key(brain) == key(shuffled)  # the same pictures, at other places


def test_an_existing_folder_is_refused_and_left_alone(linear_brain, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="never overwritten"):
        run_baseline("mean-image", linear_brain, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_unknown_names_and_options_are_refused(linear_brain, tmp_path):
    with pytest.raises(DataError, match="ridge-pixels"):
        run_baseline("ridge", linear_brain, tmp_path / "out")
    with pytest.raises(ConfigError, match="no option 'alpha'"):
        run_baseline("ridge-pixels", linear_brain, tmp_path / "out", alpha=3)
    with pytest.raises(DataError, match="cannot be found"):
        run_baseline("no_such_lab:Linear", linear_brain, tmp_path / "out")


def test_a_test_stimulus_among_the_training_ones_is_refused(linear_brain, tmp_path):
    import shutil

    leaky = tmp_path / "leaky"
    shutil.copytree(linear_brain, leaky)
    trials = (leaky / "trials.tsv").read_text().replace("train-0\ttrain", "test-0\ttrain")
    (leaky / "trials.tsv").write_text(trials)
    with pytest.raises(DataError, match="'test-0'"):
        run_baseline("ridge-pixels", leaky, tmp_path / "out")
    assert not (tmp_path / "out").exists()

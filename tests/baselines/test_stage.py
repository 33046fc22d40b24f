"""Running a baseline: what lies in the folder, what is refused, and the contract that each one keeps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.baselines import BASELINES, find_baseline, run_baseline
from cadiff.errors import ArtifactError, ConfigError, DataError

WITHOUT_PRIOR = [
    name
    for name, entry in BASELINES.items()
    if name not in ("ridge-label", "ridge-features", "true-label", "ic-gan", "ssae", "bayes-label")
]
QUICK = [
    pytest.param(name, marks=pytest.mark.slow) if name == "ridge-latents" else name for name in WITHOUT_PRIOR
]
"""The shipped prior takes a while to open."""


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_of_the_table_has_both_functions(name):
    cls = find_baseline(name)
    assert callable(cls.fit)
    assert callable(cls.reconstruct)


@pytest.mark.parametrize("name", QUICK)
def test_the_folder_is_one_that_evaluate_reads(name, linear_brain, tmp_path):
    out = run_baseline(name, linear_brain, tmp_path / "out")
    about = json.loads((out / "config.json").read_text())
    assert [about["provenance"][f"training_{what}"] for what in ("trials", "stimuli")] == [30, 30]
    assert about["kind"] == "reconstructions"
    assert about["config"]["baseline"] == name
    table = pd.read_csv(out / "samples.tsv", sep="\t")
    condition = BASELINES[name].condition
    assert set(table["condition"]) == ({"brain", "shuffled"} if condition == "brain" else {condition})
    for file in table["file"]:
        with Image.open(out / file) as picture:
            assert picture.size == ((64, 64) if name == "ridge-latents" else (16, 16))  # the prior's size


def _bytes(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("name", QUICK)
def test_a_fitted_baseline_is_opened_again_and_reconstructs_the_same(name, linear_brain, tmp_path):
    first = run_baseline(name, linear_brain, tmp_path / "first")
    again = run_baseline(name, linear_brain, tmp_path / "again", fitted=first / "model")
    assert _bytes(again) == _bytes(first)
    about = json.loads((again / "config.json").read_text())
    fitted = json.loads((first / "config.json").read_text())
    assert about["provenance"]["fitted"] == fitted["provenance"]["fitted"]
    assert about["config"] == fitted["config"]
    assert not (again / "model").exists()
    assert _bytes(run_baseline(name, linear_brain, tmp_path / "third", fitted=first)) == _bytes(first)


def test_a_fitted_baseline_is_for_its_subject_and_never_for_what_it_was_fitted_on(linear_brain, tmp_path):
    from cadiff.data.dataset import BrainDataset
    from cadiff.data.splits import resplit

    model = run_baseline("retrieval", linear_brain, tmp_path / "out") / "model"
    data = BrainDataset.open(linear_brain)
    turned = resplit(data, tmp_path / "turned", ["train-3", "train-4"])
    with pytest.raises(DataError, match="fitted on test stimulus 'train-3'"):
        run_baseline("retrieval", turned, tmp_path / "x", fitted=model)
    about = json.loads((linear_brain / "dataset_description.json").read_text())
    shutil.copytree(linear_brain, tmp_path / "stranger")
    (tmp_path / "stranger" / "dataset_description.json").write_text(
        json.dumps({**about, "subject": "sub-02"})
    )
    with pytest.raises(DataError, match=r"40 voxels of sub-01, but .* 40 of sub-02"):
        run_baseline("retrieval", tmp_path / "stranger", tmp_path / "x", fitted=model)
    with pytest.raises(DataError, match="holds the baseline 'retrieval', not 'ridge-pixels'"):
        run_baseline("ridge-pixels", linear_brain, tmp_path / "x", fitted=model)
    with pytest.raises(ConfigError, match="'size' is an option of the fit"):
        run_baseline("retrieval", linear_brain, tmp_path / "x", fitted=model, size=8)
    with pytest.raises(ArtifactError, match="holds no baseline"):
        run_baseline("retrieval", linear_brain, tmp_path / "x", fitted=tmp_path / "nowhere")
    assert not (tmp_path / "x").exists()
    bare = run_baseline("retrieval", linear_brain, tmp_path / "bare", save_model=False)
    assert not (bare / "model").exists()


@pytest.mark.parametrize("name", ["ridge-pixels", "ridge-retrieval", "retrieval", "bayes"])
def test_every_reader_of_brains_beats_the_mean_image_on_an_easy_subject(name, linear_brain, tmp_path):
    from cadiff.data.dataset import BrainDataset

    data = BrainDataset.open(linear_brain)

    def error(out, condition):
        table = pd.read_csv(out / "samples.tsv", sep="\t").query("condition == @condition")
        pairs = [
            (np.asarray(Image.open(out / r.file)), data.image(r.stimulus_id)) for r in table.itertuples()
        ]
        return float(np.mean([((a.astype(float) - b) ** 2).mean() for a, b in pairs]))

    out = run_baseline(name, linear_brain, tmp_path / "out")
    mean = error(run_baseline("mean-image", linear_brain, tmp_path / "mean"), "mean_image")
    assert error(out, "brain") < mean
    assert error(out, "shuffled") > error(out, "brain")
    fitted = json.loads((out / "config.json").read_text())["provenance"]["fitted"]
    assert fitted


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
    leaky = tmp_path / "leaky"
    shutil.copytree(linear_brain, leaky)
    trials = (leaky / "trials.tsv").read_text().replace("train-0\ttrain", "test-0\ttrain")
    (leaky / "trials.tsv").write_text(trials)
    with pytest.raises(DataError, match="'test-0'"):
        run_baseline("ridge-pixels", leaky, tmp_path / "out")
    assert not (tmp_path / "out").exists()

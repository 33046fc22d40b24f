"""Pictures that are no test pictures of this dataset, or no pictures at all: refused or said, never scored in silence."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.artifacts import dataset_digest, read_json, write_json
from cadiff.errors import DataError
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.looks import NAME, read_ledger

PIXELS = EvaluateConfig(judge=None, num_bootstrap=100)


@pytest.fixture
def data(linear_brain, tmp_path):
    return shutil.copytree(linear_brain, tmp_path / "data", ignore=shutil.ignore_patterns(f"*{NAME}*"))


@pytest.fixture
def trained(data):
    """The same subject, its test stimuli in training and others tested."""
    folder = shutil.copytree(data, data.parent / "trained")
    trials = pd.read_csv(folder / "trials.tsv", sep="\t")
    own = trials["stimulus_id"].str.startswith("test")
    trials["split"] = np.where(own, "train", np.where(trials["stimulus_id"] < "train-2", "test", "train"))
    trials.to_csv(folder / "trials.tsv", sep="\t", index=False)
    return folder


def says(folder, **config):
    about = read_json(folder / "config.json")
    write_json(folder / "config.json", {**about, "config": {**about["config"], **config}})


def drawn_from(folder, digest):
    inputs = {"provenance": {"inputs": {"dataset": digest}}}
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **inputs})


def test_training_stimuli_are_not_scored_as_test_stimuli(write_reconstructions, trained, tmp_path):
    folder = write_reconstructions(brain=0.3)
    with pytest.raises(
        DataError, match=r"None of the 6 stimuli .* in the test split of .*'test-0', in train\)"
    ):
        evaluate(PIXELS, folder, trained, tmp_path / "e")
    drawn_from(folder, "0" * 64)
    with pytest.raises(DataError, match="in train\\); they were drawn from another dataset"):
        evaluate(PIXELS, folder, trained, tmp_path / "e")
    assert not (trained / NAME).exists() and not (tmp_path / "e").exists()


def test_training_trials_that_say_so_are_scored_and_are_no_look(write_reconstructions, trained, tmp_path):
    folder = write_reconstructions(brain=0.3)
    says(folder, split="train")
    found = read_json(evaluate(PIXELS, folder, trained, tmp_path / "e") / "evaluation.json")
    assert found["stimuli"]["split"] == "train" and "no look at the test split" in found["integrity"]["stamp"]
    assert read_ledger(trained / NAME) == ([], True)


def test_pictures_of_another_dataset_say_so(write_reconstructions, data, tmp_path):
    folder = write_reconstructions(brain=0.3)
    drawn_from(folder, "0" * 64)
    with pytest.warns(UserWarning, match="brain: drawn from another dataset"):
        out = evaluate(PIXELS, folder, data, tmp_path / "e")
    assert "another dataset" in read_json(out / "evaluation.json")["warnings"]["brain"]
    drawn_from(folder, dataset_digest(read_json(data / "dataset_description.json")))
    found = read_json(evaluate(PIXELS, folder, data, tmp_path / "same") / "evaluation.json")
    assert found["warnings"] == {}


def test_pictures_of_one_colour_are_counted_and_named(write_reconstructions, data, tmp_path):
    folder = write_reconstructions(brain=0.3, shuffled=0.3)
    files = sorted((folder / "images" / "brain").iterdir())
    for file, colour in ((files[3], (255, 255, 255)), (files[7], (10, 200, 30))):
        Image.new("RGB", (16, 16), colour).save(file)
    with pytest.warns(UserWarning) as told:
        out = evaluate(PIXELS, folder, data, tmp_path / "e")
    sentence = f"2 of 12 pictures are of one colour (first: {files[3].name})"
    assert [str(one.message) for one in told] == [f"brain: {sentence}."]
    found = read_json(out / "evaluation.json")
    assert found["warnings"] == {"brain": sentence}
    assert "0 for a picture of one colour" in found["metrics"]["pcc"]["meaning"]
    assert "equally like ones counted one half" in found["metrics"]["two_way_pixels"]["meaning"]
    rows = pd.read_csv(out / "per_sample.tsv", sep="\t").query("condition == 'brain'")
    blank = rows[rows["file"].str.endswith((files[3].name, files[7].name))]
    assert (blank["pcc"] == 0).all() and (blank["two_way_pixels"] == 0.5).all() and len(blank) == 2


def test_a_rival_of_another_size_is_told_the_setting_that_helps(write_reconstructions, data, tmp_path):
    folder = write_reconstructions(brain=0.3)
    rival = shutil.copytree(folder, tmp_path / "rival")
    for file in rival.rglob("*.png"):
        Image.open(file).resize((24, 24)).save(file)
    with pytest.raises(DataError, match=r"ridge is 24 x 24 pixels, others 16 x 16; .*: --set size=16\.$"):
        evaluate(PIXELS, folder, data, tmp_path / "e", against={"ridge": rival})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = PIXELS.model_copy(update={"size": 16})
        evaluate(config, folder, data, tmp_path / "e", against={"ridge": rival})

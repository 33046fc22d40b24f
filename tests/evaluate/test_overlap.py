"""The audit of test against training pictures, on photos: what is found, what is not, and the headline without it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.artifacts import read_json
from cadiff.data.dataset import write_dataset
from cadiff.data.stimulus_sets import load_stimuli
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.metrics import metric_table
from cadiff.evaluate.overlap import audit, without
from cadiff.evaluate.pictures import open_stimuli
from cadiff.evaluate.summary import Draws

TRAIN, TEST = 60, 8


@pytest.fixture(scope="module")
def photos():
    stimuli = load_stimuli(None)
    names = sorted(stimuli.table["stimulus_id"])
    chosen = np.random.default_rng(0).permutation(names)[: TRAIN + TEST]
    return stimuli.images(list(chosen), 64)


@pytest.fixture
def dataset(photos, tmp_path):
    """write(**changed) -> folder of 60 training and 8 test photos, some pictures replaced."""

    def write(also_trained=(), **changed):
        ids = [f"train-{i}" for i in range(TRAIN)] + [f"test-{i}" for i in range(TEST)]
        images = dict(zip(ids, photos, strict=True)) | {
            name.replace("_", "-"): v for name, v in changed.items()
        }
        trials = [(name, name.split("-")[0]) for name in ids] + [(name, "train") for name in also_trained]
        table = pd.DataFrame(trials, columns=["stimulus_id", "split"]).assign(session=1, run=1, repeat=1)
        return write_dataset(
            tmp_path / "dataset",
            name="photos",
            subject="sub-01",
            betas=np.zeros((len(table), 3), np.float32),
            trials=table,
            voxels=pd.DataFrame({"rois": ["V1"] * 3}),
            stimuli=pd.DataFrame({"stimulus_id": ids, "label": "x"}),
            images=images,
        )

    return write


def ids_of(folder):
    stimuli = open_stimuli(folder)
    return stimuli, [f"test-{i}" for i in range(TEST)]


def enlarged(picture, side=96):
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def test_different_photos_are_left_alone(dataset):
    found = audit(*ids_of(dataset()))
    assert found is not None and found.affected == [] and found.num_compared == TRAIN
    assert found.sentence == "None of 8 test pictures is, or looks like, one of the 60 training pictures."


def test_copies_and_look_alikes_are_told_apart(dataset, photos):
    folder = dataset(train_5=photos[TRAIN + 2], train_9=enlarged(photos[TRAIN + 4]))
    found = audit(*ids_of(folder))
    assert found is not None
    assert found.copies == [("test-2", "train-5")]
    assert [pair[:2] for pair in found.alike] == [("test-4", "train-9")] and 0.8 < found.alike[0][2] <= 1
    assert found.affected == ["test-2", "test-4"] and not found.may_be_chance
    assert found.sentence.startswith("2 of 8 test pictures were met in training: 1 the same file")
    kinds = {pair["test"]: pair["kind"] for pair in found.as_json()["pairs"]}
    assert kinds == {"test-2": "same file", "test-4": "look-alike"}


def test_a_stimulus_on_both_sides_is_found_by_its_id(dataset):
    found = audit(*ids_of(dataset(also_trained=["test-3"])))
    assert found is not None and found.same_id == ["test-3"] == found.affected and found.copies == []


def test_training_pictures_without_files_are_said_to_be_missing(dataset, photos):
    folder = dataset(train_5=photos[TRAIN + 2])
    table = pd.read_csv(folder / "stimuli.tsv", sep="\t", keep_default_na=False)
    table.loc[table["stimulus_id"].str.startswith("train"), ["file", "sha256"]] = "n/a"
    table.to_csv(folder / "stimuli.tsv", sep="\t", index=False)
    found = audit(*ids_of(folder))
    assert found is not None and found.num_compared == 0 and found.affected == []
    assert "no training picture has a readable file" in found.sentence
    checksums = open_stimuli(folder)  # a checksum on record is enough to know a copy again
    checksums.loc["train-5", "sha256"] = checksums.loc["test-2", "sha256"]
    found = audit(checksums, [f"test-{i}" for i in range(TEST)])
    assert found is not None and found.copies == [("test-2", "train-5")]


def test_broken_training_pictures_do_not_stop_an_evaluation(dataset):
    folder = dataset()
    (folder / "stimuli" / "train-0.png").write_bytes(b"no picture")
    found = audit(*ids_of(folder))
    assert found is not None and found.num_compared == TRAIN - 1
    assert "59 training pictures that could be looked at, of 60" in found.sentence


def test_a_folder_of_pictures_knows_no_training(tmp_path, photos):
    for i in range(3):
        Image.fromarray(photos[i]).save(tmp_path / f"{i}.png")
    assert audit(open_stimuli(tmp_path), ["0", "1"]) is None


def test_the_headline_without_them_is_the_mean_of_the_others(rng):
    brain, control = rng.random(6), rng.random(6)
    ids, draws, metrics = list("abcdef"), Draws(200, 0), metric_table(5, (1,), None)
    found = without(["b", "e"], ids, metrics["mse"], brain, control, draws)
    assert found is not None and found["n"] == 4
    kept = [0, 2, 3, 5]
    assert found["mean"] == pytest.approx(brain[kept].mean())
    assert found["gain"] == pytest.approx((control - brain)[kept].mean())  # of an error less is better
    assert found["gain_ci95"][0] <= found["gain"] <= found["gain_ci95"][1]
    assert without([], ids, metrics["mse"], brain, control, draws) is None
    assert without(ids[:5], ids, metrics["mse"], brain, control, draws) is None


def test_an_evaluation_says_it(dataset, photos, tmp_path):
    folder, pictures = dataset(train_5=photos[TRAIN + 2]), tmp_path / "pictures"
    pictures.mkdir()
    for i in range(TEST):
        noise = np.random.default_rng(i).normal(scale=40, size=photos[0].shape)
        Image.fromarray(np.clip(photos[TRAIN + i] + noise, 0, 255).astype(np.uint8)).save(
            pictures / f"test-{i}.png"
        )
    config = EvaluateConfig(judge=None, num_bootstrap=100, train_pictures=20)
    found = read_json(evaluate(config, pictures, folder, tmp_path / "e") / "evaluation.json")
    overlap = found["integrity"]["overlap"]
    assert overlap["affected"] == ["test-2"] and overlap["headline_without"]["n"] == TEST - 1
    assert overlap["headline_without"]["control"] == found["from_the_brain"]["pcc"]["control"]

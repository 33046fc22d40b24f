"""The mean picture of the true class, and why it may be absent."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.evaluate import pixel
from cadiff.evaluate.judging import Judge
from cadiff.evaluate.pictures import stimulus_images
from cadiff.evaluate.scores import Protocol, Seen
from cadiff.evaluate.training_pictures import World, class_mean

SIZE = (12, 12)


@pytest.fixture
def world(rng, tmp_path):
    """make(labels of training, labels of test) -> world without a judge."""

    def make(train, test):
        names = [f"train-{i}" for i in range(len(train))] + [f"test-{i}" for i in range(len(test))]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        table = pd.DataFrame({"label": [*train, *test]}, index=names)
        table["path"] = table["file"] = [str(tmp_path / f"{name}.png") for name in names]
        table["split"] = ["train"] * len(train) + ["test"] * len(test)
        ids = names[len(train) :]
        return World(
            table, ids, SIZE, Judge(None), Seen(stimulus_images(table, ids, SIZE)), Protocol(5, (1,))
        )

    return make


def test_each_stimulus_gets_the_mean_of_its_class(world):
    made = world(["cat", "cat", "dog", "cow"], ["dog", "cat", "cat"])
    found = class_mean(made)
    assert not isinstance(found, str)
    scores, wrong = found
    cats = made.picture(["train-0", "train-1"]).mean(axis=0)
    dogs = made.picture(["train-2"])[0].astype(float)
    shown = np.rint(np.stack([dogs, cats, cats])).astype(np.uint8)
    np.testing.assert_allclose(scores["pcc"], pixel.pcc(shown, made.targets.images))
    np.testing.assert_allclose(scores["ssim"], pixel.ssim(shown, made.targets.images))
    assert wrong["mse"].shape == (3,)


@pytest.mark.parametrize(
    "train, test, why",
    [
        (["cat"], ["cat", "dog"], "1 of the 2 classes of the evaluated stimuli have no training pictures"),
        (["cow"], ["cat", "dog"], "the classes of the evaluated stimuli have no training pictures"),
        (["cat"], ["cat", None], "1 of 2 stimuli have no class label"),
        ([], ["cat", "dog"], "there are no training pictures"),
    ],
)
def test_it_is_absent_where_not_all_classes_are_shared(world, train, test, why):
    assert class_mean(world(train, test)) == why

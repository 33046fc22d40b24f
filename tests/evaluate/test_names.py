import pandas as pd
import pytest

from cadiff.evaluate.names import class_names, shipped_names


def stimuli(*rows):
    table = pd.DataFrame(rows, columns=["imagenet_index", "label"])
    return table.assign(imagenet_index=table["imagenet_index"].astype("Int64"))


def test_names_come_from_whoever_has_words():
    found = class_names([1, 404, 700, 12], None, True, stimuli((404, "aeroplane"), (700, "n99999999")))
    # the shipped prior knows goldfish, the dataset aeroplanes; for 700 there is an identifier only, and 12 nobody knows
    assert found == {1: "goldfish", 404: "aeroplane", 700: "n99999999"}


def test_the_judges_own_words_come_first_and_its_identifiers_last():
    labels = [f"thing {i}, also called {i}" for i in range(1000)]
    assert class_names([1], labels, True, stimuli((1, "fish"))) == {1: "thing 1"}
    goldfish = next(name for name, words in shipped_names().items() if words.startswith("goldfish"))
    assert class_names([0, 1], [goldfish, "n99999999"], True, stimuli((1, "fish"))) == {
        0: "goldfish",
        1: "fish",
    }


@pytest.mark.parametrize("labels", [None, ["cat", "dog"]])
def test_numbers_of_other_classes_mean_nothing_to_imagenet(labels):
    found = class_names([1], labels, False, stimuli((1, "fish")))
    assert found == ({} if labels is None else {1: "dog"})

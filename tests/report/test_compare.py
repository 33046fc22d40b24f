import shutil

import numpy as np
import pandas as pd
import pytest

from cadiff.artifacts import read_json, write_json
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.statistics import compare as paired
from cadiff.evaluate.statistics import holm
from cadiff.report import compare
from cadiff.report.compare import _pairs
from cadiff.report.inputs import open_evaluated
from cadiff.report.systems import default_names, differences_to_mind, open_all

PIXELS = EvaluateConfig(judge=None, num_bootstrap=200, train_pictures=4)


@pytest.fixture
def score(write_reconstructions, linear_brain, tmp_path):
    """score(name, dataset, **noise) -> an evaluation of its own, called `name`."""

    def make(name, dataset=linear_brain, config=PIXELS, samples=2, against=None, **noise):
        seed = sum(map(ord, name))
        folder = write_reconstructions(samples=samples, seed=seed, **noise).rename(
            tmp_path / f"{name}-pictures"
        )
        return evaluate(config, folder, dataset, tmp_path / name / "evaluation", against=against)

    return make


def test_one_page_with_all_systems(score, tmp_path, open_page):
    good, bad = score("good", brain=0.2, shuffled=0.2), score("bad", brain=0.9, shuffled=0.9)
    third = score("third", brain=0.5)
    page = open_page(compare([good, bad, third], tmp_path / "page.html"))
    assert set(page.ids) >= {"compared", "numbers", "pairs", "gallery", "protocol", "run-card"}
    assert "3 systems, the same 6 images" in page.text
    assert page.images == 6 * (1 + 3)  # every stimulus once, a picture of every system
    assert "training-size" not in page.ids
    with pytest.raises(ArtifactError, match="already exists"):
        compare([good, bad], tmp_path / "page.html")


def test_pairs_are_the_paired_statistics_of_the_tables(score):
    folders = [score("a", brain=0.2), score("b", brain=0.9), score("c", brain=0.5)]
    systems = open_all(folders, None)
    pairs = _pairs(systems)
    assert next(iter(pairs)) == systems[0].evaluated.metric and set(pairs) == set(
        systems[0].scores["metrics"]
    )
    for rows in pairs.values():
        assert len(rows) == 3
        adjusted = holm(np.array([row["result"].p for row in rows]))
        np.testing.assert_allclose([row["p_holm"] for row in rows], adjusted)
    tables = [pd.read_csv(f / "per_image.tsv", sep="\t").query("condition == 'brain'") for f in folders]
    a, b = (table.set_index("stimulus_id")["mse"] for table in tables[:2])
    wanted = paired(a.to_numpy(), b.loc[a.index].to_numpy(), num_draws=200)
    row = pairs["mse"][0]
    assert (row["first"], row["second"]) == ("a", "b") and row["result"] == wanted and wanted.difference < 0


def test_folders_that_were_scored_against_are_systems_once(score, tmp_path):
    other = score("other", brain=0.9)
    rival = tmp_path / "other-pictures"
    one = score("one", brain=0.2, against={"rival": rival})
    two = score("two", brain=0.4, against={"rival": rival})
    names = [system.name for system in open_all([one, two], None)]
    assert names == ["one", "two", "rival"]
    assert [s.name for s in open_all([one, other], None)] == [
        "one",
        "other",
    ]  # the rival is there under its own name
    assert [s.name for s in open_all([one], ["us"])] == ["us", "rival"]


@pytest.mark.parametrize("key", ["training_trials", "trials"])  # the second before 2026-11-23
def test_what_a_rival_learnt_from_is_read_from_its_own_folder(score, tmp_path, key):
    score("other", brain=0.9)
    settings = tmp_path / "other-pictures" / "config.json"
    config = {"average_repeats": True, "baseline": "ridge"}
    write_json(settings, {**read_json(settings), "config": config, "provenance": {key: 7}})
    systems = open_all([score("one", brain=0.2, against={"rival": tmp_path / "other-pictures"})], None)
    assert [(s.name, s.training_trials, s.method) for s in systems] == [
        ("one", 30, "one"),
        ("rival", 7, "ridge"),
    ]


def test_names(score, tmp_path):
    assert default_names([tmp_path / "a" / "evaluation", tmp_path / "b" / "evaluation"]) == ["a", "b"]
    assert default_names([tmp_path / "ridge-evaluation", tmp_path / "x"]) == ["ridge", "x"]
    assert default_names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    one, two = score("one", brain=0.2), score("two", brain=0.4)
    for given, message in ((["x"], "take as many names"), (["x", "x"], "distinct names")):
        with pytest.raises(ConfigError, match=message):
            open_all([one, two], given)


def test_what_cannot_be_compared_is_refused(score, linear_brain, tmp_path):
    one = score("one", brain=0.2)
    with pytest.raises(ConfigError, match="two systems or more"):
        compare([one], tmp_path / "a.html")
    with pytest.raises(ConfigError, match="same pictures"):
        compare([one, one], tmp_path / "a.html")
    smaller = score("smaller", config=PIXELS.model_copy(update={"size": 12}), brain=0.2)
    with pytest.raises(
        ConfigError, match="different protocols: pictures are compared at 16 x 16 in one and 12 x 12"
    ):
        compare([one, smaller], tmp_path / "a.html")
    changed = shutil.copytree(linear_brain, tmp_path / "changed")
    shutil.copy(changed / "stimuli" / "test-1.png", changed / "stimuli" / "test-0.png")
    other = score("other", dataset=changed, brain=0.2)
    with pytest.raises(DataError, match="call different pictures 'test-0'"):
        compare([one, other], tmp_path / "a.html")


def test_other_stimuli_and_single_trials_are_refused(score, tmp_path):
    one, two = score("one", brain=0.2), score("two", brain=0.4)
    table = pd.read_csv(two / "per_image.tsv", sep="\t")
    table[table["stimulus_id"] != "test-3"].to_csv(two / "per_image.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match=r"not about the same stimuli \(6 and 5.*'test-3'"):
        compare([one, two], tmp_path / "a.html")
    table.to_csv(two / "per_image.tsv", sep="\t", index=False)
    settings = tmp_path / "two-pictures" / "config.json"
    write_json(settings, {**read_json(settings), "config": {"average_repeats": False}})
    scores = read_json(two / "evaluation.json")
    from cadiff.artifacts import folder_digest

    scores["inputs"]["reconstructions_sha256"] = folder_digest(tmp_path / "two-pictures")
    write_json(two / "evaluation.json", scores)
    with pytest.raises(ConfigError, match="presentations averaged before decoding: True in one and False"):
        compare([one, two], tmp_path / "a.html")


def test_what_differs_but_may_be_compared_is_said(score):
    systems = open_all([score("one", brain=0.2), score("two", brain=0.4, samples=3)], None)
    (remark,) = differences_to_mind(systems)
    assert remark.startswith("Unequal numbers of samples an image (one 2, two 3)")


def test_a_curve_where_training_sizes_differ(score, linear_brain, tmp_path, open_page):
    smaller = shutil.copytree(linear_brain, tmp_path / "smaller")
    trials = pd.read_csv(smaller / "trials.tsv", sep="\t")
    trials.loc[trials.index[:20], "split"] = "unlabelled"
    trials.to_csv(smaller / "trials.tsv", sep="\t", index=False)
    few, many = score("few", dataset=smaller, brain=0.5), score("many", brain=0.2)
    for evaluation, count in ((few, 10), (many, 30)):
        (system,) = open_all_primary(evaluation)
        assert system.training_trials == count
        settings = tmp_path / f"{evaluation.parent.name}-pictures" / "config.json"
        about = read_json(settings)
        about["config"]["baseline"] = "ridge"
        write_json(settings, about)
        scores = read_json(evaluation / "evaluation.json")
        from cadiff.artifacts import folder_digest

        scores["inputs"]["reconstructions_sha256"] = folder_digest(settings.parent)
        write_json(evaluation / "evaluation.json", scores)
    page = open_page(compare([few, many], tmp_path / "page.html"))
    assert "training-size" in page.ids and "10 training trials" in page.text


def open_all_primary(evaluation):
    from cadiff.report.systems import System

    evaluated = open_evaluated(evaluation)
    return [System("x", evaluated, evaluated.primary, "")]

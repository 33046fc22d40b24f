import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from cadiff.artifacts import read_json, write_json
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.report import conditions, report
from cadiff.report.inputs import open_evaluated


def test_every_condition_stands_in_one_group_the_best_first(rich_evaluation):
    evaluated = open_evaluated(rich_evaluation)
    groups = {group.kind: names for group, names in conditions.grouped(evaluated, variants=True)}
    assert groups["brain"] == ["brain"] and groups["attack"] == ["constant_test"]
    assert set(groups["rival"]) == {"ridge", "nearest_train"}
    assert set(groups["variant"]) == {"repeats_1", "repeats_2", "only_V1", "without_V1"}
    everything = [name for names in groups.values() for name in names]
    assert sorted(everything) == sorted(evaluated.scores["conditions"])
    means = [evaluated.scores["conditions"][name]["metrics"]["pcc"]["mean"] for name in groups["control"]]
    assert means == sorted(means, reverse=True)
    assert not any(group.kind == "variant" for group, _ in conditions.grouped(evaluated))


def test_every_known_condition_is_explained(rich_evaluation):
    evaluated = open_evaluated(rich_evaluation)
    for group, names in conditions.grouped(evaluated):
        for name in names:
            assert conditions.meaning(evaluated, name, group), name
            assert "{" not in conditions.meaning(evaluated, name, group)


def test_as_many_training_pictures_are_told_as_there_were(
    write_reconstructions, linear_brain, tmp_path, open_page
):
    """Two hundred are asked for by default, and this brain has seen 30 pictures."""
    config = EvaluateConfig(judge=None, num_bootstrap=200)
    folder = write_reconstructions(brain=0.3, prior_only=1.0)
    made = evaluate(config, folder, linear_brain, tmp_path / "evaluation")
    page = open_page(report(made, tmp_path / "page.html"))
    assert "the mean of 30 training pictures for every stimulus" in page.text
    assert "drawn at random; exact mean over 30, for SSIM over 8 of them" in page.text
    scores = read_json(made / "evaluation.json")
    scores["stimuli"].pop("training_pictures")  # as records were before 2026-11-23
    write_json(made / "evaluation.json", scores)
    old = open_page(report(made, tmp_path / "old.html"))
    assert "the mean of at most 200 training pictures for every stimulus" in old.text


def test_a_group_without_the_name_brain(evaluation):
    scores = read_json(evaluation / "evaluation.json")
    scores["headline"]["condition"] = "shuffled"
    write_json(evaluation / "evaluation.json", scores)
    groups = {group.kind: names for group, names in conditions.grouped(open_evaluated(evaluation))}
    assert groups["brain"] == ["shuffled"] and sorted(groups["rival"]) == ["brain", "nearest_train"]


def test_the_pieces_of_the_score_add_up(evaluation):
    evaluated = open_evaluated(evaluation)
    share = conditions.brain_share(evaluated)
    assert share is not None and share["svg"] is not None
    assert share["control_score"]["mean"] + share["row"]["difference"] == pytest.approx(
        share["score"]["mean"]
    )
    root = ElementTree.fromstring(share["svg"]["bar"])
    first, second = (e for e in root if str(e.get("class")).startswith("piece"))
    end = float(first.get("x")[:-1]) + float(first.get("width")[:-1])
    assert end == pytest.approx(float(second.get("x")[:-1]), abs=0.02)


def test_effect_sizes_are_those_of_the_comparison(evaluation):
    evaluated = open_evaluated(evaluation)
    share = conditions.brain_share(evaluated)
    assert share is not None
    for row in share["effects"]["rows"]:
        lower = row["about"]["direction"] == "lower"
        assert row["size"] == pytest.approx(
            -row["row"]["effect_size"] if lower else row["row"]["effect_size"]
        )


def test_the_table_marks_the_best_of_brain_and_rivals(rich_evaluation):
    evaluated = open_evaluated(rich_evaluation)
    table = conditions.table(evaluated)
    assert table["marks_best"]
    for i, (metric, about) in enumerate(evaluated.scores["metrics"].items()):
        rows = [row for part in table["groups"] for row in part["rows"]]
        marked = [row["cells"][i]["score"]["mean"] for row in rows if row["cells"][i]["best"]]
        names = ["brain", "ridge", "nearest_train"]
        means = [evaluated.scores["conditions"][name]["metrics"][metric]["mean"] for name in names]
        assert set(marked) == {max(means) if about["direction"] == "higher" else min(means)}


def test_metrics_that_some_conditions_lack_leave_a_gap(evaluation, tmp_path, open_page):
    from cadiff.report import report

    scores = read_json(evaluation / "evaluation.json")
    del scores["conditions"]["mean_image"]["metrics"]["ssim"]
    scores["conditions"]["random_train"]["metrics"]["pcc"]["ci95"] = None
    write_json(evaluation / "evaluation.json", scores)
    open_page(report(evaluation, tmp_path / "report.html"))
    table = conditions.table(open_evaluated(evaluation))
    gaps = [
        cell["score"] is None for part in table["groups"] for row in part["rows"] for cell in row["cells"]
    ]
    assert np.sum(gaps) == 1

import pytest

from cadiff.report import card, trust
from cadiff.report.inputs import open_evaluated


def test_nothing_without_its_key(old_evaluation):
    evaluated = open_evaluated(old_evaluation)
    assert trust.category_bias(evaluated) is None and trust.category_scores(evaluated) is None
    assert trust.required(evaluated) == []
    found = trust.seeds(evaluated)
    assert found is not None and found["components"] is None


def test_the_samples_means_average_to_the_headline(evaluation):
    evaluated = open_evaluated(evaluation)
    found = trust.seeds(evaluated)
    assert found is not None
    means = [mean for _, mean in found["means"]]
    assert sum(means) / len(means) == pytest.approx(found["score"]["mean"], rel=1e-4)
    assert (found["low"], found["high"]) == (min(means), max(means))


def test_variance_of_the_headline(evaluation):
    found = trust.seeds(open_evaluated(evaluation))
    assert found is not None
    rows = found["components"]["rows"]
    assert (
        {row["name"] for row in rows}
        == {"image", "seed", "residual"}
        == {r["name"] for r in rows if r["meaning"]}
    )
    assert sum(row["of_the_mean"] for row in rows) == pytest.approx(1)
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_required_images_against_those_there(rich_evaluation):
    evaluated = open_evaluated(rich_evaluation)
    rows = trust.required(evaluated)
    assert len({row["label"] for row in rows}) == len(rows) and sum(row["strongest"] for row in rows) == 1
    assert not any(row["group"].kind == "variant" for row in rows)
    for row in rows:
        assert row["row"]["n"] == 6 and row["plan"]["for_this_difference"] >= 2
        assert row["enough"] == (row["plan"]["for_this_difference"] <= 6)


def test_categories_are_those_of_the_key(rich_evaluation):
    evaluated = open_evaluated(rich_evaluation)
    bias = trust.category_bias(evaluated)
    assert bias is not None and [row["label"] for row in bias["rows"]] == ["Brain"]
    assert bias["stimuli"]["distinct"] == 3 and bias["common"] == "class 1"
    found = trust.category_scores(evaluated)
    assert found is not None
    assert [(row["category"], row["ends"]) for row in found["rows"]] == [
        ("fish", (0.8, 0.95)),
        ("food", None),
    ]


def test_the_ledger_lists_the_last_looks_first(evaluation, linear_brain):
    path = linear_brain / card.NAME
    before = path.read_text()
    try:
        found = card.ledger(open_evaluated(evaluation))
        assert found is not None and found["intact"] and found["rows"][0]["own"]
        numbers = [row["look"] for row in found["rows"]]
        assert numbers == sorted(numbers, reverse=True)
        path.write_text(before.replace('"look": 1,', '"look": 7,'))
        broken = card.ledger(open_evaluated(evaluation))
        assert broken is not None and not broken["intact"]
        path.unlink()
        assert card.ledger(open_evaluated(evaluation)) is None
    finally:
        path.write_text(before)

import pytest

from cadiff.artifacts import read_json, write_json
from cadiff.report import card, report, trust
from cadiff.report.inputs import open_evaluated
from cadiff.report.notes import notes


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
    assert bias["stimuli"]["distinct"] == 3 and bias["common"] == "goldfish"
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


def with_overlap(evaluation, **changed):
    """The evaluation, as if its first test picture had been met in training."""
    scores = read_json(evaluation / "evaluation.json")
    first = open_evaluated(evaluation).stimulus_ids[0]
    pair = {"test": first, "train": "train-0", "similarity": 0.97, "kind": "look-alike"}
    left = {"n": 5, "mean": 0.4, "ci95": [0.3, 0.5], "control": "prior_only", "gain": 0.1}
    scores["integrity"]["overlap"] |= {
        "sentence": "1 of 6 test pictures were met in training: 1 a look-alike of a training picture.",
        "affected": [first],
        "pairs": [pair, {**pair, "train": "train-1", "kind": "same file"}],
        "headline_without": {**left, "gain_ci95": [0.05, 0.15], "p": 0.03},
        **changed,
    }
    write_json(evaluation / "evaluation.json", scores)
    return scores


def test_test_pictures_met_in_training_are_shown_with_the_score_that_is_left(evaluation, tmp_path, open_page):
    before = open_page(report(evaluation, tmp_path / "before.html"))
    assert "None of 6 test pictures is, or looks like, one of the 30 training pictures." in before.text
    scores = with_overlap(evaluation)
    page = open_page(report(evaluation, tmp_path / "after.html"))
    assert page.images == before.images + 4 and "similarity 0.97" in page.text
    assert "Without them, over 5 images: PCC 0.400" in page.text and "prior only" in page.text
    serious = [note.title for note in notes(scores, None) if note.serious]
    assert "Test pictures were met in training" in serious


def test_look_alikes_among_look_alikes_are_no_alarm(evaluation):
    scores = with_overlap(evaluation, may_be_chance=True, headline_without=None)
    found = {note.title: note.serious for note in notes(scores, None)}
    assert found["Test pictures look like training pictures"] is False
    assert "Test pictures were met in training" not in found
    shown = trust.overlap(open_evaluated(evaluation))
    assert shown is not None and shown["left"] is None and len(shown["pairs"]) == 2


def test_nobody_asks_whether_training_pictures_were_trained_on(evaluation):
    scores = read_json(evaluation / "evaluation.json")
    scores["stimuli"]["split"] = "train"
    write_json(evaluation / "evaluation.json", scores)
    assert trust.overlap(open_evaluated(evaluation)) is None


def distances(deficient, count=12):
    frechet = {
        "distance": 3.0,
        "num_pictures": count,
        "num_targets": 12,
        "dimension": 8,
        "rank_deficient": deficient,
    }
    return {"judge": {"frechet": frechet, "kernel": {"distance": -0.0002, "ci95": [-0.01, 0.02]}}}


@pytest.mark.parametrize("deficient, columns", [(True, 1), (False, 2)])
def test_sets_are_a_table_where_they_mean_something(evaluation, tmp_path, open_page, deficient, columns):
    scores = read_json(evaluation / "evaluation.json")
    assert scores["sets"] is None and trust.sets(open_evaluated(evaluation)) is None  # no judge
    spread = {"relative_diversity": {"pixels": 0.5, "features": 0.25}}
    members = {
        "brain": {**distances(deficient), **spread},
        "prior_only": {**distances(deficient), "relative_diversity": None},
    }
    scores["sets"] = {"spaces": {"judge": "lite2, pooled"}, "conditions": members}
    write_json(evaluation / "evaluation.json", scores)
    assert trust.sets(open_evaluated(evaluation)) is None  # six stimuli are too few
    scores["stimuli"]["evaluated"] = 12
    write_json(evaluation / "evaluation.json", scores)
    found = trust.sets(open_evaluated(evaluation))
    assert found is not None and [row["label"] for row in found["rows"]] == ["Brain", "Prior only"]
    page = open_page(report(evaluation, tmp_path / "report.html"))
    assert "sets" in page.ids and "−0.0002" in page.text and "25.0 %" in page.text
    assert ("12 stimuli and 8 features" in page.text) == deficient
    assert found["frechet"] == (columns == 2)


def test_unequal_numbers_of_pictures_have_no_frechet_distance_to_compare(evaluation):
    scores = read_json(evaluation / "evaluation.json")
    none = {"relative_diversity": None}
    members = {"brain": {**distances(False), **none}, "prior_only": {**distances(False, 24), **none}}
    scores |= {
        "sets": {"spaces": {"judge": "lite2, pooled"}, "conditions": members},
        "stimuli": {"evaluated": 12},
    }
    write_json(evaluation / "evaluation.json", scores)
    found = trust.sets(open_evaluated(evaluation))
    assert found is not None and not found["frechet"] and not found["deficient"]


def test_classes_without_a_name_are_told_by_their_category(evaluation):
    scores = read_json(evaluation / "evaluation.json")
    scores["judge"] = {"class_names": {"782": "screen"}}
    write_json(evaluation / "evaluation.json", scores)
    evaluated = open_evaluated(evaluation)
    assert trust.class_name(evaluated, 782) == "screen"
    assert trust.class_name(evaluated, 207) == "class 207 (dogs)"


def test_metrics_are_explained(evaluation, tmp_path, open_page):
    made = report(evaluation, tmp_path / "report.html")
    page, scores = open_page(made), read_json(evaluation / "evaluation.json")
    for about in scores["metrics"].values():
        assert about["meaning"] in page.text  # at the end
        assert f'title="{about["meaning"]} {about["protocol"]}' in made.read_text(encoding="utf-8")

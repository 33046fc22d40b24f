import json
import re
from html.parser import HTMLParser

import pytest

from cadiff.artifacts import read_json, write_json
from cadiff.data.dataset import BrainDataset
from cadiff.errors import ArtifactError
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.report import report
from cadiff.report.facts import interval, number, p_text, verdict
from cadiff.report.notes import notes

PIXELS = EvaluateConfig(judge=None, num_bootstrap=200)
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Checks nesting and gathers what a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.images = [], [], [], 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.images += tag == "img"
        self.loads += [
            given[key] for key in ("src", "href", "xlink:href", "data", "srcset") if given.get(key)
        ]
        assert tag not in {"script", "link", "iframe", "object"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def evaluation(write_reconstructions, linear_brain, tmp_path):
    folder = write_reconstructions(brain=0.3, prior_only=1.0, shuffled=0.3)
    return evaluate(PIXELS, folder, linear_brain, tmp_path / "evaluation")


@pytest.fixture
def training_run(tmp_path):
    folder = tmp_path / "contrast"
    folder.mkdir()
    write_json(
        folder / "run.json", {"stage": "contrast", "status": "complete", "config": {"fit": {"steps": 90}}}
    )
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 91)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_page_is_one_file_with_every_section(evaluation, training_run, tmp_path):
    made = report(evaluation, tmp_path / "report.html")
    text = made.read_text(encoding="utf-8")
    page = Page(text)
    sections = {
        "headline",
        "notes",
        "numbers",
        "every-image",
        "gallery",
        "data",
        "training",
        "protocol",
        "run-card",
    }
    assert sections <= set(page.ids)
    assert all(value.startswith("data:image/png;base64,") for value in page.loads)
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?://|url\(|@import", without_pictures)
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    for word in (
        "Best:",
        "Median:",
        "Worst:",
        "Prior only",
        "Shuffled brain",
        "contrast",
        "mean-of-2",
        "Holm-corrected",
    ):
        assert word in text
    # Six stimuli in the head with a sample each; then every stimulus with two samples of three conditions.
    assert page.images == 6 * 2 + 6 * (1 + 2 * 3)


def test_a_folder_gets_a_file_and_nothing_is_overwritten(evaluation, tmp_path):
    made = report(evaluation, tmp_path / "page")
    assert made == tmp_path / "page" / "report.html" and made.is_file()
    with pytest.raises(ArtifactError, match="already exists"):
        report(evaluation, tmp_path / "page")


def test_pictures_that_changed_or_went_away_are_refused(evaluation, tmp_path):
    moved = (tmp_path / "reconstructions").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="move them back"):
        report(evaluation, tmp_path / "a.html")
    report(evaluation, tmp_path / "b.html", reconstructions=moved)
    next(moved.glob("images/brain/*.png")).unlink()
    with pytest.raises(ArtifactError, match="changed since"):
        report(evaluation, tmp_path / "c.html", reconstructions=moved)
    with pytest.raises(ArtifactError, match=r"No evaluation.json"):
        report(moved, tmp_path / "d.html")


def test_text_from_the_data_cannot_become_markup(evaluation, linear_brain, tmp_path):
    about = read_json(evaluation / "evaluation.json")
    about["dataset"]["subject"] = "<script>alert(1)</script>"
    write_json(evaluation / "evaluation.json", about)
    Page(report(evaluation, tmp_path / "report.html").read_text(encoding="utf-8"))


def fake(gain, low, high, p, difference=None):
    difference = gain if difference is None else difference
    row = {"control": "shuffled", "gain": gain, "difference": difference, "ci95": [low, high], "p_holm": p}
    return {
        "headline": {"metric": "m", "condition": "brain"},
        "metrics": {"m": {"percent": difference == gain}},
        "conditions": {"shuffled": {"label": "Shuffled brain"}},
        "from_the_brain": {"m": row},
    }


def test_the_verdict_needs_an_interval_and_a_p_value():
    assert verdict(fake(0.2, 0.1, 0.3, 0.001)) == (
        True,
        "The pictures follow the brain: +20.0 points over the strongest control, shuffled brain "
        "(95 % interval 10.0 to 30.0 points; paired permutation over images, Holm-corrected p = 0.0010).",
    )
    assert verdict(fake(0.2, -0.1, 0.3, 0.001))[0] is False
    assert verdict(fake(0.2, 0.1, 0.3, 0.2))[0] is False
    assert verdict(fake(-0.2, -0.3, -0.1, 0.001))[0] is False
    shows, sentence = verdict(fake(0.02, -0.03, -0.01, 0.001, difference=-0.02))  # MSE: lower is better
    assert shows and "+0.020" in sentence and "0.010 to 0.030" in sentence
    assert verdict({**fake(0, 0, 0, 1), "from_the_brain": {}})[0] is None


def test_numbers_for_people():
    assert (number(0.123, True), number(-0.0512, False, signed=True)) == ("12.3 %", "−0.051")
    assert (interval((0.1, 0.256), True), p_text(0.00001), p_text(0.25)) == (
        "10.0 to 25.6 %",
        "p < 0.0001",
        "p = 0.25",
    )


def test_notes_say_what_flatters(evaluation, linear_brain):
    scores, data = read_json(evaluation / "evaluation.json"), BrainDataset.open(linear_brain)
    titles = [note.title for note in notes(scores, data)]
    assert titles[0] == "Test categories were seen in training" and "Few test images" in titles
    assert "The brain is simulated" not in titles
    data.description.update(simulated=True, snr=0.7)
    scores["stimuli"] = {"evaluated": 4, "in_test_split": 6}
    serious = {note.title for note in notes(scores, data) if note.serious}
    assert {
        "The brain is simulated",
        "The signal is stronger than in real data",
        "Not the whole test set",
    } <= serious


def test_training_images_are_not_passed_off_as_test_images(evaluation, linear_brain):
    scores = read_json(evaluation / "evaluation.json")
    scores["stimuli"]["split"] = "train"
    serious = [note.title for note in notes(scores, BrainDataset.open(linear_brain)) if note.serious]
    assert "These are not test images" in serious

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cadiff.artifacts import read_json, write_json
from cadiff.data.dataset import BrainDataset
from cadiff.errors import ArtifactError
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.report import compare, report
from cadiff.report.facts import interval, number, p_text, plural, verdict
from cadiff.report.inputs import open_evaluated
from cadiff.report.notes import notes

PIXELS = EvaluateConfig(judge=None, num_bootstrap=200, train_pictures=0)
EVERY = {
    "decoded",
    "headline",
    "compared",
    "from-the-brain",
    "numbers",
    "every-image",
    "gallery",
    "trust",
    "notes",
    "seeds",
    "ledger",
    "data",
    "training",
    "protocol",
    "run-card",
}
RICH = {"parts", "repeats", "rois", "voxels", "categories", "per-category"}


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


def test_the_page_is_one_file_with_every_section(evaluation, training_run, tmp_path, open_page):
    made = report(evaluation, tmp_path / "report.html")
    page, text = open_page(made), made.read_text(encoding="utf-8")
    assert set(page.ids) >= EVERY | {"required-images"} and not RICH & set(page.ids)
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?://|url\(|@import", without_pictures)
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    for word in ("Best:", "Median:", "Worst:", "Prior only", "Shuffled brain", "contrast", "Holm-corrected"):
        assert word in page.text
    # Six stimuli in the head with a sample each; then every stimulus with two samples of three conditions, and none of the
    # controls made of training pictures.
    assert page.images == 6 * 2 + 6 * (1 + 2 * 3)


def test_the_order_of_the_answers(rich_evaluation, tmp_path, open_page):
    ids = open_page(report(rich_evaluation, tmp_path / "report.html")).ids
    assert set(ids) >= EVERY | RICH
    wanted = "decoded headline compared from-the-brain numbers parts gallery trust categories seeds ledger run-card"
    places = [ids.index(name) for name in wanted.split()]
    assert places == sorted(places)


def test_every_number_carries_its_protocol(evaluation, tmp_path):
    text = report(evaluation, tmp_path / "report.html").read_text(encoding="utf-8")
    scores = read_json(evaluation / "evaluation.json")
    look = scores["integrity"]["looks_before"] + 1
    tail = f"/look-{look}/selected-on-undeclared"
    for condition in scores["conditions"].values():
        for score in condition["metrics"].values():
            assert f'title="{score["protocol"]}{tail}"' in text
    lead = scores["conditions"]["brain"]["metrics"][scores["headline"]["metric"]]
    assert f"<code>{lead['protocol']}{tail}</code>" in text
    # best of k is there, under its own protocol and beside the mean
    assert (
        f'title="{lead["best_of"]["protocol"]}{tail}"' in text and "best-of-2" in lead["best_of"]["protocol"]
    )


def test_older_evaluations_still_render(old_evaluation, tmp_path, open_page):
    page = open_page(report(old_evaluation, tmp_path / "report.html"))
    assert set(page.ids) >= EVERY and not RICH & set(page.ids)
    assert "before looks were counted" in page.text


def test_the_stamp_and_the_ledger_are_shown(evaluation, tmp_path, open_page):
    stamp = read_json(evaluation / "evaluation.json")["integrity"]["stamp"]
    page = open_page(report(evaluation, tmp_path / "report.html"))
    assert (
        page.text.count(stamp) == 2 and "chain of hashes is whole" in page.text and "this system" in page.text
    )


def test_other_peoples_pictures_without_any_brain_data(linear_brain, tmp_path, rng, open_page):
    stimuli, pictures = tmp_path / "seen", tmp_path / "theirs"
    stimuli.mkdir(), pictures.mkdir()
    for i in range(5):
        seen = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype="uint8"))
        seen.save(stimuli / f"photo-{i}.png")
        seen.rotate(90).save(pictures / f"photo-{i}.png")
    made = evaluate(EvaluateConfig(judge=None, num_bootstrap=200), pictures, stimuli, tmp_path / "evaluation")
    page = open_page(report(made, tmp_path / "report.html"))
    assert "over the strongest control, random pairing" in page.text and "5 pictures in a folder" in page.text
    assert "Not here: controls made of training pictures, since fewer than two training pictures" in page.text
    assert "No training stimuli are known here" in page.text and "seeds" not in page.ids


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


def test_a_rival_that_went_away_is_refused(rich_evaluation, tmp_path):
    shutil.rmtree(tmp_path / "rival")
    with pytest.raises(ArtifactError, match="ridge"):
        report(rich_evaluation, tmp_path / "a.html")


def test_text_from_the_data_cannot_become_markup(evaluation, tmp_path, open_page):
    about = read_json(evaluation / "evaluation.json")
    about["dataset"]["subject"] = "<script>alert(1)</script>"
    about["conditions"]["prior_only"]["label"] = "<b onclick='x'>"
    write_json(evaluation / "evaluation.json", about)
    open_page(report(evaluation, tmp_path / "report.html"))


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
    assert (plural(1, "image"), plural(1200, "image")) == ("1 image", "1,200 images")


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


def test_selection_on_test_and_unbeaten_attacks_are_serious(evaluation):
    scores = read_json(evaluation / "evaluation.json")
    row = next(
        row for row in scores["comparisons"] if (row["metric"], row["control"]) == ("pcc", "constant_test")
    )
    row |= {"gain": 0.2, "difference": 0.2, "ci95": [0.1, 0.3]}
    assert not {"Selected on test", "Not shown to beat one picture for all"} & {
        n.title for n in notes(scores, None)
    }
    scores["integrity"] |= {"selected_on": "test", "intact": False}
    row |= {"gain": 0.01, "difference": 0.01, "ci95": [-0.1, 0.12]}
    serious = {note.title for note in notes(scores, None) if note.serious}
    assert {"Selected on test", "The ledger was changed", "Not shown to beat one picture for all"} <= serious


def test_the_page_shows_what_was_scored_of_a_stimulus_that_is_no_square(
    write_reconstructions, linear_brain, tmp_path, rng
):
    data = Path(shutil.copytree(linear_brain, tmp_path / "data"))
    wide = rng.integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(wide).save(data / "stimuli" / "test-0.png")
    made = evaluate(PIXELS, write_reconstructions(brain=0.3), data, tmp_path / "evaluation")
    assert "middle part" in read_json(made / "evaluation.json")["pictures"]["resizing"]
    np.testing.assert_array_equal(open_evaluated(made).stimulus("test-0"), wide[:, 15:105])
    square = BrainDataset.open(data).image("test-1")
    np.testing.assert_array_equal(open_evaluated(made).stimulus("test-1"), square)


def test_what_a_folder_of_pictures_says_against_itself_is_serious_on_every_page(
    write_reconstructions, linear_brain, tmp_path, open_page
):
    def scored(name, seed, warning, **against):
        folder = write_reconstructions(brain=0.4, seed=seed).rename(tmp_path / name)
        about = read_json(folder / "config.json")
        write_json(folder / "config.json", {**about, "config": {**about["config"], "warning": warning}})
        made = evaluate(PIXELS, folder, linear_brain, tmp_path / f"{name}-evaluation", against=against)
        return made, read_json(made / "evaluation.json")

    loud, scores = scored("loud", 0, "TRAINED ON TEST")
    assert scores["warnings"] == {"brain": "TRAINED ON TEST"}
    note = next(note for note in notes(scores, None) if note.text == "TRAINED ON TEST.")
    assert note.serious and note.title == "A warning comes with these pictures"
    assert "TRAINED ON TEST." in open_page(report(loud, tmp_path / "page.html")).text
    plain, scores = scored("plain", 1, None, theirs=tmp_path / "loud")
    assert scores["warnings"] == {"theirs": "TRAINED ON TEST"}
    assert notes(scores, None)[0].title == "A warning comes with the pictures of theirs"
    assert "loud: TRAINED ON TEST." in open_page(compare([plain, loud], tmp_path / "both.html")).text

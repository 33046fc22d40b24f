"""Several subjects on one page: it leads with what is pooled, says what is not known, and its numbers are the JSON's."""

import json
import shutil

import pandas as pd
import pytest

from cadiff.artifacts import read_json, write_json
from cadiff.cli import app
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.report import compare

PIXELS = EvaluateConfig(judge=None, num_bootstrap=200, train_pictures=4)


@pytest.fixture
def score(write_reconstructions, linear_brain, tmp_path):
    """score("sub-02", brain=.2, ...) -> an evaluation of a subject of its own, on the same pictures or on renamed others."""

    def make(subject, *, turned=False, config=PIXELS, samples=2, **noise):
        data = tmp_path / f"{subject}-data"
        if not data.is_dir():
            shutil.copytree(linear_brain, data)
            about = read_json(data / "dataset_description.json")
            write_json(data / "dataset_description.json", {**about, "subject": subject})
        if turned:  # other pictures under the same names
            table = pd.read_csv(data / "stimuli.tsv", sep="\t")
            table["sha256"] = [f"{i:064x}" for i in range(len(table))]
            table.to_csv(data / "stimuli.tsv", sep="\t", index=False)
        pictures = write_reconstructions(samples=samples, seed=sum(map(ord, subject)), **noise)
        pictures = pictures.rename(tmp_path / f"{subject}-pictures")
        return evaluate(config, pictures, data, tmp_path / subject / "evaluation", progress=False)

    return make


@pytest.fixture
def three(score):
    return [
        score(f"sub-0{n}", brain=0.2 + 0.1 * n, shuffled=0.3, prior_only=1.0, mine=0.6) for n in (1, 2, 3)
    ]


def test_the_page_leads_with_what_is_pooled(three, tmp_path, open_page):
    path = compare(three, tmp_path / "page.html", json=tmp_path / "pooled.json")
    page = open_page(path)
    assert set(page.ids) >= {"compared", "subjects", "numbers", "pairs", "variance", "gallery", "run-card"}
    assert "3 subjects, 6 images seen by all" in page.text
    assert page.images == 3 * 6 * 2  # every stimulus of every subject: what was seen, and a reconstruction
    found = json.loads((tmp_path / "pooled.json").read_text())
    assert found["kind"] == "pooled-evaluation" and found["provenance"]["versions"]["cadiff"]
    brain = found["conditions"]["brain"]["metrics"]["pcc"]
    assert f"{brain['mean']:.3f}" in page.text and page.text.count("sub-02") >= 3
    assert "{:.3f} to {:.3f}".format(*brain["ci95_t"]) in page.text
    for subject, evaluation in zip(("sub-01", "sub-02", "sub-03"), three, strict=True):
        own = read_json(evaluation / "evaluation.json")["conditions"]["brain"]["metrics"]["pcc"]["mean"]
        assert brain["subject_means"][subject] == pytest.approx(own, abs=1e-5)
    row = found["from_the_brain"]["pcc"]
    # six images that all saw change sign together: no fewer than two of 64 flips are as far out, times many controls
    assert row["p"] >= 2 / 64 and row["p_holm"] > 0.05
    assert (
        f"Not shown that in these 3 subjects the pictures follow the brain: +{row['gain']:.3f}" in page.text
    )
    assert "ahead in 3 of 3 subjects" in page.text
    with pytest.raises(ArtifactError, match="already exists"):
        compare(three, tmp_path / "other.html", json=tmp_path / "pooled.json")
    assert not (tmp_path / "other.html").exists()


def test_few_subjects_are_said_to_be_few(score, tmp_path, open_page):
    parts = [score(f"s{n}", brain=0.3, shuffled=0.3) for n in range(8)]
    page = open_page(compare(parts[:2], tmp_path / "two.html"))
    assert "hardly known from 2 subjects: their true spread may be 0.45 to 31.9 times" in page.text
    assert "hardly known" not in open_page(compare(parts, tmp_path / "eight.html")).text


def test_no_difference_is_said_to_be_none(score, tmp_path, open_page):
    parts = [score(f"s{n}", brain=1.0, prior_only=1.0) for n in (1, 2)]
    page = open_page(compare(parts, tmp_path / "page.html"))
    assert "Not shown that in these 2 subjects the pictures follow the brain" in page.text
    assert "For other people nothing is shown" in page.text


def test_subjects_with_pictures_of_their_own(three, score, tmp_path, open_page):
    other = score("sub-09", turned=True, brain=0.3, shuffled=0.3)
    page = open_page(compare([three[0], other], tmp_path / "page.html"))
    assert "2 subjects, 12 images" in page.text and "seen by all" not in page.text
    assert "In these 2 subjects the pictures follow the brain" in page.text
    assert "left out: mine, prior_only" in page.text
    with pytest.raises(DataError, match="both about sub-01"):
        compare([three[0], three[0], other], tmp_path / "twice.html")


def test_other_protocols_are_refused_and_nothing_is_written(three, score, tmp_path):
    smaller = score("sub-04", config=PIXELS.model_copy(update={"size": 12}), brain=0.3, shuffled=0.3)
    with pytest.raises(
        ConfigError, match="different protocols: pictures are compared at 16 x 16 in one and 12"
    ):
        compare([*three, smaller], tmp_path / "page.html", json=tmp_path / "pooled.json")
    assert not (tmp_path / "page.html").exists() and not (tmp_path / "pooled.json").exists()


def test_from_the_command_line(three, tmp_path, capsys):
    page, numbers = tmp_path / "pooled.html", tmp_path / "pooled.json"
    folders = [str(folder) for folder in three]
    app(["report", *folders, "--out", str(page), "--json", str(numbers)], standalone_mode=False)
    assert page.is_file() and read_json(numbers)["num_subjects"] == 3
    for few in (folders[:1], [folders[0], folders[0]]):
        code = app(
            ["report", *few, "--out", str(tmp_path / "x.html"), "--json", str(tmp_path / "x.json")],
            standalone_mode=False,
        )
        assert code == 2 and "error: --json is for several subjects pooled" in capsys.readouterr().err

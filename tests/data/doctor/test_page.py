import io
import json
import re

import pytest
from rich.console import Console

from cadiff.data.doctor.findings import SEVERITY, Check, Diagnosis, Pair, count, plain
from cadiff.data.doctor.page import write_page
from cadiff.data.doctor.terminal import show
from cadiff.errors import ArtifactError


@pytest.fixture
def diagnosis(healthy):
    table = healthy.joinpath("trials.tsv").read_text().splitlines()
    names = list(dict.fromkeys(line.split("\t")[1] for line in table[1:]))
    checks = [Check(f"key-{i}", f"Title {i}", "a sample", {"number": float("nan")}) for i in range(5)]
    found = [
        check(verdict, f"Found <{verdict}> & told.", "Do this.")
        for check, verdict in zip(checks, SEVERITY, strict=True)
    ]
    roi = {"roi": "V1", "voxels": 10, "known": 10, "median": 0.2, "quartiles": [0.1, 0.3], "at_zero": 0.1}
    return Diagnosis(
        folder=healthy,
        about={"name": "<b>mine</b>", "subject": "sub-01", "trials": 10, "voxels": 10, "stimuli": 4},
        findings=found,
        rois=[
            roi | {"histogram": [5, 5] + [0] * 18, "split_half": 0.5},
            {"roi": "dark", "voxels": 3, "known": 0},
        ],
        pairs=[Pair(names[-1], names[0], 0.93), Pair("gone", names[1], 1.0)],
        seconds=2.0,
    )


def test_page_stands_alone_and_says_everything(diagnosis, tmp_path):
    page = write_page(diagnosis, tmp_path / "page.html").read_text()
    for place in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert place.startswith("data:image/")
    assert not re.search(r"https?://|@import|url\(", page)
    assert "<script" not in page and "<b>mine</b>" not in page
    assert page.count("data:image/png;base64,") == 3  # of four pictures one is gone
    for verdict in SEVERITY:
        assert f"Found &lt;{verdict}&gt; &amp; told." in page
    assert (
        page.index("Found &lt;wrong&gt;")
        < page.index("Found &lt;warning&gt;")
        < page.index("Found &lt;ok&gt;")
    )
    assert "prefers-color-scheme: dark" in page


def test_commands_are_set_as_code_and_markup_is_not(diagnosis, tmp_path):
    check = Check("key", "Title")
    diagnosis.findings = [check("wrong", "Use `cadiff <x>` & see.", "")]
    page = write_page(diagnosis, tmp_path / "page.html").read_text()
    assert "Use <code>cadiff &lt;x&gt;</code> &amp; see." in page


def test_older_page_is_replaced_and_other_files_are_not(diagnosis, tmp_path):
    page = write_page(diagnosis, tmp_path / "page.html")
    write_page(diagnosis, page)
    other = tmp_path / "thesis.html"
    other.write_text("years of work")
    with pytest.raises(ArtifactError, match="is no diagnosis"):
        write_page(diagnosis, other)
    assert other.read_text() == "years of work"


def test_json_is_plain_and_its_keys_are_stable(diagnosis, tmp_path):
    facts = json.loads(
        diagnosis.write_json(tmp_path / "facts.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert set(facts) == {
        "kind", "format", "cadiff", "verdict", "summary", "folder", "dataset", "against", "counts", "checks", "rois",
        "pairs", "seed", "seconds",
    }  # fmt: skip
    assert set(facts["checks"][0]) == {"key", "title", "verdict", "found", "do", "sample", "details"}
    assert facts["verdict"] == "wrong" and facts["counts"]["wrong"] == 1
    assert facts["checks"][0]["details"] == {"number": None}


def test_terminal_shows_every_finding_and_what_to_do(diagnosis):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(show(diagnosis))
    text = console.export_text()
    assert "<b>mine</b>, sub-01" in text
    assert all(f"Title {i}" in text for i in range(5))
    assert text.count("→ Do this.") == 3
    assert "1 thing is wrong and 1 needs a look; 2 of 4 checks are fine." in text


def test_verdict_is_the_worst_and_only_wrong_is_a_failure(diagnosis):
    assert (diagnosis.verdict, diagnosis.exit_code) == ("wrong", 1)
    diagnosis.findings = [f for f in diagnosis.findings if f.verdict != "wrong"]
    assert (diagnosis.verdict, diagnosis.exit_code) == ("warning", 0)
    diagnosis.findings = [f for f in diagnosis.findings if f.verdict == "not applicable"]
    assert (diagnosis.verdict, diagnosis.exit_code) == ("ok", 0)
    with pytest.raises(KeyError):
        diagnosis.finding("absent")


def test_numbers_and_words_agree():
    assert [count(n, "voxel", "is") for n in (0, 1, 2)] == ["0 voxels are", "1 voxel is", "2 voxels are"]
    assert count(1200, "test stimulus", "shows") == "1,200 test stimuli show"
    assert plain({"a": {1}, "b": float("inf")}) == {"a": [1], "b": None}

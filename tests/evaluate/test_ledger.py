"""The ledger counts looks and systems, notices tampering, and says what a number may claim."""

from __future__ import annotations

import json
import os
import stat

import pytest

from cadiff.artifacts import read_json, sha256_file
from cadiff.data.dataset import BrainDataset
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.ledger import NAME, read_ledger, record_look


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    return tmp_path


def look(dataset, digest="a", **options):
    return record_look(dataset, {"brain": digest}, **{"selected_on": None, "validation": False, **options})


def test_looks_and_other_systems_are_counted(dataset):
    found = [look(dataset, digest) for digest in ("a", "a", "b", "c", "a")]
    assert [r.looks_before for r in found] == [0, 1, 2, 3, 4]
    assert [r.systems_before for r in found] == [0, 0, 1, 2, 2]
    assert all(r.intact and r.kept for r in found)
    assert found[0].stamp.startswith("First look")
    assert "2 other systems were scored on it before" in found[4].stamp
    assert "selection on test" in look(dataset, "d", selected_on="validation").stamp
    assert "selection on test" not in look(dataset, "e", selected_on="test").stamp


@pytest.mark.parametrize("harm", ["change", "remove", "insert", "scribble"])
def test_tampering_breaks_the_chain(dataset, harm):
    for digest in "abcd":
        look(dataset, digest)
    path = dataset / NAME
    lines = path.read_text().splitlines()
    if harm == "change":
        lines[1] = json.dumps({**json.loads(lines[1]), "systems": {"brain": "z"}})
    elif harm == "remove":
        del lines[1]
    elif harm == "insert":
        lines.insert(2, lines[0])
    else:
        lines[2] = "not json"
    path.write_text("\n".join(lines) + "\n")
    assert not read_ledger(path)[1]
    after = look(dataset, "e")
    assert not after.intact and "chain of hashes is broken" in after.stamp


def test_a_validation_split_says_so_and_plain_folders_have_no_ledger(dataset, tmp_path_factory):
    assert "validation split" in look(dataset, validation=True).stamp
    plain = tmp_path_factory.mktemp("plain")
    found = look(plain)
    assert not found.kept and not list(plain.iterdir()) and "No ledger" in found.stamp


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_dataset_can_be_scored(dataset):
    dataset.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert not look(dataset).kept
    dataset.chmod(0o755)


def test_every_evaluation_is_a_look_and_the_dataset_stays_what_it_was(
    write_reconstructions, linear_brain, tmp_path
):
    config = EvaluateConfig(judge=None, num_bootstrap=100, selected_on="nothing")
    before = sha256_file(linear_brain / "dataset_description.json")
    folder = write_reconstructions(brain=0.5)
    looks = len(read_ledger(linear_brain / NAME)[0])
    for name in ("a", "b"):
        evaluate(config, folder, linear_brain, tmp_path / name)
    found = read_json(tmp_path / "b" / "evaluation.json")["integrity"]
    assert found["looks_before"] == looks + 1 and "declared: nothing was selected" in found["stamp"]
    assert sha256_file(linear_brain / "dataset_description.json") == before
    BrainDataset.open(linear_brain, verify=True)


def test_looks_at_the_same_time_are_counted_one_after_the_other(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    (tmp_path / "dataset_description.json").write_text("{}")

    def look(number: int) -> None:
        record_look(tmp_path, {"decoder": f"{number:064x}"}, selected_on=None, validation=False)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(look, range(40)))
    lines, intact = read_ledger(tmp_path / NAME)
    assert intact
    assert [line["look"] for line in lines] == list(range(1, 41))

"""The ledger counts looks and systems, notices tampering, and says what a number may claim."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pandas as pd
import pytest

from cadiff.artifacts import read_json, sha256_file
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.prepare import PrepareConfig, prepare
from cadiff.data.splits import resplit, write_folds
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.ledger import record_look
from cadiff.looks import NAME, read_ledger, read_lines


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    return tmp_path


def look(dataset, digest="a", **options):
    return record_look(dataset, {"brain": digest}, **{"selected_on": None, **options})


def write_small(folder, splits):
    """A dataset of stimuli s000, s001, ... with one trial each."""
    ids = [f"s{i:03d}" for i in range(len(splits))]
    rng = np.random.default_rng(0)
    write_dataset(
        folder,
        name="small",
        subject="sub-01",
        betas=rng.normal(size=(len(ids), 4)).astype(np.float32),
        trials=pd.DataFrame({"stimulus_id": ids, "split": splits, "session": 1, "run": 1, "repeat": 1}),
        voxels=pd.DataFrame({"rois": ["V1"] * 4}),
        stimuli=pd.DataFrame({"stimulus_id": ids}),
        images={name: rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) for name in ids},
    )
    return BrainDataset.open(folder)


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
    assert "validation split" in look(dataset, resplit={"out_of": "train"}).stamp
    plain = tmp_path_factory.mktemp("plain")
    found = look(plain)
    assert not found.kept and not list(plain.iterdir()) and "No ledger" in found.stamp


def test_a_line_that_was_cut_off_loses_only_itself(dataset):
    """A process that was killed, or a full disk: the next looks are counted all the same."""
    look(dataset, "a")
    path = dataset / NAME
    text = path.read_text()
    path.write_text(text + text[:60])
    found = [look(dataset, digest) for digest in "bcd"]
    assert [(r.looks_before, r.systems_before, r.intact) for r in found] == [(k, k, False) for k in (1, 2, 3)]
    lines, _ = read_ledger(path)
    assert [line["systems"]["brain"] for line in lines] == [*"abcd"]
    path.write_text(text.rstrip("\n"))  # whole, only its newline is lost
    assert look(dataset, "b").intact and read_ledger(path)[1]


@pytest.mark.parametrize("systems", [[], None, "a", {"brain": ["a"]}])
@pytest.mark.parametrize("previous", ["", "other"])
def test_a_line_that_is_no_look_is_not_counted(dataset, systems, previous):
    line = json.dumps({"previous": previous, "hash": "x", "systems": systems})
    (dataset / NAME).write_text(f'{line}\n{{"previous": "y", "hash": "x"}}\n[]\n')
    found = look(dataset)
    assert (found.looks_before, found.systems_before, found.intact, found.kept) == (0, 0, False, True)


@pytest.mark.parametrize(
    ("num_test", "make", "told"),
    [
        (0, lambda data, out: write_folds(data, out, 3)[0], "no test split of its own"),
        (0, lambda data, out: resplit(data, out, ["s000"]), "no test split of its own"),
        (2, lambda data, out: write_folds(data, out, 3)[0], "validation split"),
        (2, lambda data, out: resplit(data, out, ["s000"], data.rows("train")), "validation split"),
        (2, lambda data, out: resplit(data, out, ["s000"]), "may have been trained on"),
        (2, lambda data, out: resplit(data, out, ["s006"]), "may have been trained on"),
    ],
)
def test_what_a_split_was_made_out_of_decides_what_its_number_may_claim(tmp_path, num_test, make, told):
    """Folds of a dataset that never had a test split are its tests; original test stimuli may move into training."""
    data = write_small(tmp_path / "data", ["train"] * 6 + ["test"] * num_test)
    made = BrainDataset.open(make(data, tmp_path / "out"))
    found = record_look(made.folder, {"brain": "a"}, selected_on=None, resplit=made.description["resplit"])
    assert told in found.stamp
    assert ("First look" in found.stamp) == (told != "validation split")
    first, second = made.stimulus_ids("train")[:2]
    inner = BrainDataset.open(resplit(made, tmp_path / "inner", [first], made.rows("train")))
    assert "validation split" in look(inner.folder, resplit=inner.description["resplit"]).stamp
    again = BrainDataset.open(
        resplit(inner, tmp_path / "again", [second])
    )  # of a validation split: training trials only
    assert "validation split" in look(again.folder, resplit=again.description["resplit"]).stamp


def test_a_split_on_whose_making_nothing_is_known_says_so(dataset):
    assert "not on record" in look(dataset, resplit={"test_stimuli": ["a"]}).stamp


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
        record_look(tmp_path, {"decoder": f"{number:064x}"}, selected_on=None)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(look, range(40)))
    lines, intact = read_ledger(tmp_path / NAME)
    assert intact
    assert [line["look"] for line in lines] == list(range(1, 41))


def test_a_prepared_copy_goes_on_counting(tmp_path):
    """The test trials are the same, so looks at them were looks at these; the chain says where it was taken over."""
    data = write_small(tmp_path / "data", ["train"] * 6 + ["test"] * 2)
    for digest in "ab":
        look(data.folder, digest)
    parent = (data.folder / NAME).read_bytes()
    made = prepare(data, tmp_path / "made", PrepareConfig(normalise="voxel"))
    found = look(made, "c")
    assert (found.looks_before, found.systems_before, found.intact) == (2, 2, True)
    assert "2 of them before it was copied" in found.stamp
    (taken,) = [line["taken_over"] for line in read_lines(made / NAME)[0] if "taken_over" in line]
    assert taken == {"dataset": "data", "looks": 2}
    assert (made / NAME).read_bytes().startswith(parent) and (data.folder / NAME).read_bytes() == parent
    assert [line["look"] for line in read_ledger(made / NAME)[0]] == [1, 2, 3]
    again = prepare(BrainDataset.open(made), tmp_path / "again", PrepareConfig())
    assert look(again, "d").looks_before == 3 and read_ledger(again / NAME)[1]
    BrainDataset.open(again, verify=True)


def test_a_broken_chain_stays_broken_in_a_copy_and_none_makes_none(tmp_path):
    data = write_small(tmp_path / "data", ["train"] * 6 + ["test"] * 2)
    assert not (prepare(data, tmp_path / "none") / NAME).exists()
    look(data.folder)
    path = data.folder / NAME
    path.write_text(path.read_text() + "scribble")
    made = prepare(data, tmp_path / "made")
    found = look(made, "b")
    assert (found.looks_before, found.intact) == (1, False)

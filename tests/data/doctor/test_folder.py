import contextlib
import json

import numpy as np
import pytest

from cadiff.data.dataset import BrainDataset
from cadiff.data.doctor import examine
from cadiff.data.doctor.folder import FILES, open_folder
from cadiff.errors import DataError

pytestmark = pytest.mark.usefixtures("no_network")


def test_healthy_folder_has_no_fault_and_the_content_of_a_dataset(healthy):
    folder, dataset = open_folder(healthy), BrainDataset.open(healthy)
    assert folder.faults == []
    np.testing.assert_array_equal(folder.betas, dataset.betas)
    np.testing.assert_array_equal(folder.rows("train"), dataset.rows("train"))
    assert folder.shown("test") == dataset.stimulus_ids("test")


@pytest.mark.parametrize("content", [None, "nothing"])
def test_what_is_no_dataset_is_refused(tmp_path, content):
    if content:
        (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"is not a cadiff dataset .*cadiff data import"):
        open_folder(tmp_path / ("" if content else "absent"))


@pytest.mark.parametrize(
    "file", ["dataset_description.json", "betas.npy", "trials.tsv", "voxels.tsv", "stimuli.tsv"]
)
@pytest.mark.parametrize("harm", ["gone", "empty", "bytes", "half"])
def test_every_file_may_be_missing_or_broken(ward, file, harm, monkeypatch):
    monkeypatch.setattr(
        "cadiff.data.doctor.order.check_order", lambda *a, **k: []
    )  # asked elsewhere, and slow
    path = ward.folder / file
    if harm == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(
            {"empty": b"", "bytes": b"\xff\xfe\x00\x01" * 99, "half": content[: len(content) // 2]}[harm]
        )
    diagnosis = examine(ward.folder)
    assert {"tables", "checksums"} & set(diagnosis.keys("wrong"))
    if harm != "half" or file.endswith((".npy", ".json")):
        assert file in str(diagnosis.finding("tables").details["faults"])


def test_columns_that_lack_or_hold_words_are_named(ward):
    ward.put("trials", ward.table("trials").drop(columns="repeat").assign(session="one"))
    faults = open_folder(ward.folder).faults
    assert any("lacks the column repeat" in fault for fault in faults)
    assert any("'session' are not whole numbers" in fault for fault in faults)


def test_contradictions_are_named(ward):
    trials = ward.table("trials")
    trials.loc[0, "split"] = "training"
    trials.loc[1, "stimulus_id"] = "nobody"
    ward.put("trials", trials)
    ward.put("voxels", ward.table("voxels").iloc[:-3])
    faults = " ".join(open_folder(ward.folder).faults)
    for words in ("the split 'training'", "'nobody'", "180 voxels, voxels.tsv lists 177"):
        assert words in faults


@pytest.mark.parametrize("array", [np.zeros(5), np.array(["a", "b"]), np.zeros((2, 3, 4)), np.zeros((0, 3))])
def test_arrays_that_are_no_betas_are_not_examined(ward, array):
    np.save(ward.folder / "betas.npy", array)
    folder = open_folder(ward.folder)
    assert folder.betas is None
    assert "expected float32 (trials, voxels)" in " ".join(folder.faults)


def test_betas_of_another_type_are_examined_and_named(ward):
    np.save(ward.folder / "betas.npy", ward.betas.astype(">f8"))
    diagnosis = examine(ward.folder)
    assert "expected float32" in diagnosis.finding("tables").found
    assert diagnosis.finding("finite").verdict == "ok"


def test_header_that_claims_more_than_there_is_costs_nothing(ward):
    content = (ward.folder / "betas.npy").read_bytes()
    claimed = content.replace(b"(168, 180), ", b"(99999999, 180),"[:12].ljust(12))
    assert claimed != content
    (ward.folder / "betas.npy").write_bytes(claimed)
    assert open_folder(ward.folder).faults  # and no attempt to make room for it


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_is_examined_without_a_crash(ward, seed, monkeypatch):
    monkeypatch.setattr("cadiff.data.doctor.order.check_order", lambda *a, **k: [])
    rng = np.random.default_rng(seed)
    path = ward.folder / FILES[seed % len(FILES)]
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 12)):
        place = int(rng.integers(len(content)))
        content[place : place + int(rng.integers(0, 6))] = rng.choice(
            [b"", b"\t", b"\n", b"n/a", b"-1", b"\xff", b"\0"]
        )
    path.write_bytes(bytes(content))
    with contextlib.suppress(DataError):
        json.dumps(examine(ward.folder).as_json(), allow_nan=False)

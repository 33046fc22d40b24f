import pandas as pd
import pytest

from cadiff.data.doctor import integrity
from cadiff.data.doctor.designs import DESIGNS, expected_counts, find_design
from cadiff.data.doctor.folder import open_folder
from cadiff.data.doctor.stimuli import read_pictures
from cadiff.data.readers import READERS


@pytest.mark.parametrize(
    ("about", "title"),
    [
        ({"name": "GOD"}, "Generic Object Decoding"),
        ({"name": "Generic Object Decoding (npz)"}, "Generic Object Decoding"),
        ({"name": "BOLD5000"}, "BOLD5000"),
        ({"name": "NSD"}, "Natural Scenes"),
        ({"name": "mine", "import": {"reader": "hcp"}}, "Human Connectome"),
        ({"name": "goodness"}, None),
        ({"name": "my lab"}, None),
        ({"name": "simulated (GOD)", "simulated": True}, None),
        ({}, None),
    ],
)
def test_published_datasets_are_recognised(about, title):
    found = find_design(about)
    assert found is None if title is None else found is not None and found.title.startswith(title)


def test_every_design_belongs_to_a_reader_and_says_where_to_ask():
    assert set(DESIGNS) <= set(READERS)
    assert all(design.ask.endswith(".") and "  " not in design.ask for design in DESIGNS.values())


def test_subjects_have_their_own_numbers():
    bold, nsd = DESIGNS["bold5000"], DESIGNS["nsd"]
    assert expected_counts(bold, "CSI4").trials == 3108
    assert expected_counts(bold, "sub-CSI1").voxels == (1685,)
    assert expected_counts(nsd, "subj04").trials == 22500
    assert expected_counts(nsd, "somebody") == nsd.counts


def make_god(ward, train=1200, test=1750):
    rows = [{"stimulus_id": f"t{i}", "split": "train", "repeat": 1} for i in range(train)]
    rows += [{"stimulus_id": f"e{i % 50}", "split": "test", "repeat": i // 50 + 1} for i in range(test)]
    table = pd.DataFrame(rows).assign(session=1, run=1)
    ward.put("trials", table.assign(trial=range(1, len(table) + 1)))
    ward.describe(name="GOD", subject="sub-03", simulated=False)
    return integrity.check_design(open_folder(ward.folder))


def test_counts_of_god(ward):
    assert make_god(ward).verdict == "ok"
    fewer = make_god(ward, train=1192)
    assert fewer.verdict == "warning"
    assert "1,192 training trials instead of 1,200" in fewer.found
    assert "figshare" in fewer.do
    more = make_god(ward, test=1800)
    assert more.verdict == "warning" and "twice" in more.do


def test_selections_of_small_files_are_a_note(ward):
    ward.describe(name="digit69", simulated=False)
    assert integrity.check_design(open_folder(ward.folder)).verdict in ("note", "warning")
    trials = ward.table("trials")
    ward.put("trials", trials.iloc[:80].assign(split="train"))
    assert integrity.check_design(open_folder(ward.folder)).verdict == "note"


def test_missing_pictures_say_where_to_ask(ward):
    ward.describe(name="GOD", simulated=False)
    sorted((ward.folder / "stimuli").iterdir())[0].unlink()
    found = integrity.check_pictures(open_folder(ward.folder))
    assert found.verdict == "wrong" and "on request" in found.do


def test_changed_files_are_named(ward):
    def check():
        folder = open_folder(ward.folder)
        return integrity.check_checksums(folder, read_pictures(folder, progress=False).hashes)

    assert check().verdict == "ok"
    picture = sorted((ward.folder / "stimuli").iterdir())[2]
    picture.write_bytes(picture.read_bytes() + b"\0")
    (ward.folder / "voxels.tsv").write_text((ward.folder / "voxels.tsv").read_text() + "\n")
    assert check().details["changed"] == ["voxels.tsv", f"picture {picture.stem}"]
    ward.describe(sha256={})
    table = ward.table("stimuli")
    ward.put("stimuli", table.assign(sha256=None))
    ward.describe(sha256={})
    assert check().verdict == "note"

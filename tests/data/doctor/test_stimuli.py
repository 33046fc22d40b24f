import shutil

import numpy as np
import pytest
from PIL import Image

from cadiff.data.doctor import stimuli
from cadiff.data.doctor.folder import open_folder


def leaks(ward):
    folder = open_folder(ward.folder)
    return stimuli.check_leaks(folder, stimuli.read_pictures(folder, progress=False))


def quality(ward):
    folder = open_folder(ward.folder)
    return stimuli.check_quality(folder, stimuli.read_pictures(folder, progress=False))


def first_of(ward, split):
    trials = ward.table("trials")
    return trials.loc[trials["split"] == split, "stimulus_id"].iloc[0]


def file_of(ward, name):
    table = ward.table("stimuli").set_index("stimulus_id")
    return ward.folder / "stimuli" / table.at[name, "file"]


def test_clean_sets_share_nothing(ward):
    finding, pairs = leaks(ward)
    assert finding.verdict == "ok" and pairs == []


def test_same_id_in_both_splits(ward):
    trials = ward.table("trials")
    shared = first_of(ward, "test")
    trials.loc[0, "stimulus_id"] = shared
    ward.put("trials", trials)
    finding, _ = leaks(ward)
    assert finding.verdict == "wrong" and finding.details["same_id"] == [shared]


def test_same_file_under_another_name_although_the_table_says_otherwise(ward):
    test, train = first_of(ward, "test"), first_of(ward, "train")
    shutil.copyfile(file_of(ward, test), file_of(ward, train))  # stimuli.tsv keeps the old hash
    finding, pairs = leaks(ward)
    assert finding.details["same_file"] == 1
    assert [(pair.test, pair.train, pair.similarity) for pair in pairs] == [(test, train, 1.0)]


def test_near_duplicate_is_named(ward):
    test, train = first_of(ward, "test"), first_of(ward, "train")
    Image.open(file_of(ward, test)).resize((80, 80)).save(file_of(ward, train))
    finding, pairs = leaks(ward)
    assert finding.verdict == "wrong" and finding.details["near_duplicates"] == 1
    assert (pairs[0].test, pairs[0].train) == (test, train)
    assert 0.8 < pairs[0].similarity < 1


def test_near_duplicates_among_look_alikes_are_to_be_looked_at(ward, monkeypatch):
    monkeypatch.setattr(stimuli.fp, "LOOK_ALIKE", -1.0)
    test, train = first_of(ward, "test"), first_of(ward, "train")
    Image.open(file_of(ward, test)).resize((80, 80)).save(file_of(ward, train))
    finding, pairs = leaks(ward)
    assert finding.verdict == "warning" and "--html" in finding.do and len(pairs) == 1


def test_the_same_picture_twice_in_training_is_a_note(ward):
    trials = ward.table("trials")
    one, two = trials.loc[trials["split"] == "train", "stimulus_id"].iloc[[0, 5]]
    Image.open(file_of(ward, one)).resize((96, 96)).save(file_of(ward, two))
    finding, _ = leaks(ward)
    assert finding.verdict == "note" and finding.details["alike_within_training"] == 1


def test_repeats_within_training_are_counted_in_every_block(ward, monkeypatch):
    monkeypatch.setattr(stimuli.fp, "ROWS", 10)
    trials = ward.table("trials")
    names = trials.loc[trials["split"] == "train", "stimulus_id"].to_list()
    for one, two in ((0, 3), (2, 40), (39, 90)):
        shutil.copyfile(file_of(ward, names[one]), file_of(ward, names[two]))
    assert leaks(ward)[0].details["alike_within_training"] == 3


def test_many_pictures_are_sampled_test_pictures_first(ward, monkeypatch):
    monkeypatch.setattr(stimuli, "MAX_PICTURES", 20)
    folder = open_folder(ward.folder)
    pictures = stimuli.read_pictures(folder, progress=False)
    assert len(pictures.names) == 20
    assert set(folder.shown("test")) <= set(pictures.names)
    assert "20 of 108 pictures" in pictures.sample


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_unreadable_pictures_are_wrong(ward, content):
    file_of(ward, first_of(ward, "train")).write_bytes(content)
    assert quality(ward).verdict == "wrong"


def test_empty_tiny_and_grey_pictures_are_mentioned(ward):
    name = first_of(ward, "train")
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(file_of(ward, name))
    found = quality(ward)
    assert found.verdict == "warning" and found.details["constant"] == [name]
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(file_of(ward, name))
    found = quality(ward)
    assert found.verdict == "note"
    for words in ("2 different sizes", "1 smaller than 32 pixels", "1 grey"):
        assert words in found.found


def test_file_names_do_not_lead_out_of_the_folder(ward):
    from cadiff.data.doctor.integrity import check_pictures

    table = ward.table("stimuli")
    secret = ward.folder.parent / "secret.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(secret)
    table.loc[0, "file"] = "../../secret.png"
    ward.put("stimuli", table)
    folder = open_folder(ward.folder)
    assert table.loc[0, "stimulus_id"] not in stimuli.read_pictures(folder, progress=False).hashes
    finding = check_pictures(folder)
    assert finding.verdict == "wrong" and "outside" in finding.found


def test_labels(ward):
    assert stimuli.check_labels(open_folder(ward.folder)).verdict == "ok"  # classes are disjoint
    table = ward.table("stimuli")
    ward.put("stimuli", table.assign(label="thing"))
    found = stimuli.check_labels(open_folder(ward.folder))
    assert found.verdict == "note" and found.details["in_both"] == ["thing"]
    ward.put("stimuli", table.assign(label=None))
    found = stimuli.check_labels(open_folder(ward.folder))
    assert "No stimulus has a label" in found.found and "label_start=false" in found.do


def test_pictures_that_are_no_squares_are_counted_and_said_to_be_cropped(ward):
    name = first_of(ward, "train")
    assert "not_square" in quality(ward).details and "square" not in quality(ward).found
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(picture).save(file_of(ward, name))
    found = quality(ward)
    assert found.verdict == "note" and found.details["not_square"] == 1
    assert "1 not square" in found.found and "middle square" in found.do


def test_copies_are_found_where_nothing_is_tested(ward):
    trials = ward.table("trials")
    ward.put("trials", trials[trials["split"] == "train"])
    names = trials.loc[trials["split"] == "train", "stimulus_id"].unique()
    assert leaks(ward)[0].verdict == "not applicable"
    shutil.copyfile(file_of(ward, names[0]), file_of(ward, names[1]))
    finding, pairs = leaks(ward)
    assert finding.verdict == "note" and "1 training picture looks like another one" in finding.found
    assert "one stimulus id" in finding.do and pairs == []

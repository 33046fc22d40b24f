"""The BOLD5000 reader: rows and columns are where the release puts them, the split does not leak; other designs are refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import bold5000 as module
from cadiff.data.readers.bold5000 import read_bold5000
from cadiff.data.readers.bold5000_stimuli import Names, source_and_label, stimulus_ids
from cadiff.errors import DataError
from layouts import bold5000 as layout
from layouts.bold5000 import FIRST_RUN, LISTS, PRESENTED, PY, REPEATED_LIST, betas_file, copy, edit


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return layout.make(tmp_path_factory.mktemp("folders"), np.random.default_rng(8)).source


@pytest.fixture(scope="module")
def made_with_dict(tmp_path_factory) -> Path:
    return layout.make_with_img_dict(tmp_path_factory.mktemp("dict"), np.random.default_rng(8)).source


@pytest.fixture
def source(made, tmp_path) -> Path:
    return copy(made, tmp_path / "BOLD5000", pictures=False)


@pytest.fixture
def source_and_pictures(made, tmp_path) -> Path:
    return copy(made, tmp_path / "BOLD5000", pictures=True)


def import_it(source: Path, out: Path, **options) -> BrainDataset:
    return BrainDataset.open(read_bold5000(source, out, **{"design": "any", **options}), verify=True)


def shown(source: Path, subject: str) -> list[tuple[str, str]]:
    """(file, line) of every trial, read independently of the reader."""
    files = sorted((source / LISTS / subject).rglob("*.txt"))
    return [(path.name, line) for path in files for line in path.read_text().split()]


def test_rows_and_columns_are_those_of_the_files(made, tmp_path):
    data = import_it(made, tmp_path / "out")
    files = [betas_file(side + roi) for roi in layout.ROIS for side in ("LH", "RH")]
    np.testing.assert_array_equal(
        data.betas, np.concatenate([np.load(made / file) for file in files], axis=1).astype(np.float32)
    )
    sides = [(roi, side) for roi in layout.ROIS for side in ("LH", "RH")]
    expected = [pair for pair, width in zip(sides, layout.VOXELS["CSI1"], strict=True) for _ in range(width)]
    assert list(zip(data.voxels["rois"], data.voxels["hemisphere"], strict=True)) == expected
    assert data.voxels["noise_ceiling"].isna().all()


def test_trials_are_in_the_order_of_sessions_and_runs(made, tmp_path):
    trials = import_it(made, tmp_path / "out").trials
    lines = shown(made, "CSI1")
    names = [line.removeprefix("rep_") for _, line in lines]
    assert sum(line.startswith("rep_") for _, line in lines) == 15  # three of four showings, for five images
    assert list(trials["stimulus_id"]) == [Path(name).stem for name in names]
    files = [
        f"CSI_sess{session:02d}_run{run:02d}.txt"
        for session, run in zip(trials["session"], trials["run"], strict=True)
    ]
    assert files == [file for file, _ in lines]


def test_every_trial_of_a_listed_image_is_a_test_trial_however_often_it_was_shown(made, tmp_path):
    data = import_it(made, tmp_path / "out")
    assert set(data.stimulus_ids("test")) == {Path(name).stem for name in layout.REPEATED}
    assert not set(data.stimulus_ids("test")) & set(data.stimulus_ids("train"))
    repeats = data.trials[data.trials["split"] == "test"].groupby("stimulus_id").size()
    assert repeats[Path(layout.REPEATED[5]).stem] == 1 and sorted(repeats) == [1, 4, 4, 4, 4, 4]
    assert data.description["found"]["test_images_shown_once"] == 1
    short = import_it(made, tmp_path / "short", subject="CSI4")
    assert short.description["found"] == {
        "sessions": 1, "runs": 2, "trials": 74, "images": 70, "test_images": 5, "test_images_shown_once": 1,
        "listed_images_not_shown": 1,
    }  # fmt: skip
    assert Path(layout.REPEATED[5]).stem not in short.stimuli.index


def test_pictures_come_from_folders_or_from_the_dict_with_the_same_trials_and_betas(
    made, made_with_dict, tmp_path
):
    files, held = import_it(made, tmp_path / "files"), import_it(made_with_dict, tmp_path / "held")
    for name in ("betas.npy", "trials.tsv", "voxels.tsv"):
        assert (files.folder / name).read_bytes() == (held.folder / name).read_bytes()
    assert (files.description["pictures"], held.description["pictures"]) == ("folders", "img_dict")
    pictures = np.load(made_with_dict / PRESENTED / "img_dict.npy", allow_pickle=True).item()
    for name, picture in pictures.items():
        np.testing.assert_array_equal(held.image(Path(name).stem), picture)
        jpeg = next((made / PRESENTED).rglob(name))
        assert (files.folder / "stimuli" / (Path(name).stem + ".jpg")).read_bytes() == jpeg.read_bytes()


def test_folders_are_preferred_and_the_dict_can_be_asked_for(made_with_dict, source_and_pictures, tmp_path):
    source = source_and_pictures
    shutil.copy(made_with_dict / PRESENTED / "img_dict.npy", source / PRESENTED / "img_dict.npy")
    assert import_it(source, tmp_path / "auto").description["pictures"] == "folders"
    assert import_it(source, tmp_path / "dict", images="img_dict").description["pictures"] == "img_dict"


def test_labels_and_sources(made, tmp_path):
    stimuli = import_it(made, tmp_path / "out").stimuli
    assert stimuli.loc["COCO_train2014_000000300072", ["source"]].item() == "coco"
    assert stimuli["label"].isna().equals(stimuli["source"] == "coco")
    assert stimuli.loc["n04044716_4079", ["label", "source"]].tolist() == ["n04044716", "imagenet"]
    assert stimuli.loc["library_aisle10", ["label", "source"]].tolist() == ["library_aisle", "scene"]
    assert source_and_label("airplanecabin1.jpg") == ("scene", "airplanecabin")
    assert source_and_label("dining_car.jpg") == ("scene", "dining_car")
    assert source_and_label("7.jpg") == ("scene", "7")


@pytest.mark.parametrize("subject", ["CSI4", 4, "4", "csi4", "sub-CSI4"])
def test_a_subject_has_many_names(made, tmp_path, subject):
    assert import_it(made, tmp_path / "out", subject=subject).description["subject"] == "CSI4"


def test_rois_can_be_chosen_and_keep_their_order(made, tmp_path):
    data = import_it(made, tmp_path / "out", rois="PPA, EarlyVis")
    assert list(dict.fromkeys(data.voxels["rois"])) == ["EarlyVis", "PPA"]
    expected = [betas_file(name) for name in ("LHEarlyVis", "RHEarlyVis", "LHPPA", "RHPPA")]
    np.testing.assert_array_equal(
        data.betas, np.concatenate([np.load(made / file) for file in expected], axis=1).astype(np.float32)
    )
    listed = import_it(made, tmp_path / "listed", rois=["EarlyVis", "PPA"])
    assert listed.description["sha256"]["betas.npy"] == data.description["sha256"]["betas.npy"]


@pytest.mark.parametrize(
    "option",
    [
        {"subject": "CSI5"}, {"subject": True}, {"subject": 0}, {"rois": "V1"}, {"rois": 3}, {"rois": []},
        {"images": "web"}, {"design": "mine"}, {"bad_voxels": "keep"},
    ],
)  # fmt: skip
def test_an_option_that_there_is_not_is_refused_with_those_there_are(made, tmp_path, option):
    ((name, value),) = option.items()
    with pytest.raises(DataError, match=re.escape(f"{name}={value!r}: ")):
        read_bold5000(made, tmp_path / "out", **option)


def test_sessions_and_runs_are_sorted_by_number(source, tmp_path):
    place = source / LISTS / "CSI1"
    (place / "CSI1_sess02").rename(place / "CSI1_sess10")
    (place / "CSI1_sess01").rename(place / "CSI1_sess9")
    (place / "CSI1_sess9" / "CSI_sess01_run01.txt").rename(place / "CSI1_sess9" / "run9.txt")
    (place / "CSI1_sess9" / "CSI_sess01_run02.txt").rename(place / "CSI1_sess9" / "run10.txt")
    (place / "CSI1_sess9" / "._run9.txt").write_bytes(b"\x00\xff")  # macOS leaves such files
    (place / "notes.txt").write_text("not a session")
    trials = import_it(source, tmp_path / "out").trials
    order = list(dict.fromkeys(zip(trials["session"], trials["run"], strict=True)))
    assert order == [(9, 9), (9, 10), (10, 1), (10, 2)]
    first = (place / "CSI1_sess9" / "run9.txt").read_text().split()[0]
    assert trials["stimulus_id"][0] == Path(first.removeprefix("rep_")).stem


@pytest.mark.parametrize("change", ["folder", "list", "run"])
def test_a_suffix_or_case_that_differs_between_places_neither_loses_nor_leaks_an_image(
    source_and_pictures, tmp_path, change
):
    source = source_and_pictures
    before = import_it(source, tmp_path / "before")
    name = "n04044716_4079.JPEG"
    other = "N04044716_4079.jpg"
    if change == "folder":
        path = source / PRESENTED / "ImageNet" / name
        path.rename(path.with_name(other))
    else:
        path = (
            source / REPEATED_LIST
            if change == "list"
            else next(p for p in sorted((source / LISTS / "CSI1").rglob("*.txt")) if name in p.read_text())
        )
        path.write_text(path.read_text().replace(name, other))
    after = import_it(source, tmp_path / "after")
    pd.testing.assert_frame_equal(
        after.trials.assign(stimulus_id=after.trials["stimulus_id"].str.replace("N0404", "n0404")),
        before.trials,
    )


def test_names_that_could_mean_two_pictures_are_refused(source_and_pictures, tmp_path):
    source = source_and_pictures
    path = source / PRESENTED / "Scene" / "dining_car.jpg"
    Image.open(path).save(path.with_suffix(".png"))
    path.rename(path.with_suffix(".tif"))
    with pytest.raises(
        DataError, match=r"'dining_car\.jpg' could be any of dining_car\.png, dining_car\.tif"
    ):
        import_it(source, tmp_path / "out")
    path.with_suffix(".tif").rename(source / PRESENTED / "COCO" / "dining_car.png")
    with pytest.raises(DataError, match=r"has 'dining_car\.png' twice"):
        import_it(source, tmp_path / "out")


def test_names_are_found_exactly_then_by_case_then_by_suffix():
    names = Names(["a.jpg", "A.jpg", "b.JPEG", "C.png"], "there")
    assert [names.find(name) for name in ("a.jpg", "A.jpg", "b.jpeg", "c.jpg", "C", "d.jpg")] == [
        "a.jpg", "A.jpg", "b.JPEG", "C.png", "C.png", None,
    ]  # fmt: skip
    with pytest.raises(DataError, match="could be any of"):
        names.find("a.JPG")


def test_ids_keep_the_suffix_where_names_differ_in_nothing_else():
    assert stimulus_ids(["a.jpg", "a.png", "b.JPEG", "c.d"]) == {
        "a.jpg": "a.jpg", "a.png": "a.png", "b.JPEG": "b", "c.d": "c.d",
    }  # fmt: skip


def test_two_pictures_of_one_stem_are_two_stimuli(source_and_pictures, tmp_path):
    source = source_and_pictures
    run = source / FIRST_RUN
    lines = run.read_text().split("\n")
    where = next(
        i for i, line in enumerate(lines) if not line.startswith("rep_") and line not in layout.REPEATED
    )
    second = Path(lines[where]).stem + ".png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(source / PRESENTED / "Scene" / second)
    other = next(
        i for i in range(where + 1, 37) if lines[i] not in layout.REPEATED and not lines[i].startswith("rep_")
    )
    first, lines[other] = lines[where], second
    run.write_text("\n".join(lines))
    data = import_it(source, tmp_path / "out")
    assert list(data.trials["stimulus_id"][[where, other]]) == [first, second]
    assert data.image(second).sum() == 0 and data.image(first).sum() > 0


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", "<f2", "<i2"])
def test_number_types_and_memory_orders_do_not_matter(source, tmp_path, dtype):
    values = np.load(source / betas_file("LHPPA"))
    values = (np.rint(values * 10) if dtype == "<i2" else values).astype(dtype)
    np.save(source / betas_file("LHPPA"), np.asfortranarray(values))
    data = import_it(source, tmp_path / "out", rois="PPA")
    np.testing.assert_array_equal(data.betas[:, : values.shape[1]], values.astype(np.float32))


def test_voxels_with_holes_are_refused_or_dropped(source, tmp_path):
    values = np.load(source / betas_file("LHPPA"))
    values[5, 1], values[6, 2] = np.nan, 1e300  # beyond float32
    np.save(source / betas_file("LHPPA"), values)
    with pytest.raises(DataError, match="2 of 8 voxels hold NaN"):
        import_it(source, tmp_path / "out", rois="PPA")
    data = import_it(source, tmp_path / "out", rois="PPA", bad_voxels="drop")
    assert data.description["dropped_voxels"] == 2
    np.testing.assert_array_equal(data.betas[:, 0], values[:, 0].astype(np.float32))
    assert list(data.voxels["hemisphere"]) == ["LH", "RH", "RH", "RH", "RH", "RH"]


def test_folders_that_were_unzipped_into_themselves_are_found(source, tmp_path):
    for name in ("BOLD5000_Stimuli", "BOLD5000_GLMsingle_ROI_betas"):
        (source / name).rename(source / "moved")
        (source / name).mkdir()
        (source / "moved").rename(source / name / name)
    assert len(import_it(source, tmp_path / "out").trials) == 148


def test_the_release_s_own_list_of_names_must_tell_the_same_order(source, tmp_path):
    names = [line.removeprefix("rep_") for _, line in shown(source, "CSI1")]
    path = source / LISTS / "CSI1" / "CSI1_imgnames.txt"
    path.write_text("\n".join(names))
    import_it(source, tmp_path / "out")
    names[40], names[41] = names[41], names[40]
    path.write_text("\n".join(names))
    with pytest.raises(DataError, match=r"CSI1_imgnames\.txt contradicts .*: trial 41 is "):
        import_it(source, tmp_path / "two")
    path.write_text("\n".join(names[:40]))
    with pytest.raises(DataError, match="it has 40 trials there and 148 in the runs"):
        import_it(source, tmp_path / "two")


def published(subject: str = "CSI1") -> list[list[list[str]]]:
    """Lists of exactly the published design."""
    rng = np.random.default_rng(1)
    runs = [
        10 if s in module.TEN_RUN_SESSIONS[subject] else 9 for s in range(1, module.SESSIONS[subject] + 1)
    ]
    names = layout.names(rng, module.IMAGES)
    repeated = dict.fromkeys(names[:112], 4) | {names[112]: 3}
    return layout.presentation(rng, names[113:], repeated, runs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """All of CSI1 in its published size, but of the voxels RSC only and with tiny pictures."""
    source = tmp_path_factory.mktemp("whole") / "BOLD5000"
    lists = published()
    layout.write_lists(source / LISTS, "CSI1", lists)
    lines = [line for runs in lists for lines in runs for line in lines]
    names = dict.fromkeys(line.removeprefix("rep_") for line in lines)
    layout.write_pictures(
        source / PRESENTED, dict.fromkeys(names, np.full((2, 2, 3), 7, np.uint8)), as_dict=True
    )
    counts = pd.Series(lines).str.removeprefix("rep_").value_counts()
    (source / REPEATED_LIST).write_text("\n".join(counts.index[counts > 1]))
    (source / PY).mkdir(parents=True)
    rng = np.random.default_rng(2)
    for side, voxels in (("LH", 86), ("RH", 143)):
        np.save(
            source / betas_file(f"{side}RSC"), rng.normal(size=(module.TRIALS["CSI1"], voxels)).astype("<f4")
        )
    return source


def test_the_published_design_is_accepted_whole(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module.shown, "check_picture", lambda picture, name: None
    )  # 4916 files say nothing new
    data = import_it(whole, tmp_path / "out", design="published", rois="RSC")
    assert data.betas.shape == (5254, 229)
    assert data.trials["split"].value_counts().to_dict() == {"train": 4803, "test": 451}
    assert data.description["found"] == {
        "sessions": 15, "runs": 142, "trials": 5254, "images": 4916, "test_images": 113, "test_images_shown_once": 0,
        "listed_images_not_shown": 0,
    }  # fmt: skip
    np.testing.assert_array_equal(data.betas[1500, :86], np.load(whole / betas_file("LHRSC"))[1500])


def add_a_voxel(source: Path) -> None:
    values = np.load(source / betas_file("LHRSC"))
    np.save(source / betas_file("LHRSC"), np.hstack([values, values[:, :1]]))


def forget_an_image(source: Path) -> None:
    """An image that was shown once makes room for another showing of a repeated one."""
    repeated = (source / REPEATED_LIST).read_text().split()
    lines = (source / FIRST_RUN).read_text().split()
    once = next(line for line in lines if line.removeprefix("rep_") not in repeated)
    edit(FIRST_RUN, lambda text: text.replace(once, repeated[0]))(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: shutil.rmtree(s / LISTS / "CSI1" / "CSI1_sess15"), r"sessions \[1, .*14\], published are 1 to 15"),
        (lambda s: (s / FIRST_RUN).unlink(), r"Session 1 of CSI1 has the runs \[2, .*10\], published are 1 to 10"),
        (edit(FIRST_RUN, lambda text: text + "more.jpg\n"), "Session 1, run 1 of CSI1 lists 38 images, published are 37"),
        (add_a_voxel, "230 voxels in RSC .left and right., published are 229"),
        (edit(REPEATED_LIST, lambda text: "\n".join(text.split()[:100])), "lists 100 images, published are 113"),
        (edit(REPEATED_LIST, lambda text: "\n".join([*text.split()[:112], "x.jpg"])), "more than once and is not in repeated"),
        (forget_an_image, "saw 4915 different images, published are 4916"),
    ],
)  # fmt: skip
def test_another_design_is_refused_with_found_published_and_the_way_out(whole, tmp_path, change, message):
    source = copy(whole, tmp_path / "BOLD5000", pictures=False)
    change(source)
    with pytest.raises(DataError, match=message) as refused:
        import_it(source, tmp_path / "out", design="published", rois="RSC")
    assert "design=any" in str(refused.value)


def test_published_numbers_agree_with_each_other():
    for subject, sessions in module.SESSIONS.items():
        runs = 9 * sessions + len(module.TEN_RUN_SESSIONS[subject])
        assert runs * module.TRIALS_PER_RUN == module.TRIALS[subject]
        if subject in module.VOXELS:
            assert sum(module.VOXELS[subject].values()) == module.ALL_VOXELS[subject]
    assert (module.TRIALS["CSI1"], module.IMAGES) == (4803 + 112 * 4 + 3, 4803 + 113)

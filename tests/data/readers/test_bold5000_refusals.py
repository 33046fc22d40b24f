"""The BOLD5000 reader refuses what is not whole: one sentence that names the file, nothing left behind, nothing executed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cadiff.artifacts import folder_checksums
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.bold5000 import read_bold5000
from cadiff.errors import DataError, UserError
from layouts import bold5000 as layout
from layouts.bold5000 import FIRST_RUN, LISTS, PRESENTED, PY, REPEATED_LIST, betas_file, copy, edit
from layouts.mutations import MUTATIONS


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


def save(path: Path, array: np.ndarray) -> None:
    np.save(path, array, allow_pickle=array.dtype.hasobject)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: (v > 0).astype(np.uint8), "looks like an ROI mask"),
        (lambda v: (v > 0).astype(np.float64), "looks like an ROI mask"),
        (lambda v: v > 0, "looks like an ROI mask"),
        (
            lambda v: np.zeros((7, 8, 9)),
            r"\(7, 8, 9\) and looks like an ROI mask, expected betas of 148 trials",
        ),
        (
            lambda v: v.T,
            "5 trials of 148 voxels, but the lists of CSI1 show 148 trials: it seems to be transposed",
        ),
        (lambda v: v[:100], "has 100 trials of 5 voxels, but the lists of CSI1 show 148 trials: are all"),
        (lambda v: v[:, :0], "expected numbers"),
        (lambda v: v[:, 0], "expected numbers"),
        (lambda v: v.astype(complex), "expected numbers"),
        (lambda v: v.astype("U4"), "expected numbers"),
        (lambda v: v.astype(object), "cannot be read as a numpy array"),
    ],
)
def test_files_that_are_not_betas_are_refused(source, tmp_path, change, message):
    path = source / betas_file("RHEarlyVis")
    save(path, change(np.load(source / betas_file("LHEarlyVis"))))
    with pytest.raises(DataError, match=message) as refused:
        import_it(source, tmp_path / "out")
    assert str(path) in str(refused.value)
    assert not (tmp_path / "out").exists()


def copy_run(source: Path) -> None:
    shutil.copy(source / FIRST_RUN, (source / FIRST_RUN).with_name("run1.txt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / betas_file("LHRSC")).unlink(), r"There is no file .*LHRSC.*CSI1 needs LH and RH of EarlyVis"),
        (lambda s: (s / betas_file("LHRSC")).write_bytes(b""), "LHRSC.npy cannot be read"),
        (lambda s: shutil.rmtree(s / PY), r"py is not a folder .*the \.npy files"),
        (lambda s: shutil.rmtree(s / "BOLD5000_Stimuli"), "has no folder BOLD5000_Stimuli .found: BOLD5000_GLMsingle"),
        (lambda s: shutil.rmtree(s / LISTS / "CSI1"), "expected the sessions that CSI1 saw"),
        (lambda s: shutil.rmtree(s / LISTS / "CSI1" / "CSI1_sess02"), "148 trials of 5 voxels, but .* show 74 trials"),
        (lambda s: (s / FIRST_RUN).unlink(), "but the lists of CSI1 show 111 trials"),
        (lambda s: [p.unlink() for p in (s / FIRST_RUN).parent.glob("*.txt")], "CSI1_sess01 holds no run"),
        (copy_run, "has run 1 twice, CSI_sess01_run01.txt and run1.txt"),
        (lambda s: (s / FIRST_RUN).write_bytes(b"a\xff.jpg\n" * 37), "is not UTF-8 text"),
        (edit(FIRST_RUN, lambda _: "version https://git-lfs.github.com/spec/v1\n"), r"run01\.txt, line 1: 'version https://git-lfs"),
        (edit(FIRST_RUN, lambda _: "../../secret.jpg\n" * 37), "is not an image name"),
        (edit(FIRST_RUN, lambda _: "rep_\n" * 37), "is not an image name"),
        (edit(FIRST_RUN, lambda _: "x" * 300 + "\n"), "is not an image name"),
        (edit(FIRST_RUN, lambda _: "nowhere1.jpg\n" * 37), "not among the pictures .folders. .first: 'nowhere1.jpg'"),
        (lambda s: (s / REPEATED_LIST).unlink(), "There is no file .*repeated_stimuli_113_list.txt"),
        (edit(REPEATED_LIST, lambda _: ""), "0 of the 133 images that were shown are in repeated_stimuli"),
    ],
)  # fmt: skip
def test_a_source_that_is_not_whole_is_refused_and_nothing_is_left(source, tmp_path, change, message):
    change(source)
    before = folder_checksums(source)
    with pytest.raises(DataError, match=message):
        import_it(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["BOLD5000"]
    assert folder_checksums(source) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: shutil.rmtree(s / PRESENTED), "Presented_Stimuli is not a folder"),
        (lambda s: [shutil.rmtree(p) for p in (s / PRESENTED).iterdir()], "There is no file .*img_dict.npy"),
        (lambda s: (s / PRESENTED / "Scene" / "dining_car.jpg").unlink(), "1 of 133 images that were shown are not among"),
        (lambda s: (s / PRESENTED / "Scene" / "dining_car.jpg").write_bytes(b"JPEG"), "dining_car.jpg cannot be read"),
    ],
)  # fmt: skip
def test_pictures_that_are_not_whole_are_refused_and_nothing_is_left(
    source_and_pictures, tmp_path, change, message
):
    change(source_and_pictures)
    with pytest.raises(DataError, match=message):
        import_it(source_and_pictures, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["BOLD5000"]


def test_a_wrong_folder_is_answered_with_what_is_in_it(made, tmp_path):
    with pytest.raises(
        DataError, match=r"no folder BOLD5000_GLMsingle_ROI_betas and no folder BOLD5000_Stimuli"
    ):
        import_it(made.parent, tmp_path / "out")
    with pytest.raises(DataError, match="is not a folder"):
        import_it(made / FIRST_RUN, tmp_path / "out")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (np.array({"one.jpg": np.zeros((4, 4, 3))}, dtype=object), "are not among the pictures .img_dict"),
        (np.array([1, 2], dtype=object), r"it holds object \(2,\)"),
        (np.zeros(3), r"it holds float64 \(3,\)"),
        (np.array([{}], dtype=object).reshape(()), "not among the pictures"),
        (np.array("text", dtype=object), "it holds str"),
        (np.array({1: 2}, dtype=object), "it holds dict"),
    ],
)  # fmt: skip
def test_a_dict_that_is_not_one_of_pictures_is_refused(made_with_dict, tmp_path, held, message):
    source = copy(made_with_dict, tmp_path / "BOLD5000", pictures=True)
    save(source / PRESENTED / "img_dict.npy", held)
    with pytest.raises(DataError, match=message):
        import_it(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3)), r"'dining_car\.jpg' is float64 \(4, 4, 3\), expected a picture"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        ("a path", "is str"),
    ],
)
def test_a_picture_in_the_dict_must_be_a_picture(made_with_dict, tmp_path, picture, message):
    source = copy(made_with_dict, tmp_path / "BOLD5000", pictures=True)
    path = source / PRESENTED / "img_dict.npy"
    held = np.load(path, allow_pickle=True).item()
    save(path, np.array(held | {"dining_car.jpg": picture}, dtype=object))
    with pytest.raises(DataError, match=message):
        import_it(source, tmp_path / "out")


@pytest.mark.parametrize("layout_name", ["folders", "dict"])
def test_damaged_files_are_user_errors_and_nothing_in_them_runs(made, made_with_dict, tmp_path, layout_name):
    """Every kind of damage to every kind of file: one clear refusal or a sound dataset, no traceback, no code run."""
    origin = made if layout_name == "folders" else made_with_dict
    source = copy(origin, tmp_path / "BOLD5000", pictures=True)
    targets = [FIRST_RUN, REPEATED_LIST, betas_file("LHEarlyVis")]
    targets += (
        [f"{PRESENTED}/Scene/dining_car.jpg"]
        if layout_name == "folders"
        else [f"{PRESENTED}/img_dict.npy"] * 2
    )
    rng = np.random.default_rng(12)
    marker = tmp_path / "ran"
    refused = 0
    for target in targets:
        content = (source / target).read_bytes()
        for mutate in MUTATIONS:
            (source / target).write_bytes(mutate(content, rng, marker))
            try:
                import_it(source, tmp_path / "out", rois="RSC,EarlyVis")
            except UserError as error:
                assert str(error) and "\n" not in str(error), (target, mutate.__name__)
                refused += 1
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert not marker.exists(), (target, mutate.__name__)
        (source / target).write_bytes(content)
    assert refused > 30
    assert [path.name for path in tmp_path.iterdir()] == ["BOLD5000"]

"""The dataset folder: round trip and refusals."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from cadiff.data.dataset import BrainDataset, read_table, write_dataset
from cadiff.data.writer import dataset_writer
from cadiff.errors import ArtifactError, DataError

RNG = np.random.default_rng(0)


def parts(**changes):
    images = {s: RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for s in ("a", "b", "NA")}
    trials = pd.DataFrame(
        {
            "stimulus_id": ["a", "b", "NA", "NA", "rest"],
            "split": ["train", "train", "test", "test", "unlabelled"],
            "session": 1,
            "run": 1,
            "repeat": [1, 1, 1, 2, 1],
        }
    )
    stimuli = pd.DataFrame(
        {"stimulus_id": list(images), "label": ["n01", "n02", "NA"], "imagenet_index": [1, 2, None]}
    )
    voxels = pd.DataFrame({"rois": ["V1", "V1,VC", ""], "noise_ceiling": [0.2, np.nan, 0.0]})
    betas = RNG.normal(size=(5, 3)).astype(np.float32)
    return {
        "name": "toy",
        "subject": "sub-01",
        "betas": betas,
        "trials": trials,
        "voxels": voxels,
        "stimuli": stimuli,
        "images": images,
        **changes,
    }


def test_round_trip(tmp_path):
    made = parts()
    dataset = BrainDataset.open(write_dataset(tmp_path / "d", **made), verify=True)
    assert np.array_equal(dataset.betas, made["betas"])
    assert dataset.rows("test").tolist() == [2, 3]
    assert dataset.stimulus_ids("test") == ["NA"]
    assert dataset.stimuli.at["NA", "label"] == "NA"
    assert dataset.stimuli["imagenet_index"].isna().tolist() == [False, False, True]
    assert all(np.array_equal(dataset.image(s), made["images"][s]) for s in made["images"])
    assert dataset.images(["a", "b"], size=4).shape == (2, 4, 4, 3)
    assert dataset.voxels["noise_ceiling"].isna().tolist() == [False, True, False]
    assert isinstance(dataset.betas, np.memmap)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"betas": np.full((5, 3), np.nan)}, "3 of 3 voxels hold NaN"),
        ({"betas": np.zeros((5, 4))}, "betas are"),
        ({"images": {}}, "no picture"),
    ],
)
def test_bad_parts_are_refused_and_nothing_is_written(tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        write_dataset(tmp_path / "d", **parts(**change))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", ".hidden"])
def test_a_stimulus_id_cannot_leave_its_folder(tmp_path, name):
    stimuli = pd.DataFrame({"stimulus_id": [name]})
    with pytest.raises(DataError, match="cannot name a file"):
        write_dataset(tmp_path / "d", **parts(stimuli=stimuli, images={name: np.zeros((4, 4, 3), np.uint8)}))


def test_an_existing_dataset_is_never_overwritten(tmp_path):
    write_dataset(tmp_path / "d", **parts())
    with pytest.raises(ArtifactError, match="never overwritten"):
        write_dataset(tmp_path / "d", **parts())


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda f: (f / "trials.tsv").unlink(), "lacks trials.tsv"),
        (lambda f: (f / "betas.npy").write_bytes(b"no"), "cannot be read"),
        (lambda f: (f / "dataset_description.json").unlink(), "not a cadiff dataset"),
        (lambda f: (f / "trials.tsv").write_text("trial\n1\n"), "lacks the column 'stimulus_id'"),
        (lambda f: (f / "voxels.tsv").write_text("voxel\trois\tnoise_ceiling\n1\tV1\t0\n"), "say float32"),
        (
            lambda f: (f / "stimuli.tsv").write_text(
                (f / "stimuli.tsv").read_text().replace("b\tb.png", "z\tb.png")
            ),
            "'b'",
        ),
    ],
)
def test_a_broken_folder_is_named(tmp_path, break_it, says):
    folder = write_dataset(tmp_path / "d", **parts())
    break_it(folder)
    with pytest.raises(DataError, match=says):
        BrainDataset.open(folder)


def test_verify_sees_a_changed_byte(tmp_path):
    folder = write_dataset(tmp_path / "d", **parts())
    table = (folder / "trials.tsv").read_text()
    (folder / "trials.tsv").write_text(table.replace("\t2\n", "\t3\n", 1))
    BrainDataset.open(folder)
    with pytest.raises(DataError, match="checksum differs"):
        BrainDataset.open(folder, verify=True)


def test_wrong_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        BrainDataset.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("trials.tsv", ""),
        ("trials.tsv", "trial\tstimulus_id\tsplit\tsession\trun\trepeat\n1\ta\ttrain\tone\t1\t1\n"),
        ("betas.npy", ""),
        ("dataset_description.json", "[]"),
    ],
    ids=["empty table", "a word for a number", "empty betas", "a list for a description"],
)
def test_a_damaged_file_is_named(tmp_path, file, content):
    folder = write_dataset(tmp_path / "out", **parts())
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        BrainDataset.open(folder)


def test_verify_sees_a_damaged_picture(tmp_path):
    folder = write_dataset(tmp_path / "out", **parts())
    picture = next((folder / "stimuli").iterdir())
    picture.write_bytes(picture.read_bytes()[:-10])
    BrainDataset.open(folder)
    with pytest.raises(DataError, match=picture.name):
        BrainDataset.open(folder, verify=True)


def test_a_dataset_without_a_voxel_is_refused(tmp_path):
    changes = {"betas": parts()["betas"][:, :0], "voxels": parts()["voxels"].iloc[:0]}
    with pytest.raises(DataError, match="at least one trial and one voxel"):
        write_dataset(tmp_path / "out", **parts(**changes))


def pictures_of(*sizes):
    """Pictures (height, width) of stimuli s0, s1, ..."""
    images = {f"s{i}": RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(sizes)}
    ids = list(images)
    trials = pd.DataFrame({"stimulus_id": ids, "split": "train", "session": 1, "run": 1, "repeat": 1})
    betas = RNG.normal(size=(len(ids), 3)).astype(np.float32)
    return parts(images=images, trials=trials, stimuli=pd.DataFrame({"stimulus_id": ids}), betas=betas)


def test_pictures_of_different_sizes_need_one_size(tmp_path):
    dataset = BrainDataset.open(write_dataset(tmp_path / "d", **pictures_of((8, 8), (8, 8), (6, 9))))
    with pytest.raises(DataError, match=r"'s0' 8 x 8, 's2' 9 x 6 pixels.*size="):
        dataset.images(["s0", "s1", "s2"])
    assert dataset.images(["s2"]).shape == (1, 6, 9, 3)
    assert dataset.images(["s0", "s1", "s2"], size=5).shape == (3, 5, 5, 3)
    assert dataset.images([], size=5).shape == (0, 5, 5, 3)


def test_pictures_are_in_memory_once(tmp_path):
    dataset = BrainDataset.open(write_dataset(tmp_path / "d", **pictures_of(*[(160, 160)] * 12)))
    dataset.images(["s0"])
    tracemalloc.start()
    pictures = dataset.images([f"s{i}" for i in range(12)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pictures.nbytes < peak < 1.5 * pictures.nbytes


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ((), r"d: it has labels and no pictures.*all 3 stimuli.*--set images=FOLDER"),
        (("a",), r"d: of stimulus 'b' only the label is known \(2 such of 3\).*--set images=FOLDER"),
    ],
    ids=["no pictures", "some pictures"],
)
def test_labels_alone_are_said_to_be_no_pictures(tmp_path, seen, says):
    made = parts()
    with dataset_writer(tmp_path / "d", name="n", subject="s", voxels=made["voxels"]) as writer:
        for name in made["images"]:
            writer.add_stimulus(name, made["images"][name] if name in seen else None, label="x")
        writer.add_trials(made["betas"], made["trials"])
    dataset = BrainDataset.open(tmp_path / "d")
    for ask in (
        lambda: dataset.image("b"),
        lambda: dataset.images([*seen, "b"]),
        lambda: dataset.refuse_unreadable(dataset.rows("train")),
    ):
        with pytest.raises(DataError, match=says):
            ask()


@pytest.mark.parametrize("first", ["1 2 3", "0 2 1", "a b c", "7 8 9"])
def test_a_header_line_that_is_too_short_is_refused(tmp_path, first):
    """pandas takes the first column of such a table as row names, even where these only count."""
    path = tmp_path / "table.tsv"
    path.write_text("a\tb\n" + "".join(f"{name}\tx\ty\n" for name in first.split()))
    with pytest.raises(DataError, match=r"more cells than the header line: are there row names\?"):
        read_table(path)

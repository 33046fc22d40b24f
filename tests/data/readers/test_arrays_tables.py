"""Tables of trials, stimuli and voxels as pandas, R and spreadsheets write them: taken as meant, or refused in a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.arrays import read_arrays
from cadiff.errors import DataError

TRIALS = pd.DataFrame(
    {"stimulus_id": ["cat", "dog", "owl", None], "split": ["train", "train", "test", "unlabelled"]}
)
STIMULI = pd.DataFrame({"stimulus_id": ["cat", "dog", "owl"], "label": ["pet", "pet", "bird"]})


@pytest.fixture
def source(tmp_path, rng):
    """Four trials and three voxels, labels without pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "betas.npy", rng.normal(size=(4, 3)))
    (folder / "trials.tsv").write_text(TRIALS.to_csv(sep="\t", index=False, na_rep="n/a"))
    (folder / "stimuli.tsv").write_text(STIMULI.to_csv(sep="\t", index=False))
    (folder / "voxels.tsv").write_text("rois\tx\nV1\t1.5\nV2\t2\nNA\tn/a\n")
    return folder


def read(source):
    return BrainDataset.open(read_arrays(source, source.parent / "out"))


def lines(table, *, end="\n", last="", names=None):
    """A table as text: what ends each line, and the row names in front (the first of them over the header)."""
    rows = table.to_csv(sep="\t", index=False).splitlines()
    fronts = [""] * len(rows) if names is None else [f"{name}\t" for name in names]
    return "".join(f"{front}{row}{last}{end}" for front, row in zip(fronts, rows, strict=True))


WRITTEN = {
    "byte order mark": lambda table: "\ufeff" + lines(table),
    "Windows line ends": lambda table: lines(table, end="\r\n"),
    "an empty last column": lambda table: lines(table, last="\t"),
    "several": lambda table: lines(table, last="\t\t\t"),
    "pandas with its index": lambda table: table.to_csv(sep="\t"),
    "saved twice": lambda table: lines(table, names=["Unnamed: 0", *range(len(table))]),
    "R with row names": lambda table: lines(table, names=['""', *(f'"{i + 1}"' for i in range(len(table)))]),
    "quoted": lambda table: table.to_csv(sep="\t", index=False, quoting=1),
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
def test_the_same_table_by_any_program(source, write):
    plain = BrainDataset.open(read_arrays(source, source.parent / "plain"))
    for file, table in (("trials.tsv", TRIALS.fillna("n/a")), ("stimuli.tsv", STIMULI)):
        (source / file).write_bytes(write(table).encode())
    voxels = pd.DataFrame({"rois": ["V1", "V2", "NA"], "x": ["1.5", "2", "n/a"]})
    (source / "voxels.tsv").write_bytes(write(voxels).encode())
    made = read(source)
    pd.testing.assert_frame_equal(made.trials, plain.trials)
    pd.testing.assert_frame_equal(made.stimuli, plain.stimuli)
    pd.testing.assert_frame_equal(made.voxels, plain.voxels)
    assert made.voxels["rois"].tolist() == ["V1", "V2", "NA"]


REFUSED = {
    "R's write.table": (
        "trials.tsv",
        '"stimulus_id"\t"split"\n"1"\t"cat"\t"train"\n"2"\t"dog"\t"train"\n',
        "rows have more cells than the header line.*row names",
    ),
    "semicolons": (
        "trials.tsv",
        "stimulus_id;split\ncat;train\n",
        "lacks the column 'stimulus_id'.*tabs between",
    ),
    "decimal commas": ("voxels.tsv", "rois\tx\nV1\t1,5\nV2\t2\nV3\t3\n", "'x' must hold numbers .*'1,5'"),
    "R's gaps": ("voxels.tsv", "rois\tx\nV1\tNA\nV2\t2\nV3\t3\n", "'x' must hold numbers .*, or n/a.*'NA'"),
    "values without a name": ("stimuli.tsv", "stimulus_id\t\ncat\tpet\n", "column 2 has no name.*'pet'"),
}


@pytest.mark.parametrize(("file", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_one_sentence(source, file, content, message):
    (source / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read(source)
    assert not (source.parent / "out").exists()


def test_a_utf16_table_is_named(source):
    (source / "trials.tsv").write_text(lines(TRIALS), encoding="utf-16")
    with pytest.raises(DataError, match=r"trials\.tsv cannot be read as a table.*expected UTF-8"):
        read(source)

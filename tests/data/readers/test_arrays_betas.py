"""Betas as tables that R, pandas, MATLAB and spreadsheets write: read as the numbers they are, or refused in a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from cadiff.data.readers import arrays_betas
from cadiff.data.readers.arrays_betas import open_betas
from cadiff.errors import DataError

BETAS = np.array([[0.5, -1.25, 3], [2.5, 0, -0.75], [1e-3, 4, 2], [7, -2, 1.5], [0.25, 6, -8]])


def write_csv(folder, text, encoding="utf-8"):
    (folder / "betas.csv").write_bytes(text.encode(encoding))


def lines(header=None, names=None, separator=",", end="\n", decimal=".", last=""):
    """A table of `BETAS`: its header line, and what stands before every row."""
    rows = [separator.join(repr(float(x)).replace(".", decimal) for x in row) + last for row in BETAS]
    if names is not None:
        rows = [f"{name}{separator}{row}" for name, row in zip(names, rows, strict=True)]
    return end.join([*([header] if header is not None else []), *rows, ""])


def read(folder):
    betas = open_betas(folder)
    blocks = np.concatenate(list(betas.blocks()))
    assert blocks.shape == betas.shape
    return blocks


READ = {
    "R without row names": lines('"V1","V2","V3"'),
    "separators in names": lines('"V1;left","V2, right","V3"'),
    "CRLF": lines(end="\r\n"),
    "CRLF and header": lines("a,b,c", end="\r\n"),
    "decimal commas": lines(separator=";", decimal=","),
    "decimal commas and header": lines("a;b;c", separator=";", decimal=","),
    "tabs": lines(separator="\t"),
    "quoted": lines().replace("0.5", '"0.5"', 1).replace("-1.25", '"-1.25"', 1),
    "numbered header": lines("0,1,2"),
    "blank line first": "\n" + lines("a,b,c"),
}


@pytest.mark.parametrize("text", READ.values(), ids=READ)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_programs_write_is_read(tmp_path, text, encoding):
    write_csv(tmp_path, text, encoding)
    np.testing.assert_array_equal(read(tmp_path), BETAS)


ROW_NUMBERS = {
    "R": ('"","V1","V2","V3"', ['"1"', '"2"', '"3"', '"4"', '"5"']),
    "R, some rows": ('"","V1","V2","V3"', ['"3"', '"5"', '"8"', '"9"', '"11"']),
    "pandas": (",0,1,2", range(5)),
    "pandas twice": ("Unnamed: 0,V1,V2,V3", [7, 3, 4, 9, 1]),
    "pandas thrice": ('"Unnamed: 0.1",V1,V2,V3', [7, 3, 4, 9, 1]),
    "named": ("trial,V1,V2,V3", range(1, 6)),
    "numbered header": ("0,1,2,3", range(5)),
    "no header": (None, range(5)),
    "from 1, as floats": (None, ["1.0", "2.0", "3.0", "4.0", "5.0"]),
}


@pytest.mark.parametrize(("header", "names"), ROW_NUMBERS.values(), ids=ROW_NUMBERS)
def test_row_numbers_are_not_a_voxel(tmp_path, header, names):
    write_csv(tmp_path, lines(header, names))
    with pytest.raises(DataError, match=r"betas\.csv: the first column .* row numbers .*row\.names"):
        open_betas(tmp_path)


@pytest.mark.parametrize("kind", ["npy", "mat"])
def test_row_numbers_are_seen_in_every_kind_of_file(tmp_path, kind):
    array = np.column_stack([np.arange(1, 6), BETAS])
    np.save(tmp_path / "betas.npy", array) if kind == "npy" else savemat(tmp_path / "betas.mat", {"b": array})
    with pytest.raises(DataError, match=r"the first column counts 1, 2, 3, \.\.\. over all 5 rows"):
        open_betas(tmp_path)


@pytest.mark.parametrize(
    "first", [[0, 1, 2, 4, 3], [1, 2, 3, 4, 5.5], [2, 3, 4, 5, 6], [0, 1, 2, 3, np.nan], [5, 4, 3, 2, 1]]
)
def test_a_voxel_that_almost_counts_is_a_voxel(tmp_path, first):
    np.save(tmp_path / "betas.npy", np.column_stack([first, BETAS]))
    np.testing.assert_array_equal(read(tmp_path)[:, 0], first)


def test_three_trials_are_too_few_to_tell_row_numbers(tmp_path):
    np.save(tmp_path / "betas.npy", np.column_stack([[1, 2, 3], BETAS[:3]]))
    assert read(tmp_path).shape == (3, 4)


def test_counting_is_followed_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("cadiff.data.readers.arrays_betas.BLOCK_BYTES", 8 * 4 * 3)
    array = np.column_stack([np.arange(5), BETAS])
    array[4, 0] = 3
    np.save(tmp_path / "betas.npy", array)
    assert read(tmp_path).shape == (5, 4)
    array[4, 0] = 4
    np.save(tmp_path / "betas.npy", array)
    with pytest.raises(DataError, match="counts 0, 1, 2"):
        open_betas(tmp_path)


@pytest.mark.parametrize("gap", ["", "NA", "NaN", "n/a", "#N/A"])
def test_a_gap_in_the_first_row_does_not_make_a_header_of_it(tmp_path, gap):
    write_csv(tmp_path, lines().replace("-1.25", gap, 1))
    values = read(tmp_path)
    assert values.shape == BETAS.shape and np.isnan(values[0, 1]) and np.isnan(values).sum() == 1


REFUSED = {
    "trailing comma": (lines(last=","), "ends in ','.*last column is empty"),
    "trailing comma and header": (lines("a,b,c,", last=","), "ends in ','.*last column is empty"),
    "tabs and decimal commas": (lines(separator="\t", decimal=","), "decimal commas.*point"),
    "the same and header": (lines("a\tb\tc", separator="\t", decimal=","), "decimal commas.*point"),
    "both marks": (
        lines("a;b;c", separator=";", decimal=",").replace("7,0", "7.0"),
        "cannot be read as numbers",
    ),
    "R's write.table": (
        lines('"V1","V2","V3"', ['"1"', '"2"', '"3"', '"4"', '"5"']),
        "4 cells, .* line 3.*names",
    ),
    "the same with names": (lines('"V1","V2","V3"', list("abcde")), "4 cells, the first line 3.*names"),
    "a word": (lines("a,b,c") + "total,1,2\n", "cannot be read as numbers"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_safely_is_one_sentence(tmp_path, text, message):
    write_csv(tmp_path, text)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_spreadsheet_saved_as_utf16_is_named(tmp_path):
    write_csv(tmp_path, lines("a,b,c"), "utf-16")
    with pytest.raises(DataError, match="expected numbers in UTF-8"):
        open_betas(tmp_path)


def test_pandas_with_and_without_its_index(tmp_path):
    frame = pd.DataFrame(BETAS, columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "betas.csv", index=False)
    np.testing.assert_array_equal(read(tmp_path), BETAS)
    frame.to_csv(tmp_path / "betas.csv")
    with pytest.raises(DataError, match="row numbers"):
        open_betas(tmp_path)


def test_blocks_cover_every_row_once_in_every_layout(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(arrays_betas, "BLOCK_BYTES", 200)
    monkeypatch.setattr(arrays_betas, "PAGE_BYTES", 24)
    array = rng.normal(size=(17, 5))
    for number, form in enumerate((np.ascontiguousarray, np.asfortranarray)):
        folder = tmp_path / str(number)
        folder.mkdir()
        np.save(folder / "betas.npy", form(array))
        blocks = list(arrays_betas.open_betas(folder).blocks())
        assert len(blocks) > 3
        np.testing.assert_array_equal(np.concatenate(blocks), array)
    (tmp_path / "csv").mkdir()
    pd.DataFrame(array).to_csv(tmp_path / "csv" / "betas.csv", index=False)
    blocks = list(arrays_betas.open_betas(tmp_path / "csv").blocks())
    assert len(blocks) > 3
    np.testing.assert_allclose(np.concatenate(blocks), array)

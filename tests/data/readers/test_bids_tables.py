"""Events and confounds as programs write them that do not know of n/a: empty cells are gaps, not stimuli of no name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cadiff.data.readers.bids_tables import EventOptions, read_confounds, read_events
from cadiff.errors import DataError

EVENTS = pd.DataFrame(
    {
        "onset": [0.0, 4.0, 8.0, 12.0],
        "duration": [2.0, 2.0, 2.0, 2.0],
        "trial_type": ["NA", "rest", "face", None],
        "stim_file": ["a.png", None, "b.png", "c.png"],
    }
)


@pytest.mark.parametrize("gap", ["n/a", ""])
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_empty_cells_are_gaps(tmp_path, gap, ends, encoding):
    path = tmp_path / "events.tsv"
    EVENTS.to_csv(path, sep="\t", index=False, na_rep=gap, lineterminator=ends, encoding=encoding)
    found = read_events(path, EventOptions())
    assert found.stimulus_column == "stim_file"
    assert found.trials["stimulus"].tolist() == ["a.png", "b.png", "c.png"]
    assert found.trials["onset"].tolist() == [0, 8, 12]
    assert found.trials["trial_type"].isna().tolist() == [False, False, True]
    assert found.kinds == {"NA", "rest", "face"}  # a trial type may be called NA


@pytest.mark.parametrize("gap", ["n/a", ""])
def test_an_onset_that_is_not_given_is_named(tmp_path, gap):
    path = tmp_path / "events.tsv"
    EVENTS.assign(onset=[0.0, 4.0, np.nan, 12.0]).to_csv(path, sep="\t", index=False, na_rep=gap)
    with pytest.raises(DataError, match=r"line 4: the onset is .*expected seconds"):
        read_events(path, EventOptions())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (EVENTS.to_csv(sep=";", index=False), r"lacks the column 'stim_file' \(it has: onset;duration"),
        (EVENTS.to_csv(sep="\t", index=False, decimal=","), r"line 2: the onset is '0,0', expected seconds"),
        (EVENTS.to_csv(sep="\t").replace("\tonset", "onset", 1), "more cells than the header line"),
    ],
    ids=["semicolons", "decimal commas", "row names"],
)
def test_tables_of_another_kind_are_one_sentence(tmp_path, content, message):
    (tmp_path / "events.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_events(tmp_path / "events.tsv", EventOptions())


@pytest.mark.parametrize("gap", ["n/a", "", "NaN"])
def test_confounds_lack_a_first_derivative(tmp_path, gap):
    path = tmp_path / "confounds.tsv"
    table = pd.DataFrame({"trans_x": [1.0, 2.0, 4.0], "trans_x_derivative1": [np.nan, 1.0, 2.0]})
    table.to_csv(path, sep="\t", index=False, na_rep=gap)
    found, names = read_confounds(path, ["trans_x*"], 3)
    assert names == list(table.columns)
    np.testing.assert_array_equal(found, [[1, 1], [2, 1], [4, 2]])

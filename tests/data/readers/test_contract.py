"""What every reader promises, over every public layout: see `cadiff.data.readers`."""

from __future__ import annotations

import numpy as np
import pytest

from cadiff.artifacts import folder_checksums
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import READERS, read
from cadiff.errors import ConfigError, DataError
from layouts import LAYOUTS, make_sample


@pytest.fixture(scope="module", params=LAYOUTS)
def imported(request, tmp_path_factory):
    """(sample, dataset folder, checksums of the source before the import)"""
    folder = tmp_path_factory.mktemp(request.param)
    sample = make_sample(request.param, folder / "source", np.random.default_rng(3))
    before = listing(sample.source)
    return sample, read(sample.reader, sample.source, folder / "out", **sample.options), before


def listing(source):
    return folder_checksums(source) if source.is_dir() else source.read_bytes()


def test_there_is_a_layout_for_every_reader(tmp_path):
    covered = {name.split("-")[0] for name in LAYOUTS}
    assert covered == set(READERS)


def test_the_counts_are_those_of_the_source(imported):
    sample, out, _ = imported
    data = BrainDataset.open(out, verify=True)
    assert dict(data.trials["split"].value_counts()) == sample.trials
    assert len(data.voxels) == sample.num_voxels
    assert np.isfinite(data.betas).all() and float(np.std(data.betas)) > 0


def test_the_source_is_not_changed(imported):
    sample, _, before = imported
    assert listing(sample.source) == before


def test_the_dataset_says_what_it_is(imported):
    _, out, _ = imported
    about = BrainDataset.open(out).description
    for key in ("name", "subject", "units", "licence", "citation", "import"):
        assert about.get(key), key


def test_repeats_count_from_one_within_each_stimulus(imported):
    _, out, _ = imported
    trials = BrainDataset.open(out).trials
    shown = trials[trials["split"] != "unlabelled"]
    for _, group in shown.groupby(["split", "stimulus_id"]):
        assert sorted(group["repeat"]) == list(range(1, len(group) + 1))


def test_importing_again_is_idle_and_the_same(imported, tmp_path):
    sample, out, _ = imported
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert read(sample.reader, sample.source, out, **sample.options) == out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    again = read(sample.reader, sample.source, tmp_path / "again", **sample.options)
    assert BrainDataset.open(again).description["sha256"] == BrainDataset.open(out).description["sha256"]


def test_an_unknown_option_is_refused_with_those_there_are(imported, tmp_path):
    sample, _, _ = imported
    with pytest.raises(ConfigError, match="has no option 'colour'; it has: "):
        read(sample.reader, sample.source, tmp_path / "out", colour="red")


def test_an_empty_source_is_refused_and_leaves_nothing(imported, tmp_path):
    sample, _, _ = imported
    empty = tmp_path / "in" / sample.source.name
    if sample.source.is_dir():
        empty.mkdir(parents=True)
    else:
        empty.parent.mkdir()
        empty.write_bytes(b"")
    with pytest.raises(DataError, match=str(empty)):
        read(sample.reader, empty, tmp_path / "out", **sample.options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]

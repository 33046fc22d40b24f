"""The Miyawaki reader: orientation, order, runs and test pictures, on a made-up file and on the real one where it is there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import savemat

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.miyawaki import read_miyawaki
from cadiff.data.splits import check_disjoint, write_folds
from cadiff.errors import DataError
from layouts.miyawaki import make_content


@pytest.fixture
def session(tmp_path, rng):
    """(the file, responses (80, 797), upright pictures (10, 10, 10), picture of each trial)"""
    content, pictures, shown = make_content(rng)
    savemat(tmp_path / "V1_mean_figure.mat", content, do_compression=True)
    return tmp_path / "V1_mean_figure.mat", content["R2"].T, pictures, shown


def test_each_trial_has_its_responses_and_its_upright_picture(session, tmp_path):
    source, responses, pictures, shown = session
    data = BrainDataset.open(read_miyawaki(source, tmp_path / "out", scale=3), verify=True)
    np.testing.assert_array_equal(data.betas, responses.astype(np.float32))
    for trial in (0, 7, 41, 79):
        picture = data.image(data.trials["stimulus_id"][trial])
        assert picture.shape == (30, 30, 3)
        np.testing.assert_array_equal(picture[1::3, 1::3, 0], 255 * pictures[shown[trial]])
        assert set(np.unique(picture)) == {0, 255}
        for shift in range(3):  # a patch is 3 x 3 pixels of one value
            np.testing.assert_array_equal(picture[shift::3, shift::3, 1], picture[1::3, 1::3, 1])


def test_pictures_count_from_their_first_trial_and_runs_have_ten(session, tmp_path):
    source, _, _, shown = session
    trials = BrainDataset.open(read_miyawaki(source, tmp_path / "out")).trials
    assert list(trials["stimulus_id"]) == [f"image-{number + 1:02d}" for number in shown]
    assert list(trials["run"]) == [1 + trial // 10 for trial in range(80)]
    assert list(trials.loc[trials["stimulus_id"] == "image-03", "repeat"]) == list(range(1, 9))
    assert set(trials["split"]) == {"train"}


@pytest.mark.parametrize(("test", "names"), [(10, ["image-10"]), ([5, 10], ["image-05", "image-10"])])
def test_all_trials_of_the_chosen_pictures_are_tested(session, tmp_path, test, names):
    data = BrainDataset.open(read_miyawaki(session[0], tmp_path / "out", test=test))
    assert sorted(data.stimulus_ids("test")) == names
    assert len(data.rows("test")) == 8 * len(names)
    check_disjoint(data)


def test_folds_leave_out_one_picture_after_another(session, tmp_path):
    data = BrainDataset.open(read_miyawaki(session[0], tmp_path / "out", scale=1))
    folds = [BrainDataset.open(fold) for fold in write_folds(data, tmp_path / "folds", 10)]
    assert sorted(fold.stimulus_ids("test")[0] for fold in folds) == sorted(data.stimulus_ids("train"))
    assert {(len(fold.rows("train")), len(fold.rows("test"))) for fold in folds} == {(72, 8)}


@pytest.mark.parametrize("test", [0, 11, [1, 11], "last", 1.0, True, list(range(1, 11))])
def test_a_test_picture_that_there_is_not_is_refused(session, tmp_path, test):
    with pytest.raises(DataError, match="numbers of pictures from 1 to 10"):
        read_miyawaki(session[0], tmp_path / "out", test=test)


@pytest.mark.parametrize("scale", [0, -1, 2.5, True, 1000])
def test_a_scale_that_makes_no_picture_is_refused(session, tmp_path, scale):
    with pytest.raises(DataError, match="whole number from 1 to 100"):
        read_miyawaki(session[0], tmp_path / "out", scale=scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("R2"), r"lacks R2 \(numeric arrays found: I2\)"),
        (lambda c: c.update(I=c.pop("I2"), R=c.pop("R2")), "lacks I2, R2"),
        (lambda c: c.update(R2=c["R2"].T), r"R2 is float64 \(80, 797\), expected numbers \(n, 80\)"),
        (lambda c: c.update(I2=c["I2"][:99]), r"expected numbers \(100, n\)"),
        (lambda c: c.update(I2=c["I2"] * 0.5), "other than 0 and 1"),
        (lambda c: c.update(R2=c["R2"][:, :79], I2=c["I2"][:, :79]), "found 79 trials.*design=any"),
        (lambda c: c.update(R2=c["R2"][:700]), "700 voxels"),
        (lambda c: c.update(I2=c["I2"] * 0), "1 pictures shown 80 to 80 times"),
        (lambda c: c["R2"].__setitem__((0, 0), np.nan), "NaN"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(tmp_path, rng, change, message):
    content, _, _ = make_content(rng)
    change(content)
    savemat(tmp_path / "x.mat", content)
    with pytest.raises(DataError, match=message):
        read_miyawaki(tmp_path / "x.mat", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.mat"]


def test_a_selection_is_read_when_it_is_asked_for(tmp_path, rng):
    content, _, shown = make_content(rng)
    keep = np.flatnonzero(shown < 5)[3:]
    savemat(tmp_path / "x.mat", {"I2": content["I2"][:, keep], "R2": content["R2"][:50, keep]})
    data = BrainDataset.open(read_miyawaki(tmp_path / "x.mat", tmp_path / "out", design="any", test=5))
    np.testing.assert_array_equal(data.betas, content["R2"][:50, keep].T.astype(np.float32))
    assert data.stimuli["label"].isna().all() and set(data.trials["run"]) == {1}


def test_the_real_file(dev_data, tmp_path):
    source = dev_data / "miyawaki" / "V1_mean_figure.mat"
    data = BrainDataset.open(read_miyawaki(source, tmp_path / "out", scale=1))
    ink = {}
    for name, label in data.stimuli["label"].items():
        lit = data.image(str(name))[..., 0] > 0
        ink[label] = lit[lit.any(axis=1)][
            :, lit.any(axis=0)
        ]  # without the dark rows and columns around and between
    # upright letters: u is open at the top, n at the bottom, r has its stem on the left and its arm at the top
    assert ink["u"][-1].all() and not ink["u"][0].all()
    np.testing.assert_array_equal(ink["n"], ink["u"][::-1])
    assert ink["r"][:, 0].all() and ink["r"][0].all() and not ink["r"][1:, 1:].any()
    # what a picture evokes comes again: more alike than other pictures, within other runs too
    alike = np.corrcoef(data.betas)
    name, run = data.trials["stimulus_id"].to_numpy(), data.trials["run"].to_numpy()
    other_run = run[:, None] != run[None]
    same = name[:, None] == name[None]
    assert alike[same & other_run].mean() > alike[~same & other_run].mean() + 0.1

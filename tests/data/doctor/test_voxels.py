import numpy as np
import pytest

from cadiff.data.doctor import voxels
from cadiff.data.doctor.folder import open_folder
from cadiff.data.doctor.scan import scan_betas


@pytest.fixture
def ask(ward):
    """ask(check, betas) -> finding about a dataset with these betas."""

    def ask(check, betas=None, **facts):
        if betas is not None:
            ward.betas = betas
        ward.describe(**facts)
        folder = open_folder(ward.folder)
        scanned = scan_betas(folder, progress=False)
        return check(scanned) if check is voxels.check_values else check(folder, scanned)

    return ask


def test_numbers_of_bad_constant_and_copied_voxels_count_from_one(ask, ward):
    betas = ward.betas
    betas[3, 4] = np.inf
    assert ask(voxels.check_finite, betas).details["voxels"].tolist() == [5]
    betas[:, 4] = betas[:, 5] = 0.0
    assert ask(voxels.check_constant, betas).details["voxels"].tolist() == [5, 6]
    assert ask(voxels.check_duplicates, betas).verdict == "ok"  # two constants are no copies
    betas[:, 4] = betas[:, 5] = betas[:, 9]
    found = ask(voxels.check_duplicates, betas)
    assert [copies.tolist() for copies in found.details["sets"]] == [[5, 6, 10]]
    assert found.details["num_copies"] == 2


def test_many_copies_are_wrong_and_a_few_a_warning(ask, ward):
    betas = ward.betas
    assert ask(voxels.check_duplicates, np.c_[betas[:, :179], betas[:, 0]]).verdict == "warning"
    assert ask(voxels.check_duplicates, np.c_[betas[:, :150], betas[:, :30]]).verdict == "wrong"


def test_masks_and_atlases_are_no_responses(ask, ward, rng):
    shape = ward.betas.shape
    assert ask(voxels.check_values, rng.integers(0, 2, shape)).verdict == "wrong"
    assert ask(voxels.check_values, rng.integers(0, 12, shape)).verdict == "wrong"
    assert ask(voxels.check_values, np.zeros(shape)).verdict == "wrong"
    assert ask(voxels.check_values, rng.integers(-3000, 3000, shape)).verdict == "ok"
    betas = rng.normal(size=shape)
    betas[:, :4] = rng.integers(0, 2, (shape[0], 4))
    assert ask(voxels.check_values, betas).verdict == "warning"


@pytest.mark.parametrize(
    ("units", "meaning"),
    [
        ("percent signal change", "percent"),
        ("% BOLD", "percent"),
        ("PSC", "percent"),
        ("z", "z"),
        ("z-scored within runs", "z"),
        ("standardised", "z"),
        ("response estimates as published, not z-scored", "not z"),
        ("percent signal change, unnormalised", "percent"),
        ("percent signal change, single trials by GLMsingle, not normalised", "percent"),
        ("response amplitudes as released; nothing is normalised here", "not z"),
        ("z-scored per grayordinate over each run, mean of windows of 10 frames", "z"),
        ("not stated", None),
        ("t values", "other"),
        ("", None),
        (None, None),
        ("n/a", None),
    ],
)
def test_units_are_understood(units, meaning):
    assert voxels.stated_units(units) == meaning


@pytest.mark.parametrize(
    ("units", "scale", "level", "verdict"),
    [
        ("percent signal change", 1.5, 0.8, "ok"),
        ("percent signal change", 0.002, 0.001, "warning"),
        ("percent signal change", 400.0, 9000.0, "warning"),
        ("percent signal change", 1.0, 0.0, "warning"),
        ("z", 1.0, 0.0, "ok"),
        ("z", 30.0, 100.0, "warning"),
        ("t values", 3.0, 1.0, "ok"),
        (None, 1.5, 0.8, "note"),
    ],
)
def test_size_of_values_is_held_against_units(ask, ward, rng, units, scale, level, verdict):
    betas = level + scale * rng.normal(size=ward.betas.shape)
    assert ask(voxels.check_units, betas, units=units).verdict == verdict


def test_scaled_integers_are_not_percent(ask, ward):
    found = ask(voxels.check_units, np.rint(300 * ward.betas), units="percent signal change")
    assert found.verdict == "warning" and "300" in found.do

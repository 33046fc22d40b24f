"""The Natural Scenes Dataset: the right voxel, trial and picture in the right row, from either form."""

from __future__ import annotations

import math
import shutil
from datetime import date

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import nsd_betas, nsd_design
from cadiff.data.readers.nsd import GRIDS, NSDGENERAL_VOXELS, read_nsd
from cadiff.errors import DataError
from layouts import nsd as layout

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
RESPONSES = "nsddata/ppdata/subj01/behav/responses.tsv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


@pytest.fixture(scope="module", params=["hdf5", "nii.gz"])
def form(request):
    return request.param


@pytest.fixture(scope="module")
def made(form, tmp_path_factory):
    """(what was written, the dataset that was imported)"""
    folder = tmp_path_factory.mktemp("nsd")
    subject = layout.make_subject(folder / "release", np.random.default_rng(5), form)
    out = read_nsd(subject.source, folder / "out", **layout.OPTIONS)
    return subject, BrainDataset.open(out, verify=True)


@pytest.fixture
def subject(tmp_path):
    return layout.make_subject(tmp_path / "release", np.random.default_rng(5), "hdf5")


def imported(subject, out, **options):
    return BrainDataset.open(read_nsd(subject.source, out, **{**layout.OPTIONS, **options}), verify=True)


def test_every_beta_is_that_of_its_voxel_and_trial_in_percent(made):
    subject, data = made
    for column, (x, y, z) in enumerate(data.voxels[["x", "y", "z"]].to_numpy()):
        stored = np.concatenate([subject.stored[session][x, y, z] for session in layout.SESSIONS])
        np.testing.assert_allclose(data.betas[:, column], stored / 300, rtol=1e-6)


def test_both_forms_give_the_same_betas(tmp_path):
    outs = []
    for form in ("hdf5", "nii.gz"):
        subject = layout.make_subject(tmp_path / form, np.random.default_rng(5), form)
        outs.append(read_nsd(subject.source, tmp_path / f"out-{form}", **layout.OPTIONS))
    for name in ("betas.npy", "trials.tsv", "voxels.tsv", "stimuli.tsv"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_voxels_are_those_of_the_mask_in_the_order_of_numpy(made):
    subject, data = made
    wanted = [tuple(v) for v in np.argwhere(subject.mask == 1) if tuple(v) != subject.absent]
    assert [tuple(v) for v in data.voxels[["x", "y", "z"]].to_numpy()] == wanted
    assert data.description["masks"] == {"nsdgeneral": len(wanted) + 1}


def test_voxels_are_named_by_every_mask_and_by_the_whole_area(made):
    subject, data = made
    names = {0: "nsdgeneral", 1: "nsdgeneral,V1,V1v", 4: "nsdgeneral,V2,V2d", 7: "nsdgeneral,hV4"}
    for row in data.voxels.itertuples():
        value = subject.areas[row.x, row.y, row.z]
        if value in names:
            assert row.rois == names[value]


def test_the_noise_ceiling_is_the_share_of_signal_in_a_single_trials_variance(made):
    subject, data = made
    ncsnr = subject.ncsnr[tuple(data.voxels[["x", "y", "z"]].to_numpy().T)]
    rng = np.random.default_rng(0)
    for voxel in range(3):
        if np.isnan(ncsnr[voxel]):
            continue
        signal = ncsnr[voxel] * rng.standard_normal(200_000)
        single = signal + rng.standard_normal(200_000)
        assert np.corrcoef(signal, single)[0, 1] ** 2 == pytest.approx(
            data.voxels["noise_ceiling"][voxel], abs=0.01
        )
    np.testing.assert_array_equal(np.isnan(data.voxels["noise_ceiling"]), np.isnan(ncsnr))
    assert np.isnan(ncsnr).sum() == 1


def test_trials_are_the_design_in_order_of_acquisition(made):
    subject, data = made
    shown = np.concatenate([subject.ids[session] for session in layout.SESSIONS])
    assert list(data.trials["stimulus_id"]) == [f"nsd-{n:05d}" for n in shown]
    assert list(data.trials["split"]) == ["test" if n in subject.shared else "train" for n in shown]
    assert list(data.trials["session"]) == [1] * 12 + [2] * 12 + [4] * 12
    assert list(data.trials["run"]) == ([1] * 5 + [2] * 4 + [3] * 3) * 3
    assert list(data.trials["trial_in_session"]) == list(range(1, 13)) * 3


def test_presentation_counts_the_session_that_is_not_here(made):
    subject, data = made
    design = loadmat(subject.source / DESIGN)
    order = design["masterordering"].ravel()
    times = [list(order[: t + 1]).count(order[t]) for t in range(len(order))]
    assert list(data.trials["presentation"]) == times[:24] + times[36:]
    assert (data.trials["repeat"] <= data.trials["presentation"]).all()
    assert (data.trials["repeat"] < data.trials["presentation"]).any()


def test_pictures_are_the_rows_of_the_brick(made):
    subject, data = made
    for nsd_id in set(np.concatenate(list(subject.ids.values())).tolist()):
        np.testing.assert_array_equal(data.image(f"nsd-{nsd_id:05d}"), subject.bricks[nsd_id])
        row = data.stimuli.loc[f"nsd-{nsd_id:05d}"]
        assert row["coco_id"] == 500_000 + nsd_id
        assert str(row["in_bold5000"]) == str(nsd_id % 2 == 0)


def test_the_description_says_what_was_taken(made):
    _, data = made
    about = data.description
    assert about["sessions"] == [1, 2, 4]
    assert about["sessions_missing"] == [3, *range(5, 41)]
    assert about["sessions_checked_with_responses"] == [1, 2, 4]
    assert about["licence_accepted"] == date.today().isoformat()
    assert about["outside_field_of_view"] == {"2": 1}
    assert about["dropped_voxels"] == 1
    assert about["betas"] == "betas_fithrf_GLMdenoise_RR"
    assert about["units"] == "percent signal change"
    assert about["source"] == "release"


@pytest.mark.parametrize(
    ("given", "taken"),
    [(2, [2]), ("1-2", [1, 2]), ("4, 1", [1, 4]), ([4, 2], [2, 4]), ("1,2,4", [1, 2, 4])],
)
def test_sessions_can_be_chosen(subject, tmp_path, given, taken):
    data = imported(subject, tmp_path / "out", sessions=given, pictures=False)
    assert data.description["sessions"] == taken
    assert list(dict.fromkeys(data.trials["session"])) == taken


def test_voxels_outside_the_field_of_view_are_kept_or_refused_when_asked(subject, tmp_path):
    kept = imported(subject, tmp_path / "kept", bad_voxels="keep", pictures=False)
    where = (kept.voxels[["x", "y", "z"]].to_numpy() == subject.absent).all(axis=1)
    column = kept.betas[:, np.flatnonzero(where)[0]]
    assert (column[12:24] == 0).all() and (column[:12] != 0).any()
    with pytest.raises(DataError, match=r"betas_session02.hdf5: 1 of .* voxels are 0 in all trials"):
        imported(subject, tmp_path / "out", bad_voxels="refuse")
    whole = imported(subject, tmp_path / "whole", bad_voxels="refuse", sessions=[1, 4], pictures=False)
    assert len(whole.voxels) == len(kept.voxels)


def test_pictures_can_be_left_out_or_made_smaller(subject, tmp_path):
    small = imported(subject, tmp_path / "small", image_size=6)
    assert small.image(small.stimulus_ids("test")[0]).shape == (6, 6, 3)
    assert small.description["pictures"] == {"side": 10, "stored": 6}
    (subject.source / STIMULI).unlink()
    bare = imported(subject, tmp_path / "bare", pictures=False)
    assert bare.stimuli["file"].isna().all()
    assert len(bare.stimuli) == len(small.stimuli)


def test_several_masks_are_joined_and_label_values_are_numbered_without_names(subject, tmp_path):
    names = subject.source / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab"
    names.unlink()
    data = imported(
        subject, tmp_path / "out", rois="nsdgeneral, prf-visualrois", labels="", bad_voxels="keep"
    )
    assert len(data.voxels) == ((subject.mask > 0) | (subject.areas > 0)).sum()
    found = {part for rois in data.voxels["rois"] for part in rois.split(",")}
    assert found == {"nsdgeneral", *(f"prf-visualrois-{n}" for n in range(1, 8))}


def test_names_are_found_in_fsaverage_and_for_one_hemisphere(subject, tmp_path):
    shutil.move(subject.source / "nsddata/freesurfer/subj01", subject.source / "nsddata/freesurfer/fsaverage")
    layout.write_nifti(layout.roi(subject.source, "lh.prf-visualrois"), subject.areas.astype(np.int16))
    data = imported(subject, tmp_path / "out", rois=["lh.prf-visualrois"], labels=[], pictures=False)
    found = {part for rois in data.voxels["rois"] for part in rois.split(",")}
    assert found == {"V1", "V1v", "V1d", "V2", "V2v", "V2d", "V3", "V3v", "V3d", "hV4"}


def test_optional_files_may_be_absent(subject, tmp_path):
    for name in (INFO, RESPONSES):
        (subject.source / name).unlink()
    (layout.betas_folder(subject.source) / "ncsnr.nii.gz").unlink()
    data = imported(subject, tmp_path / "out", pictures=False)
    assert data.voxels["noise_ceiling"].isna().all()
    assert "ncsnr" in data.description["noise_ceiling"]
    assert data.description["sessions_checked_with_responses"] == []


def rewrite_big_endian(folder, session, stored):
    layout.write_nifti(folder / f"betas_session{session:02d}.nii.gz", stored, byte_order=">")


def rewrite_unpacked(folder, session, stored):
    layout.write_nifti(folder / f"betas_session{session:02d}.nii", stored)


def rewrite_by_trials(folder, session, stored):
    with h5py.File(folder / f"betas_session{session:02d}.hdf5", "w") as file:
        file.create_dataset("betas", data=stored.T.astype(">i2"), chunks=(1, *stored.shape[2::-1]))


def rewrite_contiguous(folder, session, stored):
    with h5py.File(folder / f"betas_session{session:02d}.hdf5", "w") as file:
        file["betas"] = stored.T


@pytest.mark.parametrize(
    "rewrite", [rewrite_big_endian, rewrite_unpacked, rewrite_by_trials, rewrite_contiguous]
)
def test_betas_that_were_stored_anew_give_the_same(subject, tmp_path, rewrite, monkeypatch):
    before = imported(subject, tmp_path / "before", pictures=False)
    folder = layout.betas_folder(subject.source)
    for session, stored in subject.stored.items():
        (folder / f"betas_session{session:02d}.hdf5").unlink()
        rewrite(folder, session, stored)
    monkeypatch.setattr(
        nsd_betas, "BLOCK_BYTES", 2 * stored[..., 0].size * 5
    )  # 12 trials: blocks of 5, 5 and 2
    after = imported(subject, tmp_path / "after", pictures=False)
    np.testing.assert_array_equal(after.betas, before.betas)


def test_a_design_of_matlab_7_3_gives_the_same(subject, tmp_path):
    before = imported(subject, tmp_path / "before", pictures=False)
    content = {k: v for k, v in loadmat(subject.source / DESIGN).items() if not k.startswith("__")}
    with h5py.File(subject.source / DESIGN, "w", userblock_size=512) as file:
        for name, value in content.items():
            file[name] = value.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    after = imported(subject, tmp_path / "after", pictures=False)
    pd.testing.assert_frame_equal(after.trials, before.trials)


@pytest.mark.parametrize("seed", range(20))
def test_any_set_of_voxels_is_read_from_hdf5_as_from_the_array(tmp_path, seed):
    rng = np.random.default_rng(seed)
    stored = rng.integers(-9, 9, (*layout.GRID, 3)).astype(np.int16)
    path = layout.write_betas(tmp_path / "betas.hdf5", stored)
    chosen = rng.random(layout.GRID) < rng.choice([0.01, 0.3, 0.9, 1.1])
    chosen[tuple(rng.integers(0, layout.GRID))] = True
    voxels = rng.permutation(np.argwhere(chosen))
    np.testing.assert_array_equal(nsd_betas.read_session(path, voxels), stored[tuple(voxels.T)].T)


def test_a_session_of_750_trials_without_a_pattern_has_runs_of_63_and_62():
    design = nsd_design.Design(np.arange(750), np.arange(3), None, None)
    runs, known = nsd_design.runs_of(design, 1, 750)
    assert list(np.bincount(runs)[1:]) == [63, 62] * 6
    assert (np.diff(runs) >= 0).all() and "rule" in known
    assert set(nsd_design.runs_of(design, 1, 12)[0]) == {1}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """One session of subject 1 in the published sizes; most of the files' chunks were never written and take no room."""
    folder = tmp_path_factory.mktemp("published") / "release"
    rng = np.random.default_rng(1)
    grid = GRIDS["func1pt8mm"][0]
    ids = rng.permutation(73_000) + 1
    subjectim = np.concatenate([np.tile(ids[:1000], (8, 1)), ids[1000:].reshape(8, 9000)], axis=1)
    order = np.repeat(np.arange(1, 10_001), 3)  # each three times in a row: few pictures in a session
    slots = np.tile(layout.pattern((63, 62) * 6), (40, 1, 1))
    layout.write_design(folder, order, subjectim, ids[:1000], slots)
    labels = np.zeros(grid, np.int16)
    labels[40:43, 50, 40] = (1, 2, 7)
    layout.write_nifti(layout.roi(folder, "prf-visualrois"), labels)
    path = layout.betas_folder(folder) / "betas_session01.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("betas", (750, *grid[::-1]), "i2", chunks=(750, 1, 1, 1))
        data[:, 40, 50, 40:43] = rng.integers(-3000, 3000, (750, 3))
    (folder / STIMULI).parent.mkdir(parents=True)
    with h5py.File(folder / STIMULI, "w") as file:
        bricks = file.create_dataset("imgBrick", (73_000, 425, 425, 3), "u1", chunks=(1, 425, 425, 3))
        bricks[ids[0] - 1] = 200
    return folder


def test_the_published_sizes_are_accepted(published, tmp_path):
    out = read_nsd(published, tmp_path / "out", rois="prf-visualrois", licence_accepted=True, image_size=8)
    data = BrainDataset.open(out, verify=True)
    assert data.betas.shape == (750, 3)
    assert data.description["design"] == "published"
    assert list(data.trials.groupby("run").size()) == [63, 62] * 6
    assert (data.image(data.trials["stimulus_id"][0]) == 200).all()


def test_the_published_number_of_voxels_is_checked(published, tmp_path):
    grid = GRIDS["func1pt8mm"][0]
    layout.write_nifti(layout.roi(published, "nsdgeneral"), np.ones(grid, np.uint8))
    with pytest.raises(DataError, match=f"has {np.prod(grid)} voxels, published are {NSDGENERAL_VOXELS[0]}"):
        read_nsd(published, tmp_path / "out", licence_accepted=True)


def test_a_design_of_other_sizes_is_refused(published, tmp_path):
    copy = tmp_path / "release"
    shutil.copytree(published, copy, ignore=shutil.ignore_patterns("nsd_stimuli.hdf5"))
    shared = np.arange(1, 1000)
    layout.write_design(
        copy, np.ones(30_000, int), np.tile(np.arange(1, 10_001), (8, 1)), shared, np.ones((1, 1, 1))
    )
    with pytest.raises(
        DataError, match=r"found masterordering 30000.*sharedix 999, expected .*sharedix 1000"
    ):
        read_nsd(copy, tmp_path / "out", rois="prf-visualrois", licence_accepted=True)


def test_the_two_published_grids_of_a_subject_cover_the_same_room():
    """Both start in the same corner and reach just beyond the last slice that was scanned."""
    for fine, coarse in zip(GRIDS["func1mm"], GRIDS["func1pt8mm"], strict=True):
        assert tuple(math.ceil(round((n - 1) / 1.8, 6)) + 1 for n in fine) == coarse

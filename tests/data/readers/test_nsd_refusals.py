"""The Natural Scenes Dataset: what the reader refuses, in a sentence that says what was found and what to do."""

from __future__ import annotations

import re
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from cadiff.data.readers.nsd import read_nsd
from cadiff.errors import DataError
from layouts import nsd as layout

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
RESPONSES = "nsddata/ppdata/subj01/behav/responses.tsv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


@pytest.fixture
def subject(tmp_path):
    return layout.make_subject(tmp_path / "release", np.random.default_rng(5), "hdf5")


def refusal(subject, out, /, **options):
    with pytest.raises(DataError) as caught:
        read_nsd(subject.source, out, **{**layout.OPTIONS, **options})
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_the_agreement_nothing_is_read(subject, tmp_path):
    for given in (False, "yes", 1, None):
        message = refusal(subject, tmp_path / "out", licence_accepted=given)
        assert "https://naturalscenesdataset.org" in message and "licence_accepted=true" in message


def test_what_is_not_the_published_design_is_refused(subject, tmp_path):
    message = refusal(subject, tmp_path / "out", design="published")
    assert "has 12 trials of (7, 6, 5) voxels" in message and "750 of (81, 104, 83)" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subject": 9}, "subject=9: NSD has the subjects 1 to 8"),
        ({"subject": "sub-01"}, "subject='sub-01'"),
        ({"subject": 2}, r"subj02/func1pt8mm/betas_fithrf_GLMdenoise_RR is not a folder"),
        ({"space": "fsaverage"}, "space='fsaverage': give one of func1pt8mm, func1mm"),
        ({"betas": "b4"}, r"betas='b4': there are b1 \(betas_assumehrf\), b2"),
        ({"betas": ["b3"]}, r"betas=\['b3'\]"),
        ({"rois": ""}, "rois is empty"),
        ({"rois": 3}, "rois=3: give names of masks"),
        ({"rois": "V1"}, r"There is no file .*roi/V1.nii.gz \(found: nsdgeneral.nii.gz"),
        ({"rois": "../../nsdgeneral"}, "must not leave the folder"),
        ({"labels": "streams"}, "There is no file .*streams.nii.gz"),
        ({"sessions": 3}, r"has no betas of session 3 \(found: 1, 2, 4\)"),
        ({"sessions": "0-2"}, "sessions='0-2': give numbers from 1 on"),
        ({"sessions": "2-1"}, "sessions='2-1'"),
        ({"sessions": []}, "sessions is empty"),
        ({"sessions": 1.5}, "sessions=1.5"),
        ({"bad_voxels": "zero"}, "bad_voxels='zero': give one of drop, refuse, keep"),
        ({"design": "mine"}, "design='mine': give one of published, any"),
        ({"pictures": "no"}, "pictures='no': give true or false"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": True}, "image_size=True"),
        ({"image_size": 11}, "image_size=11: the pictures have 10 pixels a side"),
    ],
)
def test_options_out_of_range_are_refused(subject, tmp_path, options, message):
    assert re.search(message, refusal(subject, tmp_path / "out", **options))


def no_pictures(subject):
    (subject.source / STIMULI).unlink()


def few_pictures(subject):
    layout.write_pictures(subject.source, subject.bricks[:20])


def grey_pictures(subject):
    layout.write_pictures(subject.source, subject.bricks[..., :1])


def pictures_elsewhere(subject):
    elsewhere = subject.source.parent / "secret.hdf5"
    shutil.move(subject.source / STIMULI, elsewhere)
    with h5py.File(subject.source / STIMULI, "w") as file:
        file["imgBrick"] = h5py.ExternalLink(str(elsewhere), "imgBrick")


def no_design(subject):
    (subject.source / DESIGN).unlink()


def short_design(subject):
    change_design(subject, masterordering=lambda order: order[:, :40])


def id_from_zero(subject):
    change_design(subject, subjectim=lambda table: table * (table != table[0, 0]))


def order_of_halves(subject):
    change_design(subject, masterordering=lambda order: order / 2)


def change_design(subject, **changes):
    content = {k: v for k, v in loadmat(subject.source / DESIGN).items() if not k.startswith("__")}
    content |= {name: change(content[name]) for name, change in changes.items()}
    order, table, shared, slots = (
        content[name] for name in ("masterordering", "subjectim", "sharedix", "stimpattern")
    )
    layout.write_design(subject.source, order[0], table, shared[0], slots)


def other_subjects_responses(subject):
    table = pd.read_csv(subject.source / RESPONSES, sep="\t")
    table.loc[14, "73KID"] += 1
    table.to_csv(subject.source / RESPONSES, sep="\t", index=False)


def responses_without_ids(subject):
    (subject.source / RESPONSES).write_text("SESSION\tRUN\n1\t1\n")


def other_shared(subject):
    table = pd.read_csv(subject.source / INFO, index_col=0)
    table["shared1000"] = ~table["shared1000"]
    table.to_csv(subject.source / INFO)


def info_twice(subject):
    table = pd.read_csv(subject.source / INFO, index_col=0)
    pd.concat([table, table]).to_csv(subject.source / INFO)


def mask_of_another_subject(subject):
    layout.write_nifti(layout.roi(subject.source, "nsdgeneral"), subject.mask[:-1].astype(np.int16))


def mask_of_fractions(subject):
    layout.write_nifti(layout.roi(subject.source, "nsdgeneral"), subject.ncsnr)


def empty_mask(subject):
    layout.write_nifti(layout.roi(subject.source, "nsdgeneral"), np.zeros(layout.GRID, np.uint8))


def negative_ncsnr(subject):
    layout.write_nifti(layout.betas_folder(subject.source) / "ncsnr.nii.gz", subject.ncsnr - 5)


def damaged_names(subject):
    path = subject.source / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab"
    path.write_text("0 Unknown\nV1v 1\n")


def axes_of_python(subject):
    with h5py.File(session(subject, 2), "w") as file:
        file["betas"] = subject.stored[2]


def float_betas(subject):
    with h5py.File(session(subject, 2), "w") as file:
        file["betas"] = subject.stored[2].T / 300


def other_name(subject):
    with h5py.File(session(subject, 2), "w") as file:
        file["data"] = subject.stored[2].T


def cut_off(subject):
    content = session(subject, 2).read_bytes()
    session(subject, 2).write_bytes(content[: len(content) // 2])


def one_trial_less(subject):
    layout.write_betas(session(subject, 2), subject.stored[2][..., :-1])


def scaled_nifti(subject):
    as_nifti(subject, slope=1 / 300)


def flipped_bit(subject):
    path = as_nifti(subject)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum, as a flipped bit of the data would show
    path.write_bytes(content)


def cut_nifti(subject):
    path = as_nifti(subject)
    path.write_bytes(path.read_bytes()[:-2000])


def as_nifti(subject, **header):
    session(subject, 2).unlink()
    return layout.write_betas(
        session(subject, 2).with_name("betas_session02.nii.gz"), subject.stored[2], **header
    )


def silent_session(subject):
    layout.write_betas(session(subject, 2), np.zeros_like(subject.stored[2]))


def session(subject, number):
    return layout.betas_folder(subject.source) / f"betas_session{number:02d}.hdf5"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_pictures, "There is no file .*nsd_stimuli.hdf5.*pictures=false"),
        (few_pictures, "has 20 pictures, the trials show number"),
        (grey_pictures, r"imgBrick is uint8 \(120, 10, 10, 1\), expected uint8 \(pictures, side, side, 3\)"),
        (pictures_elsewhere, "has no data set 'imgBrick' of its own"),
        (no_design, "There is no file .*nsd_expdesign.mat"),
        (short_design, "has 40 trials, session 4 of 12 trials each goes beyond"),
        (id_from_zero, "subjectim holds numbers outside 1 to 73000"),
        (order_of_halves, "masterordering must hold whole numbers"),
        (other_subjects_responses, r"different pictures in 1 trials of session 2 \(first: trial 3, 73k ids"),
        (responses_without_ids, "responses.tsv lacks the column '73KID'"),
        (other_shared, "disagree whether .* pictures are shared"),
        (info_twice, "an nsdId comes twice"),
        (mask_of_another_subject, r"nsdgeneral.nii.gz is \(6, 6, 5\), the betas are \(7, 6, 5\)"),
        (mask_of_fractions, "expected labels"),
        (empty_mask, "no voxel is above 0 in nsdgeneral"),
        (negative_ncsnr, "ncsnr.nii.gz holds -.* never below 0"),
        (damaged_names, "'V1v 1' is not a number and a name"),
        (axes_of_python, r"session02.hdf5 has 7 trials of \(12, 5, 6\) voxels, betas_session01.hdf5 has 12"),
        (float_betas, "holds float64 .*expected the release's int16"),
        (other_name, r"has no data set 'betas' of its own \(found: data\)"),
        (cut_off, "betas_session02.hdf5 cannot be read"),
        (one_trial_less, "has 11 trials"),
        (scaled_nifti, "has the scale 0.00333333 and offset 0 in its header"),
        (flipped_bit, "betas_session02.nii.gz cannot be read"),
        (cut_nifti, "betas_session02.nii.gz cannot be read"),
        (silent_session, "every one of the .* voxels is 0 throughout some session"),
    ],
)
def test_damage_and_contradictions_are_refused(subject, tmp_path, damage, message):
    damage(subject)
    assert re.search(message, refusal(subject, tmp_path / "out"))

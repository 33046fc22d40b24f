"""fMRIPrep derivatives with one thing wrong: each refusal is one sentence that says what, and leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from cadiff.data import glm
from cadiff.data.readers.bids import read_bids
from cadiff.errors import ConfigError, DataError
from layouts.bids import (
    AFFINE,
    CONFOUNDS1,
    DERIVED,
    EVENTS1,
    ONSETS,
    RUN1,
    RUN2,
    SHAPE,
    TR,
    VOLUMES,
    change,
    make_world,
    replace_grid,
    save_volume,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("original") / "data", np.random.default_rng(1))


@pytest.fixture
def copy(original, tmp_path):
    """A copy of the volumes, to be damaged."""
    return Path(shutil.copytree(original.sample.source, tmp_path / "data", symlinks=True))


def test_runs_of_different_grids_are_refused(copy, tmp_path):
    replace_grid(copy / RUN2, (4, 5, 4))
    with pytest.raises(
        DataError, match=r"run-2.*cannot be joined with .*run-1.*shape \(4, 5, 4\), expected \(4, 5, 3\)"
    ):
        read_bids(copy, tmp_path / "out")
    replace_grid(copy / RUN2, affine=AFFINE + np.eye(4) * 0.1)
    with pytest.raises(DataError, match=r"cannot be joined .*the affine differs by 0.1"):
        read_bids(copy, tmp_path / "out")


def edit(name):
    """The damage of one kind: (function of the copy, options, pattern that the message has)."""

    def rename(old, new):
        return lambda copy: (copy / old).rename(copy / new)

    def write(path, content):
        return lambda copy: (copy / path).write_bytes(content(copy / path) if callable(content) else content)

    def atlas(values):
        return lambda copy: save_volume(copy / "bad.nii.gz", values)

    mask1 = str(RUN1).replace("preproc_bold", "brain_mask")
    facts1 = str(RUN1).replace(".nii.gz", ".json")
    many = lambda copy: replace_grid(copy / str(RUN1).replace("T1w", "MNI152NLin2009cAsym_res-2"))  # noqa: E731
    return {
        "no confounds": (lambda c: (c / CONFOUNDS1).unlink(), {}, r"no table of confounds .*confounds=\[\]"),
        "no mask": (lambda c: (c / mask1).unlink(), {}, "no brain mask of task-look_run-1 in space 'T1w'"),
        "no run's events": (lambda c: (c / EVENTS1).unlink(), {}, "no table of events for task-look_run-1"),
        "no pictures": (lambda c: shutil.rmtree(c / "stimuli"), {}, "the events name pictures"),
        "a picture less": (lambda c: (c / "stimuli/pets/cat.png").unlink(), {}, "picture of stimulus 'pets_cat'"),
        "outside": (lambda c: change(c / EVENTS1, stim_file={1: "../x.png"}), {}, "does not name a file inside"),
        "two spaces": (many, {}, "several spaces: MNI152NLin2009cAsym:res-2, T1w. Choose one with space="),
        "space of one run": (many, {"space": "MNI152NLin2009cAsym"}, "task-look_run-2 has no BOLD in space"),
        "other subject": (lambda c: None, {"subject": "07"}, "no subject 'sub-07' among its subjects.*sub-01"),
        "other task": (lambda c: None, {"task": "rest"}, "no task 'rest' among its tasks: there are look"),
        "no duration": (lambda c: change(c / EVENTS1, duration={2: "n/a"}), {}, "line 4: the duration is .*duration_s="),
        "zero duration": (lambda c: change(c / EVENTS1, duration={2: "0"}), {}, "line 4: the duration is '0'"),
        "onset in words": (lambda c: change(c / EVENTS1, onset={2: "soon"}), {}, "line 4: the onset is 'soon'"),
        "milliseconds": (lambda c: change(c / EVENTS1, onset={2: "22000"}), {}, "in milliseconds"),
        "no onset": (rename(EVENTS1, "x"), {}, "no table of events"),
        "a table of confounds as events": (
            lambda c: shutil.copy(c / CONFOUNDS1, c / EVENTS1), {}, r"lacks the column 'stim_file' \(it has: csf"),
        "Latin-1": (write(EVENTS1, "onset\tduration\ttrial_type\n1\t1\tgr\xfcn\n".encode("latin-1")), {}, "UTF-8 text"),
        "no trials": (write(EVENTS1, b"onset\tduration\tstim_file\n1\t1\tn/a\n"), {}, "holds no trial: 1 rows, 0 with"),
        "same onset": (lambda c: change(c / EVENTS1, onset={2: "6.0"}), {"glm": "lsa"}, "alike are trials 1 and 2"),
        "two of a name": (
            lambda c: change(c / EVENTS1, stim_file={1: "pets_cat.png"}), {}, "would both be named 'pets_cat'"),
        "long name": (lambda c: change(c / EVENTS1, stim_file={1: "x" * 5000}), {}, "has 5000 characters: ids name files"),
        "short confounds": (
            write(CONFOUNDS1, lambda p: p.read_bytes()[: p.read_bytes().rindex(b"\n", 0, -1) + 1]), {},
            "has 63 rows, the BOLD has 64 volumes"),
        "gap in confounds": (lambda c: change(c / CONFOUNDS1, rot_x={9: "n/a"}), {}, "line 11: rot_x is nan"),
        "broken JSON": (write(facts1, b'{"RepetitionTime": '), {}, "cannot be read as JSON"),
        "JSON list": (write(facts1, b"[2.0]"), {}, "holds a JSON list, expected an object"),
        "TR in words": (write(facts1, b'{"RepetitionTime": "2 s"}'), {}, "RepetitionTime is '2 s', expected seconds"),
        "truncated": (write(RUN2, lambda p: p.read_bytes()[:-3000]), {}, "run-2_space-T1w_desc-preproc_bold.nii.gz is damaged"),
        "not an image": (write(RUN1, b"hello"), {}, "cannot be read as an image"),
        "one volume": (lambda c: save_volume(c / RUN1, np.ones(SHAPE, np.float32)), {}, r"shape \(4, 5, 3\), expected"),
        "half an atlas": (atlas(np.full(SHAPE, 0.5, np.float32)), {"atlas": "bad.nii.gz"}, "values that are not whole numbers"),
        "other atlas": (atlas(np.ones((9, 9, 9), np.int16)), {"atlas": "bad.nii.gz"}, "another grid .*resample it first"),
        "no atlas": (lambda c: None, {"atlas": "none.nii.gz"}, "There is no file none.nii.gz"),
        "empty mask": (atlas(np.zeros(SHAPE, np.uint8)), {"mask": "bad.nii.gz"}, "the mask leaves no voxel"),
        "only raw": (lambda c: (shutil.rmtree(c / "derivatives"), replace_grid(c / "sub-01/func/sub-01_task-look_bold.nii.gz")),
            {}, "raw BOLD only, no .*run fMRIPrep first, or give desc=null"),
        "nothing": (lambda c: shutil.rmtree(c / "derivatives"), {}, "expected fMRIPrep derivatives, sub-01/"),
        "a subject as the source": (lambda c: None, {"source": "sub-01"}, "holds func; expected fMRIPrep derivatives"),
        "two pipelines": (
            lambda c: shutil.copytree(c / "derivatives/fmriprep", c / "derivatives/again"), {}, "several folders of BOLD"),
        "confounds explain a trial": (
            lambda c: change(c / CONFOUNDS1, csf=[str(v) for v in
                glm.trial_regressors(ONSETS[:1], np.full(1, 2.0), (np.arange(VOLUMES) + 0.5) * TR)[:, 0, 0]]),
            {"confounds": "csf"}, "response to trial 1 cannot be told from the confounds"),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", [
    "no confounds", "no mask", "no run's events", "no pictures", "a picture less", "outside", "two spaces", "space of one run",
    "other subject", "other task", "no duration", "zero duration", "onset in words", "milliseconds", "no onset",
    "a table of confounds as events", "Latin-1", "no trials", "same onset", "two of a name", "long name", "short confounds",
    "gap in confounds", "broken JSON", "JSON list", "TR in words", "truncated", "not an image", "one volume", "half an atlas",
    "other atlas", "no atlas", "empty mask", "only raw", "nothing", "a subject as the source", "two pipelines",
    "confounds explain a trial",
])  # fmt: skip
def test_each_fault_is_one_sentence_and_leaves_nothing(name, copy, tmp_path):
    damage, options, message = edit(name)
    damage(copy)
    with pytest.raises(DataError, match=message) as caught:
        read_bids(copy / options.pop("source", "."), tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert {path.name for path in tmp_path.iterdir()} <= {"data"}


def test_a_link_to_data_that_were_not_fetched_is_named(copy, tmp_path):
    (copy / RUN2).unlink()
    (copy / RUN2).symlink_to("../.git/annex/objects/x")
    with pytest.raises(
        DataError, match="is a link to a file that is not here: fetch it, for example with `datalad get`"
    ):
        read_bids(copy, tmp_path / "out")


def test_a_header_that_claims_too_much_is_refused(copy, tmp_path):
    image = nibabel.load(copy / RUN1)
    header, values = image.header.copy(), image.get_fdata(dtype=np.float32)
    header.set_data_shape((2000, 2000, 2000, VOLUMES))
    plain = copy / str(RUN1).removesuffix(".gz")
    (copy / RUN1).unlink()
    plain.write_bytes(header.binaryblock + bytes(4) + values.tobytes())
    with pytest.raises(DataError, match=r"the header claims .* bytes, the file holds"):
        read_bids(copy, tmp_path / "out")


def test_surfaces_without_a_hemisphere_or_with_another_kind_of_atlas_are_refused(tmp_path):
    made = make_world(tmp_path / "data", np.random.default_rng(1), "surface")
    save_volume(tmp_path / "data/hemi-L.nii.gz", np.ones(SHAPE, np.int16))
    with pytest.raises(DataError, match=r"hemi-L.nii.gz is not a GIFTI file of a map"):
        read_bids(made.sample.source, tmp_path / "out", atlas="hemi-{hemi}.nii.gz")
    with pytest.raises(DataError, match="a map of a surface is two GIFTI files"):
        read_bids(made.sample.source, tmp_path / "out", mask="hemi-L.nii.gz")
    (tmp_path / "data" / DERIVED / "sub-01_task-look_run-2_hemi-R_space-fsaverage5_bold.func.gii").unlink()
    with pytest.raises(DataError, match="expected one BOLD file a run, or hemi-L and hemi-R"):
        read_bids(made.sample.source, tmp_path / "out")


@pytest.mark.parametrize("options", [
    {"glm": "ols"}, {"hrf": "fir"}, {"units": "z"}, {"high_pass_s": "128 s"}, {"high_pass_s": -1}, {"layout": "bids2"},
    {"slice_time_ref": 2}, {"test_runs": ["a"]}, {"test_runs": 1.5}, {"tr_s": float("nan")}, {"cut_trials": "keep"},
    {"duration_s": True}, {"layout": "openfmri", "confounds": ["csf"]},
])  # fmt: skip
def test_impossible_options_are_named(original, tmp_path, options):
    with pytest.raises(ConfigError, match=list(options)[-1]):
        read_bids(original.sample.source, tmp_path / "out", **options)

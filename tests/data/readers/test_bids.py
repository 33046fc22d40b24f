"""fMRIPrep derivatives: planted responses come back in the right rows and columns, and each refusal says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from cadiff.data import glm
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import bids_images
from cadiff.data.readers.bids import read_bids
from cadiff.data.readers.bids_tables import read_confounds, stimulus_name
from cadiff.errors import DataError
from layouts.bids import (
    AFFINE,
    CONFOUNDS1,
    CONSTANT_POINT,
    DERIVED,
    EVENTS1,
    ONSETS,
    RUN1,
    RUN2,
    SHAPE,
    STIMULI,
    TR,
    VERTICES,
    VOLUMES,
    change,
    make_world,
    replace_grid,
    save_volume,
)


@pytest.fixture(scope="module", params=["volume", "surface", "grayordinates"])
def world(request, tmp_path_factory):
    return make_world(tmp_path_factory.mktemp(request.param), np.random.default_rng(1), request.param)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("original") / "data", np.random.default_rng(1))


@pytest.fixture
def copy(original, tmp_path):
    """A copy of the volumes, to be damaged."""
    return Path(shutil.copytree(original.sample.source, tmp_path / "data", symlinks=True))


def load(folder):
    return BrainDataset.open(folder, verify=True)


@pytest.mark.parametrize(("method", "least"), [("lss", 0.88), ("lsa", 0.97)])
def test_planted_responses_come_back(world, tmp_path, method, least):
    data = load(read_bids(world.sample.source, tmp_path / "out", glm=method, **world.sample.options))
    planted = world.betas[:, world.inside]
    slope, offset = np.polyfit(planted.ravel(), data.betas.ravel(), 1)
    assert np.corrcoef(planted.ravel(), data.betas.ravel())[0, 1] > least
    assert abs(slope - 1) < 0.08 and abs(offset) < 0.1
    assert data.description["dropped_voxels"] == 1


def test_rows_are_the_trials_in_order(original, tmp_path):
    data = load(read_bids(original.sample.source, tmp_path / "out", **original.sample.options))
    tables = [
        pd.read_csv(path, sep="\t") for path in sorted((original.sample.source / "sub-01/func").glob("*.tsv"))
    ]
    shown = pd.concat([table[table["trial_type"] == "picture"] for table in tables])
    ids = [name.removesuffix(".png").replace("/", "_") for name in shown["stim_file"]]
    assert list(data.trials["stimulus_id"]) == ids and set(ids) == {
        f"pets_{name}" for name in (*STIMULI, "owl")
    }
    assert (
        list(data.trials["onset_s"]) == list(shown["onset"]) and list(data.trials["run"]) == [1] * 6 + [2] * 6
    )
    assert (data.trials["session"] == 1).all()
    assert (data.trials["repeat"] == data.trials["run"]).all()  # each picture once a run
    assert (data.trials["split"] == np.where(data.trials["stimulus_id"] == "pets_owl", "test", "train")).all()
    assert data.description["runs"][0]["slice_time_ref"] == 0.5
    assert (data.description["name"], data.description["licence"]) == ("Small", "CC0")
    assert data.description["pipeline"] == "fMRIPrep 23.1.0"


def test_columns_are_the_voxels_of_both_masks(original, tmp_path):
    data = load(read_bids(original.sample.source, tmp_path / "out", **original.sample.options))
    points = [p for p in range(int(np.prod(SHAPE))) if p not in (0, 1, 2, CONSTANT_POINT)]
    index = np.stack(np.unravel_index(points, SHAPE), axis=1)
    expected = nibabel.affines.apply_affine(AFFINE, index)
    np.testing.assert_allclose(data.voxels[["x", "y", "z"]], expected, atol=1e-3)
    assert list(data.voxels["rois"]) == [("", "V1", "LO left")[p % 3] for p in points]


def test_betas_are_those_of_the_file(original, tmp_path):
    """Without confounds, straight from the arrays: the same numbers."""
    source = original.sample.source
    out = read_bids(source, tmp_path / "out", confounds=[], high_pass_s=None, units="raw", mask=None)
    bold = nibabel.load(source / RUN2).get_fdata().reshape(-1, VOLUMES).T
    responses = glm.trial_regressors(ONSETS, np.full(6, 2.0), (np.arange(VOLUMES) + 0.5) * TR)
    expected = glm.trial_betas(bold, glm.solve(responses, np.ones((VOLUMES, 1))), "raw")
    np.testing.assert_allclose(load(out).betas[6:], np.delete(expected, CONSTANT_POINT, axis=1), rtol=1e-4)


def test_surfaces_and_grayordinates_say_where_they_are(tmp_path):
    kept = [p for p in range(sum(VERTICES)) if p != CONSTANT_POINT]
    for kind in ("surface", "grayordinates"):
        made = make_world(tmp_path / kind, np.random.default_rng(1), kind)
        data = load(read_bids(made.sample.source, tmp_path / f"{kind}-out", **made.sample.options))
        assert list(data.voxels["rois"]) == [("", "V1", "LO left")[p % 3] for p in kept], kind
        if kind == "surface":
            assert list(data.voxels["hemi"]) == ["L" if p < 20 else "R" for p in kept]
            assert list(data.voxels["vertex"]) == [p if p < 20 else p - 20 for p in kept]
        else:
            assert list(data.voxels["grayordinate"]) == kept
            assert list(data.voxels["structure"]) == [
                "cortex_left" if p < 20 else "thalamus_left" for p in kept
            ]
            assert data.voxels["x"].isna().sum() == 20 and data.voxels["x"].iloc[20] == AFFINE[0, 3]
        assert data.description["space"] == {"surface": "fsaverage5", "grayordinates": "fsLR:den-91k"}[kind]


def test_reading_in_small_pieces_and_big_endian_files_change_nothing(original, copy, tmp_path, monkeypatch):
    whole = load(read_bids(original.sample.source, tmp_path / "whole", **original.sample.options))
    for file in (RUN1, RUN2):
        image = nibabel.load(copy / file)
        swapped = nibabel.Nifti1Image(
            image.get_fdata().astype(">f4"), AFFINE, image.header.as_byteswapped(">")
        )
        nibabel.save(swapped, copy / file)
        assert nibabel.load(copy / file).header.endianness == ">"
    monkeypatch.setattr(bids_images, "CHUNK_BYTES", 8 * 60 * 5)
    again = load(read_bids(copy, tmp_path / "again", **original.sample.options))
    assert again.description["sha256"] == whole.description["sha256"]


def test_pictures_are_the_files_and_a_label_that_all_share_is_left_out(original, tmp_path):
    data = load(read_bids(original.sample.source, tmp_path / "out"))
    for name in (*STIMULI, "owl"):
        copied = (data.folder / "stimuli" / f"pets_{name}.png").read_bytes()
        assert copied == (original.sample.source / "stimuli/pets" / f"{name}.png").read_bytes()
    assert data.stimuli["label"].isna().all()


def test_labels_may_come_from_a_column_and_pictures_from_a_folder(copy, tmp_path):
    for run in (1, 2):
        path = copy / f"sub-01/func/sub-01_task-look_run-{run}_events.tsv"
        table = pd.read_csv(path, sep="\t")
        change(
            path,
            what=[str(s).rpartition("/")[2].removesuffix(".png") for s in table["stim_file"]],
            kind="pet",
        )
        change(path, what={0: "n/a", 3: "n/a", 7: "n/a"}, kind={1: "tool"})
    options = {"stimulus_column": "what", "label_column": "kind"}
    only_labels = load(read_bids(copy, tmp_path / "labels", **options))
    assert only_labels.stimuli["file"].isna().all() and set(only_labels.stimuli["label"].dropna()) <= {
        "pet",
        "tool",
    }
    assert len(only_labels.trials) == 10
    pictures = load(read_bids(copy, tmp_path / "pictures", images="stimuli/pets", **options))
    assert set(pictures.stimuli["file"]) == {f"{name}.png" for name in pictures.stimuli.index}


def test_trial_types_choose_trials_and_others_may_be_modelled_or_ignored(original, tmp_path):
    source = original.sample.source
    typed = {"stimulus_column": "trial_type", "duration_s": 2.0}
    every = load(read_bids(source, tmp_path / "every", **typed))
    assert dict(every.trials["trial_type"].value_counts()) == {"picture": 12, "fixation": 2, "button": 2}
    assert list(every.trials["stimulus_id"][:3]) == ["fixation", "picture", "button"]  # by onset, not by line
    chosen = load(read_bids(source, tmp_path / "chosen", trial_types="pict*", **typed))
    ignored = load(read_bids(source, tmp_path / "ignored", ignore=["fixation", "button"], **typed))
    modelled = load(read_bids(source, tmp_path / "modelled", ignore="fixation", nuisance="button", **typed))
    assert np.array_equal(chosen.betas, ignored.betas) and len(chosen.trials) == len(modelled.trials) == 12
    assert not np.allclose(chosen.betas, modelled.betas, atol=1e-3)
    with pytest.raises(
        DataError, match="ignore names 'rest', which no run of sub-01 has; there are: button, fixation"
    ):
        read_bids(source, tmp_path / "none", ignore="rest", **typed)


def test_sessions_are_numbered_and_may_be_tests(tmp_path):
    rng = np.random.default_rng(1)
    for session in ("train01", "train02"):
        made = make_world(tmp_path / "data", rng, session=session)
    path = tmp_path / "data/sub-01/ses-train02/func"
    for table in path.glob("*.tsv"):
        renamed = pd.read_csv(table, sep="\t")["stim_file"].str.replace("pets", "more")
        change(table, stim_file=["n/a" if name != name else name for name in renamed])
    shutil.copytree(tmp_path / "data/stimuli/pets", tmp_path / "data/stimuli/more")
    data = load(read_bids(made.sample.source, tmp_path / "out", test_sessions="*02"))
    assert list(data.trials["session"]) == [1] * 12 + [2] * 12
    assert list(data.trials["ses"]) == ["train01"] * 12 + ["train02"] * 12
    assert dict(data.trials["split"].value_counts()) == {"train": 12, "test": 12}
    one = load(read_bids(made.sample.source, tmp_path / "one", sessions=["train02"]))
    assert set(one.trials["session"]) == {2} and len(one.trials) == 12
    with pytest.raises(DataError, match=r"no session fits \['x'\]; there are: train01, train02"):
        read_bids(made.sample.source, tmp_path / "none", sessions="x")


def test_the_events_may_hold_the_split(copy, tmp_path):
    for run in (1, 2):
        path = copy / f"sub-01/func/sub-01_task-look_run-{run}_events.tsv"
        shown = pd.read_csv(path, sep="\t")["stim_file"]
        change(path, split=["test" if "cat" in str(name) else "n/a" for name in shown])
    data = load(read_bids(copy, tmp_path / "out"))
    assert set(data.trials.loc[data.trials["split"] == "test", "stimulus_id"]) == {"pets_cat"}
    change(copy / EVENTS1, split="later")
    with pytest.raises(DataError, match="split 'later'; splits are train, test, unlabelled"):
        read_bids(copy, tmp_path / "none")


def test_a_stimulus_cannot_be_trained_on_and_tested(original, tmp_path):
    with pytest.raises(DataError, match="6 stimuli would be both trained on and tested"):
        read_bids(original.sample.source, tmp_path / "out", test_runs=2)
    with pytest.raises(DataError, match="test_runs names 3, which no trial has; there are: 1, 2"):
        read_bids(original.sample.source, tmp_path / "out", test_runs=[3])
    with pytest.raises(DataError, match="test names 'pets_cow', which no trial has; there are: pets_"):
        read_bids(original.sample.source, tmp_path / "out", test=["pets_cow"])


def test_derivatives_alone_find_their_raw_data_above_or_by_option(copy, original, tmp_path):
    expected = load(read_bids(copy, tmp_path / "both"))
    above = load(
        read_bids(copy / "derivatives/fmriprep", tmp_path / "above", subject=1, task="look", space="T1w")
    )
    assert above.description["sha256"] == expected.description["sha256"]
    moved = Path(shutil.move(copy / "derivatives/fmriprep", tmp_path / "elsewhere"))
    beside = tmp_path / "beside"
    shutil.copytree(copy, beside / "raw")
    shutil.copytree(moved, beside / "fmriprep")
    side_by_side = load(read_bids(beside, tmp_path / "side_by_side"))
    assert side_by_side.description["sha256"] == expected.description["sha256"]
    with pytest.raises(DataError, match=r"no table of events for task-look_run-1 of sub-01 .*bids=FOLDER"):
        read_bids(moved, tmp_path / "none")
    given = load(read_bids(moved, tmp_path / "given", bids=copy))
    assert given.description["sha256"] == expected.description["sha256"]


def test_events_of_a_higher_folder_are_meant_for_all_runs(copy, tmp_path):
    (copy / EVENTS1).rename(copy / "task-look_events.tsv")
    (copy / str(EVENTS1).replace("run-1", "run-2")).rename(copy / str(EVENTS1).replace("run-1", "run-02"))
    data = load(read_bids(copy, tmp_path / "out"))
    assert list(data.trials["stimulus_id"][:6]) != list(data.trials["stimulus_id"][6:])
    (copy / str(EVENTS1).replace("run-1", "run-02")).unlink()
    shared = load(read_bids(copy, tmp_path / "shared"))
    assert list(shared.trials["stimulus_id"][:6]) == list(shared.trials["stimulus_id"][6:])


def test_native_masks_of_the_newest_fmriprep_are_found(copy, tmp_path):
    for path in sorted((copy / DERIVED).glob("*_space-T1w_*")):
        space = "_space-run" if "mask" in path.name else ""
        path.rename(path.with_name(path.name.replace("_space-T1w", space)))
    data = load(read_bids(copy, tmp_path / "out"))
    assert data.description["space"] == "native" and len(data.voxels) == 56


def test_masks_and_regions_choose_voxels(original, copy, tmp_path):
    everything = load(read_bids(copy, tmp_path / "all", mask=None))
    assert len(everything.voxels) == 59 and everything.description["mask"] == "none"
    half = np.zeros(SHAPE, np.float32)
    half[:2] = 0.7
    save_volume(copy / "half.nii.gz", half)
    masked = load(read_bids(copy, tmp_path / "half", mask="half.nii.gz"))
    assert len(masked.voxels) == 30
    region = load(read_bids(copy, tmp_path / "region", atlas="derivatives/fmriprep/atlas.nii.gz", rois="LO*"))
    assert set(region.voxels["rois"]) == {"LO left"} and len(region.voxels) == 19
    (copy / "derivatives/fmriprep/atlas.tsv").unlink()
    plain = load(read_bids(copy, tmp_path / "plain", atlas=copy / "derivatives/fmriprep/atlas.nii.gz"))
    assert set(plain.voxels["rois"]) == {"", "label-1", "label-2"}
    with pytest.raises(DataError, match=r"No region fits rois=\['V4'\]; there are: label-1, label-2"):
        read_bids(copy, tmp_path / "none", atlas="derivatives/fmriprep/atlas.nii.gz", rois=["V4"])


def test_confounds_are_those_that_nilearn_selects(original):
    from nilearn.interfaces.fmriprep import load_confounds

    source = original.sample.source
    for strategy, options in (
        (["motion"], {"motion": "full"}),
        (["motion:basic", "wm_csf:basic"], {"motion": "basic", "wm_csf": "basic"}),
        (["motion:derivatives", "high_pass"], {"motion": "derivatives"}),
        (["global_signal", "high_pass"], {"global_signal": "basic"}),
    ):
        names = [item.split(":")[0] for item in strategy]
        expected, _ = load_confounds(str(source / RUN1), strategy=names, demean=False, **options)
        values, columns = read_confounds(source / CONFOUNDS1, strategy, VOLUMES)
        order = [c for c in columns if c in expected]
        assert set(order) == set(expected.columns) - {"non_steady_state_outlier00"}
        np.testing.assert_allclose(values[:, [columns.index(c) for c in order]], expected[order], rtol=1e-6)


def test_columns_and_patterns_are_confounds_too(original, tmp_path):
    path = original.sample.source / CONFOUNDS1
    assert read_confounds(path, ["csf", "cosine*", "non_steady_state", "scrub"], VOLUMES)[1] == [
        "csf", "cosine00", "cosine01", "non_steady_state_outlier00",
    ]  # fmt: skip
    data = load(read_bids(original.sample.source, tmp_path / "out", confounds=["high_pass", "motion:basic"]))
    assert [run["cosines"] for run in data.description["runs"]] == [0, 0]  # fMRIPrep's replace ours
    with pytest.raises(DataError, match=r"lacks the confound 'a_comp_cor_00'.*takes motion, wm_csf"):
        read_bids(original.sample.source, tmp_path / "none", confounds="a_comp_cor_00")
    with pytest.raises(DataError, match="after motion: comes one of basic, derivatives"):
        read_bids(original.sample.source, tmp_path / "none", confounds="motion:24")


def test_cut_trials_are_refused_or_dropped(copy, tmp_path):
    change(copy / EVENTS1, onset={6: "126.5"})
    with pytest.raises(DataError, match=r"1 of 6 trials have less than half of their response .* at 126.5 s"):
        read_bids(copy, tmp_path / "out")
    data = load(read_bids(copy, tmp_path / "out", cut_trials="drop"))
    assert [run["cut_trials"] for run in data.description["runs"]] == [1, 0] and len(data.trials) == 11
    shifted = load(read_bids(copy, tmp_path / "shifted", onset_shift_s=-20, cut_trials="drop"))
    assert list(shifted.trials["onset_s"][:2]) == [2.0, 18.0]


def test_the_repetition_time_must_be_known(copy, tmp_path):
    facts = copy / str(RUN1).replace(".nii.gz", ".json")
    facts.write_text(json.dumps({"RepetitionTime": 1.5, "StartTime": 0.75}))
    with pytest.raises(
        DataError, match=r"RepetitionTime is 1.5 s in the JSON file, 2 s in the image's header"
    ):
        read_bids(copy, tmp_path / "out")
    facts.unlink()  # the header is enough
    assert load(read_bids(copy, tmp_path / "header")).description["runs"][0]["slice_time_ref"] == 0.0
    (copy / "task-look_bold.json").write_text(
        '{"RepetitionTime": 1.0}'
    )  # raw data's, overruled by the derivatives'
    with pytest.raises(DataError, match="RepetitionTime is 1 s"):
        read_bids(copy, tmp_path / "out")
    (copy / "task-look_bold.json").unlink()
    image = nibabel.load(copy / RUN1)
    image.header.set_zooms((3, 3, 3.5, 0))
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), AFFINE, image.header), copy / RUN1)
    with pytest.raises(DataError, match="no plausible RepetitionTime"):
        read_bids(copy, tmp_path / "out")
    assert load(read_bids(copy, tmp_path / "given", tr_s=2)).description["runs"][0]["tr_s"] == 2.0


def test_an_older_sidecar_means_the_middle_of_the_repetition(copy, tmp_path):
    for facts in (copy / DERIVED).glob("*bold.json"):
        facts.write_text('{"RepetitionTime": 2.0, "SliceTimingCorrected": true}')
    assert load(read_bids(copy, tmp_path / "out")).description["runs"][0]["slice_time_ref"] == 0.5
    data = load(read_bids(copy, tmp_path / "given", slice_time_ref=0))
    assert data.description["runs"][0]["slice_time_ref"] == 0.0


def test_raw_data_may_be_taken_as_they_are(copy, tmp_path):
    for run in (1, 2):
        replace_grid(copy / f"sub-01/func/sub-01_task-look_run-{run}_bold.nii.gz")
    shutil.rmtree(copy / "derivatives")
    data = load(read_bids(copy, tmp_path / "out", desc=None, mask=None, confounds=None))
    assert data.betas.shape == (12, 60)


def test_ids_keep_what_is_no_picture_suffix():
    assert stimulus_name("faces/f 1.PNG") == "faces_f 1"
    assert stimulus_name("1518878.005958") == "1518878.005958"
    assert stimulus_name("..\\..\\x.jpg") == "x"

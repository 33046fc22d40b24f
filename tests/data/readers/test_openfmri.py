"""OpenfMRI's layout, from before BIDS: a small one made by code, and Haxby's runs where they are at hand."""

from __future__ import annotations

import nibabel
import numpy as np
import pandas as pd
import pytest

from cadiff.data import glm
from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.bids import read_bids
from cadiff.errors import DataError
from layouts.bids import (
    AFFINE,
    ONSETS,
    TR,
    VOLUMES,
)


def load(folder):
    return BrainDataset.open(folder, verify=True)


@pytest.fixture
def openfmri(tmp_path, rng):
    """Two runs in OpenfMRI's layout; voxel 0 answers to "a", voxel 1 to "b"."""
    for run in (1, 2):
        folder = tmp_path / f"data/sub001/BOLD/task001_run{run:03}"
        folder.mkdir(parents=True)
        onsets = ONSETS[:4]
        table = pd.DataFrame(
            {"onset": onsets, "duration": 8.0, "trial_type": list("abab" if run == 1 else "baab")}
        )
        table.to_csv(folder / "bold_events.tsv", sep="\t", index=False)
        responses = glm.trial_regressors(onsets, np.full(4, 8.0), np.arange(VOLUMES) * TR)[:, :, 0]
        planted = np.stack([table["trial_type"] == kind for kind in "abab"], axis=1).astype(float)
        bold = 500 + 5 * responses @ planted + 0.1 * rng.normal(size=(VOLUMES, 4))
        image = nibabel.Nifti1Image(bold.T.reshape(2, 2, 1, VOLUMES).astype(np.float32), AFFINE)
        image.header.set_zooms((3, 3, 3.5, 1000 * TR))
        image.header.set_xyzt_units("mm", "msec")
        nibabel.save(image, folder / "bold_small.nii.gz")
    return tmp_path / "data"


def test_openfmris_layout(openfmri, tmp_path):
    options = {"layout": "openfmri", "bold_name": "bold_small", "mask": None}
    data = load(read_bids(openfmri, tmp_path / "out", **options))
    assert list(data.trials["stimulus_id"]) == list("ababbaab") and list(data.trials["repeat"]) == [
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]
    answers = np.asarray(data.betas) > 0.5
    assert (answers[:, 0] == (data.trials["stimulus_id"] == "a")).all()
    assert (answers[:, 1] == (data.trials["stimulus_id"] == "b")).all()
    assert list(data.stimuli["label"]) == ["a", "b"] and data.stimuli["file"].isna().all()
    assert data.description["runs"][0]["tr_s"] == TR  # the header has milliseconds
    with pytest.raises(DataError, match="no brain mask of task001_run001"):
        read_bids(openfmri, tmp_path / "none", **{**options, "mask": "brain"})
    with pytest.raises(DataError, match=r"bold.nii.gz .*bold_name= names the series"):
        read_bids(openfmri, tmp_path / "none", layout="openfmri", mask=None)
    with pytest.raises(DataError, match="expected sub001/BOLD/task001_run001/"):
        read_bids(openfmri / "sub001", tmp_path / "none", layout="openfmri")


@pytest.mark.parametrize(
    ("bold_name", "mask", "voxels"),
    [("bold_1slice", "../mask.nii.gz", 530), ("bold_25mm", "sub001/masks/25mm/brain.nii.gz", 129)],
)
def test_the_real_haxby_data(dev_data, tmp_path, bold_name, mask, voxels):
    source = dev_data / "haxby" / "haxby2001"
    if not source.is_dir():
        pytest.skip(f"needs {source}")
    data = load(read_bids(source, tmp_path / "out", layout="openfmri", bold_name=bold_name, mask=mask))
    assert data.betas.shape == (96, voxels)
    assert (data.trials.groupby(["run", "stimulus_id"]).size() == 1).all() and len(data.stimuli) == 8
    assert {run["tr_s"] for run in data.description["runs"]} == {2.5}

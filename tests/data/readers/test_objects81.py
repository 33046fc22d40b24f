"""The objects81 reader: labels and ROIs in the right places, and a pickle that runs nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.objects81 import read_objects81
from cadiff.errors import DataError
from layouts.objects81 import cells, make_content


class Code:
    """Unpickling this makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def write(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_each_row_has_its_category_and_each_voxel_its_roi(tmp_path, rng, protocol):
    content = make_content(rng)
    order = rng.permutation(696)  # voxels need not lie in blocks
    content["betas"], content["indices"] = content["betas"][:, order], content["indices"][:, order]
    content["indices"][0, :7] = np.arange(1, 8)  # the order in which ROIs first come is that of the file
    source = write(tmp_path / "x.pickle", content, protocol)
    data = BrainDataset.open(read_objects81(source, tmp_path / "out"), verify=True)
    np.testing.assert_array_equal(data.betas, content["betas"])
    assert list(data.trials["stimulus_id"]) == [f"object{number}" for number in range(81)]
    names = ["EVC", "OPA", "PPA", "LOC", "PFS", "OFA", "FFA"]
    assert list(data.voxels["rois"]) == [names[number - 1] for number in content["indices"][0]]
    assert data.stimuli["file"].isna().all()
    with pytest.raises(DataError, match="only the label is known"):
        data.image("object0")


def test_names_may_be_plain_text_arrays(tmp_path, rng):
    content = make_content(rng)
    content["conds"] = np.array([f"thing {number}" for number in range(81)])
    content["rois"] = np.array(["EVC", "OPA", "PPA", "LOC", "PFS", "OFA", "FFA"])
    data = BrainDataset.open(read_objects81(write(tmp_path / "x", content), tmp_path / "out"))
    assert data.stimuli.at["thing-3", "label"] == "thing 3"


def test_code_in_the_pickle_is_refused_and_not_run(tmp_path, rng):
    marker = tmp_path / "ran"
    source = write(tmp_path / "x.pickle", {**make_content(rng), "more": Code(marker)})
    with pytest.raises(DataError, match="nothing in it was executed"):
        read_objects81(source, tmp_path / "out")
    assert not marker.exists() and not (tmp_path / "out").exists()


def edit(**changes):
    return lambda content: content.update({key: change(content[key]) for key, change in changes.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("rois"), "expected a dict with betas, conds, indices, rois"),
        (lambda c: c.update(betas=[1, 2]), "betas is a list, expected a numpy array"),
        (edit(betas=lambda b: b[0]), r"betas is float32 \(696,\), expected numbers \(n, n\)"),
        (
            edit(betas=lambda b: b[:80]),
            "conds names 81 categories, 81 of them different, but betas has 80 rows",
        ),
        (edit(conds=lambda c: cells(["dog"] * 81, (81, 1))), "1 of them different"),
        (edit(conds=lambda c: np.array([None] * 81)), "conds holds a cell that is not a name"),
        (edit(rois=lambda r: cells(["V1,V2"] * 7, (1, 7))), "rois holds a cell that is not a name"),
        (edit(indices=lambda i: i[:, :5]), "indices is uint8 with 5 entries"),
        (edit(indices=lambda i: i.astype(float)), "indices is float64"),
        (edit(indices=lambda i: i - 1), "indices holds 0 to 6"),
        (edit(indices=lambda i: i + 1), "indices holds 2 to 8"),
        (edit(betas=lambda b: b * np.nan), "NaN"),
        (edit(betas=lambda b: b[:, :600], indices=lambda i: i[:, :600]), "600 voxels.*design=any"),
        (edit(conds=lambda c: cells(["../x"] + [f"o{n}" for n in range(80)], (81, 1))), "cannot name a file"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(tmp_path, rng, change, message):
    content = make_content(rng)
    change(content)
    write(tmp_path / "x.pickle", content)
    with pytest.raises(DataError, match=message):
        read_objects81(tmp_path / "x.pickle", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pickle"]


@pytest.mark.parametrize("content", [[1, 2], {}, "text", {("a", "b"): 1}, None])
def test_other_pickles_are_refused(tmp_path, content):
    with pytest.raises(DataError, match="expected a dict with betas"):
        read_objects81(write(tmp_path / "x.pickle", content), tmp_path / "out")


def test_a_selection_is_read_when_it_is_asked_for(tmp_path, rng):
    content = make_content(rng)
    content["betas"], content["indices"] = content["betas"][:, :150], content["indices"][:, :150]
    source = write(tmp_path / "x.pickle", content)
    data = BrainDataset.open(read_objects81(source, tmp_path / "out", design="any", licence="CC BY 4.0"))
    assert dict(data.voxels["rois"].value_counts()) == {"EVC": 100, "OPA": 50}
    assert data.description["licence"] == "CC BY 4.0"


def test_the_real_file(dev_data, tmp_path):
    source = dev_data / "objects81" / "python_roi_data.pickle"
    data = BrainDataset.open(read_objects81(source, tmp_path / "out"), verify=True)
    assert {"airplane", "vase", "bed"} <= set(data.stimuli.index)
    assert list(data.voxels["rois"].value_counts()[["EVC", "LOC"]]) == [100, 96]
    # voxels of one ROI respond alike: more than voxels of different ROIs
    alike, roi = np.corrcoef(data.betas.T), data.voxels["rois"].to_numpy()
    same = roi[:, None] == roi[None]
    assert alike[same & ~np.eye(len(roi), dtype=bool)].mean() > alike[~same].mean() + 0.05

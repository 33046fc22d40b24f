import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from cadiff.artifacts import folder_digest, read_json, write_json
from cadiff.errors import DataError
from cadiff.report import parts, voxels
from cadiff.report.inputs import open_evaluated


def test_the_curve_has_a_point_for_every_number_of_repeats_and_the_whole_brain(rich_evaluation):
    evaluated = open_evaluated(rich_evaluation)
    curve = parts.repeats_curve(evaluated, seed=0)
    assert evaluated.repeats == 3 and curve is not None
    root = ElementTree.fromstring(curve["svg"])
    dots = [e for e in root.iter() if e.get("class") == "dot"]
    titles = [dot[0].text for dot in dots]
    assert [title.split(":")[0] for title in titles] == ["1 repeat", "2 repeats", "3 repeats"]
    heights = [float(dot.get("cy")) for dot in dots]
    scores = [
        evaluated.scores["conditions"][c]["metrics"]["pcc"]["mean"]
        for c in ("repeats_1", "repeats_2", "brain")
    ]
    assert np.argsort(heights).tolist() == np.argsort(scores)[::-1].tolist()  # higher scores stand higher
    assert curve["examples"]["counts"] == [1, 2, 3]
    assert all(len(row["pictures"]) == 3 for row in curve["examples"]["rows"])


def test_rois_alone_and_left_out_stand_beside_each_other(rich_evaluation):
    found = parts.roi_bars(open_evaluated(rich_evaluation))
    assert found is not None
    (row,) = found["rows"]
    assert row["roi"] == "V1" and [bar["what"] for bar in row["bars"]] == ["only", "without"]
    assert all(bar["row"]["condition"] == "brain" for bar in row["bars"])


def test_nothing_is_drawn_without_variants(evaluation):
    evaluated = open_evaluated(evaluation)
    assert parts.repeats_curve(evaluated, 0) is None and parts.roi_bars(evaluated) is None
    assert voxels.importance(evaluated) is None


def with_voxels(evaluation, table):
    """The evaluation, its reconstructions with another table of voxels."""
    folder = evaluation.parent / "reconstructions"
    table.to_csv(folder / voxels.NAME, sep="\t", index=False, na_rep="n/a")
    scores = read_json(evaluation / "evaluation.json")
    scores["inputs"]["reconstructions_sha256"] = folder_digest(folder)
    write_json(evaluation / "evaluation.json", scores)
    return open_evaluated(evaluation)


def test_shares_of_rois_that_overlap(evaluation):
    table = pd.DataFrame(
        {"voxel": [1, 2, 3, 4], "rois": ["V1,VC", "V1,VC", "V2,VC", ""], "importance": [0.4, 0.2, 0.1, 0.3]}
    )
    found = voxels.importance(with_voxels(evaluation, table))
    assert found is not None and found["views"] is None
    shares = {row["roi"]: (row["share"], row["size"], row["count"]) for row in found["rois"]["rows"]}
    assert shares["V1"] == pytest.approx((0.6, 0.5, 2)) and shares["VC"] == pytest.approx((0.7, 0.75, 3))
    assert [row["roi"] for row in found["rois"]["rows"]] == ["V1", "VC", "V2"]  # by importance for its size


def test_projections_keep_the_strongest_voxel_of_a_place(evaluation):
    rows = [
        (1, 0.1, -10.0, 0.0, 0.0),
        (2, 0.6, 10.0, 0.0, 0.0),
        (3, 0.3, 0.0, 40.0, 5.0),
        (4, 0.0, np.nan, 0, 0),
    ]
    table = pd.DataFrame(rows, columns=["voxel", "importance", "x", "y", "z"]).assign(rois="V1")
    found = voxels.importance(with_voxels(evaluation, table))
    assert found is not None
    views = found["views"]
    assert views["shown"] == 3 and views["world"] and not views["mni"]
    circles = {
        view["name"]: [e for e in ElementTree.fromstring(view["svg"]) if e.tag == "circle"]
        for view in views["views"]
    }
    assert len(circles["Sagittal"]) == 2  # voxels 1 and 2 lie behind each other
    assert len(circles["Coronal"]) == len(circles["Axial"]) == 3
    strongest = max(float(c.get("r")) for c in circles["Coronal"])
    assert max(float(c.get("r")) for c in circles["Sagittal"]) == strongest
    # the front is up in the axial view, where y of SVG runs down
    by_height = sorted(circles["Axial"], key=lambda c: float(c.get("cy")))
    assert float(by_height[0].get("cx")) == pytest.approx(
        np.median([float(c.get("cx")) for c in circles["Axial"]])
    )


@pytest.mark.parametrize("flat", [True, False])
def test_indices_have_no_letters_and_flat_slices_no_hull(evaluation, flat):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 30, (20, 3)), columns=["x", "y", "z"])
    table["z"] = 4 if flat else table["z"]
    found = voxels.importance(
        with_voxels(evaluation, table.assign(voxel=range(20), rois="", importance=1 / 20))
    )
    assert found is not None and found["rois"] is None and not found["views"]["world"]
    for view in found["views"]["views"]:
        root = ElementTree.fromstring(view["svg"])
        assert not [e for e in root if e.tag == "text"]
        assert bool([e for e in root if e.tag == "polygon"]) == (not flat or view["name"] == "Axial")


def test_a_broken_table_is_refused(evaluation):
    with pytest.raises(DataError, match="lacks the column 'rois'"):
        voxels.importance(with_voxels(evaluation, pd.DataFrame({"voxel": [1], "importance": [1.0]})))
    table = pd.DataFrame({"voxel": [1], "rois": ["V1"], "importance": [np.nan]})
    with pytest.raises(DataError, match="1 voxels have no importance"):
        voxels.importance(with_voxels(evaluation, table))

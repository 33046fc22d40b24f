"""What is not an HCP run as it should be is refused with a sentence, and headers are not believed."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import LabelAxis

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers.hcp import read_hcp
from cadiff.errors import ConfigError, DataError
from layouts import hcp as layout

RUN = layout.S1200.format(run="REST1_LR")


@pytest.fixture
def areas(tmp_path):
    return layout.write_dlabel(tmp_path / "areas.dlabel.nii")


@pytest.fixture
def run(tmp_path, rng):
    """(path, values) of one run of 1200 frames."""
    values = layout.series(rng)
    return layout.write_dtseries(tmp_path / "100307" / RUN, values), values


@pytest.fixture
def short(tmp_path, rng):
    """Writes a run of 40 frames; give `frames=40`."""

    def write(path, values=None, **options):
        return layout.write_dtseries(
            tmp_path / path, layout.series(rng, 40) if values is None else values, **options
        )

    return write


def refused(match, source, tmp_path, error=DataError, **options):
    with pytest.raises(error, match=match):
        read_hcp(source, tmp_path / "refused" / "out", **options)
    assert not (tmp_path / "refused").exists() or not list((tmp_path / "refused").iterdir())


def test_refuses_runs_that_are_not_what_they_should_be(tmp_path, areas, short, rng):
    options = {"parcellation": areas, "frames": 40}
    good = layout.series(rng, 40)
    refused("has 40 frames, expected 1200", short(f"a/{RUN}"), tmp_path, parcellation=areas)
    slow = short(f"b/{RUN}", layout.series(rng), seconds=1.0)
    refused(r"a frame every 1 s, expected 0\.72 s", slow, tmp_path, parcellation=areas)
    refused("fewer than one window of 50", short(f"a/{RUN}"), tmp_path, window=50, **options)
    damaged = good.copy()
    damaged[3, layout.columns("V2")[:2]] = np.nan, np.inf
    refused("2 of the .* grayordinates to import hold NaN", short(f"c/{RUN}", damaged), tmp_path, **options)
    refused("no grayordinate changes", short(f"d/{RUN}", np.ones_like(good)), tmp_path, **options)
    refused(
        r"no grayordinate lies in 'V9'.*it names: MST, V1",
        short(f"a/{RUN}"),
        tmp_path,
        rois=["V9"],
        **options,
    )
    path = short(f"e/{RUN}")
    path.write_bytes(path.read_bytes()[:-100])
    refused("header claims .* bytes, it has .*: the download is incomplete", path, tmp_path, **options)
    path.write_bytes(b"")
    refused(f"{path} cannot be read as a dense CIFTI-2 file", path, tmp_path, **options)
    (tmp_path / "link.dtseries.nii").symlink_to(tmp_path / "annex" / "content")
    refused(
        "a link to a file that is not here: fetch it", tmp_path / "link.dtseries.nii", tmp_path, **options
    )


@pytest.mark.parametrize(
    ("written", "claimed", "match"),
    [
        (b'IndexCount="34"', b'IndexCount="9999999999"', "claims columns 0 to 9999999999"),
        (b'IndexOffset="34"', b'IndexOffset="33"', "claims columns 33 to"),
        (b'NumberOfSeriesPoints="40"', b'NumberOfSeriesPoints="9999999999"', "describes 9999999999 rows"),
        (b'SurfaceNumberOfVertices="40"', b'SurfaceNumberOfVertices="2"', "do not fit its mesh"),
        (b"IndicesMapToDataType=", b"Renamed=", "its XML lacks 'IndicesMapToDataType'"),
        (b'SeriesExponent="0"', b'SeriesExponent="999999999"', None),  # ten to that power would take hours
    ],
)
def test_a_header_that_claims_too_much_is_not_believed(written, claimed, match, tmp_path, areas, short):
    path = short(f"a/{RUN}")
    content = path.read_bytes()
    header = nibabel.Nifti2Header(content[:540])
    data = content[int(header["vox_offset"]) :]
    xml = content[552 : int(header["vox_offset"])].rstrip(b"\0")
    assert written in xml
    xml = xml.replace(written, claimed, 1)
    xml = xml.ljust(-(-(len(xml) + 8) // 16) * 16 - 8, b"\0")
    header["vox_offset"] = 552 + len(xml)
    sizes = np.array([len(xml) + 8, 32], "<i4").tobytes()
    path.write_bytes(header.binaryblock + content[540:544] + sizes + xml + data)
    if match:
        refused(match, path, tmp_path, parcellation=areas, frames=40)
    else:
        out = read_hcp(path, tmp_path / "out", parcellation=areas, frames=40)
        assert BrainDataset.open(out).description["repetition_time"] is None


def test_refuses_runs_of_one_subject_with_other_grayordinates(tmp_path, areas, short, rng):
    short(layout.run_path(tmp_path, "1", "REST1_LR"))
    fewer = layout.brain(left=layout.LEFT[1:])
    short(layout.run_path(tmp_path, "1", "REST1_RL"), layout.series(rng, 40, len(fewer)), axis=fewer)
    refused(
        "not all the same: import these runs as two", tmp_path / "1", tmp_path, parcellation=areas, frames=40
    )


def test_refuses_files_of_another_kind(tmp_path, areas, short):
    options = {"parcellation": areas, "frames": 40}
    (tmp_path / "x.dtseries.nii").write_bytes(areas.read_bytes())
    refused("holds labels by brain_models", tmp_path / "x.dtseries.nii", tmp_path, **options)
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    refused("neither a .dtseries.nii file nor HCP_visual", tmp_path / "scan.nii.gz", tmp_path)
    folder = short("subject/rfMRI_REST1_LR_Atlas_hp2000_clean.dtseries.nii").parent
    refused("which is not cleaned or not aligned by MSMAll", folder, tmp_path, **options)
    (tmp_path / "empty").mkdir()
    refused(r"holds no .* and no HCP_visual_voxel\.npz \(found: nothing\)", tmp_path / "empty", tmp_path)


def test_refuses_parcellations_that_do_not_fit(tmp_path, run):
    wrong = tmp_path / "map.npy"
    np.save(wrong, np.ones(17, int))
    refused("has 17 numbers, but .* has .* grayordinates", run[0], tmp_path, parcellation=wrong)
    np.save(wrong, np.full(layout.NUM, 0.5))
    refused("must hold whole numbers", run[0], tmp_path, parcellation=wrong)
    np.save(wrong, np.full(layout.NUM, 2**40))
    refused("must hold whole numbers", run[0], tmp_path, parcellation=wrong)
    refused("There is no file .*nowhere.npz", run[0], tmp_path, parcellation=tmp_path / "nowhere.npz")
    other = layout.brain(np.arange(40), np.arange(40), mesh=164, subcortical=False)
    rows = LabelAxis(["x"], [{1: ("L_V1_ROI", (0.0,) * 4)}])
    nibabel.Cifti2Image(np.ones((1, 80), np.int32), (rows, other)).to_filename(tmp_path / "fine.dlabel.nii")
    refused("on a mesh of 164 vertices", run[0], tmp_path, parcellation=tmp_path / "fine.dlabel.nii")


def test_refuses_npz_that_lack_something(tmp_path, rng):
    path = tmp_path / "s" / "HCP_visual_voxel.npz"
    path.parent.mkdir()
    np.savez(path, V1=np.ones((1200, 3)), V2=np.ones((1200, 3)))
    refused(r"lacks V3, V4 \(it has: V1, V2\)", path, tmp_path)
    np.savez(path, V1=rng.normal(size=(1200, 3)), V2=rng.normal(size=(1195, 3)))
    refused(r"different numbers of frames, \[1195, 1200\]", path, tmp_path, rois=["V1", "V2"])
    np.savez(path, V1=np.array([["code"]], dtype=object))
    refused("V1.*cannot be read", path, tmp_path, rois=["V1"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rois", []), ("rois", ["V1", "V1"]), ("rois", 3), ("window", 0), ("window", "10"), ("zscore", "no"),
        ("frames", "all"), ("frames", -1), ("runs", {}), ("cleaning", 2000), ("parcellation", 7),
    ],
)  # fmt: skip
def test_refuses_options_of_the_wrong_kind(option, value, run, areas, tmp_path):
    refused(option, run[0], tmp_path, error=ConfigError, **({"parcellation": areas} | {option: value}))


def test_the_same_run_twice_is_refused_with_both_places(tmp_path, areas, short):
    short(f"1/a/{RUN}".replace("1/a", "100307/MNINonLinear/Results/rfMRI_REST1_LR"))
    short(f"100307/MNINonLinear/copy/{RUN}")
    refused("has REST1_LR 2 times", tmp_path / "100307", tmp_path, parcellation=areas, frames=40)
    refused(
        r"lacks the run REST2_RL \(found: REST1_LR hp2000_clean",
        tmp_path / "100307" / "MNINonLinear" / "copy",
        tmp_path,
        parcellation=areas,
        frames=40,
        runs=["REST2_RL"],
    )

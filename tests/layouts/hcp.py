"""Human Connectome Project: one subject's runs at rest on a brain of few grayordinates, and the npz made of one run."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from layouts import Sample

FRAMES, SECONDS = 1200, 0.72
MESH = 40  # vertices a hemisphere; HCP: 32492
LEFT = np.array([v for v in range(MESH) if v % 7 != 3])  # the medial wall has no data
RIGHT = np.array([v for v in range(MESH) if v % 9 != 4])
SUBCORTICAL = 6
NUM = len(LEFT) + len(RIGHT) + SUBCORTICAL
AREA_OF_VERTEX = np.repeat([1, 4, 5, 6, 2, 0], [12, 9, 6, 5, 5, 3])  # V1, V2, V3, V4, MST, none
NAMES = {1: "V1", 2: "MST", 4: "V2", 5: "V3", 6: "V4"}
S1200 = "rfMRI_{run}_Atlas_MSMAll_hp2000_clean.dtseries.nii"
YA2025 = "rfMRI_{run}_Atlas_MSMAll_hp2000_clean_rclean_tclean.dtseries.nii"
NUM_VISUAL = int(
    sum((AREA_OF_VERTEX[side] > 3).sum() + (AREA_OF_VERTEX[side] == 1).sum() for side in (LEFT, RIGHT))
)


def brain(left: np.ndarray = LEFT, right: np.ndarray = RIGHT, mesh: int = MESH, subcortical: bool = True):
    """The grayordinates: left cortex, right cortex, some voxels."""
    axes = nibabel.cifti2.BrainModelAxis
    axis = axes.from_surface(left, mesh, "CortexLeft") + axes.from_surface(right, mesh, "CortexRight")
    if not subcortical:
        return axis
    mask = np.zeros((3, 3, 3), dtype=bool)
    mask.flat[:SUBCORTICAL] = True
    return axis + axes.from_mask(mask, "thalamus_left", np.diag([2.0, 2, 2, 1]))


def series(rng: np.random.Generator, frames: int = FRAMES, num: int = NUM) -> np.ndarray:
    """BOLD in HCP's units, slow and noisy: float32 (frames, num)."""
    noise = np.cumsum(rng.normal(size=(frames, num)), axis=0) + 20 * rng.normal(size=(frames, num))
    return (10000 + rng.normal(0, 500, num) + noise).astype(np.float32)


def write_dtseries(path: Path, values: np.ndarray, axis=None, seconds: float = SECONDS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = nibabel.cifti2.SeriesAxis(0, seconds, len(values), "SECOND")
    nibabel.Cifti2Image(values, (rows, axis or brain())).to_filename(path)
    return path


def write_dlabel(path: Path, left: np.ndarray | None = None, right: np.ndarray | None = None) -> Path:
    """The areas of every mesh vertex, as on BALSA: 1 to 180 right, 181 to 360 left."""
    everywhere = np.arange(MESH)
    axis = brain(everywhere, everywhere, subcortical=False)
    areas = AREA_OF_VERTEX
    values = np.concatenate(
        [np.where(areas > 0, areas + 180, 0) if left is None else left, areas if right is None else right]
    )
    table = {0: ("???", (1.0, 1.0, 1.0, 0.0))}
    for number, name in NAMES.items():
        table[number] = (f"R_{name}_ROI", (0.1, 0.2, 0.3, 1.0))
        table[number + 180] = (f"L_{name}_ROI", (0.1, 0.2, 0.3, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = nibabel.cifti2.LabelAxis(["areas"], [table])
    nibabel.Cifti2Image(values[None].astype(np.float32), (rows, axis)).to_filename(path)
    return path


def grayordinate_areas() -> np.ndarray:
    """(NUM,) the area number of each grayordinate, the same in both hemispheres; 0 for voxels."""
    return np.concatenate([AREA_OF_VERTEX[LEFT], AREA_OF_VERTEX[RIGHT], np.zeros(SUBCORTICAL, int)])


def columns(area: str) -> np.ndarray:
    number = next(n for n, name in NAMES.items() if name == area)
    return np.flatnonzero(grayordinate_areas() == number)


def run_path(root: Path, subject: str, run: str, name: str = S1200) -> Path:
    return root / subject / "MNINonLinear" / "Results" / f"rfMRI_{run}" / name.format(run=run)


def write_npz(path: Path, values: np.ndarray, z: bool = True) -> Path:
    values = values.astype(np.float64)
    if z:
        values = (values - values.mean(0)) / values.std(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{area: values[:, columns(area)] for area in ("V1", "V2", "V3", "V4")})
    return path


def make_dtseries(folder: Path, rng: np.random.Generator) -> Sample:
    for run in ("REST1_LR", "REST1_RL"):
        write_dtseries(run_path(folder, "100307", run), series(rng))
    areas = write_dlabel(folder / "areas.32k_fs_LR.dlabel.nii")
    trials = 2 * FRAMES // 10
    return Sample("hcp", folder / "100307", {"parcellation": str(areas)}, {"unlabelled": trials}, NUM_VISUAL)


def make_npz(folder: Path, rng: np.random.Generator) -> Sample:
    """A run cut short, as some are: 1195 frames give 119 windows of 10 or 11."""
    path = write_npz(folder / "npz" / "dummy_sub_01" / "HCP_visual_voxel.npz", series(rng, 1195))
    return Sample("hcp", path, {"frames": 1195}, {"unlabelled": 119}, NUM_VISUAL)

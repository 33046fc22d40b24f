"""Which voxels of the Natural Scenes Dataset to take, what they are called, and how much signal they carry.

nsddata/ppdata/subj0S/SPACE/roi/NAME.nii.gz               -1 outside cortex, 0 in no region, 1, 2 ... a region
nsddata/freesurfer/{subj0S,fsaverage}/label/NAME.mgz.ctab optional: names of the values, a line each: "1 V1v"
nsddata_betas/ppdata/subj0S/SPACE/BETAS/ncsnr.nii.gz      standard deviation of signal over noise in single trials

nsdgeneral knows one region; prf-visualrois, floc-faces, streams and others several. A file per hemisphere is called
lh.NAME or rh.NAME. NSD Data Manual, "ROIs"; nsddatapaper, main/analysis_surfaceroistovolume.m and export_noiseceiling.m.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from cadiff.data.files import inside, read_text
from cadiff.data.readers import nsd_betas
from cadiff.errors import DataError


def load_voxels(
    source: Path, name: str, space: str, rois: list[str], labels: list[str], grid: tuple[int, ...]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The voxels that are above 0 in any of the masks `rois`.

    Args:
        source: the folder with nsddata.
        name: of the subject, as in "subj01".
        space: "func1pt8mm" or "func1mm".
        rois: masks that choose voxels, and name them.
        labels: masks that only name them.
        grid: (x, y, z) of the betas.

    Returns:
        x, y, z (from 0) and rois of each voxel, and how many voxels each of `rois` has.

    Raises:
        DataError: a mask that is absent, damaged or on another grid, or no voxel in any of them.
    """
    folder = source / "nsddata/ppdata" / name / space / "roi"
    volumes: dict[str, np.ndarray] = {}
    for mask in dict.fromkeys(rois + labels):
        path = inside(folder, f"{mask}.nii.gz")
        volumes[mask] = nsd_betas.read_labels(
            path, "masks lie in the roi folder; give their names without .nii.gz."
        )
        if volumes[mask].shape != grid:
            raise DataError(
                f"{path} is {volumes[mask].shape}, the betas are {grid} (x, y, z): are they of the same subject and space?"
            )
    chosen = np.any([volumes[mask] > 0 for mask in rois], axis=0)
    if not chosen.any():
        raise DataError(f"{folder}: no voxel is above 0 in {', '.join(rois)}.")
    named: list[list[str]] = [[] for _ in range(int(chosen.sum()))]
    for mask, volume in volumes.items():
        names = _value_names(source, name, mask)
        single = volume.max() == 1
        for row, value in zip(named, volume[chosen].tolist(), strict=True):
            if value > 0:
                label = names.get(value) or (mask if single else f"{mask}-{value}")
                row += [part for part in _with_area(label) if part not in row]
    voxels = pd.DataFrame(np.argwhere(chosen), columns=["x", "y", "z"])
    voxels["rois"] = [",".join(row) for row in named]
    return voxels, {mask: int((volumes[mask] > 0).sum()) for mask in rois}


def _with_area(label: str) -> list[str]:
    """The ventral and dorsal halves of an area are also the area: "V1v" gives "V1" and "V1v"."""
    return [label[:-1], label] if re.fullmatch(r"V[123][vd]", label) else [label]


def _value_names(source: Path, name: str, mask: str) -> dict[int, str]:
    """Value -> name by the .ctab file: a number, a name, perhaps a colour; empty without one."""
    for owner in (name, "fsaverage"):
        plain = re.sub(r"^[lr]h\.", "", mask)
        path = inside(source / "nsddata/freesurfer" / owner / "label", f"{plain}.mgz.ctab")
        if not path.is_file():
            continue
        names: dict[int, str] = {}
        for line in read_text(path).splitlines():
            cells = line.split()
            if not cells:
                continue
            if len(cells) < 2 or not re.fullmatch("[0-9]{1,6}", cells[0]) or "," in cells[1]:
                raise DataError(
                    f"{path}: {line[:80]!r} is not a number and a name, as in '1 V1v'; download it again."
                )
            names[int(cells[0])] = cells[1]
        return names
    return {}


def noise_ceiling(path: Path, grid: tuple[int, ...], voxels: pd.DataFrame) -> np.ndarray:
    """Share of a single trial's variance that the picture explains, (voxels,); NaN where it is not known."""
    volume = nsd_betas.read_volume(path, "it lies beside the betas.")
    if volume.shape != grid:
        raise DataError(
            f"{path} is {volume.shape}, the betas are {grid} (x, y, z): are they of the same subject?"
        )
    ncsnr = volume[tuple(voxels[["x", "y", "z"]].to_numpy().T)].astype(np.float64)
    ncsnr[~np.isfinite(ncsnr)] = np.nan
    if (ncsnr < 0).any():
        raise DataError(
            f"{path} holds {np.nanmin(ncsnr):g}, a ratio of signal to noise is never below 0: download it again."
        )
    power = np.minimum(ncsnr, 1e6) ** 2
    return power / (power + 1)

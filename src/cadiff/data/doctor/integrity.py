"""Are all files there and whole, and are there as many trials, pictures and voxels as the publication says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from cadiff.artifacts import sha256_file
from cadiff.data.doctor.designs import expected_counts, find_design
from cadiff.data.doctor.findings import Check, Finding, count, some
from cadiff.data.doctor.folder import FILES, Folder
from cadiff.data.files import inside
from cadiff.errors import DataError

WORDS = {
    "trials": "training and test trials",
    "train_trials": "training trials",
    "test_trials": "test trials",
    "train_stimuli": "training stimuli",
    "test_stimuli": "test stimuli",
    "stimuli": "different stimuli",
    "sessions": "sessions",
}


def check_tables(folder: Folder) -> Finding:
    """The five files of a dataset: there, readable, and not contradicting each other."""
    check = Check("tables", "Tables")
    check.details |= {"faults": folder.faults, "examined_trials": folder.num_trials}
    if not folder.faults:
        return check("ok", f"All {len(FILES)} files are there and agree.")
    more = len(folder.faults) - 1
    return check(
        "wrong",
        folder.faults[0] + (f" And {count(more, 'more such fault')}." if more else ""),
        "Copy or import the dataset again; no stage opens it as it is. The other checks look at what can be read."
        + _where(folder),
    )


def check_pictures(folder: Folder) -> Finding:
    """Every picture that stimuli.tsv lists is a file below stimuli/."""
    check = Check("pictures", "Missing pictures")
    listed = folder.stimuli["file"].dropna()
    if listed.empty:
        return check("not applicable", "stimuli.tsv lists no pictures.")
    missing, outside = [], []
    for name, file in listed.items():
        try:
            if not inside(folder.path / "stimuli", str(file)).is_file():
                missing.append(name)
        except DataError:
            outside.append(name)
    check.details |= {"listed": len(listed), "missing": missing[:100], "outside": outside[:100]}
    if outside:
        return check(
            "wrong",
            f"{count(len(outside), 'picture', 'lies')} outside of the folder, stimulus {some(outside)}.",
            "Do not use this dataset before you know where it comes from; import it again from the source.",
        )
    if missing:
        return check(
            "wrong",
            f"{len(missing):,} of {count(len(listed), 'picture')} {'is' if len(missing) == 1 else 'are'} missing: "
            f"stimulus {some(missing)}.",
            "Copy them into stimuli/, or import the dataset again." + _where(folder),
        )
    return check("ok", f"All {count(len(listed), 'picture')} are there.")


def check_checksums(folder: Folder, picture_hashes: Mapping[str, str]) -> Finding:
    """Files are what they were when the dataset was written.

    picture_hashes: SHA-256 of the picture files as they are, by stimulus id.
    """
    check = Check("checksums", "Checksums")
    recorded = folder.description.get("sha256")
    recorded = recorded if isinstance(recorded, dict) else {}
    there = {n: digest for n, digest in recorded.items() if n in FILES and (folder.path / n).is_file()}
    changed = [name for name, digest in there.items() if sha256_file(folder.path / name) != digest]
    expected = folder.stimuli["sha256"]
    known = {name: digest for name, digest in picture_hashes.items() if isinstance(expected[name], str)}
    changed += [f"picture {name}" for name, digest in known.items() if expected[name] != digest]
    compared = len(there) + len(known)
    check.details |= {"compared": compared, "changed": changed[:100]}
    if changed:
        return check(
            "wrong",
            f"{count(len(changed), 'file', 'differs')} from the recorded SHA-256: {some(changed)}.",
            "Copy or import the dataset again; a dataset that was changed on purpose is written anew with `dataset_writer`.",
        )
    if not compared:
        return check(
            "note",
            "No checksum is recorded, so a damaged copy would not be noticed.",
            "Import the dataset again: the writer records them.",
        )
    return check("ok", f"{count(compared, 'file')} compared.")


def check_design(folder: Folder) -> Finding:
    """Numbers of trials, stimuli, sessions and voxels against the publication."""
    check = Check("design", "Published counts")
    design = find_design(folder.description)
    if design is None:
        return check("not applicable", "This is none of the datasets whose design is known here.")
    wanted = asdict(expected_counts(design, str(folder.description.get("subject", ""))))
    found = _found(folder)
    check.details |= {"design": design.title, "found": found, "expected": wanted}
    odd = {key: found[key] for key in WORDS if wanted[key] is not None and found[key] != wanted[key]}
    told = "; ".join(f"{number:,} {WORDS[key]} instead of {wanted[key]:,}" for key, number in odd.items())
    if any(number > wanted[key] for key, number in odd.items()):
        return check(
            "warning",
            f"{design.title}: {told}.",
            "Look for sessions that were read twice, and import again from the complete release.",
        )
    if odd:
        return check(
            "note" if design.selections else "warning",
            f"{design.title}: {told}" + (f" ({design.selections})." if design.selections else "."),
            "If you did not choose a selection, files are missing from the source. " + design.ask,
        )
    if wanted["voxels"] and found["voxels"] not in wanted["voxels"]:
        usual = " or ".join(f"{number:,}" for number in wanted["voxels"])
        return check(
            "note",
            f"{design.title}: {count(found['voxels'], 'voxel')} where {usual} are usual, by another choice of ROIs or "
            "another preprocessing.",
            "Do not mix it with weights or subjects that were prepared in the usual way.",
        )
    return check("ok", f"The numbers are those of {design.title}.")


def _found(folder: Folder) -> dict[str, int]:
    splits = folder.trials["split"]
    labelled = splits.isin(["train", "test"])
    return {
        "trials": int(labelled.sum()),
        "train_trials": int((splits == "train").sum()),
        "test_trials": int((splits == "test").sum()),
        "train_stimuli": len(folder.shown("train")),
        "test_stimuli": len(folder.shown("test")),
        "stimuli": len(folder.shown("train", "test")),
        "sessions": int(folder.trials.loc[labelled, "session"].nunique()),
        "voxels": len(folder.voxels),
    }


def _where(folder: Folder) -> str:
    design = find_design(folder.description)
    return f" {design.ask}" if design else ""

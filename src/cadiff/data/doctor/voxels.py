"""Voxels that carry nothing or come twice, and values that are no responses at all."""

from __future__ import annotations

import re

import numpy as np

from cadiff.data.doctor.findings import Check, Finding, count
from cadiff.data.doctor.folder import Folder
from cadiff.data.doctor.scan import Scan

FEW_VALUES = 64  # a sample with at most so many different whole numbers looks like an atlas
MASK_SHARE = 0.5  # of the voxels: more that are only 0 and 1 make it a mask, fewer are odd voxels
MANY_COPIES = 0.05  # of the voxels: more copies than that weigh some responses double


def check_finite(folder: Folder, scan: Scan) -> Finding:
    """NaN and infinite values."""
    check = Check("finite", "NaN and infinity", scan.sample)
    bad = np.flatnonzero(~scan.finite)
    check.details |= {"voxels": bad[:1000] + 1, "num_voxels": len(bad), "num_values": scan.num_bad}
    if not len(bad):
        return check("ok", "No NaN, no infinity.")
    whole = " in every trial" if scan.num_bad == len(bad) * len(scan.rows) else ""
    return check(
        "wrong",
        f"{count(len(bad), 'voxel', 'holds')} NaN or infinite values{whole} (first: voxel {bad[0] + 1}{_rois(folder, bad)}).",
        "Mask these voxels out and import again; NaN usually marks voxels that one session did not scan.",
    )


def check_constant(folder: Folder, scan: Scan) -> Finding:
    """Voxels whose value never changes."""
    check = Check("constant", "Constant voxels", scan.sample)
    same = np.flatnonzero(scan.finite & (scan.high == scan.low))
    zeros = int((scan.low[same] == 0).sum())
    check.details |= {"voxels": same[:1000] + 1, "num_voxels": len(same), "zeros": zeros}
    if not len(same):
        return check("ok", "No voxel is constant.")
    where = "" if not zeros else "all at 0; " if zeros == len(same) else f"{zeros:,} of them at 0; "
    return check(
        "wrong" if len(same) == len(scan.finite) else "warning",
        f"{count(len(same), 'voxel')} never {'changes' if len(same) == 1 else 'change'} "
        f"({where}first: voxel {same[0] + 1}{_rois(folder, same)}).",
        "Leave them out: they carry nothing, and other software divides by their deviation and gets NaN.",
    )


def check_duplicates(folder: Folder, scan: Scan) -> Finding:
    """Voxels that are exact copies of each other, told by a hash of their values."""
    check = Check("duplicate-voxels", "Copied voxels", scan.sample)
    alive = np.flatnonzero(scan.usable)
    _, group, sizes = np.unique(scan.column_hashes[alive], return_inverse=True, return_counts=True)
    twice = np.flatnonzero(sizes > 1)
    sets = [alive[group.reshape(-1) == member] for member in twice[:100]]
    copies = int((sizes - 1).sum())
    check.details |= {"num_copies": copies, "num_sets": len(twice), "sets": [voxels + 1 for voxels in sets]}
    if not copies:
        return check("ok", "No two voxels are the same.")
    first = ", ".join(str(voxel + 1) for voxel in sets[0][:4])
    what = "an exact copy of another one" if copies == 1 else "exact copies of others"
    return check(
        "wrong" if copies > MANY_COPIES * len(alive) else "warning",
        f"{count(copies, 'voxel', 'is')} {what} (first: voxels {first}{_rois(folder, sets[0])}).",
        "Keep one of each: joined ROI files share voxels, and padding repeats them.",
    )


def check_values(scan: Scan) -> Finding:
    """Masks (0 and 1) or atlas numbers in the place of responses."""
    check = Check("values", "Masks", scan.sample)
    masks = scan.binary & (scan.high > scan.low)
    binary, mixed = int(scan.binary.sum()), int(masks.sum())
    values = scan.values[np.isfinite(scan.values).all(axis=1)][:2000]
    distinct = len(np.unique(values[:200]))
    check.details |= {
        "binary_voxels": binary,
        "changing_binary_voxels": mixed,
        "distinct_in_sample": distinct,
    }
    advice = (
        "Import the response estimates: files named after ROIs hold masks in one release and betas in another, "
        "and their shape does not tell them apart."
    )
    if mixed > MASK_SHARE * len(masks) or binary == len(masks):
        return check(
            "wrong", f"{binary:,} of {len(masks):,} voxels hold nothing but 0 and 1: this is a mask.", advice
        )
    few = len(values) >= 4 and distinct <= FEW_VALUES and values.size > 4 * FEW_VALUES
    if few and not (values % 1).any():
        found = f"{values.size:,} values hold {distinct} different whole numbers: this is an atlas or a mask."
        return check("wrong", found, advice)
    if mixed:
        found = f"{count(mixed, 'voxel', 'holds')} nothing but 0 and 1."
        return check(
            "warning", found, "Look at them: a mask or an event column may have been joined to the voxels."
        )
    return check("ok", "Values vary as responses do.")


def check_units(folder: Folder, scan: Scan) -> Finding:
    """The size of the values against the units that the description states."""
    check = Check("units", "Units", scan.sampled)
    keep = scan.usable[scan.columns]
    if not keep.any() or len(scan.rows) < 2:
        return check("not applicable", "There is no voxel that changes.")
    values = scan.values[:, keep].astype(np.float64)
    mean, spread = values.mean(axis=0), values.std(axis=0)
    typical, level = float(np.median(spread)), float(np.median(np.abs(mean) / spread))
    looks_z = bool(np.quantile(np.abs(spread - 1), 0.8) < 0.1 and level < 0.1)
    units = folder.description.get("units")
    stated = stated_units(units)
    check.details |= {
        "stated": units,
        "median_sd": typical,
        "median_abs_mean_over_sd": level,
        "looks_z": looks_z,
    }
    shown = f"the median voxel has mean {np.median(mean):.3g} and standard deviation {typical:.3g}"
    correct = "Correct `units` in dataset_description.json, or import the data that it describes."
    if stated is None:
        advice = "Write `units` into dataset_description.json, for example percent signal change."
        return check("note", f"The description states no units; {shown}.", advice)
    if stated == "z" and not (0.1 < typical < 5 and level < 1):  # z-scores that were averaged since vary less
        return check("warning", f"The description says z-scores, but {shown}.", correct)
    if stated in ("percent", "not z") and looks_z:
        found = f"The description says “{units}”, but voxels have mean 0 and deviation 1, as z-scores have."
        return check("warning", found, correct)
    if stated == "percent" and typical > 2 and not (values % 1).any():
        found = f"Values are whole numbers and {shown}: scaled integers, not per cent."
        return check(
            "warning",
            found,
            "Divide by the factor of the release (NSD stores betas times 300) and import again.",
        )
    if stated == "percent" and not 0.02 < typical < 50:
        guess = "fractions rather than per cent?" if typical < 1 else "raw scanner units?"
        return check("warning", f"The description says percent signal change, but {shown}: {guess}", correct)
    return check("ok", f"Stated are “{units}”; {shown}.")


def stated_units(units: object) -> str | None:
    """What a description's `units` claim: "percent", "z", "not z", "other", or None where it claims nothing."""
    text = str(units or "").lower().strip()
    if re.match(r"(unknown|n/a|none|not (stated|known|given)|)$", text):
        return None
    rest = re.sub(r"(\bnot |\bun-?|\bnothing is )(yet )?(z\S*|normali[sz]ed|standardi[sz]ed)", "", text)
    if re.search(r"\bz\b|\bz-?scor|standardi[sz]ed", rest):
        return "z"
    if re.search(r"percent|per cent|%|\bpsc\b", rest):
        return "percent"
    return "other" if rest == text else "not z"


def _rois(folder: Folder, voxels: np.ndarray) -> str:
    """`, in V1, V2`: the ROIs of some voxels, or nothing where none is known."""
    names = folder.voxels["rois"].to_numpy(dtype=str)[voxels[:1000]]
    found = list(dict.fromkeys(name.split(",")[0].strip() for name in names if name))
    return f", in {', '.join(found[:3])}{' and others' if len(found) > 3 else ''}" if found else ""

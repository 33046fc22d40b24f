"""The order of stimuli where there are no pictures: trials of one class should resemble each other."""

from __future__ import annotations

import numpy as np

from cadiff.data.doctor.findings import Check, Finding
from cadiff.data.doctor.folder import Folder
from cadiff.data.doctor.material import CHANCE, FEWEST, LAGS, Material, in_words, moved, p_text, shift
from cadiff.data.doctor.repeats import repeats_alike, run_numbers

FEW_PAIRS, MANY_PAIRS = 10, 100


def check_by_classes(
    check: Check, folder: Folder, material: Material, rng: np.random.Generator, mend: str
) -> Finding:
    """Whether trials of a class (of a stimulus, where it has none) are more alike than others, also in moved lists."""
    labels = folder.stimuli["label"].reindex(folder.trials["stimulus_id"].iloc[material.rows])
    names = labels.where(labels.notna().to_numpy(), material.names).to_numpy(dtype=str)
    runs = run_numbers(folder.trials.iloc[material.rows])
    alike = repeats_alike(material.patterns, names, runs, rng)
    if alike is None or alike.pairs < FEW_PAIRS:
        return check(
            "not applicable", "There are too few pictures, and too few trials of one class, to tell."
        )
    class_of = dict(zip(material.names, names, strict=True))
    lags: dict[int, float] = {}
    for lag in LAGS:
        positions, ids = moved(folder, material.rows, lag)
        if len(positions) >= FEWEST:
            listed = np.array([class_of.get(name, name) for name in ids], dtype=str)
            found = repeats_alike(material.patterns[positions], listed, runs[positions], rng, 99)
            lags |= {lag: found.z} if found is not None else {}
    check.details |= {"r": alike.r, "z": alike.z, "p": alike.p, "pairs": alike.pairs}
    check.details["z_of_moved_lists"] = {str(lag): z for lag, z in lags.items()}
    best = shift(lags, alike.z)
    if best is not None:
        check.details["shift"] = best
        return check("wrong", f"The list is shifted: {in_words(best, lags[best], alike.z)}.", mend)
    if alike.p <= CHANCE:
        return check(
            "ok",
            f"Trials of one class are more alike than others ({p_text(alike.p)}); pictures are not there to ask.",
        )
    return check(
        "warning" if alike.pairs >= MANY_PAIRS else "note",
        f"Trials of one class are no more alike than others ({p_text(alike.p)}): a wrong order, or no signal.",
        mend,
    )

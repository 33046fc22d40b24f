"""What the published datasets should hold, and where to ask for what is missing.

Counts are those of the papers and releases; what several preprocessings give differently (voxels) is left open where it
is. A dataset is recognised by the reader that imported it, else by its name. Simulated subjects are nobody's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Counts:
    """Expected numbers; None where the design leaves it open."""

    trials: int | None = None
    """Training and test trials together."""
    train_trials: int | None = None
    test_trials: int | None = None
    train_stimuli: int | None = None
    test_stimuli: int | None = None
    stimuli: int | None = None
    """Different stimuli of training and test together."""
    sessions: int | None = None
    voxels: tuple[int, ...] = ()
    """Numbers of voxels that circulate; empty means any."""


@dataclass(frozen=True)
class Design:
    """A published dataset."""

    title: str
    names: tuple[str, ...]
    """Words by which a dataset's name is recognised, lower case."""
    ask: str
    """Where betas and pictures come from, one sentence."""
    counts: Counts = Counts()
    subjects: Mapping[str, Counts] = field(default_factory=dict)
    """Subjects whose numbers are their own, by the end of the subject's name."""
    selections: str = ""
    """Why fewer trials are no fault, where smaller copies circulate."""


DESIGNS: dict[str, Design] = {
    "god": Design(
        "Generic Object Decoding (Horikawa & Kamitani 2017)",
        ("god", "generic object decoding", "kamitani"),
        "The .h5 files are on figshare (article 7387130); pictures are given on request by the form that "
        "https://github.com/KamitaniLab/GenericObjectDecoding links to.",
        Counts(train_trials=1200, test_trials=1750, train_stimuli=1200, test_stimuli=50),
    ),
    "bold5000": Design(
        "BOLD5000 (Chang et al. 2019)",
        ("bold5000",),
        "GLMsingle betas (release 2, figshare 14456124) and stimuli are linked from "
        "https://bold5000-dataset.github.io/website/download.html, without a form.",
        Counts(trials=5254, stimuli=4916, sessions=15),
        {
            "1": Counts(trials=5254, stimuli=4916, sessions=15, voxels=(1685,)),
            "2": Counts(trials=5254, stimuli=4916, sessions=15, voxels=(2270,)),
            "3": Counts(trials=5254, stimuli=4916, sessions=15, voxels=(3104,)),
            "4": Counts(trials=3108, sessions=9, voxels=(2787,)),
        },
    ),
    "nsd": Design(
        "Natural Scenes Dataset (Allen et al. 2022)",
        ("nsd", "natural scenes"),
        "Sign the data access agreement at https://naturalscenesdataset.org; betas and nsd_stimuli.hdf5 are then in its "
        "public bucket, and may not be passed on.",
        Counts(),
        {
            **dict.fromkeys(("1", "2", "5", "7"), Counts(trials=30000, stimuli=10000, sessions=40)),
            **dict.fromkeys(("3", "6"), Counts(trials=24000, sessions=32)),
            **dict.fromkeys(("4", "8"), Counts(trials=22500, sessions=30)),
        },
        selections="sessions 38 to 40 were held back in the first release, and single sessions are often used",
    ),
    "hcp": Design(
        "Human Connectome Project, young adults (Van Essen et al. 2013)",
        ("hcp", "human connectome"),
        "Accept the open access data use terms at https://db.humanconnectome.org; the files are "
        "rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii.",
        Counts(voxels=(4183,)),
    ),
    "miyawaki": Design(
        "contrast patterns (Miyawaki et al. 2008)",
        ("miyawaki",),
        "V1_mean_figure.mat is in https://github.com/KamitaniLab/VBCCA; nilearn.datasets.fetch_miyawaki2008 loads other parts.",
    ),
    "digit69": Design(
        "handwritten 6 and 9 (van Gerven et al. 2010)",
        ("digit69",),
        "digit69_28x28.mat lies beside the code of Du et al. 2017, https://github.com/ChangdeDu/DGMM.",
        Counts(train_trials=90, test_trials=10, voxels=(3092,)),
        selections="selections of the 90 training trials circulate",
    ),
    "objects81": Design(
        "81 object categories",
        ("objects81",),
        "Ask whoever passed the pickle on: it names no home.",
        Counts(stimuli=81, voxels=(696,)),
    ),
}


def find_design(description: Mapping[str, Any]) -> Design | None:
    """The published dataset that this one claims to be, or None."""
    if description.get("simulated"):
        return None
    imported = description.get("import")
    reader = imported.get("reader") if isinstance(imported, Mapping) else None
    if isinstance(reader, str) and reader in DESIGNS:
        return DESIGNS[reader]
    name = str(description.get("name", "")).lower()
    for design in DESIGNS.values():
        if any(re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z])", name) for word in design.names):
            return design
    return None


def expected_counts(design: Design, subject: str) -> Counts:
    """The numbers for a subject, by the last number in its name: CSI1, subj01, sub-03."""
    numbers = re.findall(r"\d+", subject)
    own = design.subjects.get(str(int(numbers[-1]))) if numbers else None
    return own or design.counts

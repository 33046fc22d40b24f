"""Which pictures a simulated subject sees, and when: stimuli of each split, runs and sessions.

The design depends on the seed alone and is the same for all subjects, as in the Generic Object Decoding data; only the order
of training trials is the subject's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cadiff.errors import DataError


@dataclass(frozen=True)
class Choice:
    """Stimulus ids by use; no id is in two of them."""

    train: list[str]
    test: list[str]
    others: list[str]
    """What unlabelled viewing may show: neither a test picture nor, with disjoint classes, a picture of a test class."""


def choose_stimuli(
    table: pd.DataFrame,
    *,
    num_train_classes: int,
    images_per_class: int,
    num_test_images: int,
    test_classes: Literal["disjoint", "seen"],
    rng: np.random.Generator,
) -> Choice:
    """Draws training classes, their pictures and the test pictures from a table of stimulus_id and label.

    Test pictures are spread over as many classes as there are (one a class before any second one). Raises DataError when
    the pictures do not suffice, with the numbers there are.
    """
    members = {
        str(label): rng.permutation(group.to_numpy(dtype=str))
        for label, group in table.groupby("label")["stimulus_id"]
    }
    labels = [str(label) for label in rng.permutation(sorted(members))]
    needed = images_per_class + (1 if test_classes == "seen" and num_test_images else 0)
    rich = [label for label in labels if len(members[label]) >= needed]
    if len(rich) < num_train_classes:
        enough = sum(len(ids) >= images_per_class for ids in members.values())
        kept_back = ", and one more of each to test on" if needed > images_per_class else ""
        raise DataError(
            f"{num_train_classes} training classes of {images_per_class} pictures{kept_back} were asked for; of "
            f"{len(members)} classes {enough} have {images_per_class} and {len(rich)} have {needed}. "
            "Ask for fewer pictures a class or fewer classes."
        )
    trained = rich[:num_train_classes]
    train = [str(name) for label in trained for name in members[label][:images_per_class]]
    if test_classes == "seen":
        pools = [members[label][images_per_class:] for label in trained]
    else:
        known = set(trained)
        pools = [members[label] for label in labels if label not in known]
    test = _round_robin(pools, num_test_images)
    if len(test) < num_test_images:
        raise DataError(
            f"{num_test_images} test pictures of {test_classes} classes were asked for, but after {num_train_classes} "
            f"training classes of {images_per_class} pictures {len(test)} are left. "
            "Ask for fewer, or leave more classes or pictures out of training."
        )
    label_of = dict(zip(table["stimulus_id"].astype(str), table["label"].astype(str), strict=True))
    tested = {label_of[name] for name in test} if test_classes == "disjoint" else set()
    used = {*train, *test}
    others = [name for name, label in sorted(label_of.items()) if name not in used and label not in tested]
    return Choice(train, test, others)


def trial_table(
    train: list[str],
    test: list[str],
    *,
    train_repeats: int,
    test_repeats: int,
    unlabelled_trials: int,
    trials_per_run: int,
    runs_per_session: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """One row a trial: stimulus_id, split, session, run (in the session), repeat, each counted from 1.

    Training trials come in one random order (all pictures once, then again); every repeat of the test is one pass through
    all test pictures; unlabelled volumes come last, and have no stimulus. Each pass starts a run, each split a session.
    """
    passes = [
        ("train", list(rng.permutation(train)), repeat) for repeat in range(1, train_repeats + 1) if train
    ]
    passes += [("test", list(rng.permutation(test)), repeat) for repeat in range(1, test_repeats + 1) if test]
    if unlabelled_trials:
        passes.append(("unlabelled", [None] * unlabelled_trials, 1))
    frames = []
    session, run, before = 0, runs_per_session, ""
    for split, order, repeat in passes:
        for start in range(0, len(order), trials_per_run):
            if run == runs_per_session or split != before:
                session, run, before = session + 1, 0, split
            run += 1
            block = order[start : start + trials_per_run]
            frames.append(
                pd.DataFrame(
                    {"stimulus_id": block, "split": split, "session": session, "run": run, "repeat": repeat}
                )
            )
    return pd.concat(frames, ignore_index=True)


def describe_design(table: pd.DataFrame, trials: pd.DataFrame, test_classes: str) -> str:
    """The design in a sentence for the dataset's description: counts, and whether test classes were trained on."""
    label_of = table.set_index("stimulus_id")["label"]
    shown = {
        split: list(dict.fromkeys(rows["stimulus_id"]))
        for split, rows in trials.groupby("split")
        if split != "unlabelled"
    }
    parts = []
    for split in ("train", "test"):
        if split in shown:
            classes = label_of[shown[split]].nunique()
            repeats = int(trials.loc[trials["split"] == split, "repeat"].max())
            parts.append(
                f"{split}: {len(shown[split])} pictures of {classes} classes x {repeats} presentations"
            )
    if "test" in shown:
        seen = (
            "new pictures of classes seen in training"
            if test_classes == "seen"
            else "test classes disjoint from training classes"
        )
        parts.append(seen)
    unlabelled = int((trials["split"] == "unlabelled").sum())
    if unlabelled:
        parts.append(f"{unlabelled} unlabelled volumes of rest and viewing")
    return "; ".join(parts)


def _round_robin(pools: list[np.ndarray], count: int) -> list[str]:
    """`count` names, the first of every pool before any second one."""
    depth = max((len(pool) for pool in pools), default=0)
    turn = [str(pool[i]) for i in range(depth) for pool in pools if i < len(pool)]
    return turn[:count]

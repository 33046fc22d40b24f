"""The test-look ledger: every evaluation against a test split is written down beside the data, so that looks can be counted.

`test_looks.jsonl` in the dataset folder, one line a look (`cadiff.looks`). It does not stop anyone from deleting the whole file;
it makes honest counting automatic, and tampering deliberate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from cadiff.looks import NAME, append_line, looks_of, read_lines

LOCK = f".{NAME}.lock"
PATIENCE_S = 60
Selection = Literal["nothing", "validation", "test"]
RESPLIT = {
    "untested": "The dataset has no test split of its own; these stimuli were held out of it. The number can be reported for "
    "a system that was chosen without looking at it, for example on a validation split of the remaining training trials.",
    "both": "This test split was made by hand: stimuli of the dataset's own test split may have been trained on, so the number "
    "compares only with systems of the same split.",
    None: "This test split was made out of a dataset; whether out of its training trials is not on record.",
}
"""What a stamp adds, by what the test stimuli of `cadiff data split` were made out of."""


@dataclass(frozen=True)
class Record:
    """What the ledger said before this look, and what the number may therefore claim."""

    looks_before: int
    """Evaluations of this test split on record before this one."""
    systems_before: int
    """Different reconstructions among them, this one not counted."""
    intact: bool
    """Whether the chain of hashes holds."""
    kept: bool
    """Whether this look could be written down."""
    selected_on: Selection | None
    """What the user says the system was chosen by."""
    stamp: str
    """One sentence for people."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for evaluation.json."""
        return asdict(self)


def record_look(
    dataset: Path,
    systems: Mapping[str, str],
    *,
    selected_on: Selection | None,
    resplit: Mapping[str, Any] | None = None,
) -> Record:
    """Appends a look at the test split of a dataset and says what came before.

    Args:
        dataset: the folder; one that is no cadiff dataset gets no ledger.
        systems: name -> SHA-256 of the reconstructions scored in this look.
        selected_on: what the reported system was chosen by, as the user declares it.
        resplit: of the dataset's description, where its test split was made by `cadiff.data.splits.resplit`.
    """
    path = dataset / NAME
    is_dataset = (dataset / "dataset_description.json").is_file()
    with _alone(dataset) if is_dataset else nullcontext():
        lines, intact = read_lines(path)
        looks = looks_of(lines)
        kept = is_dataset and append_line(path, {"look": len(looks) + 1, "systems": dict(systems)}, lines)
    others = {digest for look in looks for digest in look["systems"].values()} - set(systems.values())
    copied = max((place for place, line in enumerate(lines) if "taken_over" in line), default=0)
    stamp = _stamp(len(looks), len(looks_of(lines[:copied])), len(others), intact, kept, selected_on, resplit)
    return Record(len(looks), len(others), intact, kept, selected_on, stamp)


def no_look(selected_on: Selection | None) -> Record:
    """What is on record of an evaluation of training trials, which is no look at the test split and is not counted."""
    stamp = "Scored on training trials, to which the system was fitted: no look at the test split."
    return Record(0, 0, intact=True, kept=False, selected_on=selected_on, stamp=stamp)


@contextmanager
def _alone(dataset: Path) -> Iterator[None]:
    """Within the block no other evaluation counts its look, where locks can be had."""
    lock = FileLock(dataset / LOCK, timeout=PATIENCE_S)
    try:
        lock.acquire()
    except (
        OSError,
        Timeout,
    ):  # a read-only copy, or a file system without locks: the chain of hashes would tell
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _stamp(
    looks: int,
    taken: int,
    others: int,
    intact: bool,
    kept: bool,
    selected_on: Selection | None,
    resplit: Mapping[str, Any] | None,
) -> str:
    out_of = (resplit or {}).get("out_of")
    if out_of == "train":
        return (
            "A validation split, made out of training trials: choose by this number, and report one on the dataset's own test "
            "trials, which are not in here."
        )
    if not kept and not looks:
        return "No ledger: looks at this test split are not counted."
    before = "First look at this test split on record"
    if looks:
        who = "1 other system was" if others == 1 else f"{others} other systems were"
        earlier = f", {taken} of them before it was copied into this dataset" if taken else ""
        before = f"Look {looks + 1} at this test split{earlier}; {who} scored on it before"
    declared = {
        None: "what the system was selected on is not declared",
        "nothing": "declared: nothing was selected",
        "validation": "declared: selected on validation",
        "test": "declared: selected on test",
    }[selected_on]
    doubt = ""
    if selected_on != "test" and others:
        doubt = "; if one of them had won, it might stand here, and that would be a selection on test"
    broken = (
        "" if intact else " The ledger's chain of hashes is broken: lines were changed, removed or cut off."
    )
    made = f" {RESPLIT.get(out_of, RESPLIT[None])}" if resplit is not None else ""
    return f"{before}; {declared}{doubt}.{broken}{made}"

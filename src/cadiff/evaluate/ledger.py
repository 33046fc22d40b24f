"""The test-look ledger: every evaluation against a test split is written down beside the data, so that looks can be counted.

`test_looks.jsonl` in the dataset folder, one line a look. Each line holds the hash of the one before, so a line that is
changed, removed or put in between breaks the chain and is noticed. It does not stop anyone from deleting the whole file; it
makes honest counting automatic, and tampering deliberate.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

NAME = "test_looks.jsonl"
LOCK = f".{NAME}.lock"
PATIENCE_S = 60
Selection = Literal["nothing", "validation", "test"]
RESPLIT = {
    "untested": "The dataset has no test split of its own; these stimuli were held out of it, so choose nothing by this number "
    "that is to be reported.",
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
        lines, intact = read_ledger(path)
        kept = is_dataset and _append(path, systems, lines)
    others = {digest for line in lines for digest in line["systems"].values()} - set(systems.values())
    stamp = _stamp(len(lines), len(others), intact, kept, selected_on, resplit)
    return Record(len(lines), len(others), intact, kept, selected_on, stamp)


def read_ledger(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The looks on record, and whether the chain of hashes is whole; an absent file holds none."""
    if not path.is_file():
        return [], True
    looks, previous, intact = [], "", True
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            fits = (line["previous"], line["hash"]) == (previous, _hash(line))
            digests = {*line["systems"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):  # no line of a ledger, so no look
            intact = False
            continue
        intact &= fits and all(isinstance(digest, str) for digest in digests)
        previous = line["hash"]
        looks.append(line)
    return looks, intact


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


def _append(path: Path, systems: Mapping[str, str], lines: list[dict[str, Any]]) -> bool:
    line: dict[str, Any] = {
        "look": len(lines) + 1,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "systems": dict(systems),
        "previous": lines[-1]["hash"] if lines else "",
    }
    line["hash"] = _hash(line)
    try:
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            torn = (
                b"\n" if file.read(1) not in (b"", b"\n") else b""
            )  # a write that was cut off: do not join its line
            file.write(torn + json.dumps(line).encode() + b"\n")
    except OSError:  # a read-only copy of the data can be scored all the same; the stamp says so
        return False
    return True


def _hash(line: Mapping[str, Any]) -> str:
    content = {key: value for key, value in line.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stamp(
    looks: int,
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
        before = f"Look {looks + 1} at this test split; {who} scored on it before"
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

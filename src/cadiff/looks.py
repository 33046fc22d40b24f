"""The file of the test-look ledger: `test_looks.jsonl` beside the data, one line a look, each with the hash of the one before.

A line that is changed, removed or put in between breaks the chain and is noticed. A dataset made of another one that keeps its
test trials takes the lines over as they are, and one more that says so: `{"taken_over": {"dataset": ..., "looks": ...}, ...}`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

NAME = "test_looks.jsonl"
Line = dict[str, Any]


def read_lines(path: Path) -> tuple[list[Line], bool]:
    """All lines, and whether the chain of hashes is whole; an absent file holds none."""
    if not path.is_file():
        return [], True
    lines, previous, intact = [], "", True
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
        lines.append(line)
    return lines, intact


def looks_of(lines: Sequence[Line]) -> list[Line]:
    """The lines that are looks."""
    return [line for line in lines if "taken_over" not in line]


def read_ledger(path: Path) -> tuple[list[Line], bool]:
    """The looks on record, and whether the chain of hashes is whole."""
    lines, intact = read_lines(path)
    return looks_of(lines), intact


def append_line(path: Path, facts: Mapping[str, Any], lines: Sequence[Line]) -> bool:
    """Adds a line after those that were read; False where the file cannot be written."""
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line: Line = {**facts, "time": time, "previous": lines[-1]["hash"] if lines else ""}
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


def take_over(parent: Path, made: Path) -> None:
    """Copies the looks at a dataset's test split into one that is made of it, and has the same test stimuli.

    Looks at either of them from then on are counted there alone.
    """
    if not (parent / NAME).is_file():
        return
    (made / NAME).write_bytes((parent / NAME).read_bytes())
    lines, _ = read_lines(made / NAME)
    taken = {"dataset": parent.resolve().name, "looks": len(looks_of(lines))}
    append_line(made / NAME, {"taken_over": taken, "systems": {}}, lines)


def _hash(line: Mapping[str, Any]) -> str:
    content = {key: value for key, value in line.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

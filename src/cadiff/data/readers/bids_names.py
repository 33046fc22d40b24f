"""File names of BIDS taken apart: `sub-01_ses-02_task-x_run-1_space-T1w_desc-preproc_bold.nii.gz`.

A name is entities, `key-value` parts joined by `_`, then a suffix and an extension (BIDS specification 1.10, common
principles). Traps: run indices may or may not be padded with zeros; datasets taken with DataLad hold links to files
that were not fetched.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cadiff.data.files import need_file
from cadiff.errors import DataError

KINDS = {".nii.gz": "volume", ".nii": "volume", ".func.gii": "surface", ".dtseries.nii": "grayordinates"}
SPATIAL = ("space", "cohort", "res", "den")
NOT_OF_A_RUN = {*SPATIAL, "sub", "hemi", "desc", "echo"}
NATIVE = "native"  # our name for the scanner's own grid, which has no space entity

RunKey = tuple[tuple[str, str], ...]
"""The entities that tell the runs of a subject apart, sorted."""


class Named(NamedTuple):
    """A file with a BIDS name taken apart."""

    path: Path
    entities: dict[str, str]
    suffix: str
    extension: str

    @property
    def space(self) -> str:
        """ "MNI152NLin2009cAsym:res-2", as fMRIPrep's option --output-spaces has it."""
        more = (f":{key}-{self.entities[key]}" for key in SPATIAL[1:] if key in self.entities)
        return self.entities.get("space", NATIVE) + "".join(more)

    @property
    def run_key(self) -> RunKey:
        """The entities that tell runs apart, run indices without leading zeros."""
        kept = ((k, v) for k, v in self.entities.items() if k not in NOT_OF_A_RUN)
        return tuple(sorted((k, v.lstrip("0") or "0" if k == "run" else v) for k, v in kept))


def natural(text: str) -> list[Any]:
    """A key that sorts "run-10" after "run-9"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def matches(label: str, patterns: Iterable[object]) -> bool:
    """Whether a label fits one of the patterns, where `*` stands for anything."""
    return any(fnmatch.fnmatchcase(label, str(pattern)) for pattern in patterns)


def files_about(root: Path, subject: str) -> Iterator[Named]:
    """Files with BIDS names that may be about a subject's BOLD, those of higher folders (inheritance) included."""
    own = root / subject
    sessions = [path for path in own.glob("ses-*") if path.is_dir()]
    for folder in (root, own, own / "func", *(path for ses in sessions for path in (ses, ses / "func"))):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            stem, dot, extension = path.name.partition(".")
            *parts, suffix = stem.split("_")
            if parts and all("-" in part for part in parts):
                entities = dict(part.split("-", 1) for part in parts)
                if entities.get("sub", subject.removeprefix("sub-")) == subject.removeprefix("sub-"):
                    yield Named(path, entities, suffix, dot + extension)


def run_numbers(order: list[RunKey]) -> dict[RunKey, tuple[int, int]]:
    """(session, run) of each run: BIDS's own indices where they are numbers and tell the runs apart, else counts from 1."""
    labels = list(dict.fromkeys(dict(key).get("ses", "1") for key in order))
    own = all(label.isdecimal() and int(label) > 0 for label in labels) and len({*map(int, labels)}) == len(
        labels
    )
    numbers = {}
    for position, label in enumerate(labels, start=1):
        keys = [key for key in order if dict(key).get("ses", "1") == label]
        runs = [dict(key).get("run", "") for key in keys]
        kept = all(run.isdecimal() and int(run) > 0 for run in runs) and len(set(runs)) == len(runs)
        for count, key in enumerate(keys, start=1):
            numbers[key] = (int(label) if own else position, int(dict(key)["run"]) if kept else count)
    return numbers


def pick(wanted: str | None, found: Mapping[str, Any], what: str, option: str) -> Any:
    """The only one, or the one asked for: by its name, its number, or its name without what follows ":"."""
    names = ", ".join(sorted(found, key=natural)) or "none"
    if wanted is None:
        if len(found) == 1:
            return next(iter(found.values()))
        raise DataError(
            f"{what}: {names}. Choose one with {option}=, for example {option}={min(found, default='?')}."
        )
    if wanted in found:
        return found[wanted]
    fits = [name for name in found if name.split(":")[0] == wanted or _same_but_zeros(name, wanted)]
    if len(fits) == 1:
        return found[fits[0]]
    raise DataError(
        f"{what.replace('several', 'no ' + option + f' {wanted!r} among its')}: there are {names}."
    )


def run_name(key: Iterable[tuple[str, str]]) -> str:
    """ "ses-02_task-x_run-1", for messages."""
    rank = {"ses": 0, "task": 1, "run": 9}
    pairs = sorted(key, key=lambda pair: (rank.get(pair[0], 5), pair[0]))
    return "_".join(f"{name}-{value}" for name, value in pairs) or "the run"


def fetched(path: Path, hint: str = "the data are incomplete.") -> Path:
    """`path` when it is a file that is here."""
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{path} is a link to a file that is not here: fetch it, for example with `datalad get`."
        )
    return need_file(path, hint)


def _same_but_zeros(name: str, wanted: str) -> bool:
    """Whether "sub-01" is meant by "sub-1": YAML reads 01 as the number 1."""
    plain = [re.sub(r"0+(?=\d+$)", "", text) for text in (name, wanted)]
    return plain[0] == plain[1]

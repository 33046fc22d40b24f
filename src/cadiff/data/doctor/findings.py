"""What the doctor says: a `Finding` for every check, all of them in a `Diagnosis`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cadiff.artifacts import provenance, write_json

FORMAT = 1
Verdict = Literal["ok", "note", "warning", "wrong", "not applicable"]
"""ok: looked and found nothing; note: worth knowing; warning: look before you train; wrong: results would be false."""
SEVERITY: dict[Verdict, int] = {"not applicable": 0, "ok": 1, "note": 2, "warning": 3, "wrong": 4}


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    key: str
    """Stable name, such as "duplicate-voxels"."""
    title: str
    """What was asked, in a few words."""
    verdict: Verdict
    found: str
    """One sentence, or two."""
    do: str = ""
    """What to do next; empty when there is nothing to do."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind the sentence, JSON values."""
    sample: str = ""
    """What part of the data was looked at; empty means all of it."""


@dataclass
class Check:
    """A question that is being answered: calling it with a verdict makes the `Finding`."""

    key: str
    title: str
    sample: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __call__(self, verdict: Verdict, found: str, do: str = "") -> Finding:
        """The answer."""
        return Finding(self.key, self.title, verdict, found, do, dict(self.details), self.sample)


@dataclass(frozen=True)
class Pair:
    """A test picture and the training picture that shows the same."""

    test: str
    train: str
    similarity: float
    """1: the same file; otherwise as `fingerprints.similarity`."""


@dataclass
class Diagnosis:
    """All findings about one dataset, and what the page draws."""

    folder: Path
    about: dict[str, Any]
    """name, subject, trials, voxels, stimuli."""
    findings: list[Finding]
    rois: list[dict[str, Any]] = field(default_factory=list)
    """Reliability per ROI, see `reliability.roi_table`."""
    pairs: list[Pair] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    seed: int = 0
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst of all findings: ok, note, warning or wrong."""
        worst: Verdict = "ok"
        for found in self.findings:
            if SEVERITY[found.verdict] > SEVERITY[worst]:
                worst = found.verdict
        return worst

    @property
    def exit_code(self) -> int:
        """1 when something is wrong, else 0."""
        return int(self.verdict == "wrong")

    def finding(self, key: str) -> Finding:
        """The finding of a check; `KeyError` when there is no such check."""
        for found in self.findings:
            if found.key == key:
                return found
        raise KeyError(key)

    def keys(self, *verdicts: Verdict) -> list[str]:
        """Keys of the checks that ended in one of these verdicts."""
        return [f.key for f in self.findings if f.verdict in verdicts]

    def worst_first(self) -> list[Finding]:
        """All findings, the serious ones first, otherwise in the order of the checks."""
        return sorted(self.findings, key=lambda f: -SEVERITY[f.verdict])

    def summary(self) -> str:
        """The verdict as a sentence."""
        counts = {v: len(self.keys(v)) for v in SEVERITY}
        looked = len(self.findings) - counts["not applicable"]
        parts = []
        if counts["wrong"]:
            parts.append(f"{counts['wrong']} {'thing is' if counts['wrong'] == 1 else 'things are'} wrong")
        if counts["warning"]:
            parts.append(f"{counts['warning']} {'needs' if counts['warning'] == 1 else 'need'} a look")
        if not parts:
            notes = f", {count(counts['note'], 'note')}" if counts["note"] else ""
            return f"Nothing is wrong: {looked} checks{notes}."
        rest = f"{counts['ok'] + counts['note']} of {looked} checks are fine"
        return f"{' and '.join(parts)}; {rest}."

    def as_json(self) -> dict[str, Any]:
        """Plain values with stable keys: what `--json` writes."""
        value = {
            "kind": "diagnosis",
            "format": FORMAT,
            "cadiff": version(),
            "verdict": self.verdict,
            "summary": self.summary(),
            "folder": self.folder.name,
            "dataset": self.about,
            "against": self.against,
            "counts": {verdict: len(self.keys(verdict)) for verdict in SEVERITY},
            "checks": [
                {
                    "key": f.key,
                    "title": f.title,
                    "verdict": f.verdict,
                    "found": f.found,
                    "do": f.do,
                    "sample": f.sample,
                    "details": dict(f.details),
                }
                for f in self.findings
            ],
            "rois": self.rois,
            "pairs": [{"test": p.test, "train": p.train, "similarity": p.similarity} for p in self.pairs],
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
        }
        return plain(value)

    def write_json(self, path: Path) -> Path:
        """Writes `as_json` to a file, over an older one."""
        write_json(path, self.as_json())
        return path


def version() -> str:
    """The version of cadiff that is installed."""
    return provenance()["versions"].get("cadiff", "unknown")


def plain(value: Any) -> Any:
    """`value` with numpy numbers as Python ones, and NaN or infinity as None: what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    return str(value)


def some(names: Sequence[Any], most: int = 3) -> str:
    """The first names of a list in words: 'a', 'b', 'c' and 4 more."""
    shown = ", ".join(repr(str(name)) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def count(number: int, singular: str, verb: str = "") -> str:
    """`1 voxel`, `2 voxels`; with a verb `1 voxel is`, `2 voxels are`."""
    if number != 1:
        singular = singular.removesuffix("us") + "i" if singular.endswith("stimulus") else singular + "s"
        verb = {"is": "are", "has": "have", "was": "were"}.get(verb, verb.removesuffix("s"))
    return f"{number:,} {singular} {verb}".rstrip()

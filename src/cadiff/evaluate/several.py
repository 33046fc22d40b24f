"""Several evaluations: whose they are, which pictures they share, and whether their scores mean the same.

Pooling over subjects (`subjects`) and the comparison of systems (`cadiff.report.systems`) both ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd

from cadiff.artifacts import sha256_file
from cadiff.errors import ConfigError, DataError


class Scored(Protocol):
    """What pooling needs of an evaluation; `cadiff.report.inputs.open_evaluated` opens one."""

    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def scores(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def images(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def samples(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def stimuli(self) -> pd.DataFrame: ...  # noqa: D102
    @property
    def about(self) -> dict[str, Any]: ...  # noqa: D102


def are_subjects(parts: Sequence[Scored]) -> bool:
    """Whether evaluations are about several subjects, or about stimuli that no two of them share, and so belong pooled.

    Otherwise they are systems on the same stimuli, to be compared with each other.
    """
    shown = [set(stimulus_ids(part)) for part in parts]
    if len(parts) > 1 and all(first.isdisjoint(second) for first, second in combinations(shown, 2)):
        return True
    people = {part.scores["dataset"].get("subject") for part in parts}
    return len(people) > 1 and None not in people


def refuse_other_protocol(first: Scored, other: Scored) -> None:
    """Raises `ConfigError` where the scores of two evaluations do not mean the same."""
    metric, found = first.scores["headline"]["metric"], other.scores["metrics"]
    if metric not in found:
        raise ConfigError(
            f"{first.folder} leads with {metric}, which {other.folder} does not have (it has: {', '.join(found)}): "
            "evaluate both with the same settings."
        )
    here, there = _protocol(first), _protocol(other)
    for what, value in here.items():
        if what in there and there[what] != value:
            raise ConfigError(
                f"{first.folder} and {other.folder} follow different protocols: {what} {_short(value)} in one and "
                f"{_short(there[what])} in the other; evaluate both with the same settings."
            )


def _protocol(part: Scored) -> dict[str, Any]:
    """What must agree, in words; facts that an evaluation does not tell are absent."""
    scores = part.scores
    facts: dict[str, Any] = {f"{name} is": about["protocol"] for name, about in scores["metrics"].items()}
    facts["pictures are compared at"] = [scores["pictures"][key] for key in ("height", "width")]
    facts["the split is"] = scores["stimuli"].get("split", "test")
    facts["the classes that take part are"] = scores["config"].get("classes")
    facts["presentations averaged before decoding:"] = (part.about.get("config") or {}).get("average_repeats")
    facts["the judge's weights are"] = (scores.get("judge") or {}).get("weights_sha256")
    for name, eye in (scores.get("eyes") or {}).items():
        facts[f"the weights of {name} are"] = eye.get("weights_sha256")
    optional = ("presentations averaged before decoding:", "the judge's weights are")
    return {key: value for key, value in facts.items() if value is not None or key not in optional}


def _short(value: Any) -> str:
    text = " x ".join(map(str, value)) if isinstance(value, list) and len(value) == 2 else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def stimulus_ids(part: Scored) -> list[str]:
    """The stimuli that were scored, in the evaluation's order."""
    primary = part.scores["headline"]["condition"]
    return part.images.loc[part.images["condition"] == primary, "stimulus_id"].tolist()


def subject_names(parts: Sequence[Scored]) -> list[str]:
    """A name for the subject of each part: as short as tells them apart; a dataset without subject counts as one."""
    known = [(str(p.scores["dataset"].get("name") or "?"), p.scores["dataset"].get("subject")) for p in parts]
    short = [str(subject or name) for name, subject in known]
    if len(set(short)) == len(set(known)):
        return short
    return [f"{name}/{subject}" if subject else name for name, subject in known]


def refuse_twice(parts: Sequence[Scored], names: Sequence[str]) -> None:
    """Raises `DataError` where two evaluations are about the same stimuli of the same subject."""
    for (i, first), (k, second) in combinations(enumerate(parts), 2):
        both = set(stimulus_ids(first)) & set(stimulus_ids(second))
        if names[i] == names[k] and both:
            raise DataError(
                f"{first.folder} and {second.folder} are both about {names[i]} and share {len(both)} stimuli: pool one "
                "evaluation a subject, which names rivals with --against; or compare these two alone."
            )


class Pictures(NamedTuple):
    """Which pictures the subjects saw."""

    names: list[dict[str, str]]
    """Stimulus -> name of its picture for each part: its digest, so that one name means the same picture."""
    shared: bool
    """Whether there are several subjects who all saw the same ones."""
    num_partly: int
    """Pictures that several subjects saw, where not all subjects saw the same ones; else 0."""
    num: int
    """All of them."""


def find_pictures(parts: Sequence[Scored], subjects: Sequence[str]) -> Pictures:
    """The pictures behind the stimuli of every part; `subjects` names the subject of each."""
    found: list[dict[str, str]] = []
    seen: dict[str, set[str]] = {}
    for part, subject in zip(parts, subjects, strict=True):
        own: dict[str, str] = {}
        copies: dict[str, int] = {}
        for stimulus_id in stimulus_ids(part):
            digest = _digest(part.stimuli, stimulus_id)
            copies[digest] = copies.get(digest, 0) + 1  # two stimuli of one subject may look the same
            own[stimulus_id] = f"{digest}-{copies[digest]}"
        found.append(own)
        seen.setdefault(subject, set()).update(own.values())
    everything = set().union(*seen.values())
    shared = len(seen) > 1 and all(pictures == everything for pictures in seen.values())
    several = sum(sum(picture in own for own in seen.values()) > 1 for picture in everything)
    return Pictures(found, shared, 0 if shared else several, len(everything))


def _digest(stimuli: pd.DataFrame, stimulus_id: str) -> str:
    """SHA-256 of a stimulus's file, as the dataset records it."""
    recorded = stimuli.at[stimulus_id, "sha256"] if "sha256" in stimuli else None
    if isinstance(recorded, str):
        return recorded
    return sha256_file(Path(str(stimuli.at[stimulus_id, "path"])))

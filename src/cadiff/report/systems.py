"""Several evaluations side by side: which systems they hold, and whether they may be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.artifacts import read_json, sha256_file
from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.several import refuse_other_protocol
from cadiff.report.inputs import Evaluated, open_evaluated


@dataclass(frozen=True)
class System:
    """One decoder of a comparison: a condition of an evaluation, under a name of its own."""

    name: str
    evaluated: Evaluated
    condition: str
    digest: str
    """SHA-256 of its folder of pictures."""

    @property
    def scores(self) -> dict[str, Any]:
        """Its part of evaluation.json: label, num_samples, metrics."""
        return self.evaluated.scores["conditions"][self.condition]

    @property
    def is_primary(self) -> bool:
        """Whether its evaluation is about it, so that it was compared with controls."""
        return self.condition == self.evaluated.primary

    def values(self, metric: str, stimulus_ids: Sequence[str]) -> np.ndarray:
        """One score an image, (n,), in the order asked for."""
        found = self.evaluated.values(self.condition, metric)
        if found is None:
            raise DataError(f"{self.evaluated.folder} has no {metric} of every image for {self.condition!r}.")
        return found.loc[list(stimulus_ids)].to_numpy()

    @property
    def about(self) -> dict[str, Any]:
        """config.json of its folder of pictures; empty for a folder of somebody else's."""
        if self.is_primary:
            return self.evaluated.about
        config = self.evaluated.pictures.get(self.condition, Path()) / "config.json"
        return read_json(config) if config.is_file() else {}

    @property
    def training_trials(self) -> int | None:
        """Trials that it learnt from: as its folder records them, else those of the dataset; None where nobody knows."""
        facts = self.about.get("provenance") or {}
        recorded = facts.get("training_trials", facts.get("trials"))  # records before 2026-11-23
        if recorded is not None:
            return int(recorded)
        subject = self.evaluated.subject
        return None if subject is None else int((subject.trials["split"] == "train").sum()) or None

    @property
    def method(self) -> str:
        """What draws its pictures, as far as its folder says: systems of one method make one curve."""
        settings = self.about.get("config") or {}
        if "baseline" in settings:
            return str(settings["baseline"])
        return "diffusion" if "num_inference_steps" in settings else self.name


def open_all(evaluations: Sequence[Path], names: Sequence[str] | None) -> list[System]:
    """The systems of all evaluations: what each is about, then the folders that it was scored against.

    A folder of pictures that several evaluations scored appears once.

    Raises:
        ConfigError: fewer than two systems, as many names as evaluations are wanted, a name given twice, or protocols that
            differ. DataError: stimuli that differ.
    """
    return systems_of([open_evaluated(Path(folder)) for folder in evaluations], names)


def systems_of(opened: Sequence[Evaluated], names: Sequence[str] | None = None) -> list[System]:
    """As `open_all`, of evaluations that are open already."""
    if names is not None and len(names) != len(opened):
        raise ConfigError(f"{len(opened)} evaluations take as many names; {len(names)} were given.")
    if names is not None and len(set(names)) < len(names):
        raise ConfigError(f"Systems of a comparison need distinct names; given were {', '.join(names)}.")
    titles = list(names) if names is not None else default_names([e.folder for e in opened])
    for other in opened[1:]:
        _same_stimuli(opened[0], other)
        refuse_other_protocol(opened[0], other)
    systems: dict[tuple[str, str], System] = {}
    for title, evaluated in zip(titles, opened, strict=True):
        digest = evaluated.scores["inputs"]["reconstructions_sha256"]
        key = (digest, evaluated.primary)
        if key in systems:
            raise ConfigError(
                f"{systems[key].name} and {title} are evaluations of the same pictures: compare different systems."
            )
        systems[key] = System(title, evaluated, evaluated.primary, digest)
    taken = set(titles)
    for title, evaluated in zip(titles, opened, strict=True):
        for name, rival in evaluated.scores["inputs"].get("against", {}).items():
            if any(digest == rival["sha256"] for digest, _ in systems):
                continue
            free = next(n for n in (name, f"{name} ({title})", *_numbered(name)) if n not in taken)
            taken.add(free)
            systems[rival["sha256"], name] = System(free, evaluated, name, rival["sha256"])
    found = list(systems.values())
    if len(found) < 2:
        raise ConfigError(
            f"A comparison needs two systems or more; {opened[0].folder} holds one: name several evaluations."
        )
    return found


def default_names(folders: Sequence[Path]) -> list[str]:
    """Short distinct names: of the folders, of their parents where every folder is called "evaluation", or both."""
    resolved = [Path(folder).resolve() for folder in folders]
    plain = [
        path.parent.name if path.name == "evaluation" else path.name.removesuffix("-evaluation")
        for path in resolved
    ]
    longer = [f"{path.parent.name}/{path.name}" for path in resolved]
    for names in (plain, longer):
        if len(set(names)) == len(names):
            return names
    return [f"{name} {i + 1}" for i, name in enumerate(longer)]


def shared_metrics(systems: Sequence[System]) -> list[str]:
    """Metrics that all systems have, in the order of the first."""
    return [
        name
        for name in systems[0].scores["metrics"]
        if all(name in system.scores["metrics"] for system in systems)
    ]


def differences_to_mind(systems: Sequence[System]) -> list[str]:
    """What differs between the systems though their scores may be compared, in sentences."""
    found = []
    samples = {system.scores["num_samples"] for system in systems}
    if len(samples) > 1:
        counts = ", ".join(f"{system.name} {system.scores['num_samples']}" for system in systems)
        found.append(
            f"Unequal numbers of samples an image ({counts}): means are comparable, those over more samples are steadier."
        )
    subjects = {
        (e.scores["dataset"].get("name"), e.scores["dataset"].get("subject")) for e in _evaluations(systems)
    }
    if len(subjects) > 1:
        found.append(
            "Not all systems read the same subject's data, so a difference may be one of brains or of recordings."
        )
    told = [_averages(system.evaluated) for system in systems if system.is_primary]
    if None in told and len(set(told)) > 1:
        found.append(
            "Not every folder says how many presentations of a stimulus were averaged before decoding."
        )
    if any((e.scores.get("integrity") or {}).get("selected_on") == "test" for e in _evaluations(systems)):
        found.append("At least one system was selected on this test set, which flatters it.")
    for system in systems:
        if warning := (system.evaluated.scores.get("warnings") or {}).get(system.condition):
            found.append(f"{system.name}: {warning.rstrip('.')}.")
    return found


def _evaluations(systems: Sequence[System]) -> Iterator[Evaluated]:
    return iter({id(system.evaluated): system.evaluated for system in systems}.values())


def _averages(evaluated: Evaluated) -> bool | None:
    return (evaluated.about.get("config") or {}).get("average_repeats")


def _same_stimuli(first: Evaluated, other: Evaluated) -> None:
    """Refused: other stimuli, or other pictures under the same names."""
    here, there = set(first.stimulus_ids), set(other.stimulus_ids)
    if here != there:
        odd = sorted(here ^ there)
        raise DataError(
            f"{first.folder} and {other.folder} are not about the same stimuli ({len(here)} and {len(there)}, {len(odd)} in one "
            f"only, first: {odd[0]!r}): systems are compared image by image."
        )
    if first.dataset.resolve() == other.dataset.resolve():
        return
    for stimulus_id in first.stimulus_ids:
        files = [Path(str(e.stimuli.at[stimulus_id, "path"])) for e in (first, other)]
        if sha256_file(files[0]) != sha256_file(files[1]):
            raise DataError(
                f"{first.folder} and {other.folder} call different pictures {stimulus_id!r} ({files[0]} and {files[1]}): "
                "systems are compared on the same stimuli."
            )


def _numbered(name: str) -> Iterator[str]:
    return (f"{name} {i}" for i in range(2, 10_000))

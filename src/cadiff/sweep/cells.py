"""From a table to its cells: every row, subject and seed, with the settings that make it. Still nothing is read from disk."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cadiff.config import as_number, nearest, parse_override
from cadiff.errors import ConfigError
from cadiff.experiments import STAGES
from cadiff.sweep.table import AXES, Row, Source, Subject, as_overrides, refuse_setting, seed_setting


@dataclass(frozen=True)
class Given:
    """What the command line adds to a table."""

    datasets: Mapping[str, Path] = field(default_factory=dict)
    """By subject; one under "" is the only subject's."""
    corpus: tuple[Path, ...] = ()
    weights: Path | None = None
    prior: str | None = None
    set: tuple[str, ...] = ()
    """Settings "a.b=c", and options of baselines "ridge-label.guidance_scale=2": above the table's, below a row's own."""


@dataclass(frozen=True)
class Cell:
    """One run: a row, a subject, a seed."""

    row: str
    """Name after the grid: cells of one name are pooled."""
    base: str
    """Name before the grid: rows of one base make a curve."""
    where: str
    """For messages."""
    subject: str
    seed: int
    preset: str
    protocol: str | None
    overrides: tuple[str, ...]
    baseline: str | None
    options: dict[str, Any]
    dataset: Path | None
    corpus: tuple[Path, ...]
    weights: Path | None
    prior: str
    columns: dict[str, float]
    published: float | None
    optional: bool

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{slug(self.row)}/{slug(self.subject)}-seed-{self.seed}"


@dataclass(frozen=True)
class Person:
    """A subject of the sweep."""

    name: str
    about: Subject
    number: int


def slug(name: str) -> str:
    """A name as a file name."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.") or "row"


def expand(source: Source, given: Given) -> tuple[list[Cell], list[str]]:
    """The cells of a table, rows in its order, and what is to be said about them.

    Raises:
        ConfigError: subjects, datasets, rows or the reference do not fit each other.
    """
    table = source.table
    people, remarks = _people(source, given)
    real = any(person.about.dataset for person in people)
    for setting in table.set:
        refuse_setting(setting, f"{source.name}, set")
    drawn = {row.baseline for row in table.rows if row.baseline}
    settings = tuple(text for text in given.set if text.partition(".")[0] not in drawn)
    for text in settings:
        if text.partition(".")[0] not in STAGES:
            known = ", ".join([*STAGES, *sorted(drawn)])
            raise ConfigError(f"--set {text!r} must begin with a stage, or a baseline of the table: {known}.")
        refuse_setting(text.partition("=")[0], "--set")
    cells: list[Cell] = []
    for index, row in enumerate(table.rows):
        cells += _row_cells(source, index, row, people, real, given, settings)
    names = dict.fromkeys(cell.row for cell in cells)
    taken: dict[str, Cell] = {}
    for cell in cells:
        other = taken.setdefault(cell.name.lower(), cell)
        if other is not cell:
            raise ConfigError(
                f"{cell.where}: there is such a row already ({other.where}); give every row its name."
            )
    if table.reference is not None and table.reference not in names:
        raise ConfigError(
            f"{source.name}: reference {table.reference!r} is no row{nearest(table.reference, list(names))}"
        )
    return cells, remarks


def _row_cells(
    source: Source,
    index: int,
    row: Row,
    people: Sequence[Person],
    real: bool,
    given: Given,
    settings_given: Sequence[str],
) -> list[Cell]:
    table, where, cells = source.table, source.where(index), []
    presets = row.preset if row.preset is not None else None
    grid: dict[str, Sequence[Any]] = {key: list(values) for key, values in row.grid.items()}
    shared = table.preset if presets is None else presets
    if not isinstance(shared, str):
        grid.setdefault("preset", list(shared))
    axes = [key for key in grid if key not in ("seed", "subject")]
    chosen = _chosen(row.subjects or grid.get("subject"), people, where)
    seeds = grid.get("seed", row.seeds if row.seeds is not None else table.seeds)
    for values in itertools.product(*(grid[key] for key in axes)):
        point = dict(zip(axes, values, strict=True))
        name = ", ".join([row.name, *(f"{_short(key, axes)}={_text(value)}" for key, value in point.items())])
        settings = {key: value for key, value in point.items() if key not in AXES}
        options = {key: settings.pop(key) for key in list(settings) if row.baseline and "." not in key}
        numbers = {k: _number(v) for k, v in {**row.set, **row.options, **settings, **options}.items()}
        columns = {key: number for key, number in numbers.items() if number is not None}
        for person, seed in itertools.product(chosen, seeds if seeds is not None else [None]):
            if not isinstance(seed, int | None) or isinstance(seed, bool) or (seed or 0) < 0:
                raise ConfigError(f"{where}: seed {seed!r} is not a whole number from 0 on.")
            overrides = [*as_overrides(table.set), *settings_given]
            overrides += as_overrides({**row.set, **settings})
            if row.baseline is None:
                overrides += [f"{seed_setting(stage)}={seed}" for stage in table.seeded if seed is not None]
            if person.about.dataset is None:
                overrides.append(f"simulate.subject={person.number}")
            preset = str(point.get("preset", "")) or _preset(row, person, source, real)
            published = row.published.get(person.name) if isinstance(row.published, dict) else row.published
            cells.append(
                Cell(
                    name,
                    row.name,
                    where,
                    person.name,
                    seed or 0,
                    preset,
                    point.get("protocol", row.protocol or table.protocol),
                    tuple(overrides),
                    row.baseline,
                    {
                        k: as_number(v)
                        for k, v in {**_options(row.baseline, given), **row.options, **options}.items()
                    },
                    person.about.dataset,
                    given.corpus or (table.corpus if person.about.corpus is None else person.about.corpus),
                    row.weights or given.weights or person.about.weights or table.weights,
                    row.prior or given.prior or table.prior,
                    {**columns, **row.columns},
                    published,
                    row.optional,
                )
            )
    return cells


def _preset(row: Row, person: Person, source: Source, real: bool) -> str:
    """The most specific preset; `simulated` ones come first where nothing is given to work on."""
    table = source.table
    if not real and (simulated := row.simulated or (None if row.preset else table.simulated)):
        return simulated
    if isinstance(row.preset, str):
        return row.preset
    return person.about.preset or str(table.preset)


def _people(source: Source, given: Given) -> tuple[list[Person], list[str]]:
    """The subjects, with the datasets that the command line gives; without any dataset all are simulated."""
    table, datasets = source.table, dict(given.datasets)
    if isinstance(table.subjects, dict):
        known = {name: about for name, about in table.subjects.items()}
    else:
        known = {
            _name(entry): Subject(number=entry if isinstance(entry, int) else None)
            for entry in table.subjects or ()
        }
    if (single := datasets.pop("", None) or table.dataset) is not None:
        if len(known) > 1:
            raise ConfigError(
                f"{source.name} has {len(known)} subjects ({', '.join(known)}): say whose data these are, "
                f"--dataset {next(iter(known))}={single}."
            )
        datasets.setdefault(next(iter(known), "subject"), single)
    if known and (odd := [name for name in datasets if name not in known]) and table.subjects is not None:
        raise ConfigError(
            f"--dataset {odd[0]}=...: {source.name} has no such subject{nearest(odd[0], list(known))}"
        )
    for name, folder in datasets.items():
        known[name] = known.get(name, Subject(number=None)).model_copy(update={"dataset": folder})
    known = known or {"sim-01": Subject(number=1)}
    people = [Person(name, about, about.number or i) for i, (name, about) in enumerate(known.items(), 1)]
    found = [person for person in people if person.about.dataset]
    if not found or len(found) == len(people):
        return people, []
    absent = ", ".join(person.name for person in people if not person.about.dataset)
    return found, [f"no dataset was given for {absent}: left out."]


def _options(baseline: str | None, given: Given) -> dict[str, Any]:
    """What --set says of a baseline."""
    own = [text for text in given.set if baseline and text.partition(".")[0] == baseline]
    return {key.partition(".")[2]: value for key, value in map(parse_override, own)}


def _name(entry: str | int) -> str:
    return f"sim-{entry:02d}" if isinstance(entry, int) else entry


def _chosen(wanted: Sequence[Any] | None, people: Sequence[Person], where: str) -> list[Person]:
    if wanted is None:
        return list(people)
    known = {person.name: person for person in people} | {person.number: person for person in people}
    if odd := [name for name in wanted if name not in known]:
        names = ", ".join(person.name for person in people)
        raise ConfigError(f"{where}: there is no subject {odd[0]!r} (there are: {names}).")
    return [known[name] for name in wanted]


def _short(key: str, keys: Sequence[str]) -> str:
    """The end of a dotted key, as long as tells it from the others."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _number(value: Any) -> float | None:
    """A finite number; also one that YAML's reader leaves as text."""
    number = as_number(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    try:
        return float(number) if math.isfinite(number) else None
    except OverflowError:
        return None

"""TABLE.yaml: which runs a sweep is made of. Reading it touches no data; every mistake names the row and its line.

title: does the cross-contrast help?
preset: demo
seeds: [0, 1, 2]
reference: CAD
rows:
  - name: CAD
  - name: no cross-contrast
    set: {contrast.gamma_c: 0}
  - name: ridge
    baseline: ridge-label
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, FiniteFloat, field_validator

from cadiff.config import Config, nearest, parse_yaml, read_text, validate
from cadiff.errors import ConfigError

SEEDED = ("contrast", "attend", "diffuse", "reconstruct")
AXES = ("seed", "subject", "preset", "protocol")
"""What a grid may run over beside settings."""
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Subject(Config):
    """Whose data: a dataset, or the number of a simulated subject."""

    dataset: Path | None = None
    """Dataset folder; without one the subject is simulated."""
    number: int | None = Field(None, ge=1)
    """Of the simulated subject; by default its place among the subjects."""
    preset: str | None = None
    """Takes the place of the table's preset; a row's own comes before it."""
    corpus: tuple[Path, ...] | None = None
    """Takes the place of the table's corpus."""
    weights: Path | None = None
    """Takes the place of the table's weights."""


class Curve(Config):
    """A chart of the headline against a numeric column of the rows."""

    x: str
    """A setting that rows or grids give numbers for, or a name under the rows' `columns`."""
    label: str | None = None
    """Under the axis."""


class Row(Config):
    """One system, or with a grid several."""

    name: str = Field(min_length=1)
    """As the page shows it."""
    preset: str | tuple[str, ...] | None = None
    """Takes the place of the table's."""
    simulated: str | None = None
    """Takes the place of the table's."""
    protocol: str | None = None
    """Takes the place of the table's."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings: {diffuse.fit.steps: 400}."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Every combination of these values: settings (options of a baseline), seed, subject, preset, protocol."""
    baseline: str | None = None
    """Instead of the method: a baseline (`cadiff baseline`)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the baseline."""
    weights: Path | None = None
    """Takes the place of the table's."""
    prior: str | None = None
    """Takes the place of the table's."""
    seeds: Seeds | None = None
    """Takes the place of the table's."""
    subjects: tuple[str | int, ...] | None = None
    """Only these of the table's subjects."""
    columns: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Numbers to draw curves against."""
    published: FiniteFloat | dict[str, FiniteFloat] | None = None
    """What was published for this row, or for each of its subjects."""
    optional: bool = False
    """Where something that the row needs is not given, leave it out and say so, rather than refuse the table."""


class Table(Config):
    """A table of runs."""

    title: str = ""
    """What the table is about."""
    source: str | None = None
    """Where the published numbers are from."""
    preset: str | tuple[str, ...] = "demo"
    """What the rows start from; several make every row several."""
    simulated: str | None = None
    """The preset to take instead where no dataset is given."""
    protocol: str | None = None
    """Reading of the paper (docs/protocols.md)."""
    dataset: Path | None = None
    """Of the subject, where there is one only."""
    subjects: tuple[str | int, ...] | dict[str, Subject] | None = None
    """Simulated subjects by number, or subjects by name."""
    corpus: tuple[Path, ...] = ()
    """Further datasets, or folders of them, that phase 1 learns from."""
    weights: Path | None = None
    """Weights to start from, as `cadiff run --weights`."""
    prior: str = "shipped"
    """The image prior: shipped, or a folder."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of all rows; evaluate.* can be set here only."""
    seeds: Seeds | None = None
    """Of training and sampling; one row of the page pools them. None: as the preset has them."""
    seeded: tuple[str, ...] = SEEDED
    """Stages that `seeds` are for; the others are shared by all seeds."""
    reference: str | None = None
    """The row that every other one is compared with; None: every pair."""
    curve: Curve | None = None
    """A chart against a column."""
    rows: tuple[Row, ...] = Field(min_length=1)
    """The systems."""

    @field_validator("seeded")
    @classmethod
    def _stages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [name for name in value if name not in SEEDED]:
            raise ValueError(f"{odd[0]!r} is not one of {', '.join(SEEDED)}")
        return value


@dataclass(frozen=True)
class Source:
    """A table as it was read."""

    name: str
    """For messages and the page."""
    text: str
    table: Table
    lines: tuple[int, ...]
    """Line of each row."""

    def where(self, index: int) -> str:
        """A row, for messages."""
        return f"{self.name}, line {self.lines[index]}, row {self.table.rows[index].name!r}"


def shipped_tables() -> list[str]:
    """Names of the tables that come with cadiff."""
    folder = resources.files("cadiff") / "presets" / "sweeps"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def read_table(source: str | Path) -> Source:
    """A table of `shipped_tables()`, or the path of a YAML file.

    Raises:
        ConfigError: no such table, no YAML, an unknown or repeated key, or a value of the wrong kind.
    """
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(
                f"No table {path}; tables that come with cadiff: {', '.join(shipped_tables())}."
            )
        name, file = path.name, path
    else:
        if str(source) not in shipped_tables():
            names = ", ".join(shipped_tables())
            raise ConfigError(
                f"No table {str(source)!r}; there are {names}, or give the path of a .yaml file."
            )
        name = str(source)
        file = resources.files("cadiff") / "presets" / "sweeps" / f"{name}.yaml"
    text = read_text(file, name)
    values, node = parse_yaml(text, name)
    if not isinstance(values, dict) or not isinstance(values.get("rows"), list) or not values["rows"]:
        raise ConfigError(f"{name} has no rows: expected `rows:` with a list of systems, see docs/sweeps.md.")
    lines = tuple(item.start_mark.line + 1 for item in _entry(node, "rows").value)
    rows = [_row(value, name, line) for value, line in zip(values["rows"], lines, strict=True)]
    values = {**values, "rows": rows, "subjects": _subjects(values.get("subjects"), name)}
    table = validate(Table, values, where=name)
    return Source(name, text, table, lines)


def _subjects(value: Any, name: str) -> Any:
    """Subjects by name as `Subject`, a name with nothing under it too; else what is there."""
    if value is None or isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise ConfigError(
            f"{name}: subjects is {value!r}, expected a list, or names with settings under each."
        )
    found: dict[str, Subject] = {}
    for subject, about in value.items():
        where = f"{name}, subjects, {subject}"
        if about is not None and not isinstance(about, dict):
            raise ConfigError(
                f"{where}: found {about!r}, expected settings such as `dataset: FOLDER`, or nothing."
            )
        found[str(subject)] = validate(Subject, about or {}, where=where)
    return found


def _row(value: Any, name: str, line: int) -> Row:
    called = value.get("name") if isinstance(value, dict) else None
    where = f"{name}, line {line}, row {called!r}" if called else f"{name}, line {line}"
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: a row is {value!r}, expected keys such as `name:` and `set:`.")
    row = validate(Row, value, where=where)
    if row.baseline is None and row.options:
        raise ConfigError(f"{where}: options are for baselines; settings of the method go under `set:`.")
    for key in (*row.set, *(k for k in row.grid if k not in AXES and not (row.baseline and "." not in k))):
        refuse_setting(key, where)
        if row.baseline is not None and not key.startswith("simulate."):
            raise ConfigError(
                f"{where}: {key} is a setting of the method; a baseline has `options:`, and of the settings simulate.* alone."
            )
        if key.startswith("evaluate."):
            raise ConfigError(
                f"{where}: {key} would score this row by other rules than the others; set it for the whole table."
            )
    return row


def refuse_setting(key: str, where: str) -> None:
    """Raises `ConfigError` for settings that a table has words of its own for."""
    if key in ("simulate.subject", *(seed_setting(stage) for stage in SEEDED)):
        word = "subjects" if key == "simulate.subject" else "seeds"
        raise ConfigError(f"{where}: {key} is set by `{word}:`, so that they can be pooled.")
    if "." not in key:
        raise ConfigError(
            f"{where}: {key!r} must begin with a stage, as diffuse.fit.steps does{nearest(key, AXES)}."
        )


def seed_setting(stage: str) -> str:
    """The setting that is a stage's seed."""
    return "reconstruct.seed" if stage == "reconstruct" else f"{stage}.fit.seed"


def _entry(node: Any, name: str) -> Any:
    return next(value for key, value in node.value if key.value == name)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `--set` takes them."""
    return [f"{key}={_yaml(value)}" for key, value in settings.items()]


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value

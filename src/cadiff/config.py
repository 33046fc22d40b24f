"""Typed settings from YAML presets and dotted overrides.

A preset is a YAML file with one section a stage; it may extend another preset and states only what differs:

    extends: demo
    title: the demo with twice the training
    diffuse: {fit: {steps: 400}}

`load_config(DiffuseConfig, "diffuse", "demo", ["fit.steps=400"])` merges the presets, applies the overrides and
validates the section with pydantic. Unknown keys are refused with the nearest name that exists.

A protocol is a reading of the published method (docs/protocols.md): settings in presets/_protocols/NAME.yaml that come on
top of any preset and below the overrides. A list there holds alternatives: what the preset has where it is one of them, else the
first. Under `protocols` a preset says which it is for its data, and adds plain numbers:

    protocols: {official: {contrast: {preprocess: {test_normalisation: pooled}}}}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cadiff.errors import ConfigError

if TYPE_CHECKING:
    from importlib.abc import Traversable

SECTIONS = (
    "stages",
    "simulate",
    "corpus",
    "prior",
    "contrast",
    "attend",
    "diffuse",
    "reconstruct",
    "evaluate",
)
HEADER = ("extends", "title", "protocol", "protocols", "source", "published")
PROTOCOLS = ("default", "paper", "official")
PLAIN = {
    "tuple_type": "input should be a list",
    "list_type": "input should be a list",
    "dict_type": "input should be a group of settings, key: value",
}
"""What pydantic says in Python's words, in those of YAML."""

EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every stage's settings: frozen, strict about keys, docstrings become help texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


def preset_names() -> list[str]:
    """Names of the presets that come with the package, without those that only others extend (paper/_god)."""
    root = resources.files("cadiff") / "presets"
    names = (name for name in _walk(root, "") if "/_" not in f"/{name}")
    return sorted(
        name for name in names if not name.startswith("sweeps/")
    )  # tables of runs, `cadiff sweep --list`


def load_preset(preset: str | Path | None, protocol: str | None = None) -> dict[str, Any]:
    """One preset merged over the ones it extends, and a protocol over them.

    Args:
        preset: a name of `preset_names()`, the path of a YAML file, or None for the defaults.
        protocol: one of `PROTOCOLS`; by default the one that the preset names, or "default", which changes nothing.

    Returns:
        sections and header; `protocol` is the one taken.

    Raises:
        ConfigError: no such preset or protocol, not a mapping, an unknown section, or a circle of `extends`.
    """
    merged: dict[str, Any] = {}
    for layer in reversed(list(_chain(preset))) if preset is not None else ():
        merged = _merge(merged, layer)
    merged.pop("extends", None)
    own = merged.pop("protocols", None) or {}
    name = protocol or merged.get("protocol") or "default"
    if name not in PROTOCOLS:
        raise ConfigError(_sentence(f"No protocol {name!r}{nearest(name, PROTOCOLS)}"))
    if name != "default":
        wanted = {key: value for key, value in load_protocol(name).items() if key in SECTIONS}
        merged = _merge(merged, _choices(wanted, merged))
    return {**_merge(merged, own.get(name) or {}), "protocol": name}


def load_protocol(name: str) -> dict[str, Any]:
    """What a protocol says: its title, and by section the settings that define it."""
    return _read(f"_protocols/{name}")


def protocol_of(section: str, settings: Config, before: str | None = None) -> str:
    """The protocol that the settings of a stage follow, or "mixed": they have the value of each setting that it names.

    It is read off the settings and not passed on from the command line, so that a setting changed on top of a protocol
    cannot go by its name.

    Args:
        before: what this function said of the stage that this one goes on from, whose protocol must be the same.
    """
    values = settings.model_dump(mode="json")
    for name in PROTOCOLS if before is None else (before,):
        if name in PROTOCOLS and _agrees(values, load_protocol(name).get(section) or {}):
            return name
    return "mixed"


def load_config(
    cls: type[C],
    section: str,
    preset: str | Path | None = None,
    overrides: Sequence[str] = (),
    protocol: str | None = None,
) -> C:
    """The settings of one stage: defaults, then the preset's section, then the protocol's, then `a.b=c` overrides.

    Raises:
        ConfigError: unknown preset, protocol or key, wrong type, malformed override.
    """
    values = _merge({}, load_preset(preset, protocol).get(section) or {})
    for override in overrides:
        _assign(values, override)
    from_where = {"preset": preset, "protocol": protocol}
    parts = [f"{what} {name}" for what, name in from_where.items() if name is not None]
    return validate(cls, values, where=", ".join([*parts, f"section {section}"]))


def validate(cls: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """`cls(**values)`, with pydantic's findings as one readable `ConfigError`."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        found = "; ".join(_explain(cls, e) for e in error.errors())
        raise ConfigError(_sentence(f"{where}: {found}")) from None


def _chain(preset: str | Path) -> Iterator[dict[str, Any]]:
    """The preset and the ones it extends, most specific first."""
    seen: list[str] = []
    current: str | Path | None = preset
    while current is not None:
        if str(current) in seen:
            raise ConfigError(f"Presets extend each other in a circle: {' -> '.join([*seen, str(current)])}.")
        seen.append(str(current))
        layer = _read(current)
        below = layer.get("extends")
        if below is not None and not isinstance(below, str):
            raise ConfigError(
                f"Preset {current}: extends is {below!r}, expected the name of one preset, or the path of a .yaml file."
            )
        for key in layer:
            if key not in SECTIONS + HEADER:
                raise ConfigError(
                    _sentence(f"Preset {current}: unknown section {key!r}{nearest(key, SECTIONS + HEADER)}")
                )
        own = layer.get("protocols") or {}
        groups = {key: layer.get(key) for key in (*SECTIONS, "protocols")}
        groups |= {f"protocols, {name}": own[name] for name in own if isinstance(own, Mapping)}
        for key, value in groups.items():
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(f"Preset {current}: {key} is {value!r}, expected a group of settings.")
        for name in own:
            for word, known in ((name, PROTOCOLS), *((key, SECTIONS) for key in own[name] or {})):
                if word not in known:
                    raise ConfigError(
                        _sentence(f"Preset {current}, protocols: unknown {word!r}{nearest(word, known)}")
                    )
        yield layer
        current = below


def _read(preset: str | Path) -> dict[str, Any]:
    path = Path(preset)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(
                f"No preset file {path}; presets that come with cadiff: {', '.join(preset_names())}."
            )
        source: Any = path
    else:
        source = resources.files("cadiff") / "presets" / f"{preset}.yaml"
        if not source.is_file():
            names = preset_names()
            raise ConfigError(
                f"No preset {str(preset)!r}; there are {', '.join(names)}, or give the path of a .yaml file."
            )
    layer = parse_yaml(read_text(source, f"Preset {preset}"), f"Preset {preset}")[0] or {}
    if not isinstance(layer, dict):
        raise ConfigError(
            f"Preset {preset} holds a {type(layer).__name__}, expected sections such as `contrast:`."
        )
    return layer


def read_text(source: Path | Traversable, name: str) -> str:
    """The text of a settings file, in UTF-8 wherever it is read; `name` is for messages."""
    try:
        return source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name}, line {line}, is not UTF-8 text: save the file in that encoding."
        ) from None


def as_number(value: Any) -> Any:
    """A number where YAML's reader leaves text for want of a point or a sign (1e-4, 1.5e3); anything else as it is."""
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


@cache
def parse_yaml(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """What a YAML text says, and its nodes, which know their lines; shared, so it is never changed.

    Raises:
        ConfigError: no YAML, or a repeated key, of which YAML's reader keeps the last and says nothing.
    """
    try:
        node, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is a date such as 2026-13-01
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None
    try:
        mappings = list(_mappings(node))
    except RecursionError:
        raise ConfigError(f"{name} is not valid YAML: an anchor (&) contains itself (*).") from None
    for mapping in mappings:
        seen: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"{name}, line {line}: {key.value!r} is there already, on line {seen[key.value]}."
                )
            seen[key.value] = line
    return values, node


def _mappings(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        yield node
        children = [value for _, value in node.value]
    else:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
    for child in children:
        yield from _mappings(child)


def _walk(folder: Any, prefix: str) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _choices(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a protocol, with one of each list of alternatives: what is there if it is one, else the first."""
    chosen: dict[str, Any] = {}
    for key, want in wanted.items():
        have = there.get(key)
        if isinstance(want, Mapping):
            chosen[key] = _choices(want, have if isinstance(have, Mapping) else {})
        elif isinstance(want, list):
            chosen[key] = have if have in want else want[0]
        else:
            chosen[key] = want
    return chosen


def _agrees(values: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether all that is wanted is so; a list is a choice."""
    return all(
        _agrees(values[key], want)
        if isinstance(want, Mapping)
        else values[key] in (want if isinstance(want, list) else [want])
        for key, want in wanted.items()
    )


def parse_override(override: str) -> tuple[str, Any]:
    """The key and the value of "a.b=value"; raises `ConfigError` for what is not of that form, or no YAML."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override!r} is not of the form a.b=value, for example fit.steps=100.")
    try:
        return key, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {override!r}: {text!r} is not a value that YAML can read.") from None


def _assign(values: dict[str, Any], override: str) -> None:
    key, value = parse_override(override)
    *path, last = key.split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a single value, it has no key {last!r}.")
        values[part] = values = dict(inner)
    values[last] = value


def _explain(cls: type[BaseModel], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        names = _fields(cls, error["loc"][:-1])
        return f"unknown key {where!r}{nearest(str(error['loc'][-1]), names)}"
    message: str = PLAIN.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    given = error["input"]
    if error["type"] == "model_type":
        names = _fields(cls, error["loc"])
        such = f", such as {where}.{names[0]}" if names else ""
        return f"{where} is a group of settings, set one of them{such} (got {given!r})"
    if error["type"] == "value_error" and isinstance(
        given, Mapping
    ):  # a rule about several keys names their values
        return f"{where}: {message.rstrip('.')}"
    hint = "; write null for none" if given == "None" else ""
    return f"{where}: {message[0].lower()}{message[1:]} (got {given!r}{hint})"


def _fields(cls: type[BaseModel], path: Sequence[Any]) -> list[str]:
    model: Any = cls
    for part in path:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _sentence(text: str) -> str:
    return text if text[-1] in ".?" else f"{text}."


def nearest(word: object, names: Sequence[str]) -> str:
    """What a message about a wrong word ends in: the one that was meant, or the ones that there are."""
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else f" (there are: {', '.join(names)})" if names else ""

"""The table of dataset readers, and the contract that a reader keeps.

A reader is a function `(source: Path, out: Path, **options) -> Path`. It reads `source` without changing it, writes a
dataset folder through `cadiff.data.dataset.write_dataset` and returns it. It refuses input that is not what it expects
with a `DataError`: what was found, what was expected, where, and what to do next.

A new format is one new file and one new line in `READERS`; anyone's own reader is named "package.module:function".
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cadiff.artifacts import read_json, write_json
from cadiff.config import as_number
from cadiff.errors import ConfigError, DataError

Reader = Callable[..., Path]


class ReaderEntry(NamedTuple):
    """One line of the table."""

    function: str
    """Where the reader is, as "package.module:function"; imported when it is used."""
    help: str
    """What `source` is, in one line."""


READERS: dict[str, ReaderEntry] = {
    "god": ReaderEntry(
        "cadiff.data.readers.god:read_god",
        "Generic Object Decoding, Horikawa & Kamitani 2017: the npz folder, or Subject*.h5",
    ),
    "bold5000": ReaderEntry(
        "cadiff.data.readers.bold5000:read_bold5000",
        "BOLD5000, Chang et al. 2019: the folder with GLMsingle ROI betas and stimuli",
    ),
    "hcp": ReaderEntry(
        "cadiff.data.readers.hcp:read_hcp", "Human Connectome Project: dtseries.nii or HCP_visual_voxel.npz"
    ),
    "nsd": ReaderEntry(
        "cadiff.data.readers.nsd:read_nsd", "Natural Scenes Dataset, Allen et al. 2022: the release's folder"
    ),
    "bids": ReaderEntry(
        "cadiff.data.readers.bids:read_bids", "fMRIPrep derivatives and events: trial-wise betas by a GLM"
    ),
    "miyawaki": ReaderEntry(
        "cadiff.data.readers.miyawaki:read_miyawaki", "contrast patterns, Miyawaki et al. 2008: the .mat file"
    ),
    "digit69": ReaderEntry(
        "cadiff.data.readers.digit69:read_digit69",
        "handwritten 6 and 9, van Gerven et al. 2010: the .mat file",
    ),
    "objects81": ReaderEntry(
        "cadiff.data.readers.objects81:read_objects81", "81 object categories, labels only: the pickle"
    ),
    "arrays": ReaderEntry(
        "cadiff.data.readers.arrays:read_arrays",
        "a folder with betas.npy|npz|mat|csv, trials.tsv and stimuli/",
    ),
}


def find_reader(name: str) -> Reader:
    """A built-in reader by name, or anyone's own as "package.module:function".

    Raises:
        DataError: no reader of that name, or the module or function cannot be found.
    """
    target = READERS[name].function if name in READERS else name
    module, _, function = target.partition(":")
    if not module or not function:
        known = "; ".join(f"{key} ({entry.help})" for key, entry in READERS.items())
        raise DataError(f"No reader {name!r}. There are: {known}; or give your own as 'my_lab.scans:read'.")
    try:
        found = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        raise DataError(
            f"Reader {name!r}: there is no module {error.name!r}; is it installed or on PYTHONPATH?"
        ) from None
    except AttributeError:
        raise DataError(f"Reader {name!r}: the module {module!r} has no function {function!r}.") from None
    if not inspect.isfunction(found) or len(inspect.signature(found).parameters) < 2:
        raise DataError(
            f"Reader {name!r} is not a function (source, out, **options) that writes a dataset: see docs/datasets."
        )
    return found


def read(name: str, source: Path, out: Path, /, **options: Any) -> Path:
    """Runs a reader.

    Args:
        name: a key of `READERS`, or "package.module:function".
        source: what it reads.
        out: the dataset folder to make; it must not exist, unless it is the result of this very import.
        options: keyword options of the reader.

    Raises:
        DataError: unknown reader, or `source` is not there.
        ConfigError: an option that the reader does not have.
    """
    function = find_reader(name)
    if not source.exists():
        raise DataError(f"There is no {source}: give the file or folder that the reader {name!r} reads.")
    refuse_unknown_options(function, options, what=f"reader {name!r}", skip=2)
    told = {key: _without_folders(value) for key, value in options.items()}
    record = {"reader": name, "options": told, "source": source.name, **fingerprint(source)}
    if already_imported(out, record):
        return out
    made = function(source, out, **options)
    about = made / "dataset_description.json"
    if about.is_file():  # a reader of many subjects makes a folder of datasets
        write_json(about, {**read_json(about), "import": json.loads(json.dumps(record, default=str))})
    return made


def _without_folders(value: Any) -> Any:
    """An option as a dataset may tell it to others: of a path on this machine the name only."""
    if isinstance(value, Path) or (isinstance(value, str) and "/" in value and Path(value).exists()):
        return Path(value).name
    return [_without_folders(item) for item in value] if isinstance(value, (list, tuple)) else value


def already_imported(out: Path, record: dict[str, Any]) -> bool:
    """Whether `out` is a dataset that this reader made of this source with these options: importing again is idle."""
    about = out / "dataset_description.json"
    return about.is_file() and read_json(about).get("import") == json.loads(json.dumps(record, default=str))


def fingerprint(source: Path) -> dict[str, Any]:
    """What tells a source from a changed one without reading it: its files, their sizes and times of change."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    total = 0
    for path in files:
        facts = path.stat()
        total += facts.st_size
        name = path.name if source.is_file() else path.relative_to(source).as_posix()
        digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return {"files": len(files), "bytes": total, "listing_sha256": digest.hexdigest()}


def refuse_unknown_options(
    function: Callable[..., Any], options: dict[str, Any], *, what: str, skip: int
) -> None:
    """Raises `ConfigError` when `function` lacks one of the keyword `options`; its first `skip` parameters are ours."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    names = [p.name for p in parameters]
    if unknown := sorted(set(options) - set(names)):
        raise ConfigError(f"The {what} has no option {unknown[0]!r}; it has: {', '.join(names) or 'none'}.")


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["canvas=32", "subject=sub-01"]` -> `{"canvas": 32, "subject": "sub-01"}`; values are YAML.

    Raises:
        ConfigError: an item without "=", or a value that YAML cannot read.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.isidentifier():
            raise ConfigError(f"--set {pair!r} is not of the form name=value, for example subject=sub-01.")
        try:
            options[key] = as_number(yaml.safe_load(text))
        except yaml.YAMLError:
            raise ConfigError(f"--set {pair!r}: {text!r} is not a value that YAML can read.") from None
    return options

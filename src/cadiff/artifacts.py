"""Folders that describe themselves: what one stage hands to the next.

An artefact is a folder with `config.json` (kind, format number, settings, provenance), `model.safetensors` and
`checksums.json`. Writes are atomic: they happen beside the target and are renamed when complete, so a reader never
sees half a folder and a failed write leaves nothing behind. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cadiff.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
COMMAND: ContextVar[str | None] = ContextVar("command", default=None)
"""What the user typed, where this process was started by another one."""
LIBRARIES = ("numpy", "torch", "diffusers", "transformers", "accelerate", "safetensors")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed onto it when the block succeeds, removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to it when the block succeeds, removed when it fails.

    Raises:
        ArtifactError: `out` exists and is not an empty folder; results are never overwritten.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raises `ArtifactError` unless `out` is free: absent, or an empty folder."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ArtifactError(
            f"{out} already exists and is never overwritten: choose another name or remove it."
        )


def what_is_at(path: Path) -> str:
    """What a message can say of a place where something else was expected."""
    if not path.is_dir():
        return "a file" if path.exists() else "no such folder"
    return ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`; `ArtifactError` when it is absent or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"No {path.name} in {path.parent}: is this the right folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): make the folder again.") from None


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def folder_checksums(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 for every file below `folder` but `checksums.json`, also behind links.

    Raises:
        ArtifactError: links that go round in circles.
    """
    files = sorted(path for path in _files(folder) if path.name != "checksums.json")
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        raise ArtifactError(
            f"{folder} links to {real}, which it lies in, so there is no end to what it holds: remove the link."
        )
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            yield from _files(path, (*above, real))
        elif path.is_file():
            yield path


def folder_digest(folder: Path, suffixes: tuple[str, ...] | None = None) -> str:
    """One SHA-256 for the content of a folder: names and bytes, in sorted order.

    Args:
        folder: all files below it count, but `checksums.json`.
        suffixes: count only files with these endings, such as (".json", ".safetensors"); all by default.
    """
    files = folder_checksums(folder)
    kept = {name: digest for name, digest in files.items() if suffixes is None or name.endswith(suffixes)}
    listing = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(listing.encode()).hexdigest()


def dataset_digest(description: Mapping[str, Any]) -> str:
    """Identifies the content of a dataset by the checksums in its dataset_description.json."""
    return hashlib.sha256(json.dumps(description.get("sha256", {}), sort_keys=True).encode()).hexdigest()


def provenance(**extra: Any) -> dict[str, Any]:
    """Where an artefact comes from: versions, time, command, and what the caller adds (seed, input digests)."""
    versions = {"python": platform.python_version()}
    for name in ("cadiff", *LIBRARIES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": COMMAND.get() or _command_line(),
        "versions": versions,
        **extra,
    }


@contextmanager
def made_by(command: str | None) -> Iterator[None]:
    """Within the block this is the command of every `provenance`; None for that of this process."""
    token = COMMAND.set(command)
    try:
        yield
    finally:
        COMMAND.reset(token)


def _command_line() -> str:
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name  # python -m cadiff
    return shlex.join([name, *sys.argv[1:]])


def save_artifact(
    folder: Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any],
) -> Path:
    """Writes a self-describing folder, atomically.

    Args:
        folder: the folder to make; it must not exist.
        kind: what the folder holds, for example "fmri-encoder"; `load_artifact` asks for it by name.
        config: everything needed to rebuild the object, as JSON values.
        tensors: the weights; saved as `model.safetensors`, contiguous and on the CPU.
        provenance: where it comes from, see `provenance`.
    """
    with new_folder(folder) as temporary:
        about = {"kind": kind, "format": FORMAT, "config": dict(config), "provenance": dict(provenance)}
        write_json(temporary / "config.json", about)
        if tensors:
            from safetensors.torch import save_file  # torch loads only when there are weights

            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(kept, temporary / "model.safetensors")
        write_json(temporary / "checksums.json", folder_checksums(temporary))
    return folder


def load_artifact(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of an artefact.

    Raises:
        ArtifactError: no artefact there, of another kind or a newer format, or a file differs from its checksum.
    """
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"{folder} holds no {kind} (found: {what_is_at(folder)}): expected a config.json there."
        )
    about = read_json(folder / "config.json")
    found = about.get("kind", about.get("_class_name", "something else"))
    if found != kind:
        raise ArtifactError(f"{folder} holds a {found}, expected a {kind}.")
    if about["format"] > FORMAT:
        raise ArtifactError(
            f"{folder} has format {about['format']}, this cadiff reads up to {FORMAT}: update cadiff."
        )
    verify_checksums(folder)
    tensors: dict[str, Tensor] = {}
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        tensors = load_file(folder / "model.safetensors")
    return about["config"], tensors


def verify_checksums(folder: Path) -> None:
    """Raises `ArtifactError` naming the first file that is missing or differs from `checksums.json`."""
    for name, expected in read_json(folder / "checksums.json").items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(
                f"{folder} lacks {name}, which its checksums.json lists: copy the folder again."
            )
        if sha256_file(path) != expected:
            raise ArtifactError(
                f"{path} is damaged or was changed (checksum differs): make or copy it again."
            )

"""What frozen networks make of pictures, kept on disk: made once, however many trainings ask for it.

One file an answer, named by the SHA-256 of all it depends on: weights and settings of the network, contents of the pictures,
what is done with them, and what else may change the last bits (libraries, device, threads). A file is made in one rename, is
memory-mapped when it is read, and what does not fit its own checksum is made again. The folder never fails a run: where it
cannot be written, work goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import PIL
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cadiff.artifacts import atomic_path, provenance
from cadiff.processes import on_main

VARIABLE = "CADIFF_CACHE"
OFF = ("off", "0", "no", "false")
LIMIT = 10 * 2**30
"""Bytes kept in all; the files that were used longest ago go first."""
PATIENCE_S = 3600.0
"""How long one process waits for another that makes the same."""
LEFT_OVER_S = 86400.0  # age of a temporary file from which on its writer was killed
FORMAT = 1  # raised when the same key would stand for something else


def cache_folder() -> Path | None:
    """`$CADIFF_CACHE`, else cadiff/ in `$XDG_CACHE_HOME` or ~/.cache; None for `CADIFF_CACHE=off` or without a home."""
    given = os.environ.get(VARIABLE, "")
    if given.lower() in OFF:
        return None
    try:
        if given:
            return Path(given).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cadiff"
    except RuntimeError:  # whose home is not known
        return None


def kept(what: str, network: nn.Module, about: Mapping[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """`make()`, or what an earlier call with the same key made; on the CPU the same bit for bit.

    Of several processes that do one job, the main one makes and writes it, and the others read it; those that see another
    disk, or none, make it themselves. All must come here, in the same order.

    Args:
        what: begins the name of the file, such as "latents".
        network: the frozen network; its weights and its `config` belong to the key.
        about: all else that the answer depends on, as JSON values; pictures by their digests.
        make: the work; gives a dense tensor on the CPU.
    """
    if on_main(cache_folder) is None:
        return make()
    folder = cache_folder()
    path = None if folder is None else folder / "frozen" / f"{what}-{_key(what, network, about)}.safetensors"
    made: list[Tensor] = []
    on_main(lambda: made.append(make() if path is None else _found_or_made(path, make)))
    if made:
        return made[0]
    found = None if path is None else _read(path)
    return make() if found is None else found


def network_digest(network: nn.Module) -> str:
    """SHA-256 of the weights as they are now, their names and the network's settings; not of where it was read."""
    config: Any = getattr(network, "config", {})
    settings = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    known = {name: value for name, value in settings.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(network).__name__, known], sort_keys=True, default=str).encode())
    for name, weight in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_digest(weight).encode())
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of type, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _key(what: str, network: nn.Module, about: Mapping[str, Any]) -> str:
    key = {
        "format": FORMAT,
        "what": what,
        "network": network_digest(network),
        "about": dict(about),
        "versions": {**provenance()["versions"], "pillow": PIL.__version__},
        "device": _device(),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _device() -> list[Any]:
    """What rounding depends on besides the libraries."""
    if torch.cuda.is_available():
        precision = torch.get_float32_matmul_precision()
        return [torch.cuda.get_device_name(), precision, torch.backends.cudnn.allow_tf32]
    return [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


def _found_or_made(path: Path, make: Callable[[], Tensor]) -> Tensor:
    if (found := _read(path)) is not None:
        return found
    with _turn(path):
        if (found := _read(path)) is not None:  # another process was quicker
            return found
        made = make()
        _write(path, made)
    return made


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process at a time, where the disk knows locks; else each makes its own, and the last one written stays."""
    lock = FileLock(path.with_suffix(".lock"), timeout=PATIENCE_S)
    with suppress(OSError, NotImplementedError):  # a timeout is an OSError
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _read(path: Path) -> Tensor | None:
    """What is in a file, memory-mapped, copy on write; None when it is absent, damaged or of another origin."""
    try:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_tensor("made")
            expected = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    if tensor_digest(found) != expected:
        return None
    with suppress(OSError):
        os.utime(path)  # used now: last to go
    return found


def _write(path: Path, made: Tensor) -> None:
    if made.nbytes > LIMIT:
        return
    try:
        with atomic_path(path) as temporary:
            save_file({"made": made.contiguous()}, temporary, metadata={"sha256": tensor_digest(made)})
        _make_room(path)
    except (OSError, SafetensorError) as error:
        _say_once(path.parent, getattr(error, "strerror", None) or str(error))


def _make_room(newest: Path) -> None:
    """Removes what was used longest ago until the rest fits `LIMIT`, and what killed writers left."""
    for temporary in newest.parent.glob(".*.safetensors.*"):
        with suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > LEFT_OVER_S:
                temporary.unlink()
    files: list[tuple[float, int, Path]] = []
    for path in newest.parent.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process makes room as well
            about = path.stat()
            files.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= LIMIT:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            total -= size


@cache
def _say_once(folder: Path, reason: str) -> None:
    print(
        f"note: {folder} cannot be written ({reason}), so latents and features are made anew in every run: "
        f"set {VARIABLE} to a folder with room, or to off.",
        file=sys.stderr,
    )

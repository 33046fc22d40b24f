"""Run folders: settings, log and checkpoints of one stage, resumable and never overwritten."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from cadiff.artifacts import atomic_path, provenance, read_json, refuse_existing, write_json
from cadiff.config import Config
from cadiff.errors import ArtifactError
from cadiff.processes import is_main, on_main

LOCK = ".lock"
UNFINISHED = re.compile(r"\.(run|experiment)\.json\.")  # a first file cut off in the writing


def lock_folder(folder: Path) -> FileLock:
    """Makes `folder` this process's own until the result is released, forgotten, or the process ends, however it ends.

    Within one process the lock may be taken several times. Of processes that do one job together, the main one holds it.

    Raises:
        ArtifactError: another process holds it.
    """
    lock = FileLock(folder / LOCK, timeout=0, is_singleton=True)
    if not is_main():
        return lock
    try:
        lock.acquire()
    except Timeout:
        raise ArtifactError(
            f"Another process is working in {folder} (it holds {folder / LOCK}): wait until it is done, or choose another "
            "--out."
        ) from None
    return lock


def unlock_folder(lock: FileLock) -> None:
    """Gives a folder back and leaves no trace in it."""
    if is_main():
        lock.release(force=True)
        Path(lock.lock_file).unlink(missing_ok=True)


def only_locked(folder: Path) -> bool:
    """Whether a process began in `folder` and was cut off before it wrote a whole file there."""
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return bool(there) and all(name == LOCK or UNFINISHED.match(name) for name in there)


class RunFolder:
    """The folder of one training stage; one process at a time works in it, or several that a launcher started together.

    `run.json` holds stage, status, settings and provenance; `log.jsonl` one line a logged step; `tensorboard/` the
    same for TensorBoard when it is installed; `trainer/` the last checkpoint until the run is complete.
    """

    def __init__(self, path: Path, lock: FileLock | None = None) -> None:
        self.path = path
        self._lock = lock
        self._writer: Any = None

    @classmethod
    def open(
        cls,
        out: Path,
        *,
        stage: str,
        config: Config,
        resume: bool = False,
        inputs: Mapping[str, str] | None = None,
    ) -> RunFolder:
        """Starts a run in `out`, or opens an unfinished one again.

        Args:
            out: the folder; must be free unless `resume`.
            stage: "contrast", "attend", "diffuse" or a part of prior training.
            config: the settings; a resumed run must have the same ones.
            resume: go on with what is there; starts afresh when nothing is.
            inputs: name -> digest of what the run reads; a resumed run must read the same.

        Raises:
            ArtifactError: `out` is in use, holds another stage, other settings or other inputs.
        """
        opened: list[RunFolder] = []
        on_main(lambda: opened.append(cls._open(out, stage, config, resume, inputs)))
        return opened[0] if opened else cls(out)

    @classmethod
    def _open(
        cls, out: Path, stage: str, config: Config, resume: bool, inputs: Mapping[str, str] | None
    ) -> RunFolder:
        settings = json.loads(config.model_dump_json())
        about = {"stage": stage, "status": "running", "config": settings, "inputs": dict(inputs or {})}
        if not (resume and ((out / "run.json").is_file() or only_locked(out))):
            refuse_existing(out)
            out.mkdir(parents=True, exist_ok=True)
        run = cls(out, lock_folder(out))
        if not (out / "run.json").is_file():
            for leftover in out.glob(".run.json.*"):  # cut off while its first file was written
                leftover.unlink()
            write_json(out / "run.json", {**about, "provenance": provenance()})
            return run
        if not resume:  # another process was quicker, and is done
            refuse_existing(out)
        there = read_json(out / "run.json")
        there["config"] = _with_new_settings(there["config"], config)
        for key in ("stage", "config", "inputs"):
            if there[key] != about[key]:
                raise ArtifactError(
                    f"{out} cannot be resumed: its {key} differ{_difference(there[key], about[key])}; "
                    "use the same settings and inputs, or another --out."
                )
        if run.complete:  # it may have been cut off while it was being marked
            run._drop_checkpoints()
            run._unlock()
        return run

    @property
    def checkpoint(self) -> Path:
        """Folder of the last training checkpoint; absent before the first one and after `finish`."""
        return self.path / "trainer"

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, also when the writing of one was cut off between two renames."""
        for suffix in (".new", "", ".old"):
            candidate = self.checkpoint.with_name(self.checkpoint.name + suffix)
            if (candidate / "state.json").is_file():
                return candidate
        return None

    @property
    def complete(self) -> bool:
        """True after `finish`."""
        return read_json(self.path / "run.json")["status"] == "complete"

    def log(self, record: Mapping[str, float]) -> None:
        """Appends one line to `log.jsonl` and, when installed, to TensorBoard; the main process does."""
        if not is_main():
            return
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")
        writer = self._tensorboard()
        if writer is not None:
            for key, value in record.items():
                if key != "step":
                    writer.add_scalar(key, value, record.get("step", 0))

    def history(self) -> list[dict[str, float]]:
        """Everything logged so far, but for a last line that was cut off."""
        path = self.path / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int) -> None:
        """Drops log lines of steps after `step`: they will be taken again."""
        path = self.path / "log.jsonl"
        if not is_main() or not path.is_file():
            return
        kept = [record for record in self.history() if record.get("step", 0) <= step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def finish(self) -> None:
        """Marks the run complete and drops the training checkpoint, unless that is done; all processes come here."""
        on_main(self._finish)

    def _finish(self) -> None:
        if self.complete:
            return
        if self._writer:
            self._writer.close()
            self._writer = None
        write_json(self.path / "run.json", {**read_json(self.path / "run.json"), "status": "complete"})
        self._drop_checkpoints()
        self._unlock()

    def _drop_checkpoints(self) -> None:
        """Removes the last checkpoint, and what was left of others that were cut off while they were written."""
        name = self.checkpoint.name
        whole = [self.path / f"{name}{suffix}" for suffix in ("", ".new", ".old")]
        for folder in (*whole, *self.path.glob(f".{name}.new.*")):
            shutil.rmtree(folder, ignore_errors=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            unlock_folder(self._lock)

    def _tensorboard(self) -> Any:
        if self._writer is None:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                self._writer = False
            else:
                self._writer = SummaryWriter(str(self.path / "tensorboard"))
        return self._writer or None


def _with_new_settings(stored: Any, config: Config) -> Any:
    """Stored settings as this version writes them: a setting that is newer than the run has its default."""
    try:
        return json.loads(type(config).model_validate(stored).model_dump_json())
    except ValidationError:
        return stored


def _difference(old: Any, new: Any, path: str = "") -> str:
    """The first key in which two nested dicts differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    return f" in {path or 'value'} ({old!r} there, {new!r} now)"

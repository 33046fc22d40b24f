"""Many HCP subjects at once: one dataset each, in parallel, resumable; what is wrong with one does not stop the others."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from cadiff.artifacts import refuse_existing
from cadiff.data.files import need_folder, read_text
from cadiff.data.readers import already_imported, fingerprint
from cadiff.data.readers.hcp import read_subject
from cadiff.data.readers.hcp_files import NPZ, RunFile, Subject, by_subject, choose_runs, find_files
from cadiff.data.readers.hcp_regions import VISUAL_CORTEX, load_parcellation
from cadiff.data.readers.hcp_runs import FRAMES, HcpOptions
from cadiff.errors import ConfigError, DataError, UserError

FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other subject would fare better
SHOWN = 20  # subjects whose reasons are given in full


class Job(NamedTuple):
    """One subject's import, as it goes to a worker."""

    name: str
    files: list[RunFile]
    out: Path
    options: HcpOptions


def import_hcp_subjects(
    root: Path,
    out: Path,
    *,
    rois: Sequence[str] = VISUAL_CORTEX,
    window: int = 10,
    zscore: bool = True,
    frames: int | str = FRAMES,
    runs: Sequence[str] | None = None,
    cleaning: str | None = None,
    parcellation: Path | str | None = None,
    subjects: Path | str | None = None,
    workers: int = 0,
) -> Path:
    """Makes `out`/sub-<id> of every subject below `root`; options are those of `read_hcp`.

    Subjects that are complete (same files, same options) are skipped, so an interrupted import goes on where it stopped.

    Raises:
        DataError: at the end, naming the subjects that could not be imported; all others are in `out`.
        ConfigError: an option of the wrong type.
    """
    need_folder(root, "give the folder that holds the folders of the subjects.")
    options = HcpOptions.check(rois, window, zscore, frames, runs, cleaning, parcellation)
    return import_found(root, by_subject(find_files(root)), out, options, subjects=subjects, workers=workers)


def import_found(
    root: Path,
    found: Mapping[str, list[RunFile]],
    out: Path,
    options: HcpOptions,
    *,
    subjects: Path | str | None,
    workers: int,
) -> Path:
    """`import_hcp_subjects` for files that were already found."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ConfigError(f"workers={workers!r} must be a number of processes, or 0 for all cores.")
    names = list(found) if subjects is None else subject_list(subjects)
    if any(file.path.name != NPZ for files in found.values() for file in files):
        load_parcellation(options.parcellation)  # what would fail for everyone fails once, and now
    if out.is_file() or (out / "dataset_description.json").is_file():
        refuse_existing(out)
    made_here = not out.exists()
    bad = {name: f"no file of it lies below {root}" for name in names if name not in found}
    jobs = [Job(name, found[name], out / f"sub-{name}", options) for name in names if name in found]
    count = min(workers or _cores(), len(jobs))
    with tqdm(total=len(jobs), unit="subject", desc="import", disable=None) as bar:
        for name, reason in _in_this_process(jobs) if count <= 1 else _in_workers(jobs, count):
            bar.update()
            if reason is not None:
                bad[name] = reason
    if made_here and out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if bad:
        raise DataError(_summary(bad, len(names), out))
    return out


def subject_list(path: Path | str) -> list[str]:
    """Subject names in a text file, one a line: the last word, without slashes ("PRE 100206/" is 100206).

    Raises:
        DataError: not a text file, or no name in it.
    """
    lines = [
        line.split()
        for line in read_text(Path(path), "expected a list of subjects, one a line.").splitlines()
    ]
    names = [line[-1].strip("/") for line in lines if line and not line[0].startswith("#")]
    names = [name.removeprefix("sub-") for name in dict.fromkeys(names) if name]
    if not names:
        raise DataError(f"{path} names no subject: expected one a line, for example 100206.")
    if wrong := [name for name in names if "/" in name or "\\" in name or name.startswith(".")]:
        raise DataError(f"{path}: {wrong[0]!r} is not the name of a subject.")
    return names


def import_one(job: Job) -> str | None:
    """Imports a subject unless that is done already; returns what was wrong with it."""
    try:
        subject = choose_runs(job.name, job.files, job.options.runs, job.options.cleaning)
        record = _record(subject, job.options)
        if not already_imported(job.out, record):
            read_subject(subject, job.out, job.options, {"import": record})
    except UserError as error:
        return str(error)
    except OSError as error:
        if error.errno in FATAL:
            raise
        return f"{type(error).__name__}: {error}"
    return None


def _record(subject: Subject, options: HcpOptions) -> dict[str, Any]:
    """What `cadiff.data.readers.read` records of an import, for files that need not lie in one folder."""
    facts = [fingerprint(file.path) for file in subject.files]
    if options.parcellation is not None:
        facts.append(fingerprint(options.parcellation))
    listing = hashlib.sha256("".join(fact["listing_sha256"] for fact in facts).encode()).hexdigest()
    chosen = {key: value.name if isinstance(value, Path) else value for key, value in asdict(options).items()}
    return {
        "reader": "hcp",
        "options": chosen,
        "source": subject.name,
        "files": len(facts),
        "bytes": sum(fact["bytes"] for fact in facts),
        "listing_sha256": listing,
    }


def _in_this_process(jobs: Sequence[Job]) -> Iterator[tuple[str, str | None]]:
    for job in jobs:
        yield job.name, import_one(job)


def _in_workers(jobs: Sequence[Job], count: int) -> Iterator[tuple[str, str | None]]:
    # spawned, not forked: the caller may have started threads, which a fork leaves in an undefined state
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
    try:
        with _interrupts_ignored():  # workers start here and inherit it, from their first import on
            futures = {pool.submit(import_one, job): job.name for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)
        for job in jobs:  # what the dead could not tidy up
            for scrap in job.out.parent.glob(f".{job.out.name}.*"):
                shutil.rmtree(scrap, ignore_errors=True)
        raise DataError(
            "A worker process died (killed, or out of memory). Run the same command again with fewer workers (workers=1); "
            "subjects that are complete are skipped."
        ) from None
    finally:  # after Ctrl-C or an error too: subjects under way are finished, none is begun
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; the parent alone answers it, after the block."""
    if threading.current_thread() is not threading.main_thread():  # where handlers cannot be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _summary(bad: Mapping[str, str], total: int, out: Path) -> str:
    names = list(bad)
    reasons = [f"{name} ({bad[name].rstrip('.')})" for name in names[:SHOWN]]
    more = f"; and {', '.join(names[SHOWN:])}" if len(names) > SHOWN else ""
    kept = f"the other {total - len(bad)} are in {out}" if total > len(bad) else "there is no other"
    return (
        f"{len(bad)} of {total} subjects were not imported, {kept}: {'; '.join(reasons)}{more}. Mend them or leave them "
        "out (subjects=FILE) and run the same command again: complete subjects are skipped."
    )

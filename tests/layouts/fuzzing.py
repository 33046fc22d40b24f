"""Imports damaged copies of a sample in a process of its own; an importable module, since that process must find it by name."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import signal
import traceback
import warnings
from pathlib import Path

import numpy as np

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import read
from cadiff.errors import UserError
from layouts import make_sample
from layouts.mutations import MUTATIONS

SECONDS, MEGABYTES = 60, 1500


def fuzz(layout: str, folder: Path, count: int, seed: int, report: multiprocessing.Queue) -> None:
    """Runs in the child: imports `count` damaged copies of a sample and reports what went wrong."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_long)
    rng = np.random.default_rng([seed, *layout.encode()])
    sample = make_sample(layout, folder / "source", rng)
    files = sorted(p for p in (folder / "source").rglob("*") if p.is_file())
    originals = {path: path.read_bytes() for path in files}
    refused = 0
    for number in range(count):
        path = files[int(rng.integers(len(files)))]
        mutation = MUTATIONS[number % len(MUTATIONS)]
        what = f"{layout} seed {seed} number {number}: {mutation.__name__} of {path.name}"
        report.put(("now", what))
        if rng.random() < 0.1:
            other = files[int(rng.integers(len(files)))]
            path.write_bytes(originals[other])
        else:
            path.write_bytes(mutation(originals[path], rng, folder / "code-ran"))
        out = folder / "made" / "out"
        try:
            signal.alarm(SECONDS)
            read(sample.reader, sample.source, out, **sample.options)
            BrainDataset.open(out, verify=True)
        except UserError as error:
            refused += 1
            if not str(error).strip() or "\n" in str(error).strip():
                report.put(("wrong", f"{what}: the message is not one sentence: {error!r}"))
            if out.parent.exists() and list(out.parent.iterdir()):
                report.put(("wrong", f"{what}: left behind {list(out.parent.iterdir())}"))
        except BaseException:
            report.put(("wrong", f"{what}:\n{traceback.format_exc()}"))
        finally:
            signal.alarm(0)
        if (folder / "code-ran").exists():
            report.put(("wrong", f"{what}: code in the file was executed"))
            (folder / "code-ran").unlink()
        shutil.rmtree(out.parent, ignore_errors=True)
        path.write_bytes(originals[path])
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if megabytes > MEGABYTES:
        report.put(("wrong", f"{layout} took {megabytes:.0f} MB"))
    report.put(("done", refused))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS} s")

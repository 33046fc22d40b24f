"""Damaged and hostile files, over every public layout: a sentence, never a traceback, a hang, a leftover or code that runs.

Each layout is fuzzed in a process of its own, so that a crash inside a library is a failure here and not of pytest.
"""

from __future__ import annotations

import multiprocessing
import queue
import resource
import shutil
import signal
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

from cadiff.data.dataset import BrainDataset
from cadiff.data.readers import read
from cadiff.errors import UserError
from layouts import LAYOUTS, make_sample
from layouts.mutations import MUTATIONS

QUICK, THOROUGH = 15, 150  # mutated files a layout; 15 layouts make 225 and 2,250
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


def run_fuzz(layout: str, folder: Path, count: int, seed: int) -> int:
    """How many of the damaged copies were refused; fails the test for anything but a sentence."""
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    child = context.Process(target=fuzz, args=(layout, folder, count, seed, report))
    child.start()
    now, wrong, refused = "nothing yet", [], None
    while refused is None:
        try:
            kind, value = report.get(timeout=2)
        except queue.Empty:
            if child.is_alive():
                continue
            wrong.append(f"the process died ({child.exitcode}) at {now}")
            break
        if kind == "now":
            now = value
        elif kind == "wrong":
            wrong.append(value)
        else:
            refused = value
    child.join()
    assert not wrong, "\n\n".join(wrong[:5])
    assert refused is not None
    return refused


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_files_are_refused_in_a_sentence(layout, tmp_path):
    assert run_fuzz(layout, tmp_path, QUICK, seed=0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_damaged_files_are_refused_in_a_sentence(layout, tmp_path):
    assert run_fuzz(layout, tmp_path, THOROUGH, seed=1) > THOROUGH / 4

"""Damaged and hostile files, over every public layout: a sentence, never a traceback, a hang, a leftover or code that runs.

Each layout is fuzzed in a process of its own, so that a crash inside a library is a failure here and not of pytest.
"""

from __future__ import annotations

import multiprocessing
import queue
from pathlib import Path

import pytest

from layouts import LAYOUTS
from layouts.fuzzing import fuzz

QUICK, THOROUGH = 15, 150  # mutated files a layout; 15 layouts make 225 and 2,250


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

"""kill -9 at any moment, then the same command: the same weights as without, bit for bit on the CPU."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

import killable

KILLS = 15  # of each of four stages


@pytest.fixture(scope="module")
def nursery():
    """Starts processes that have imported everything already, so that kills fall into the work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cadiff.attend.stage", "cadiff.diffuse.stage", "cadiff.priors.train"])
    warm = context.Process(target=int)  # its imports shall not count as a stage's time
    warm.start()
    warm.join()
    return context


@pytest.fixture(scope="module")
def world(nursery, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """Every stage run once without a kill, and how long each took."""
    folder, seconds = tmp_path_factory.mktemp("world"), {}
    killable.make_world(folder)
    for stage in killable.STAGES:
        process = nursery.Process(target=killable.run, args=(stage, folder, folder / stage))
        started = time.perf_counter()
        process.start()
        process.join()
        seconds[stage] = time.perf_counter() - started
        assert process.exitcode == 0, (folder / f"{stage}.txt").read_text()
    return folder, seconds


@pytest.mark.slow
@pytest.mark.parametrize("stage", killable.STAGES)
def test_killed_at_random_moments_and_run_again_the_weights_are_the_same(stage, world, nursery, tmp_path):
    folder, seconds = world
    expected = killable.weights(stage, folder / stage)
    rng = np.random.default_rng(len(stage))
    kills, runs, out = 0, 0, tmp_path / "run-0"
    while kills < KILLS or runs == 0:
        process = nursery.Process(target=killable.run, args=(stage, folder, out))
        process.start()
        process.join(None if kills >= KILLS else rng.uniform(0, 0.7 * seconds[stage]))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0, out.with_name(f"{out.name}.txt").read_text()
        assert killable.weights(stage, out) == expected
        assert not [p for p in out.rglob("*") if ".new" in p.name or ".old" in p.name or p.name == "trainer"]
        runs += 1
        out = tmp_path / f"run-{runs}"

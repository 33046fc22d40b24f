"""What the stages of the demo cost a sample here, and in another version of the source: processor seconds, in one run.

    git worktree add ../first 7924c46
    OMP_NUM_THREADS=1 python benchmarks/first_version.py ../first/src [--stages contrast ...] [--pairs 3] [--folder TMP]

Each stage runs as `cadiff STAGE` in a process of its own, once with the other source tree on PYTHONPATH and once with this one,
taking turns; with the other version's demo preset, of whose settings both know all, and fewer steps. Nothing is found in a cache.

a sample   training: the median over steps of the time between two of the optimiser's, over the batch. Drawing: between two
           decodings, over the batch; of these six steps, not the demo's twenty. Evaluation: two folders of different size,
           their difference over the pictures between them, so that what a version does once is left out
once       all else that the process did: imports, reading, the first step, writing
n-way      50-way top-1 of 5,000 pictures among 1,000 classes by each version's own function
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parents[1] / "src"
STEPS = {"contrast": 12, "attend": 10, "diffuse": 6}
BATCH = {"contrast": 64, "attend": 16, "diffuse": 16, "reconstruct": 48}
STAGES = (*STEPS, "reconstruct", "evaluate", "n-way")
PICTURES = {8: 48, 24: 144}
"""Stimuli -> pictures of them: two samples in three conditions."""
HEAD = "| stage | before, ms a sample | after | ratio | before, once, s | after |"
N_WAY = """
import sys, time, numpy as np
from cadiff.evaluate.semantic import n_way_top_k
rng = np.random.default_rng(0)
scores, truth = rng.standard_normal((5000, 1000)), rng.integers(0, 1000, 5000)
times = []
for _ in range(6):
    start = time.process_time(); n_way_top_k(scores, truth, n=50, k=1); times.append(time.process_time() - start)
print(sorted(times)[2])
"""


def stamped(target: Path, arguments: list[str]) -> None:
    """`cadiff` with these arguments in this process; writes when the optimiser stepped and pictures were decoded."""
    from diffusers.models.autoencoders.vq_model import VQModel
    from torch.optim.optimizer import register_optimizer_step_post_hook

    stamps: dict[str, list[float]] = {"steps": [], "decoded": []}
    register_optimizer_step_post_hook(lambda *_: stamps["steps"].append(time.process_time()))
    decode = VQModel.decode

    def decoding(*args: Any, **kwargs: Any) -> Any:
        found = decode(*args, **kwargs)
        stamps["decoded"].append(time.process_time())
        return found

    VQModel.decode = decoding  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = ["cadiff", *arguments]
    try:
        runpy.run_module("cadiff", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        if leaving.code:
            raise
    finally:
        target.write_text(json.dumps({**stamps, "end": time.process_time()}))


class Version:
    """One source tree, and the folders that its own stages made."""

    def __init__(self, source: Path, preset: Path, place: Path) -> None:
        self.source, self.preset, self.place = source, preset, place
        self.count = 0
        self.place.mkdir(parents=True)

    def python(self, *arguments: str) -> str:
        cache_folder = self.place / f"cache-{self.count}"  # empty, so that every run does all of its work
        environment = {**os.environ, "PYTHONPATH": str(self.source), "CADIFF_CACHE": str(cache_folder)}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.source}: {' '.join(arguments)}\n{done.stderr[-3000:]}")
        return done.stdout

    def cadiff(self, stage: str, *arguments: str | Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
        """Runs a stage into a new folder; returns it with the stamps."""
        self.count += 1
        out, stamps = self.place / f"{self.count}-{stage}", self.place / f"{self.count}.json"
        known = self.settings(stage) if settings else set()
        changes = [f"{key}={value}" for key, value in settings.items() if key.split(".")[0] in known]
        options = [word for change in changes for word in ("--set", change)]
        words = [*map(str, arguments), "--out", str(out), "--preset", str(self.preset), *options]
        self.python(__file__, "--stamped", str(stamps), stage, *words)
        return out, json.loads(stamps.read_text())

    @cache  # noqa: B019  two objects, which live as long as the process
    def settings(self, stage: str) -> set[str]:
        """Names of the settings that this version knows."""
        listed = self.python("-m", "cadiff", "settings", stage)
        return {word.split(".")[0].split("=")[0].strip("│ ") for word in listed.split()}

    @cache  # noqa: B019
    def made(self, what: str) -> Path:
        """A folder that stages begin from, made once and not timed."""
        if what == "data":
            return self.cadiff("simulate")[0]
        if what == "encoder":
            return self.cadiff("contrast", self.made("data"), **{"fit.steps": 2})[0] / "encoder"
        if what == "pipeline":
            return self.train("diffuse", 2)[0] / "pipeline"
        return self.draw(int(what), steps=1)[0]

    def train(self, stage: str, steps: int) -> tuple[Path, dict[str, Any]]:
        start = [] if stage == "contrast" else ["--encoder", self.made("encoder")]
        return self.cadiff(stage, self.made("data"), *start, **{"fit.steps": steps})

    def draw(self, stimuli: int, steps: int) -> tuple[Path, dict[str, Any]]:
        fewer = {"max_stimuli": stimuli, "num_inference_steps": steps}
        return self.cadiff("reconstruct", self.made("data"), "--pipeline", self.made("pipeline"), **fewer)

    def judge(self, stimuli: int) -> float:
        # pictures of the training set, which the first version did not score, are no part of the comparison
        found = self.cadiff(
            "evaluate", self.made(str(stimuli)), "--dataset", self.made("data"), train_pictures=0
        )
        return found[1]["end"]

    def time(self, stage: str) -> tuple[float, float]:
        """Processor seconds of a sample, and once."""
        if stage == "n-way":
            return float(self.python("-c", N_WAY)) / 5000, 0.0
        if stage == "evaluate":
            few, many = (self.judge(stimuli) for stimuli in PICTURES)
            sample = (many - few) / (max(PICTURES.values()) - min(PICTURES.values()))
            return sample, many - sample * max(PICTURES.values())
        drawing = stage == "reconstruct"
        stamps = (self.draw(24, steps=6) if drawing else self.train(stage, STEPS[stage]))[1]
        # a decoding goes in parts of 16, the last of a batch ends the batch
        ends = stamps["decoded"][2::3] if drawing else stamps["steps"]
        gaps = [late - early for early, late in pairwise(ends)]
        return median(gaps) / BATCH[stage], stamps["end"] - median(gaps) * len(ends)


def row(stage: str, times: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    samples = {name: [1000 * sample for sample, _ in found] for name, found in times.items()}
    ratios = [a / b for a, b in zip(samples["other"], samples["this"], strict=True)]
    once = [median(rest for _, rest in times[name]) for name in ("other", "this")]
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    middle = [f"{median(samples[name]):.4g}" for name in ("other", "this")]
    return [stage, *middle, spread, *(f"{seconds:.1f}" for seconds in once)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="src folder of the other version")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; the system's temporary folder by default")
    options = parser.parse_args()
    other = options.other.resolve()
    preset = other / "cadiff" / "presets" / "demo.yaml"
    print(f"{HEAD}\n|{'---|' * 6}")
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        both = {
            name: Version(source, preset, Path(scratch) / name)
            for name, source in (("other", other), ("this", HERE))
        }
        for stage in options.stages:
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in both}
            for turn in range(options.pairs):
                for name in list(both)[:: 1 if turn % 2 else -1]:
                    times[name].append(both[name].time(stage))
            print(f"| {' | '.join(row(stage, times))} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stamped"]:
        stamped(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()

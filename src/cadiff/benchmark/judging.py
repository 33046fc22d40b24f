"""A whole evaluation, timed: pictures read, judged and scored, results written, on synthetic pictures."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from cadiff.benchmark.machine import forget_peak, peak_memory, training_device
from cadiff.benchmark.record import Measurement
from cadiff.evaluate import evaluate


def measure_judging(
    config: Any, *, stimuli: int = 50, samples: int = 5, side: int = 256, repeats: int = 1
) -> Measurement:
    """Times `cadiff evaluate` on so many pictures of random coarse blocks; the first run is the warm-up.

    Raises:
        MissingExtraError: the judge's package is not there.
    """
    device = training_device()
    rng = np.random.default_rng(0)

    def picture(path: Path) -> None:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path)

    with tempfile.TemporaryDirectory() as scratch:
        truth, drawn = Path(scratch, "stimuli"), Path(scratch, "pictures")
        truth.mkdir()
        drawn.mkdir()
        for number in range(stimuli):
            picture(truth / f"s{number:03d}.png")
            for sample in range(samples):
                picture(drawn / f"s{number:03d}_{sample}.png")

        def run(number: int) -> float:
            start = time.perf_counter()
            evaluate(
                config,
                drawn,
                truth,
                Path(scratch, f"evaluation-{number}"),
                pattern="{stimulus_id}_{sample}.png",
                progress=False,
            )
            return time.perf_counter() - start

        forget_peak(device)
        first = run(0)
        times = [run(number) for number in range(1, repeats + 1)]
        memory, reserved = peak_memory(device)
    batch = stimuli * samples
    case = f"{stimuli} stimuli x {samples} samples, {side} px"
    return Measurement(
        "evaluate",
        case,
        batch,
        "fp32",
        False,
        "images",
        median(times),
        max(times),
        first,
        repeats,
        1,
        memory,
        reserved,
    )

"""How fast a large dataset opens and a random batch is read, and how much memory that takes.

Run: python benchmarks/data_access.py [--trials 100000] [--voxels 15000] [--batch 256] [--folder TMP]

Makes a dataset of random betas (6 GB by default, in a temporary folder) and measures in a fresh process: the first open,
random batches with the file in the page cache, and the resident memory that is not the page cache's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

MEASURE = """
import json, resource, sys, time
import numpy as np
from cadiff.data.dataset import BrainDataset
folder, batch = sys.argv[1], int(sys.argv[2])
def anonymous():
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(lines["RssAnon"].split()[0]) / 1024
before = anonymous()
start = time.perf_counter(); data = BrainDataset.open(folder); opened = time.perf_counter() - start
rng = np.random.default_rng(0)
for start in range(0, len(data.betas), 4096): data.betas[start : start + 4096].sum()  # into the page cache
times = []
for _ in range(50):
    rows = rng.integers(0, len(data.betas), batch)
    start = time.perf_counter(); values = data.betas[rows]; times.append(time.perf_counter() - start)
again = []
for _ in range(5):
    start = time.perf_counter(); BrainDataset.open(folder); again.append(time.perf_counter() - start)
print(json.dumps({"open_s": opened, "open_again_s": float(np.median(again)), "batch_ms": 1000 * float(np.median(times)),
    "batch_slowest_ms": 1000 * max(times), "memory_mib": anonymous() - before}))
"""


def make(folder: Path, trials: int, voxels: int, stimuli: int) -> Path:
    from cadiff.data.writer import dataset_writer

    rng = np.random.default_rng(0)
    names = [f"image-{i:05d}" for i in range(stimuli)]
    table = pd.DataFrame(
        {
            "stimulus_id": np.array(names)[np.arange(trials) % stimuli],
            "split": np.where(np.arange(trials) % stimuli < stimuli // 10, "test", "train"),
            "session": 1 + np.arange(trials) // 750,
            "run": 1 + np.arange(trials) % 750 // 63,
            "repeat": 1 + np.arange(trials) // stimuli,
        }
    )
    rois = pd.DataFrame({"rois": [f"V{1 + i % 4},VC" for i in range(voxels)]})
    with dataset_writer(folder / "data", name="synthetic", subject="sub-01", voxels=rois) as writer:
        picture = np.zeros((8, 8, 3), np.uint8)
        for number, name in enumerate(names):
            picture[0, 0] = number % 256, number // 256, 0
            writer.add_stimulus(name, picture, label=f"class-{number % 100}")
        for start in range(0, trials, 1000):
            part = table.iloc[start : start + 1000]
            writer.add_trials(rng.standard_normal((len(part), voxels), dtype=np.float32), part)
    return folder / "data"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--voxels", type=int, default=15_000)
    parser.add_argument("--stimuli", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = make(Path(folder), options.trials, options.voxels, options.stimuli)
        command = [sys.executable, "-c", MEASURE, str(data), str(options.batch)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"{options.trials} trials x {options.voxels} voxels, {options.stimuli} stimuli, batch {options.batch}"
    )
    print(f"| open | again | batch, median | batch, slowest of 50 | memory |\n|{'---|' * 5}")
    print(
        f"| {found['open_s']:.3f} s | {found['open_again_s']:.3f} s | {found['batch_ms']:.1f} ms | "
        f"{found['batch_slowest_ms']:.1f} ms | {found['memory_mib']:.0f} MiB |"
    )


if __name__ == "__main__":
    main()

"""Shared by all tests: small worlds with a known answer, and the development data where there is any."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.artifacts import write_json
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.heap import keep_freed_memory

NUM_VOXELS, SIDE = 40, 16
os.environ["CADIFF_CACHE"] = "off"  # here, so that session fixtures and child processes have it too
keep_freed_memory()  # as the command does


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The folder of real development data; the test is skipped where there is none."""
    folder = os.environ.get("CADIFF_DEV_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real development data: set CADIFF_DEV_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def linear_brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder in which betas are a linear map of the pixels, almost without noise.

    Two classes ("dark", "bright") that differ in their mean; 30 training pictures once, 6 test pictures 3 times.
    """
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(4, NUM_VOXELS))  # pictures are 2 x 2 blocks: four numbers each
    ids = [f"train-{i}" for i in range(30)] + [f"test-{i}" for i in range(6)]
    levels = rng.uniform(0.1, 0.5, size=(len(ids), 4))
    labels = ["dark" if i % 2 else "bright" for i in range(len(ids))]
    levels[[label == "bright" for label in labels]] += 0.4
    images = {}
    for name, row in zip(ids, levels, strict=True):
        grey = np.kron(row.reshape(2, 2), np.ones((SIDE // 2, SIDE // 2)))
        images[name] = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    trials = [(name, "train", 1) for name in ids[:30]]
    trials += [(name, "test", repeat) for repeat in (1, 2, 3) for name in ids[30:]]
    shown = [ids.index(name) for name, _, _ in trials]
    betas = levels[shown] @ weights + 0.01 * rng.normal(size=(len(trials), NUM_VOXELS))
    table = pd.DataFrame(trials, columns=["stimulus_id", "split", "repeat"]).assign(session=1, run=1)
    return write_dataset(
        tmp_path_factory.mktemp("linear") / "dataset",
        name="linear",
        subject="sub-01",
        betas=betas,
        trials=table,
        voxels=pd.DataFrame({"rois": ["V1", "V2"] * (NUM_VOXELS // 2)}),
        stimuli=pd.DataFrame({"stimulus_id": ids, "label": labels}),
        images=images,
    )


@pytest.fixture
def write_reconstructions(linear_brain: Path, tmp_path: Path) -> Callable[..., Path]:
    """write(brain=noise, ...) -> folder; noise 0 is the stimulus itself, 1 pure noise; `shuffled` shows other stimuli."""

    def write(samples: int = 2, seed: int = 0, **noise: float) -> Path:
        rng, data = np.random.default_rng(seed), BrainDataset.open(linear_brain)
        ids = data.stimulus_ids("test")
        rows = []
        folder = tmp_path / "reconstructions"
        for condition, share in noise.items():
            (folder / "images" / condition).mkdir(parents=True)
            for i, stimulus_id in enumerate(ids):
                shown = data.image(ids[(i + (condition == "shuffled")) % len(ids)]).astype(float)
                for sample in range(samples):
                    picture = (1 - share) * shown + share * rng.integers(0, 256, shown.shape)
                    file = f"images/{condition}/{stimulus_id}_{sample}.png"
                    Image.fromarray(np.rint(picture).astype(np.uint8)).save(folder / file)
                    rows.append(
                        {"condition": condition, "stimulus_id": stimulus_id, "sample": sample, "file": file}
                    )
        pd.DataFrame(rows).to_csv(folder / "samples.tsv", sep="\t", index=False)
        write_json(
            folder / "config.json",
            {"kind": "reconstructions", "format": 1, "config": {"average_repeats": True}},
        )
        return folder

    return write

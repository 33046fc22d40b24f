"""A folder of reconstructions of the linear brain's six test pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.artifacts import write_json
from cadiff.data.dataset import BrainDataset

Write = Callable[..., Path]


@pytest.fixture
def write_reconstructions(linear_brain: Path, tmp_path: Path) -> Write:
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

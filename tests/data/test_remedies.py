"""What looks wrong in a dataset is told with what to do: by `data import`, `data describe` and `data doctor`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from cadiff.cli import app
from cadiff.data.dataset import BrainDataset
from cadiff.data.describe import warnings
from cadiff.data.readers.arrays import read_arrays


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Path:
    """40 training trials of 20 stimuli without labels, 8 voxels of which one holds NaN, nothing to test on."""
    folder = tmp_path / "scans"
    (folder / "stimuli").mkdir(parents=True)
    names = [f"pic_{i:02d}" for i in range(20)]
    for name in names:
        picture = rng.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(picture).save(folder / "stimuli" / f"{name}.png")
    betas = rng.normal(size=(40, 8))
    betas[3, 5] = np.nan
    np.save(folder / "betas.npy", betas)
    trials = pd.DataFrame({"stimulus_id": names * 2, "split": "train"})
    trials.to_csv(folder / "trials.tsv", sep="\t", index=False)
    return folder


def told(*words: str | Path) -> str:
    found = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "400"})
    assert found.exit_code == 0, found.output
    return found.output


def test_a_newcomer_without_split_and_labels_is_told_the_way(source, tmp_path):
    made = tmp_path / "data"
    output = told("data", "import", "arrays", source, made, "--set", "bad_voxels=drop")
    assert "1 of 8 voxels dropped" in output and "source_voxel" in output
    output = told("data", "doctor", made)
    assert "no test trials" in output and "cadiff data split" in output and "--fraction" in output
    assert "label_start=false" in output and "20 not square" in output and "middle square" in output
    command = output.splitlines()[-1].removeprefix("next: cadiff ").split()
    assert command[:2] == ["data", "split"]
    told(*command)
    split = BrainDataset.open(command[command.index("--out") + 1])
    assert len(split.stimulus_ids("test")) == 4 and len(split.stimulus_ids("train")) == 16
    assert told("data", "doctor", split.folder).splitlines()[-1].startswith("next: cadiff contrast ")


def test_an_unknown_noise_ceiling_comes_with_its_remedy(source, tmp_path):
    def remarks(folder: Path) -> str:
        return " ".join(warnings(BrainDataset.open(folder)))

    data = read_arrays(source, tmp_path / "data", bad_voxels="drop")
    assert "`cadiff data prepare --set noise_ceiling=train`" in remarks(data)
    told("data", "prepare", data, "--out", tmp_path / "known", "--set", "noise_ceiling=train")
    assert "no noise ceiling" not in remarks(tmp_path / "known")
    trials = pd.read_csv(source / "trials.tsv", sep="\t")
    tested = trials.assign(split=["test"] * 2 + ["train"] * 18 + ["test"] * 2 + ["unlabelled"] * 18)
    tested.to_csv(source / "trials.tsv", sep="\t", index=False)  # only test stimuli are repeated now
    rare = read_arrays(source, tmp_path / "rare", bad_voxels="drop")
    assert "noise_ceiling=test" in remarks(rare)

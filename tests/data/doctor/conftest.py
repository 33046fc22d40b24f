"""A healthy simulated subject, and copies of it that a test may make ill."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cadiff.artifacts import read_json, sha256_file, write_json
from cadiff.data.dataset import read_table, write_table
from cadiff.data.simulate import SimulateConfig, simulate


class Ward:
    """A copy of a dataset whose files can be changed; checksums follow, as if it had been imported like that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def betas(self) -> np.ndarray:
        return np.load(self.folder / "betas.npy")

    @betas.setter
    def betas(self, values: np.ndarray) -> None:
        np.save(self.folder / "betas.npy", values.astype(np.float32))
        self.sign("betas.npy")

    def table(self, name: str) -> pd.DataFrame:
        text = {"stimulus_id": str, "label": str, "rois": str}
        return read_table(self.folder / f"{name}.tsv", dtype=text, keep_default_na=False)

    def put(self, name: str, table: pd.DataFrame) -> None:
        write_table(table, self.folder / f"{name}.tsv")
        self.sign(f"{name}.tsv")

    def describe(self, **facts: Any) -> None:
        path = self.folder / "dataset_description.json"
        write_json(path, {**read_json(path), **facts})

    def sign(self, file: str) -> None:
        path = self.folder / "dataset_description.json"
        about = read_json(path)
        about["sha256"][file] = sha256_file(self.folder / file)
        write_json(path, about)

    def append(self, rows: np.ndarray, **columns: Any) -> None:
        """Trials once more at the end, with other numbers."""
        trials = self.table("trials")
        self.betas = np.concatenate([self.betas, self.betas[rows]])
        more = pd.concat([trials, trials.iloc[rows].assign(**columns)], ignore_index=True)
        self.put("trials", more.assign(trial=range(1, len(more) + 1)))


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training pictures once, in 3 sessions of 2 runs; 12 test pictures 6 times; V1 and V2, 90 voxels each."""
    config = SimulateConfig(
        num_train_classes=24,
        images_per_class=4,
        num_test_images=12,
        test_repeats=6,
        trials_per_run=16,
        runs_per_session=2,
        voxels_per_roi={"V1": 90, "V2": 90},
        roi_dims=12,
        snr=0.8,
    )
    return simulate(config, tmp_path_factory.mktemp("healthy") / "sub-01", progress=False)


@pytest.fixture
def ward(healthy: Path, tmp_path: Path) -> Ward:
    return Ward(Path(shutil.copytree(healthy, tmp_path / "sub-01")))


@pytest.fixture
def admit(tmp_path: Path) -> Callable[[Path], Ward]:
    """A copy of any dataset folder."""

    def copy(source: Path, name: str = "other") -> Ward:
        return Ward(Path(shutil.copytree(source, tmp_path / name)))

    return copy


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look with a network's features takes seconds and needs its weights."""
    monkeypatch.setattr("cadiff.data.doctor.features.network_kernels", lambda pictures, progress=False: {})

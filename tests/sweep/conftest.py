"""Sweeps in which every stage takes a moment: same steps, same keys, same folders, other networks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.artifacts import new_folder, read_json, write_json
from cadiff.data.dataset import BrainDataset
from cadiff.experiments import steps
from cadiff.sweep import plan_sweep
from cadiff.sweep.drive import Work
from cadiff.sweep.plan import STAGES_FOLDER
from cadiff.sweep.work import make_cell

EVALUATE = {"evaluate.judge": None, "evaluate.num_bootstrap": 200, "evaluate.train_pictures": 0}


class Inline:
    """Makes a cell at once, in this process."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, out: Path, cell: Path, slot: int) -> Inline:
        self.started.append(f"{cell.parent.name}/{cell.name}")
        self.code = make_cell(out, cell)
        return self

    def poll(self) -> int:
        return self.code

    def stop(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def made(monkeypatch, linear_brain) -> list[str]:
    """Stages without networks: names of those that were made, in order. Pictures are the stimulus in noise by gamma_f."""
    names: list[str] = []

    def trained(name: str, result: str):
        def make(config: Any, inputs: Any, out: Path, resume: bool) -> None:
            names.append(name)
            if getattr(config, "gamma_f", None) == 13:
                raise ValueError("thirteen")
            (out / result).mkdir(parents=True)
            share = {"contrast": 0.1, "attend": getattr(config, "gamma_f", 0)}.get(name, 0)
            before = Path(inputs["encoder"]) / "share.json" if "encoder" in inputs else None
            if before is not None and before.is_file():
                share += read_json(before)
            write_json(out / result / "share.json", share)
            write_json(out / "run.json", {"status": "complete"})

        return make

    def simulate(config: Any, inputs: Any, out: Path, resume: bool) -> None:
        names.append("simulate")
        with new_folder(out) as folder:
            shutil.copytree(linear_brain, folder, dirs_exist_ok=True)
            about = read_json(folder / "dataset_description.json")
            write_json(folder / "dataset_description.json", {**about, "subject": f"sim-{config.subject:02d}"})

    def reconstruct(config: Any, inputs: Any, out: Path, resume: bool) -> None:
        names.append("reconstruct")
        share = read_json(Path(inputs["pipeline"]) / "share.json")
        with new_folder(out) as folder:
            pictures(folder, Path(inputs["dataset"]), {"brain": share, "prior_only": 1.0}, config.seed)

    monkeypatch.setattr(steps, "_simulate", simulate)
    monkeypatch.setattr(steps, "_contrast", trained("contrast", "encoder"))
    monkeypatch.setattr(steps, "_attend", trained("attend", "encoder"))
    monkeypatch.setattr(steps, "_diffuse", trained("diffuse", "pipeline"))
    monkeypatch.setattr(steps, "_reconstruct", reconstruct)
    monkeypatch.setattr(steps, "_report", lambda config, inputs, out, resume: out.write_text("a page"))
    monkeypatch.setattr("cadiff.preflight.refuse_unfit", lambda *_: None)
    return names


def pictures(folder: Path, dataset: Path, noise: dict[str, float], seed: int) -> None:
    """Reconstructions of the test stimuli, share of noise by condition."""
    rng, data, rows = np.random.default_rng(seed), BrainDataset.open(dataset), []
    (folder / "images").mkdir()
    for condition, share in noise.items():
        for stimulus_id in data.stimulus_ids("test"):
            shown = data.image(stimulus_id).astype(float)
            picture = (1 - share) * shown + share * rng.integers(0, 256, shown.shape)
            file = f"images/{condition}-{stimulus_id}.png"
            Image.fromarray(np.rint(np.clip(picture, 0, 255)).astype(np.uint8)).save(folder / file)
            rows.append({"condition": condition, "stimulus_id": stimulus_id, "sample": 0, "file": file})
    pd.DataFrame(rows).to_csv(folder / "samples.tsv", sep="\t", index=False)
    about = {"kind": "reconstructions", "format": 1, "config": {"average_repeats": True}}
    write_json(folder / "config.json", about)


@pytest.fixture
def write(tmp_path):
    """write(text) -> a table with quick evaluation settings."""

    def table(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        settings = "".join(
            f"  {key}: {'null' if value is None else value}\n" for key, value in EVALUATE.items()
        )
        path.write_text(f"set:\n{settings}{text}")
        return path

    return table


@pytest.fixture
def executor() -> Inline:
    return Inline()


@pytest.fixture
def fits(tmp_path, monkeypatch) -> Path:
    """The file that baselines of slow_baseline.py write into, in whatever process."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("SLOW_LOG", str(tmp_path / "fits"))
    monkeypatch.setenv("SLOW_UNTIL", str(tmp_path / "go"))
    return tmp_path / "fits"


@pytest.fixture
def begun() -> Callable[[Path, Path], Work]:
    """begun(table, out) -> the work of a sweep whose folder is there, and no stage yet."""

    def begin(table: Path, out: Path) -> Work:
        work = Work(out, plan_sweep(table).cells)
        (out / STAGES_FOLDER).mkdir(parents=True)
        for planned in work.cells:
            work.folder(planned).mkdir(parents=True)
            write_json(work.folder(planned) / "cell.json", planned.as_json())
        return work

    return begin


@pytest.fixture
def gone() -> Callable[..., bool]:
    """gone(pid, seconds) -> whether the process has ended, or does so in this time."""

    def ended(pid: int, seconds: float = 0) -> bool:
        until = time.monotonic() + seconds
        while True:
            try:
                if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                    return True
            except FileNotFoundError:
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)

    return ended

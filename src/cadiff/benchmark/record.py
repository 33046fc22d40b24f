"""What a benchmark found, as it is kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cadiff.artifacts import read_json, write_json
from cadiff.errors import ArtifactError
from cadiff.plan.machines import Machine
from cadiff.plan.time import Efficiency

KIND, FORMAT = "benchmark", 1
MEASURED = Path(__file__).parent / "measured"
"""Records that come with the package, by the name of the GPU: h100.json; and epyc.json, one thread of a processor, which only the
tests of predicted times read."""


@dataclass(frozen=True)
class Measurement:
    """One case of one stage."""

    stage: str
    case: str
    """What was done, in words: "batch 250", "pndm, 250 steps"."""
    batch: int
    precision: str
    """bf16 or fp32."""
    compiled: bool
    unit: str
    """What is counted: "samples" or "images"."""
    step_s: float
    """Seconds of a step: of a batch, from the loss to the new weights, or from betas to pictures. Median over repeats."""
    slowest_s: float
    """The slowest repeat."""
    first_s: float
    """Seconds of the very first step: kernels are chosen or compiled, memory is taken."""
    repeats: int
    steps: int
    """Steps in each repeat."""
    memory: float
    """Peak bytes: of tensors on a GPU, of the process on a CPU; 0 where the system does not say."""
    reserved: float
    """Peak bytes that PyTorch held on the GPU; on a CPU the same as `memory`."""
    flops: float = 0.0
    """Floating-point operations of a step, counted; 0 where nothing is counted."""
    floor_s: float = 0.0
    """Seconds of a step that nothing can undercut on this machine; 0 where unknown."""
    op_by_op_s: float = 0.0
    """Seconds of a step when each call alone ran at the peak rate; 0 where unknown."""

    @property
    def rate(self) -> float:
        """Samples or images a second."""
        return self.batch / self.step_s

    @property
    def share(self) -> float | None:
        """Of the peak of matrix products at this precision: the floor over the time."""
        return self.floor_s / self.step_s if self.floor_s else None


@dataclass(frozen=True)
class ByHand:
    """What a script measured on the same machine, where `cadiff benchmark` did not run."""

    stage: str
    case: str
    """What was done, in words."""
    batch: int
    compiled: bool
    step_s: float
    """Seconds of a batch."""
    op_by_op_s: float
    """See `Measurement`."""


@dataclass(frozen=True)
class Record:
    """A run of `cadiff benchmark`."""

    machine: Machine
    size: str
    """"paper" or "demo", or a preset."""
    versions: dict[str, str]
    measurements: list[Measurement] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Stage -> why it was left out."""
    by_hand: list[ByHand] = field(default_factory=list)


def write_record(path: Path, record: Record) -> Path:
    """Writes a record as JSON, atomically; a file that is there is replaced."""
    write_json(path, as_json(record))
    return path


def as_json(record: Record) -> dict[str, Any]:
    """The record in plain types."""
    return {"kind": KIND, "format": FORMAT, **json.loads(json.dumps(asdict(record)))}


def read_record(path: Path) -> Record:
    """Reads what `write_record` wrote. Raises ArtifactError for anything else."""
    try:
        about = read_json(path)
    except ArtifactError:
        about = None
    if not isinstance(about, dict) or about.get("kind") != KIND or about.get("format") != FORMAT:
        found = "is no benchmark of this cadiff" if path.exists() else "is not there"
        raise ArtifactError(f"{path} {found}: write a benchmark with `cadiff benchmark --json FILE`.")
    return Record(
        Machine(**about["machine"]),
        about["size"],
        about["versions"],
        [Measurement(**found) for found in about["measurements"]],
        about["skipped"],
        [ByHand(**found) for found in about.get("by_hand", ())],
    )


def shipped_record(gpu: str) -> Record | None:
    """What was measured on a GPU that `cadiff plan --gpu` knows by name and comes with the package; None where nothing was."""
    path = MEASURED / f"{gpu}.json"
    return read_record(path) if path.is_file() else None


def efficiencies(record: Record) -> list[Efficiency]:
    """What share of the op-by-op rate each stage reached, for `cadiff.plan.plan_times`; by hand where nothing else is."""
    timed = {found.stage for found in record.measurements}
    by_hand = [found for found in record.by_hand if found.stage not in timed]
    return [
        Efficiency(
            found.stage,
            found.batch,
            found.op_by_op_s / found.step_s,
            record.machine.name + (f" by a script ({found.case})" if isinstance(found, ByHand) else ""),
            found.compiled if found.stage == "reconstruct" else None,
        )
        for found in (*record.measurements, *by_hand)
        if found.op_by_op_s
    ]

"""What is timed: the stages at the paper's sizes or the demo's, what we aim at, and what the released code reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

STAGES = ("contrast", "attend", "diffuse", "reconstruct", "evaluate", "data")
Size = Literal["paper", "demo"]
PRESETS: Mapping[str, tuple[str, str]] = {
    "paper": ("paper/god-sub-03", "published"),
    "demo": ("demo", "shipped"),
}
"""Size -> preset, and whose sizes the image prior has."""


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    stage: str
    batch: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `reconstruct` that differ from the preset's."""
    goal: float | None = None
    """Samples or images a second on one H100 that we aim at."""
    goal_memory: float | None = None
    """GiB on one H100 that we mean to stay below."""
    released: float | None = None
    """Samples or images a second of the released code on one H100."""


PLMS = {"scheduler": "pndm", "num_inference_steps": 250, "guidance_scale": 1.0}
FAST = {"scheduler": "dpm++", "num_inference_steps": 20, "guidance_scale": 1.0}
PAPER = (
    Case("contrast", 250, goal=2300, goal_memory=40, released=465),
    Case("attend", 16, goal=490, released=48.8),
    Case("attend", 128, goal=490),
    Case("diffuse", 5, goal=230, goal_memory=8, released=22.8),
    Case("diffuse", 25, goal=230, released=41.2),
    Case("reconstruct", 50, PLMS, goal=1 / 0.16, released=1 / 2.65),
    Case("reconstruct", 50, FAST, goal=1 / 0.02),
    Case("evaluate", 250),
    Case("data", 250),
)


def cases_of(
    stages: Sequence[str], size: str, configs: Mapping[str, Any], batches: Sequence[int] = ()
) -> list[Case]:
    """The cases of some stages.

    Args:
        stages: of `STAGES`.
        size: "paper" has its own table; anything else is timed at the batches of its settings.
        configs: settings of the stages by name.
        batches: instead of those of the table; a case of the same batch keeps its goal.
    """
    found = PAPER if size == "paper" else tuple(_from_settings(configs))
    found = [case for case in found if case.stage in stages]
    if not batches:
        return found
    chosen = []
    for stage in dict.fromkeys(case.stage for case in found):
        of_stage = [case for case in found if case.stage == stage]
        settings = [dict(pairs) for pairs in dict.fromkeys(tuple(c.settings.items()) for c in of_stage)]
        for variant in settings:
            known = {case.batch: case for case in of_stage if case.settings == variant}
            chosen += [known.get(batch) or Case(stage, batch, variant) for batch in batches]
    return chosen


def _from_settings(configs: Mapping[str, Any]) -> list[Case]:
    training = [Case(stage, configs[stage].fit.batch_size) for stage in ("contrast", "attend", "diffuse")]
    drawing = Case("reconstruct", min(8, configs["reconstruct"].batch_size))  # more would be minutes on a CPU
    return [*training, drawing, Case("evaluate", 48), Case("data", configs["contrast"].fit.batch_size)]

"""Memory of every stage at its batch, and the largest batches that fit a given card."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from cadiff.diffuse.precision import Precision, resolved
from cadiff.errors import ConfigError
from cadiff.plan.cost import Cost
from cadiff.plan.memory import ADAMW, OVERHEAD, Step
from cadiff.plan.stages import STEPS
from cadiff.plan.workloads import Models

GIB = 2**30
CONTEXT = GIB // 2
"""What a CUDA context and its libraries take before the first tensor."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs with the chosen batch."""

    stage: str
    parameters: int
    trained: int
    batch_size: int
    accumulate: int
    memory: float
    """Bytes, allocator and workspaces included."""
    cost: Cost
    """What one batch has to do."""
    bf16: bool
    """Whether matrix products are in bfloat16, else in float32."""


def plan_stages(
    configs: Mapping[str, Any],
    models: Models,
    *,
    vram: float | None = None,
    bf16: bool | None = None,
    device: str = "cuda",
) -> list[StagePlan]:
    """Every stage with its batch, made smaller where `vram` asks for it.

    Args:
        configs: settings of the stages by name.
        models: the sizes that do not stand in the settings.
        vram: GiB there are; None: the batches as they are set.
        bf16: matrix products in bfloat16; None: each stage as its `precision` says for such a device.
        device: "cuda" or "cpu", which is this machine's processor.

    Batches of `attend` and `diffuse` are split into equal parts whose gradients are added up, which is the same step; those
    of `contrast` are never split, for the others of a batch are its negatives.

    Raises:
        ConfigError: a stage that does not fit, with what would.
    """
    half = {
        stage: resolved(asked_precision(configs[stage]), torch.device(device)) == "bf16"
        if bf16 is None
        else bf16
        for stage in STEPS
    }
    return [_fit(stage, configs[stage], models, vram, half[stage]) for stage in STEPS]


def asked_precision(config: Any) -> Precision:
    """What the settings of a stage say of its precision."""
    return config.precision if hasattr(config, "precision") else config.fit.precision


def with_plan(configs: Mapping[str, Any], plan: Sequence[StagePlan]) -> dict[str, Any]:
    """The settings with the batches of a plan."""
    changed = dict(configs)
    for part in plan:
        config = configs[part.stage]
        if part.stage == "reconstruct":
            changed[part.stage] = config.model_copy(update={"batch_size": part.batch_size})
        else:
            sizes = {"batch_size": part.batch_size, "accumulate": part.accumulate}
            changed[part.stage] = config.model_copy(update={"fit": config.fit.model_copy(update=sizes)})
    return changed


def memory(step: Step, config: Any) -> float:
    """Bytes of a stage: its step, what training keeps beside it (optimiser state, an average of the weights), overhead."""
    average = 4 if getattr(getattr(config, "fit", None), "ema_decay", None) else 0
    return CONTEXT + OVERHEAD * (step.peak + step.trained * (ADAMW + average))


def _fit(stage: str, config: Any, models: Models, vram: float | None, bf16: bool) -> StagePlan:
    room = float("inf") if vram is None else vram * GIB

    @cache
    def measured(size: int) -> Step:
        return STEPS[stage](config, models, size, bf16=bf16)

    def needed(size: int) -> float:
        return memory(measured(size), config)

    wanted = config.batch_size if stage == "reconstruct" else config.fit.batch_size
    if stage == "contrast":
        sizes = [wanted]
    elif stage == "reconstruct":
        sizes = list(range(1, wanted + 1))
    else:
        sizes = [size for size in range(1, wanted + 1) if wanted % size == 0]
    size = _largest(sizes, needed, room)
    if size is None:
        raise ConfigError(_too_large(stage, config, sizes[0], needed, room))
    step, split = measured(size), 1 if stage == "reconstruct" else config.fit.accumulate * (wanted // size)
    needs = memory(step, config)
    return StagePlan(stage, step.parameters, step.trained, size, split, needs, step.cost, bf16)


def _largest(sizes: Sequence[int], needed: Callable[[int], float], room: float) -> int | None:
    """The largest of rising `sizes` whose need there is room for; as a rule the last one, which is tried first."""
    if needed(sizes[-1]) <= room:
        return sizes[-1]
    fitting = bisect_right(sizes[:-1], room, key=needed)
    return sizes[fitting - 1] if fitting else None


def _too_large(stage: str, config: Any, size: int, needed: Callable[[int], float], room: float) -> str:
    remedy = "take a larger card"
    if not getattr(config, "gradient_checkpointing", True):
        remedy = f"set {stage}.gradient_checkpointing=true, or {remedy}"
    fewer = _largest(range(2, size + 1), needed, room) if stage == "contrast" else None
    if fewer:
        remedy += (
            f", or set contrast.fit.batch_size={fewer}, which has fewer negatives and is another objective"
        )
    return (
        f"Stage {stage} needs about {needed(size) / GIB:.1f} GiB with batches of {size}, and there are {room / GIB:g} GiB: "
        f"{remedy}."
    )

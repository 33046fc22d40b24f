"""How long every stage will take on a machine: its steps, counted op by op, over what share of the machine's rates it reaches.

    seconds of a step = op-by-op time at the machine's rates / efficiency of the stage

An efficiency is measured by `cadiff benchmark`; until one is given it is assumed, and the table says so. Reading the stimuli
into latents, checkpoints and the start of the program are not counted: minutes at the most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cadiff.diffuse.sampling import make_scheduler, num_calls
from cadiff.plan.amounts import Amounts
from cadiff.plan.choose import StagePlan
from cadiff.plan.cost import Cost
from cadiff.plan.machines import Machine
from cadiff.plan.stages import decoder_step, sampler_step
from cadiff.plan.workloads import Models

BYTES_LEARNT = 40
"""Bytes of each trained parameter that move in a step beside the ops counted, in float32: its gradient is scaled (8), and
AdamW reads weight, gradient and two moments and writes weight and moments (28); another 4 for the norm of the gradient."""
ASSUMED = 0.5


@dataclass(frozen=True)
class Efficiency:
    """What share of the op-by-op rate a stage reached."""

    stage: str
    batch: int
    value: float
    source: str
    """"assumed", or the machine it was measured on."""


@dataclass(frozen=True)
class StageTime:
    """How long one stage takes."""

    stage: str
    step_s: float
    """Seconds of an optimiser step, or of a picture."""
    count: int | None
    """Steps, or pictures; None where the data decide and are not there."""
    efficiency: Efficiency

    @property
    def total_s(self) -> float | None:
        """Seconds of the whole stage."""
        return None if self.count is None else self.step_s * self.count


def plan_times(
    configs: Mapping[str, Any],
    stages: Sequence[StagePlan],
    models: Models,
    amounts: Amounts,
    machine: Machine,
    efficiencies: Sequence[Efficiency] = (),
    *,
    bf16: bool = True,
) -> list[StageTime]:
    """The time of every stage of a plan.

    Args:
        configs: settings of the stages by name.
        stages: the plan, with the batches to take.
        models: sizes.
        amounts: how much there is to do.
        machine: its rates.
        efficiencies: measured ones; of a stage, that of the nearest batch is taken.
        bf16: matrix products in bfloat16.
    """
    found = []
    for stage in stages:
        config = configs[stage.stage]
        efficiency = nearest(efficiencies, stage.stage, stage.batch_size)
        if stage.stage == "reconstruct":
            batch_s = machine.op_by_op(drawing_cost(config, models, stage.batch_size, bf16=bf16))
            seconds, count = batch_s / stage.batch_size, amounts.pictures(config)
        else:
            seconds = stage.accumulate * machine.op_by_op(stage.cost) + update_s(stage.trained, machine)
            count = amounts.steps(stage.stage, config)
        found.append(StageTime(stage.stage, seconds / efficiency.value, count, efficiency))
    return found


def drawing_cost(config: Any, models: Models, batch: int, *, bf16: bool) -> Cost:
    """What a batch of pictures costs: every call of the network, and the decoding."""
    calls = num_calls(make_scheduler(config.scheduler, {}), config.num_inference_steps, config.strength)
    return (
        sampler_step(config, models, batch, bf16=bf16).cost * calls + decoder_step(config, models, batch).cost
    )


def update_s(trained: int, machine: Machine) -> float:
    """Seconds of clipping and AdamW on so many parameters, by the bytes they move."""
    return BYTES_LEARNT * trained / machine.bandwidth


def nearest(efficiencies: Sequence[Efficiency], stage: str, batch: int) -> Efficiency:
    """That of the stage at the batch nearest to this one, as a ratio; an assumed one where none was measured."""
    assumed = Efficiency(stage, batch, ASSUMED, "assumed")
    of_stage = [e for e in efficiencies if e.stage == stage]
    return min(of_stage, key=lambda e: max(e.batch / batch, batch / e.batch), default=assumed)

"""How long every stage will take on a machine: its steps, counted op by op, over what share of the machine's rates it reaches.

    seconds of a step = op-by-op time at the machine's rates / efficiency of the stage

An efficiency is measured by `cadiff benchmark`; until one is given it is assumed, and the table says so. Reading the stimuli
into latents, checkpoints and the start of the program are not counted: minutes at the most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cadiff.diffuse.drawing import COMPILED
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
ASSUMED, ASSUMED_ON_CPU = 0.5, 0.65
"""Where none was measured; the stages of the demo reach .49 to .88 on an EPYC, from run to run (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Efficiency:
    """What share of the op-by-op rate a stage reached."""

    stage: str
    batch: int
    value: float
    source: str
    """"assumed", or the machine it was measured on."""
    compiled: bool | None = None
    """Whether blocks were compiled, where it is known."""


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
) -> list[StageTime]:
    """The time of every stage of a plan.

    Args:
        configs: settings of the stages by name.
        stages: the plan, with the batches to take and the precision of each.
        models: sizes.
        amounts: how much there is to do.
        machine: its rates.
        efficiencies: measured ones; of a stage, that of the nearest batch is taken, of drawing among those that were compiled
            or not, as this will be.
    """
    found = []
    for stage in stages:
        config = configs[stage.stage]
        assumed = ASSUMED_ON_CPU if machine.on_cpu else ASSUMED
        compiled = None
        if stage.stage == "reconstruct":
            batch_s = machine.op_by_op(drawing_cost(config, models, stage.batch_size, bf16=stage.bf16))
            seconds, count = batch_s / stage.batch_size, amounts.pictures(config)
            much = count is None or count * drawing_calls(config) >= COMPILED  # as `cadiff.diffuse.drawing`
            compiled = (much and not machine.on_cpu) if config.compile is None else config.compile
        else:
            graph = config.fit.graph is not False and stage.accumulate == 1
            rates = machine.replaying() if graph else machine
            seconds = stage.accumulate * rates.op_by_op(stage.cost) + update_s(stage.trained, machine)
            count = amounts.steps(stage.stage, config)
        efficiency = nearest(efficiencies, stage.stage, stage.batch_size, assumed, compiled)
        found.append(StageTime(stage.stage, seconds / efficiency.value, count, efficiency))
    return found


def drawing_cost(config: Any, models: Models, batch: int, *, bf16: bool) -> Cost:
    """What a batch of pictures costs: every call of the network, and the decoding."""
    calls = sampler_step(config, models, batch, bf16=bf16).cost * drawing_calls(config)
    return calls + decoder_step(config, models, batch, bf16=bf16).cost


def drawing_calls(config: Any) -> int:
    """How often the network is called for a batch of pictures."""
    return num_calls(make_scheduler(config.scheduler, {}), config.num_inference_steps, config.strength)


def update_s(trained: int, machine: Machine) -> float:
    """Seconds of clipping and AdamW on so many parameters, by the bytes they move."""
    return BYTES_LEARNT * trained / machine.bandwidth


def nearest(
    efficiencies: Sequence[Efficiency],
    stage: str,
    batch: int,
    assumed: float = ASSUMED,
    compiled: bool | None = None,
) -> Efficiency:
    """That of the stage at the batch nearest to this one, as a ratio; an assumed one where none was measured.

    With `compiled`, those that were measured the other way do not count, unless there are no others.
    """
    of_stage = [e for e in efficiencies if e.stage == stage]
    alike = [e for e in of_stage if None in (compiled, e.compiled) or e.compiled == compiled]
    guess = Efficiency(stage, batch, assumed, "assumed")
    return min(alike or of_stage, key=lambda e: max(e.batch / batch, batch / e.batch), default=guess)

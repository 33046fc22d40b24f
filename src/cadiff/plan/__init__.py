"""Before hours are spent: what every stage of a preset will need, and whether it fits.

memory.py   bytes of a step, counted on fake tensors    stages.py   the step of each stage
sizes.py    what decides the sizes                   choose.py   batches that fit
"""

from cadiff.plan.choose import StagePlan, plan_stages, with_plan
from cadiff.plan.sizes import find_models
from cadiff.plan.stages import Models

__all__ = ["Models", "StagePlan", "find_models", "plan_stages", "with_plan"]

"""Before hours are spent: what every stage of a preset will need, whether it fits, and how long it will take.

workloads.py  the step of each stage        choose.py    batches that fit
stages.py     the same, counted             amounts.py   steps and pictures there are to do
memory.py     bytes alive in a step         machines.py  rates of GPUs, and of this machine
cost.py       operations and bytes moved    time.py      from all of that: seconds
sizes.py      what decides the sizes
"""

from cadiff.plan.amounts import Amounts, find_amounts
from cadiff.plan.choose import StagePlan, plan_stages, with_plan
from cadiff.plan.machines import Machine, find_machine
from cadiff.plan.sizes import find_models
from cadiff.plan.time import Efficiency, StageTime, plan_times
from cadiff.plan.workloads import Models

__all__ = [
    "Amounts",
    "Efficiency",
    "Machine",
    "Models",
    "StagePlan",
    "StageTime",
    "find_amounts",
    "find_machine",
    "find_models",
    "plan_stages",
    "plan_times",
    "with_plan",
]

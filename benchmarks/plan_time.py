"""Planned and measured time of the demo's stages on this processor: is `cadiff plan demo --gpu cpu` right?

    OMP_NUM_THREADS=1 python benchmarks/plan_time.py [--seconds 3] [--json FILE]

The rates of the machine are measured as `cadiff plan` does, then steps of each stage as `cadiff benchmark` does, all by processor
time, so that other programs disturb less; with one thread that is the time on a quiet machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from cadiff.benchmark.drawing import time_drawing
from cadiff.benchmark.record import Measurement, Record, write_record
from cadiff.benchmark.suite import describe, versions
from cadiff.benchmark.training import time_training
from cadiff.experiments import preset_configs
from cadiff.heap import keep_freed_memory
from cadiff.plan import Machine, find_amounts, find_machine, find_models, plan_stages, plan_times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring in each stage")
    parser.add_argument("--json", type=Path, help="a record as of `cadiff benchmark`")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    seconds = options.seconds
    torch.set_num_threads(1)
    configs = preset_configs("demo")
    models = find_models(configs)
    stages = plan_stages(configs, models, bf16=False)
    drawing = configs["reconstruct"].model_copy(update={"num_inference_steps": 4, "controls": ()})
    planned = {**configs, "reconstruct": drawing}

    def measured(machine: Machine) -> Iterator[tuple[str, Measurement]]:
        for stage in stages:
            if stage.stage == "reconstruct":
                length = configs["diffuse"].context_length
                found = time_drawing(
                    drawing, models, stage.batch_size, machine, context_length=length, repeats=1
                )
            else:
                found = time_training(
                    stage.stage, configs[stage.stage], models, stage.batch_size, machine, repeats=3, least=seconds / 3
                )  # fmt: skip
            yield stage.stage, found

    with mock.patch.object(time, "perf_counter", time.process_time):
        machine = find_machine("cpu")
        print(describe(machine))
        record = Record(machine, "demo", versions())
        amounts = find_amounts(configs, simulated=True)
        times = plan_times(planned, stages, models, amounts, machine)
        predicted = {found.stage: found for found in times}
        print(
            "\n| stage | op by op, ms a sample | planned | measured | measured / planned |\n|---|---|---|---|---|"
        )
        for stage, found in measured(machine):
            plan = predicted[stage]
            record.measurements.append(found)
            each = 1 if stage == "reconstruct" else found.batch
            ours, theirs = 1e3 * plan.step_s / each, 1e3 * found.step_s / found.batch
            least = 1e3 * found.op_by_op_s / found.batch
            print(f"| {stage} | {least:.3g} | {ours:.3g} | {theirs:.3g} | {theirs / ours:.2f} |", flush=True)
    if options.json is not None:
        write_record(options.json, record)


if __name__ == "__main__":
    main()

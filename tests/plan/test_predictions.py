"""Predicted against measured time, of every stage on an H100 and on a processor: within 30 %."""

from dataclasses import replace

import pytest

from cadiff.benchmark.record import MEASURED, efficiencies, read_record
from cadiff.experiments import preset_configs
from cadiff.plan import Amounts, Efficiency, find_models, plan_stages, plan_times
from cadiff.plan.choose import memory
from cadiff.plan.machines import KNOWN
from cadiff.plan.stages import STEPS, guided_rows, sampler_step
from cadiff.plan.time import ASSUMED, nearest, update_s

WITHIN = 1.3
PLMS = {"scheduler": "pndm", "num_inference_steps": 250, "guidance_scale": 1.0}


def close(predicted, measured):
    return 1 / WITHIN < predicted / measured < WITHIN


@pytest.fixture(scope="module")
def h100():
    return read_record(MEASURED / "h100.json")


@pytest.fixture(scope="module")
def paper():
    configs = preset_configs("paper/god-sub-03")
    return configs, find_models(configs, prior="published", image_mae="published")


@pytest.mark.parametrize(
    ("stage", "batch", "other"),
    [("attend", 16, 128), ("attend", 128, 16), ("diffuse", 5, 25), ("diffuse", 25, 5)],
)
def test_on_an_h100_a_batch_is_predicted_from_what_another_batch_took(h100, stage, batch, other):
    found = next(f for f in h100.measurements if (f.stage, f.batch) == (stage, batch))
    known = [e for e in efficiencies(h100) if (e.stage, e.batch) == (stage, other)]
    assert close(found.op_by_op_s / nearest(known, stage, batch).value, found.step_s)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_what_the_record_counted_is_what_is_counted_now_and_memory_is_predicted(h100, paper, number):
    configs, models = paper
    found = h100.measurements[number]
    step = STEPS[found.stage](configs[found.stage], models, found.batch, bf16=True)
    counted = h100.machine.replaying().op_by_op(step.cost) + update_s(step.trained, h100.machine)
    assert counted == pytest.approx(found.op_by_op_s, rel=0.02)
    assert close(memory(step, configs[found.stage]), found.reserved)


def test_phase_1_on_an_h100_is_predicted_from_phase_2(h100):
    """Both are transformers in bf16; of phase 1 one batch was measured."""
    found = next(f for f in h100.measurements if f.stage == "contrast")
    share = max((e for e in efficiencies(h100) if e.stage == "attend"), key=lambda e: e.batch).value
    assert close(found.op_by_op_s / share, found.step_s)


@pytest.mark.parametrize("compiled", [True, False])
def test_drawing_on_an_h100_is_predicted_from_what_another_batch_took(h100, paper, compiled):
    configs, models = paper
    config = configs["reconstruct"].model_copy(update=PLMS)
    small, large = sorted((f for f in h100.by_hand if f.compiled == compiled), key=lambda f: f.batch)
    cost = sampler_step(config, models, large.batch, bf16=True).cost * 251
    counted = h100.machine.op_by_op(cost)
    assert counted == pytest.approx(large.op_by_op_s, rel=0.02)
    assert close(counted * small.step_s / small.op_by_op_s, large.step_s)


def test_each_demo_stage_on_a_processor_is_predicted_without_having_been_measured():
    record = read_record(MEASURED / "epyc.json")
    configs = preset_configs("demo")
    configs["reconstruct"] = configs["reconstruct"].model_copy(
        update={"num_inference_steps": 4, "controls": ()}
    )
    models = find_models(configs)
    stages = plan_stages(configs, models, bf16=False)
    amounts = Amounts(None, None, None)
    times = plan_times(configs, stages, models, amounts, record.machine)
    assert {found.efficiency.source for found in times} == {"assumed"}
    measured = {found.stage: found for found in record.measurements}
    assert measured.keys() == STEPS.keys()
    for time in times:
        found = measured[time.stage]
        seconds = found.step_s / found.batch if time.stage == "reconstruct" else found.step_s
        assert close(time.step_s, seconds), (time.stage, time.step_s / seconds)


def test_drawing_that_is_compiled_is_planned_by_what_was_measured_compiled(h100):
    known = efficiencies(h100)
    assert nearest(known, "reconstruct", 50, compiled=True).compiled is True
    assert nearest(known, "reconstruct", 50, compiled=False).compiled is False
    assert nearest([known[-1]], "reconstruct", 50, compiled=not known[-1].compiled) == known[-1]
    assert nearest([], "reconstruct", 50) == Efficiency("reconstruct", 50, ASSUMED, "assumed")


def test_a_replayed_step_is_no_slower_and_older_records_stay_as_they_were():
    h100 = KNOWN["h100"]
    assert h100.replaying().launch < h100.launch
    assert replace(h100, replay=None).replaying().launch == h100.launch


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"guidance_scale": 1.0, "controls": ("prior_only",)}, 0),
        ({"controls": ()}, 48),
        ({"controls": ("shuffled",)}, 48),
        ({"controls": ("prior_only", "shuffled", "autoencoded")}, 32),
        ({"controls": ("prior_only",), "repeats": (1, 2)}, 36),
    ],
)
def test_pictures_under_the_null_are_counted_once(settings, rows):
    config = preset_configs("demo")["reconstruct"].model_copy(update={"guidance_scale": 2.5, **settings})
    assert guided_rows(config, 48) == rows

"""Predicted time: straight in steps and batch, shorter on a faster machine, and one sentence where a name is unknown."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cadiff import cli
from cadiff.benchmark.record import Measurement, Record, write_record
from cadiff.contrast.mae import FmriMaeConfig
from cadiff.errors import ConfigError
from cadiff.experiments import preset_configs
from cadiff.plan import Amounts, Efficiency, Models, find_amounts, find_machine, plan_stages, plan_times
from cadiff.plan.cost import Cost
from cadiff.plan.machines import KNOWN, Machine, measure_machine
from cadiff.plan.memory import Step
from cadiff.plan.stages import STEPS, decoder_step
from cadiff.plan.time import ASSUMED, drawing_cost, nearest

SLOW = Machine("slow", bf16=1e9, tf32=1e9, fp32=1e9, bandwidth=1e12, launch=0.0)
"""So slow at arithmetic that nothing else takes time."""
AMOUNTS = Amounts(phase_1=1000, trials=400, stimuli=10)


@pytest.fixture(scope="module")
def configs():
    return preset_configs("demo")


@pytest.fixture(scope="module")
def models(configs):
    return Models(FmriMaeConfig(**configs["contrast"].mae.model_dump(), num_voxels=320))


@pytest.fixture(scope="module")
def stages(configs, models):
    return plan_stages(configs, models, bf16=False)


def times(configs, stages, models, machine=SLOW, efficiencies=(), drawing=False):
    """By stage; without `drawing`, whose counting takes longest, only of those that train."""
    stages = [stage for stage in stages if drawing or stage.stage != "reconstruct"]
    found = plan_times(configs, stages, models, AMOUNTS, machine, efficiencies)
    return {time.stage: time for time in found}


def test_twice_the_steps_take_twice_the_time(configs, stages, models):
    once = times(configs, stages, models)
    fit = configs["diffuse"].fit
    longer = fit.model_copy(update={"steps": 2 * fit.steps})
    twice = times(
        {**configs, "diffuse": configs["diffuse"].model_copy(update={"fit": longer})}, stages, models
    )
    assert twice["diffuse"].total_s == pytest.approx(2 * once["diffuse"].total_s)
    assert twice["attend"].total_s == once["attend"].total_s


@pytest.mark.parametrize("stage", ["contrast", "attend"])
def test_twice_the_batch_takes_twice_the_time_of_a_step(configs, models, stage):
    one, two = (
        SLOW.op_by_op(STEPS[stage](configs[stage], models, size, bf16=False).cost) for size in (8, 16)
    )
    assert two == pytest.approx(2 * one, rel=0.1)  # the losses' own matrices grow faster


def test_a_batch_in_parts_takes_the_time_of_its_parts(configs, stages, models):
    parts = [replace(stage, accumulate=3) if stage.stage == "attend" else stage for stage in stages]
    once, thrice = times(configs, stages, models), times(configs, parts, models)
    assert thrice["attend"].step_s == pytest.approx(3 * once["attend"].step_s, rel=0.01)


def test_pictures_are_conditions_of_stimuli_and_their_time_is_calls_and_decoding(configs, stages, models):
    config = configs["reconstruct"]
    found = times(configs, stages, models, drawing=True)["reconstruct"]
    assert found.count == 10 * 2 * 3  # two samples of brain, prior only and shuffled
    batch = next(stage for stage in stages if stage.stage == "reconstruct").batch_size
    more = drawing_cost(
        config.model_copy(update={"num_inference_steps": 40}), models, batch, bf16=False
    ).flops
    fewer = drawing_cost(config, models, batch, bf16=False).flops
    one_step = drawing_cost(
        config.model_copy(update={"num_inference_steps": 1}), models, batch, bf16=False
    ).flops
    assert more - fewer == pytest.approx((fewer - one_step) * 20 / 19)
    assert found.step_s == pytest.approx(fewer / 1e9 / batch / ASSUMED, rel=0.01)


def test_drawing_in_bf16_is_counted_at_the_rate_of_bf16(configs, stages, models):
    few = {**configs, "reconstruct": configs["reconstruct"].model_copy(update={"num_inference_steps": 4})}
    quick = replace(SLOW, bf16=100e9)
    one = [replace(stage, batch_size=1) for stage in stages]
    single = times(few, one, models, quick, drawing=True)["reconstruct"].step_s
    half = times(few, [replace(stage, bf16=True) for stage in one], models, quick, drawing=True)
    assert half["reconstruct"].step_s < 0.8 * single


def test_pictures_are_decoded_in_the_precision_of_drawing(configs, models):
    counted = [decoder_step(configs["reconstruct"], models, 1, bf16=bf16).cost for bf16 in (False, True)]
    assert counted[1].flops == counted[0].flops
    quick = replace(SLOW, bf16=100e9)
    assert quick.op_by_op(counted[1]) < 0.1 * quick.op_by_op(counted[0])


def test_epochs_are_counted_in_the_trials_there_are(configs):
    fit = configs["diffuse"].fit.model_copy(update={"epochs": 5, "steps": 1000, "batch_size": 16})
    config = configs["diffuse"].model_copy(update={"fit": fit})
    assert AMOUNTS.steps("diffuse", config) == 5 * 400 / 16
    assert Amounts(None, None, None).steps("diffuse", config) is None


def test_a_simulated_subject_is_counted_from_its_settings(configs):
    found = find_amounts(configs, simulated=True)
    assert (found.trials, found.stimuli, found.phase_1) == (420, 24, 420 + 600)
    assert find_amounts(configs) == Amounts(None, None, None)


def test_a_measured_efficiency_takes_the_place_of_the_assumed_one(configs, stages, models):
    known = [Efficiency("contrast", 64, 0.25, "here"), Efficiency("contrast", 4, 0.1, "here")]
    guess, found = times(configs, stages, models), times(configs, stages, models, efficiencies=known)
    assert found["contrast"].step_s == pytest.approx(guess["contrast"].step_s * ASSUMED / 0.25)
    assert found["contrast"].efficiency.source == "here"
    assert found["attend"].efficiency.source == "assumed"
    assert nearest(known, "contrast", 10).batch == 4 and nearest(known, "contrast", 20).batch == 64


def test_a_better_gpu_is_faster(configs, stages, models):
    totals = [
        sum(time.step_s for time in times(configs, stages, models, machine=KNOWN[name]).values())
        for name in ("h100", "a100")
    ]
    assert totals[0] < totals[1]


def test_an_unknown_machine_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"No machine 'h1000'; --gpu takes h100, a100, 4090, cpu or this\."):
        find_machine("h1000")
    result = CliRunner().invoke(cli.app, ["plan", "demo", "--gpu", "h1000"])
    assert result.exit_code == 2 and result.stderr.startswith("error: No machine 'h1000'")


def test_this_machine_is_measured():
    found = measure_machine()
    assert found.source == "measured" and found.launch < 1e-3
    assert all(rate > 1e8 for rate in (found.bf16, found.tf32, found.fp32, found.bandwidth))


def test_the_command_says_what_is_assumed_and_what_is_not_known(monkeypatch):
    step = Step(1000, 500, 2**20, Cost())
    monkeypatch.setattr("cadiff.plan.choose.STEPS", {stage: lambda *_, **__: step for stage in STEPS})
    monkeypatch.setattr("cadiff.plan.time.drawing_cost", lambda *_, **__: Cost())
    demo = CliRunner().invoke(cli.app, ["plan", "demo", "--gpu", "a100"])
    assert demo.exit_code == 0, demo.output
    assert "0.50 assumed" in demo.output and "?" not in demo.output
    paper = CliRunner().invoke(cli.app, ["plan", "paper/god-sub-03", "--gpu", "a100"])
    assert "give --dataset and --corpus" in paper.output and " ? " in paper.output
    plain = CliRunner().invoke(cli.app, ["plan", "demo"])
    assert "efficiency" not in plain.output


def test_what_was_measured_on_a_gpu_and_shipped_takes_the_place_of_assumptions(monkeypatch, tmp_path):
    step = Step(1000, 500, 2**20, Cost())
    monkeypatch.setattr("cadiff.plan.choose.STEPS", {stage: lambda *_, **__: step for stage in STEPS})
    monkeypatch.setattr("cadiff.plan.time.drawing_cost", lambda *_, **__: Cost())
    monkeypatch.setattr("cadiff.benchmark.record.MEASURED", tmp_path)
    numbers = {
        "step_s": 2.0,
        "slowest_s": 2.0,
        "first_s": 3.0,
        "memory": 1.0,
        "reserved": 1.0,
        "op_by_op_s": 0.5,
    }
    found = Measurement("diffuse", "batch 16", 16, "bf16", True, "samples", repeats=1, steps=1, **numbers)
    machine = replace(KNOWN["h100"], name="an H100", source="measured")
    write_record(tmp_path / "h100.json", Record(machine, "paper", {}, [found]))
    result = CliRunner().invoke(cli.app, ["plan", "demo", "--gpu", "h100"])
    rows = {line.split()[0]: line for line in result.output.splitlines() if line}
    assert rows["diffuse"].endswith("0.25") and rows["attend"].endswith("0.50 assumed")
    assert "Time on an H100 (rates: measured)" in result.output


def test_what_a_processor_reached_says_nothing_about_a_gpu(tmp_path):
    machine = replace(SLOW, name="a processor", device="cpu")
    file = write_record(tmp_path / "cpu.json", Record(machine, "demo", {}))
    result = CliRunner().invoke(cli.app, ["plan", "demo", "--gpu", "a100", "--measured", str(file)])
    assert result.exit_code == 2
    assert "measured on a processor (cpu), which says nothing about NVIDIA A100" in result.stderr

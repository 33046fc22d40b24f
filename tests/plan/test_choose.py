"""Batches that fit: the same step in smaller parts, contrasts never split, and one sentence where nothing fits."""

import pytest

from cadiff.contrast.mae import FmriMaeConfig
from cadiff.errors import ConfigError
from cadiff.experiments import stage_config
from cadiff.plan import Models, plan_stages, with_plan
from cadiff.plan.choose import CONTEXT, GIB, memory
from cadiff.plan.memory import OVERHEAD, Step
from cadiff.plan.stages import STEPS

MIB = 2**20


@pytest.fixture(scope="module")
def configs():
    return {stage: stage_config(stage, "demo") for stage in STEPS}


@pytest.fixture(scope="module")
def models(configs):
    return Models(FmriMaeConfig(**configs["contrast"].mae.model_dump(), num_voxels=320))


@pytest.fixture
def counted(monkeypatch):
    """Stages that take 100 MiB and 10 more a sample."""
    tried = []

    def step(config, models, batch, *, bf16):
        tried.append(batch)
        return Step(1000, 0, (100 + 10 * batch) * MIB)

    monkeypatch.setattr("cadiff.plan.choose.STEPS", dict.fromkeys(STEPS, step))
    return tried


def gib(batch):
    """What `counted` stages need, in GiB."""
    return (CONTEXT + OVERHEAD * (100 + 10 * batch) * MIB) / GIB


def test_the_real_stages_keep_their_batches_without_a_limit(configs, models):
    plan = plan_stages(configs, models)
    assert [part.stage for part in plan] == list(STEPS)
    assert with_plan(configs, plan) == configs
    contrast, attend, diffuse, reconstruct = plan
    assert 0 < contrast.trained < contrast.parameters and contrast.memory < attend.memory
    assert diffuse.trained < 0.2 * diffuse.parameters and reconstruct.trained == 0
    assert all(part.memory > CONTEXT + OVERHEAD * 4 * part.parameters for part in plan)


@pytest.mark.parametrize(
    ("asked", "device", "multiplies", "bf16"),
    [
        ("native", "cpu", True, True),
        ("native", "cpu", False, False),
        ("native", "cuda", False, True),
        ("auto", "cpu", True, False),
        ("bf16", "cpu", False, True),
        ("fp32", "cuda", True, False),
    ],
)
def test_a_stage_is_counted_in_the_precision_that_it_will_run_in(
    asked, device, multiplies, bf16, configs, models, counted, monkeypatch
):
    monkeypatch.setattr("cadiff.diffuse.precision.has_bf16", lambda: multiplies)
    drawn = configs["reconstruct"].model_copy(update={"precision": asked})
    tuned = configs["diffuse"].fit.model_copy(update={"precision": "fp32"})
    tuned = configs["diffuse"].model_copy(update={"fit": tuned})
    changed = {**configs, "reconstruct": drawn, "diffuse": tuned}
    plan = {part.stage: part.bf16 for part in plan_stages(changed, models, device=device)}
    on_gpu = device == "cuda"
    assert plan == {"contrast": on_gpu, "attend": on_gpu, "diffuse": False, "reconstruct": bf16}
    assert {part.bf16 for part in plan_stages(changed, models, device=device, bf16=True)} == {True}


def test_on_a_small_card_a_batch_is_taken_in_equal_parts(configs, models, counted):
    plan = {part.stage: part for part in plan_stages(configs, models, vram=gib(64))}
    assert plan["contrast"].batch_size == 64 and plan["reconstruct"].batch_size == 48
    configs = {**configs, "contrast": configs["contrast"].model_copy(update={"fit": configs["attend"].fit})}
    plan = {part.stage: part for part in plan_stages(configs, models, vram=gib(16))}
    assert (plan["diffuse"].batch_size, plan["diffuse"].accumulate) == (16, 1)
    assert (plan["reconstruct"].batch_size, plan["reconstruct"].accumulate) == (16, 1)


@pytest.mark.parametrize(("room", "batch", "parts"), [(15.5, 8, 2), (7, 4, 4), (2, 2, 8)])
def test_the_largest_part_that_fits_is_found_with_few_tries(configs, models, counted, room, batch, parts):
    small = {**configs, "contrast": configs["contrast"].model_copy(update={"fit": SMALLEST})}
    plan = plan_stages(small, models, vram=gib(room))
    diffuse = next(part for part in plan if part.stage == "diffuse")
    assert (diffuse.batch_size, diffuse.accumulate) == (batch, parts)
    assert diffuse.memory <= gib(room) * GIB
    assert len(counted) < 25


SMALLEST = stage_config("contrast", "demo", ["fit.batch_size=2"]).fit


def test_what_does_not_fit_is_one_sentence_with_what_would(configs, models, counted):
    with pytest.raises(ConfigError, match=r"contrast needs about .* batches of 64.*batch_size=30, which has"):
        plan_stages(configs, models, vram=gib(30.5))
    small = {**configs, "contrast": configs["contrast"].model_copy(update={"fit": SMALLEST})}
    with pytest.raises(ConfigError, match=r"contrast needs about .* batches of 2,"):
        plan_stages(small, models, vram=gib(0.5))


def test_the_optimiser_and_an_average_of_the_weights_are_counted(configs):
    step = Step(20, 10, 100)
    plain = configs["attend"]
    averaged = plain.model_copy(update={"fit": plain.fit.model_copy(update={"ema_decay": 0.9})})
    assert memory(step, plain) == pytest.approx(CONTEXT + OVERHEAD * (100 + 80))
    assert memory(step, averaged) == pytest.approx(CONTEXT + OVERHEAD * (100 + 120))
    assert memory(step, configs["reconstruct"]) == pytest.approx(CONTEXT + OVERHEAD * 180)

"""Every stage timed at a tiny size: positive and finite, what was counted agrees, and the record comes back as it was written."""

import json
import math
import runpy
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from cadiff import cli
from cadiff.benchmark import STAGES, Case, cases_of, efficiencies, markdown, read_record, run_benchmark
from cadiff.benchmark import machine as machine_module
from cadiff.benchmark.record import write_record
from cadiff.errors import ArtifactError, MissingExtraError
from cadiff.experiments import preset_configs
from cadiff.plan import find_models
from cadiff.plan.machines import Machine

MACHINE = Machine("test", 8e12, 4e12, 2e12, 1e12, 1e-6, device="cpu", source="measured")
SMALL = [
    "contrast.num_voxels=64",
    "contrast.mae.embed_dim=16",
    "contrast.mae.decoder_embed_dim=16",
    "contrast.mae.depth=1",
    "contrast.mae.decoder_depth=1",
    "reconstruct.num_inference_steps=2",
    "reconstruct.num_images_per_trial=2",
    "evaluate.judge=null",
    "evaluate.num_bootstrap=100",
]


@pytest.fixture(scope="module")
def record():
    configs = preset_configs("demo", SMALL)
    cases = [Case("contrast", 4), Case("attend", 2), Case("diffuse", 1), Case("reconstruct", 3)]
    cases += [Case("evaluate", 10), Case("data", 8)]
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cadiff.benchmark.suite.measure_machine", lambda device: MACHINE)
        found = run_benchmark(
            cases,
            configs,
            find_models(configs),
            size="tiny",
            seconds=0.02,
            repeats=2,
            keep=lambda record: kept.append(len(record.measurements)),
        )
    assert kept == [1, 2, 3, 4, 5, 6]
    return found


def test_every_stage_gives_positive_finite_numbers(record):
    assert [found.stage for found in record.measurements] == list(STAGES)
    assert record.skipped == {}
    for found in record.measurements:
        for value in (found.step_s, found.first_s, found.rate, found.memory):
            assert value > 0 and math.isfinite(value)
        assert found.slowest_s >= found.step_s
        assert found.rate == pytest.approx(found.batch / found.step_s)


def test_what_networks_do_is_counted_and_compared_with_the_machine(record):
    counted = [found for found in record.measurements if found.flops]
    assert [found.stage for found in counted] == ["contrast", "attend", "diffuse", "reconstruct"]
    for found in counted:
        assert 0 < found.floor_s <= found.op_by_op_s
        assert found.floor_s >= found.flops / MACHINE.bf16
        assert found.share == pytest.approx(found.floor_s / found.step_s)
    by_stage = {e.stage: e for e in efficiencies(record)}
    assert by_stage.keys() == {found.stage for found in counted}
    assert all(e.source == "test" and e.value > 0 for e in by_stage.values())


def test_the_record_comes_back_as_it_was_written(record, tmp_path):
    assert read_record(write_record(tmp_path / "record.json", record)) == record


def test_another_file_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "other.json"
    for text in (json.dumps({"kind": "encoder"}), "[1]", "no json", "null"):
        path.write_text(text)
        with pytest.raises(
            ArtifactError, match=r"other\.json is no benchmark .*cadiff benchmark --json FILE"
        ):
            read_record(path)
    with pytest.raises(ArtifactError, match=r"is not there: .*cadiff benchmark --json FILE"):
        read_record(tmp_path / "none.json")


def test_the_profile_names_the_calls(tmp_path):
    configs = preset_configs("demo", SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cadiff.benchmark.suite.measure_machine", lambda device: MACHINE)
        run_benchmark(
            [Case("contrast", 4)],
            configs,
            find_models(configs),
            size="tiny",
            seconds=0.01,
            repeats=1,
            profile_to=tmp_path,
        )
    assert "aten::addmm" in (tmp_path / "contrast-4.txt").read_text()


@pytest.mark.parametrize(
    ("error", "said"),
    [(torch.cuda.OutOfMemoryError("no"), "out of memory"), (MissingExtraError("take cadiff[eval]"), "eval")],
)
def test_what_cannot_run_is_said_and_the_others_go_on(monkeypatch, error, said):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("cadiff.benchmark.suite.measure_machine", lambda device: MACHINE)
    monkeypatch.setattr("cadiff.benchmark.suite.time_training", fail)
    configs = preset_configs("demo", SMALL)
    cases = [Case("contrast", 4), Case("data", 8)]
    found = run_benchmark(cases, configs, find_models(configs), size="tiny", seconds=0.01, repeats=1)
    assert said in found.skipped["contrast, batch 4"]
    assert [m.stage for m in found.measurements] == ["data"]
    assert said in markdown(found, "cadiff benchmark")


def test_the_papers_cases_have_its_batches_and_goals():
    configs = preset_configs("demo")
    cases = cases_of(STAGES, "paper", configs)
    assert [case.batch for case in cases if case.stage == "diffuse"] == [5, 25]
    fewer = cases_of(["diffuse", "reconstruct"], "paper", configs, [5, 7])
    assert [(case.stage, case.batch) for case in fewer] == [
        ("diffuse", 5),
        ("diffuse", 7),
        *[("reconstruct", batch) for _ in range(2) for batch in (5, 7)],
    ]
    assert fewer[0].goal == 230 and fewer[1].goal is None
    assert {case.settings["scheduler"] for case in fewer[2:]} == {"pndm", "dpm++"}


def test_only_the_papers_sizes_are_compared_with_the_goals(record):
    contrast = replace(record.measurements[0], batch=250, step_s=0.25)  # 1,000 samples a second
    assert "released" not in markdown(record, "cadiff benchmark")
    paper = markdown(replace(record, size="paper", measurements=[contrast]), "cadiff benchmark")
    line = next(line for line in paper.splitlines() if line.startswith("| contrast"))
    assert "2,300 samples/s, 40 GiB" in line and "465 samples/s" in line and line.endswith("| 2.2 |")


def test_the_command_refuses_another_stage_in_a_sentence():
    result = CliRunner().invoke(cli.app, ["benchmark", "dream"])
    assert result.exit_code == 2
    assert result.stderr == (
        "error: No stage 'dream' to time; there are contrast, attend, diffuse, reconstruct, evaluate, data.\n"
    )


def test_the_command_writes_json_and_prints_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("cadiff.benchmark.suite.measure_machine", lambda device: MACHINE)
    small = [word for override in SMALL for word in ("--set", override)]
    arguments = [
        "contrast",
        "--batch",
        "4",
        "--seconds",
        "0.1",
        "--repeats",
        "1",
        "--markdown",
        "--precision",
        "bf16",
    ]
    out = tmp_path / "found.json"
    result = CliRunner().invoke(
        cli.app, ["benchmark", *arguments, "--size", "demo", "--json", str(out), *small]
    )
    assert result.exit_code == 0, result.output
    (found,) = read_record(out).measurements
    assert (found.batch, found.precision, found.compiled) == (4, "bf16", False)
    assert "| contrast | batch 4, bf16 |" in result.stdout
    again = CliRunner().invoke(cli.app, ["benchmark", "contrast", "--json", str(out)])
    assert again.exit_code == 2 and "found.json" in again.stderr


def test_where_the_system_does_not_say_how_much_memory_was_held_nothing_is_claimed(monkeypatch, record):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("os.path.exists", lambda _: False)
    module = runpy.run_path(str(machine_module.__file__))
    assert module["peak_memory"](torch.device("cpu")) == (0, 0)
    unknown = replace(record, measurements=[replace(found, memory=0) for found in record.measurements])
    assert " GiB |" in markdown(record, "cadiff benchmark")
    assert " GiB |" not in markdown(unknown, "cadiff benchmark")

"""The command line: help that teaches, one sentence for a user's mistake, and the next command."""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from cadiff import cli
from cadiff.cli import _how_to_go_on
from cadiff.cli.options import load
from cadiff.data.dataset import BrainDataset
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.diffuse.trials import start_labels
from cadiff.errors import DataError
from cadiff.experiments import preset_configs
from cadiff.priors.load import load_prior

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
VERBS = [[name] for name in cli.VERBS] + [["data", name] for name in cli.DATA_VERBS]
VERBS += [["prior", "train"], ["prior", "adapt"]]
VERBS += [["weights", name] for name in cli.WEIGHTS_VERBS]


def run(*arguments: object):
    return runner.invoke(cli.app, [str(a) for a in arguments])


def flags(verb: list[str]) -> set[str]:
    command = typer.main.get_command(cli.app)
    for word in verb:
        command = command.commands[word]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def test_the_verbs_are_those_of_the_manual():
    expected = "simulate contrast attend diffuse reconstruct evaluate report demo run baseline sweep plan benchmark presets "
    expected += "settings trace"
    assert set(cli.VERBS) == set(expected.split())


@pytest.mark.parametrize("verb", VERBS, ids="-".join)
def test_help_of_every_verb_shows_an_example(verb):
    result = run(*verb, "--help")
    assert result.exit_code == 0
    if verb not in (["presets"], ["data", "formats"]):
        assert f"cadiff {' '.join(verb)}" in " ".join(result.output.split())


def test_help_of_baseline_names_all_of_them():
    from cadiff.baselines import BASELINES

    shown = " ".join(run("baseline", "--help").output.split())
    assert [name for name in BASELINES if not re.search(rf"(?<![\w-]){name}(?![\w-])", shown)] == []


@pytest.mark.parametrize("verb", [["contrast"], ["attend"], ["diffuse"], ["prior", "train"]], ids="-".join)
def test_training_verbs_take_preset_set_out_and_resume(verb):
    assert {"--preset", "--set", "--out", "--resume"} <= flags(verb)


@pytest.mark.parametrize("verb", ["simulate", "reconstruct", "evaluate"])
def test_other_stages_take_preset_set_and_out(verb):
    assert {"--preset", "--set", "--out"} <= flags([verb])


def test_stages_take_a_protocol_wherever_they_take_a_preset():
    with_preset = [verb for verb in VERBS if "--preset" in flags(verb) and verb[0] != "prior"]
    assert len(with_preset) == 7
    assert all("--protocol" in flags(verb) for verb in [*with_preset, ["run"]])


def test_no_hyperparameter_became_a_flag():
    allowed = {
        "--preset", "--set", "--out", "--resume", "--dataset", "--encoder", "--prior", "--pipeline", "--images",
        "--image-mae", "--verify", "--stimuli", "--against", "--pattern", "--table", "--test", "--fraction", "--folds",
        "--by", "--seed", "--html", "--json", "--length", "--normalise", "--protocol", "--data", "--corpus", "--weights",
        "--ema", "--vram", "--precision", "--rerank", "--fitted", "--model", "--kind",
        "--jobs", "--processes", "--slurm", "--dry-run", "--page", "--list",
        "--gpu", "--measured", "--size", "--batch", "--compile", "--repeats", "--seconds", "--markdown", "--profile",
        "--reconstructions", "--judge", "--split",
    }  # fmt: skip
    assert set.union(*(flags(verb) for verb in VERBS)) <= allowed


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"cadiff \d+\.\d+\.\d+\n", result.output)


@pytest.mark.parametrize(
    "arguments",
    [
        ["contrast", "nowhere", "--set", "fit.stepz=3"],
        ["contrast", "nowhere", "--preset", "dem0"],
        ["contrast", "nowhere", "--protocol", "oficial"],
        ["contrast", "nowhere"],
        ["settings", "contras"],
        ["data", "describe", "nowhere"],
        ["data", "import", "no-such-reader", "."],
        ["evaluate", "nowhere", "--dataset", "nowhere"],
        ["baseline", "retrieval", "nowhere"],
        ["sweep", "nowhere"],
    ],
    ids=" ".join,
)
def test_a_users_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb = arguments[0]
    out = (
        ["out"]
        if arguments[:2] == ["data", "import"]
        else []
        if verb in ("settings", "data")
        else ["--out", "out"]
    )
    result = run(*arguments, *out)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_warning_is_one_line_before_what_comes_next(linear_brain, tmp_path):
    from layouts.starts import make_encoder, make_prior  # torch, which nothing else here needs at once

    encoder, prior = make_encoder(tmp_path / "encoder", num_voxels=32), make_prior(tmp_path / "prior")
    words = ["diffuse", linear_brain, "--encoder", encoder, "--prior", prior, "--out", linear_brain]
    done = subprocess.run([sys.executable, "-m", "cadiff", *map(str, words)], capture_output=True, text=True)
    warning, error = done.stderr.splitlines()
    assert warning.startswith(f"warning: {linear_brain} has 40 voxels and the encoder reads 32: ")
    assert error.startswith("error: ") and done.returncode == 2


def test_warnings_of_libraries_keep_their_place_in_the_code_and_ours_come_once():
    code = """if True:
        import warnings
        from cadiff import cli
        cli.app = lambda **_: [
            warnings.warn_explicit(text, kind, file, 7)
            for text, kind, file in (
                ("theirs", UserWarning, "torch.py"),
                ("ours, old", FutureWarning, cli.__file__),
                ("ours", UserWarning, cli.__file__),
                ("ours", UserWarning, cli.stages.__file__),
            )
        ]
        cli.run()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith(" ")]
    assert said[0] == "torch.py:7: UserWarning: theirs"
    assert re.fullmatch(r"\S+__init__.py:7: FutureWarning: ours, old", said[1])
    assert said[2:] == ["warning: ours"]


def test_an_unknown_key_is_answered_with_the_nearest_one():
    assert "did you mean 'steps'" in run("settings", "contrast", "--set", "fit.stepz=3").stderr


def test_bugs_keep_their_traceback(monkeypatch, linear_brain):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("cadiff.data.describe.describe", broken)
    result = run("data", "describe", linear_brain)
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, linear_brain, tmp_path):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cadiff.contrast.stage.contrast", interrupted)
    arguments = ["contrast", str(linear_brain), "--out", str(tmp_path / "a run")]
    monkeypatch.setattr(sys, "argv", ["cadiff", *arguments])
    result = run(*arguments)
    assert result.exit_code == 130
    command = result.stderr.strip().rpartition("with: ")[2]
    assert shlex.split(command) == ["cadiff", *arguments, "--resume"]


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ({}, "There is no checkpoint yet: start from the beginning"),
        ({"trainer/state.json": {"step": 5}}, "Go on from the last checkpoint"),
        ({"diffuse/trainer.old/state.json": {"step": 5}}, "Go on from the last checkpoint"),
        ({"contrast/run.json": {"status": "complete"}}, "Go on after the last finished stage"),
        (
            {"contrast/run.json": {"status": "running"}},
            "There is no checkpoint yet: start from the beginning",
        ),
    ],
)
@pytest.mark.parametrize("option", ["--out={}", "--out {}", "-o {}"])
def test_an_interrupted_run_says_where_it_goes_on_from(there, says, option, tmp_path):
    for name, value in there.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    arguments = ["run", "demo", *option.format(tmp_path).split(" ")]
    assert _how_to_go_on(arguments).startswith(f"{says} with: cadiff run demo")


def test_the_remedy_for_a_dataset_without_labels_works_as_it_is_printed(tmp_path, linear_brain):
    """The same --set is understood by a stage and by the whole run."""
    data = shutil.copytree(linear_brain, tmp_path / "data")
    stimuli = pd.read_csv(data / "stimuli.tsv", sep="\t").assign(label="n/a", imagenet_index="n/a")
    stimuli.to_csv(data / "stimuli.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match="label_start needs training stimuli") as refused:
        start_labels(DiffuseConfig(label_start=True), BrainDataset.open(data), load_prior())
    remedy = str(refused.value).rpartition("--set ")[2].rstrip(".")
    assert preset_configs("demo", [])["diffuse"].label_start
    assert not preset_configs("demo", [remedy])["diffuse"].label_start
    assert load("diffuse", "demo", None).label_start and not load("diffuse", "demo", [remedy]).label_start
    assert load("diffuse", None, ["diffuse.fit.seed=3"]) == load("diffuse", None, ["fit.seed=3"])


def test_data_describe_names_splits_rois_and_the_next_command(linear_brain):
    result = run("data", "describe", linear_brain, "--verify")
    assert result.exit_code == 0
    for word in ("train", "test", "V1", "V2", "48 trials x 40 voxels"):
        assert word in result.output
    assert result.output.splitlines()[-1].startswith("next: cadiff contrast ")


def test_the_doctor_leaves_with_1_when_something_is_wrong(tmp_path, linear_brain):
    sick = Path(shutil.copytree(linear_brain, tmp_path / "sick"))
    (sick / "stimuli" / "train-3.png").unlink()
    found = run("data", "doctor", sick, "--html", tmp_path / "page.html", "--json", tmp_path / "found.json")
    assert found.exit_code == 1, found.output
    assert "train-3" in found.output and (tmp_path / "page.html").is_file()
    assert json.loads((tmp_path / "found.json").read_text())
    (tmp_path / "thesis.html").write_text("mine")
    assert run("data", "doctor", sick, "--html", tmp_path / "thesis.html").exit_code == 2
    assert (tmp_path / "thesis.html").read_text() == "mine"


def test_folds_and_preparation_are_written_by_their_verbs(tmp_path, linear_brain):
    made = run("data", "split", linear_brain, "--out", tmp_path / "folds", "--folds", "3")
    assert made.exit_code == 0 and made.output.count("fold: ") == 3
    unclear = run("data", "split", linear_brain, "--out", tmp_path / "x", "--folds", "3", "--fraction", "0.5")
    assert unclear.exit_code == 2 and "exactly one of" in unclear.output
    kept = run(
        "data",
        "prepare",
        linear_brain,
        "--out",
        tmp_path / "v1",
        "--set",
        "rois=[V1]",
        "--set",
        "normalise=voxel",
    )
    assert kept.exit_code == 0 and "20 of 40 voxels kept" in kept.output, kept.output
    twice = run("data", "merge", linear_brain, linear_brain, "--out", tmp_path / "twice")
    assert twice.exit_code == 2 and not (tmp_path / "twice").exists()
    merged = run("data", "merge", linear_brain, tmp_path / "v1", "--out", tmp_path / "merged")
    assert merged.exit_code == 0 and "36 test trials were left out" in merged.output, merged.output


def test_a_dataset_passes_from_the_import_to_a_scored_baseline(tmp_path, linear_brain):
    """Each verb prints the next one; here they are followed as printed."""
    (tmp_path / "source").mkdir()
    source = tmp_path / "source"
    for name in ("betas.npy", "trials.tsv", "stimuli.tsv", "voxels.tsv"):
        (source / name).write_bytes((linear_brain / name).read_bytes())
    (source / "stimuli").symlink_to(linear_brain / "stimuli")
    imported = run("data", "import", "arrays", source, tmp_path / "data")
    assert imported.exit_code == 0, imported.output
    described = run(*shlex.split(imported.output.rpartition("next: cadiff ")[2]))
    assert described.exit_code == 0
    made = run("baseline", "ridge-pixels", tmp_path / "data", "--out", tmp_path / "ridge")
    assert made.exit_code == 0, made.output
    command = shlex.split(made.output.rpartition("next: cadiff ")[2])
    scored = run(*command, "--set", "judge=null", "--set", "num_bootstrap=100")
    assert scored.exit_code == 0, scored.output
    assert "next: cadiff report " in scored.output


def test_settings_lists_nested_keys_with_their_meaning():
    output = run("settings", "reconstruct", "--set", "num_inference_steps=7").output
    assert "num_inference_steps=7" in output
    assert "fit.steps=" in run("settings", "contrast").output


def test_a_plan_is_a_table_or_one_sentence():
    stages = ["contrast", "attend", "diffuse", "reconstruct"]
    result = run("plan", "demo", "--precision", "fp32", "--set", "contrast.num_voxels=320")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert [row[0] for row in rows if row and row[0] in stages] == stages
    assert "Matrix products in fp32." in result.output
    small = run("plan", "demo", "--vram", "0.1", "--set", "contrast.num_voxels=320")
    assert small.exit_code == 2
    assert small.stderr.startswith("error: Stage contrast needs about")


def test_what_a_drawing_names_by_a_path_is_looked_for_before_anything_is_opened(tmp_path):
    options = ("reconstruct", tmp_path, "--pipeline", tmp_path, "--out", tmp_path / "out")
    result = run(*options, "--rerank", "encoding", "--set", "rerank_features=[mine=nowhere]")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "rerank_features names nowhere, and there is no such file" in result.stderr


def test_a_wrong_dataset_is_a_data_error_for_python_users(tmp_path):
    from cadiff.data.dataset import BrainDataset

    with pytest.raises(DataError, match="not a cadiff dataset"):
        BrainDataset.open(tmp_path)


def test_a_readers_option_may_be_called_as_the_arguments_of_ours(tmp_path, linear_brain):
    for name in ("betas.npy", "trials.tsv", "stimuli"):
        (tmp_path / name).symlink_to(linear_brain / name)
    result = run("data", "import", "arrays", tmp_path, tmp_path / "data", "--set", "name=mine")
    assert result.exit_code == 0, result.output
    assert "mine" in run("data", "describe", tmp_path / "data").output


@pytest.mark.parametrize("name", ["os:getcwd", ":read", "os:nope"])
def test_what_is_no_reader_is_refused(name, tmp_path):
    result = run("data", "import", name, tmp_path, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no", "some/file"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "rust"],
)
def test_a_full_disk_is_one_sentence_that_says_how_to_go_on(error, monkeypatch, linear_brain, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cadiff.contrast.stage.contrast", full)
    arguments = ["contrast", str(linear_brain), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["cadiff", *arguments])
    result = run(*arguments)
    assert result.exit_code == 2
    assert "no space is left on the disk" in result.stderr
    assert "--resume" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_place_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "afile").write_text("text")
    result = run("run", "demo", "--out", str(tmp_path / "afile" / "x"))
    assert result.exit_code == 2 and "a part of this path is a file" in result.stderr
    assert "--resume" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_where_the_folder_of_a_result_should_be_is_one_sentence(tmp_path):
    (tmp_path / "afile").write_text("text")
    result = run("benchmark", "contrast", "--json", tmp_path / "afile" / "x.json")
    assert result.exit_code == 2 and "a file is there, where a folder should be" in result.stderr
    assert result.stderr.count("\n") == 1 and (tmp_path / "afile").read_text() == "text"


def test_presets_come_with_their_published_number_and_the_protocols():
    lines = run("presets").output.splitlines()
    (god,) = (line for line in lines if line.startswith("paper/god-sub-03 "))
    assert "25.080 %" in god and "Fig. 3" in god
    assert not any("_" in line.split(" ")[0] for line in lines)  # what others extend is not listed
    assert [line.split(" ")[0] for line in lines[-3:]] == ["default", "paper", "official"]


def test_settings_show_what_the_protocols_disagree_on():
    def lines(*options: str) -> list[str]:
        return run("settings", "contrast", *options).output.splitlines()

    official = lines("--preset", "paper/bold5000-csi2", "--protocol", "official")
    assert "preprocess.test_normalisation=pooled" in official and "fit.warmup_epochs=40.0" in official
    place = official.index("legacy_scaling=true")
    assert official[place + 2] == "    protocols: default false, paper false, official true"
    assert "legacy_scaling=false" in lines("--preset", "paper/bold5000-csi2")
    assert "legacy_scaling=false" in lines("--protocol", "official", "--set", "legacy_scaling=false")


def test_the_protocol_goes_on_to_the_next_command(monkeypatch, tmp_path):
    monkeypatch.setattr("cadiff.contrast.stage.contrast", lambda config, *_, **__: tmp_path / "encoder")
    printed = run("contrast", "data", "--protocol", "paper", "--out", tmp_path / "contrast").output
    assert "--protocol paper" in printed.rpartition("next: cadiff attend ")[2]


def test_settings_are_printed_as_set_reads_them():
    printed = dict(
        line.split("=", 1) for line in run("settings", "contrast").output.splitlines() if line[0] != " "
    )
    again = [part for key, value in printed.items() for part in ("--set", f"{key}={value}")]
    result = run("settings", "contrast", *again)
    assert result.exit_code == 0, result.output
    assert result.output == run("settings", "contrast").output


def test_the_report_of_a_baseline_stands_beside_the_report_of_the_method(monkeypatch, tmp_path):
    monkeypatch.setattr("cadiff.evaluate.stage.evaluate", lambda *arguments, **_: arguments[-1])
    pages = [
        shlex.split(run("evaluate", "r", "--dataset", "d", "--out", tmp_path / out).output)[-1]
        for out in ("evaluation", "ridge-evaluation", "scores")
    ]
    assert pages == [str(tmp_path / name) for name in ("report.html", "ridge-report.html", "scores.html")]

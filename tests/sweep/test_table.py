"""TABLE.yaml: what becomes of rows, grids, seeds and subjects; and every mistake is one sentence with its row and line."""

from pathlib import Path
from typing import Any, get_args

import pytest

from cadiff.config import Config
from cadiff.errors import UserError
from cadiff.experiments import STAGES, stage_config
from cadiff.experiments.steps import LOCAL
from cadiff.sweep.cells import Given, expand
from cadiff.sweep.plan import _configs, plan_cells, restored
from cadiff.sweep.table import read_table, shipped_tables


def cells_of(path, **given):
    return expand(read_table(path), Given(**given))[0]


def test_rows_grids_seeds_and_subjects_multiply(write):
    cells = cells_of(
        write(
            "subjects: [1, 3]\nseeds: [0, 1]\nrows:\n"
            "  - {name: a}\n"
            "  - {name: b, grid: {attend.gamma_f: [0.5, 1], diffuse.fit.steps: [3]}}\n"
            "  - {name: c, baseline: ridge-label, grid: {guidance_scale: [1, 2], seed: [5]}}\n"
        )
    )
    assert len(cells) == 2 * 2 + 2 * 4 + 2 * 2
    assert list(dict.fromkeys(cell.row for cell in cells)) == [
        "a",
        "b, gamma_f=0.5, steps=3",
        "b, gamma_f=1, steps=3",
        "c, guidance_scale=1",
        "c, guidance_scale=2",
    ]
    assert len({cell.name for cell in cells}) == len(cells)
    one = next(cell for cell in cells if cell.row.startswith("b, gamma_f=1") and cell.subject == "sim-03")
    assert one.columns == {"attend.gamma_f": 1, "diffuse.fit.steps": 3}
    assert {"attend.gamma_f=1", "diffuse.fit.steps=3", "simulate.subject=3", "reconstruct.seed=0"} <= set(
        one.overrides
    )
    assert {cell.seed for cell in cells if cell.baseline} == {5}
    assert next(cell.options for cell in cells if cell.baseline) == {"guidance_scale": 1}


def test_a_rows_own_settings_win_over_the_command_line_and_that_over_the_tables(write):
    path = write("  diffuse.fit.steps: 1\nrows:\n  - {name: a}\n  - {name: b, set: {diffuse.fit.steps: 3}}\n")
    for given, expected in (((), [1, 3]), (("diffuse.fit.steps=2",), [2, 3])):
        plans = [next(o for o in reversed(c.overrides) if "steps" in o) for c in cells_of(path, set=given)]
        assert plans == [f"diffuse.fit.steps={steps}" for steps in expected]


def test_datasets_of_subjects_by_name(write, tmp_path):
    path = write(
        "preset: p\nsimulated: demo\nsubjects: {x: {preset: px}, y: {}}\nrows:\n  - {name: a}\n  - {name: b, preset: pb}\n"
    )
    assert [cell.preset for cell in cells_of(path)] == ["demo", "demo", "pb", "pb"]
    found, remarks = expand(read_table(path), Given({"x": tmp_path}))
    assert [(cell.subject, cell.preset, cell.dataset) for cell in found] == [
        ("x", "px", tmp_path),
        ("x", "pb", tmp_path),
    ]
    assert "y: left out" in remarks[0]
    with pytest.raises(UserError, match=r"2 subjects \(x, y\): say whose"):
        cells_of(path, datasets={"": tmp_path})
    with pytest.raises(UserError, match="no such subject"):
        cells_of(path, datasets={"z": tmp_path})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{name: b, st: {}}", "unknown key 'st', did you mean 'set'"),
        ("{name: b, set: {attend.gamma_g: 1}}", "did you mean 'gamma_i'"),
        ("{name: b, set: {atend.gamma_f: 1}}", "must begin with a stage"),
        ("{name: b, set: {gamma_f: 1}}", "must begin with a stage"),
        ("{name: b, set: {attend.gamma_f: lots}}", "unable to parse"),
        ("{name: b, set: {evaluate.n_way: 5}}", "other rules than the others"),
        ("{name: b, set: {attend.fit.seed: 5}}", "is set by `seeds:`"),
        ("{name: b, set: {simulate.subject: 5}}", "is set by `subjects:`"),
        ("{name: b, grid: {attend.gamma_f: []}}", "at least 1 item"),
        ("{name: b, preset: dem0}", "No preset 'dem0'"),
        ("{name: b, baseline: ridge-lable}", "No baseline 'ridge-lable'"),
        ("{name: b, baseline: ridge-label, options: {guidance: 2}}", "has no option 'guidance'"),
        ("{name: b, baseline: ridge-label, set: {attend.gamma_f: 1}}", "is a setting of the method"),
        ("{name: b, baseline: ssae, options: {protocl: official}}", "did you mean 'protocol'"),
        ("{name: b, baseline: ic-gan}", "give its folder with --set generator"),
        ("{name: b, options: {x: 1}}", "options are for baselines"),
        ("{name: b, subjects: [9]}", "there is no subject 9"),
        (
            "{name: b, set: {reconstruct.class_images: nowhere}}",
            "reconstruct.class_images names nowhere, and",
        ),
        (
            "{name: b, set: {reconstruct.rerank_features: ['x=no/x']}}",
            "reconstruct.rerank_features names no/x, and",
        ),
        ("{name: b, set: {reconstruct.rerank_features: [gabr]}}", "no feature space 'gabr'"),
        ("{name: b, baseline: bayes, set: {simulate.images: nowhere}}", "simulate.images names nowhere, and"),
        ("{name: a}", "there is such a row already"),
        ("{name: b, preset: paper/god-sub-03}", "is about real data"),
        ("{name: b, name: c}", "'name' is there already, on line"),
        ("7", "a row is 7"),
    ],
)
def test_a_mistake_in_row_9_is_one_sentence_with_its_line(write, row, says):
    rows = "".join(f"  - {{name: {name}}}\n" for name in "astuvwxy")
    path = write(f"rows:\n{rows}  - {row}\n")
    line = path.read_text().splitlines().index(f"  - {row}") + 1
    with pytest.raises(UserError, match=says) as caught:
        plan_cells(cells_of(path))
    assert f"line {line}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_may_be_left_out_and_a_baselines_option_be_given(write, made):
    rows = "rows:\n  - {name: a, baseline: ridge-pixels}\n  - {name: b, optional: true, baseline: ic-gan}\n"
    planned, remarks = plan_cells(cells_of(write(rows)))
    assert [one.cell.row for one in planned] == ["a"] and remarks[0].startswith("b is left out: ")
    with pytest.raises(UserError, match="has no option 'sized'"):
        plan_cells(cells_of(write(rows), set=("ridge-pixels.sized=8",)))
    given = cells_of(write(rows), set=("ic-gan.generator=somewhere",))
    assert given[1].options == {"generator": "somewhere"} and given[0].options == {}
    with pytest.raises(UserError, match=r"--set 'icgan\.x=1' must begin with a stage, or a baseline"):
        cells_of(write(rows), set=("icgan.x=1",))


def test_baselines_of_the_prior_draw_as_the_method_does_unless_they_are_told_otherwise(write, made):
    table = write(
        "corpus: []\n"
        "rows:\n"
        "  - {name: CAD}\n"
        "  - {name: label, baseline: ridge-label}\n"
        "  - {name: told, baseline: true-label, options: {guidance_scale: 4}}\n"
        "  - {name: pixels, baseline: ridge-pixels}\n"
    )
    drawn = {"num_images_per_trial": 3, "num_inference_steps": 7, "guidance_scale": 1.5}
    given = (*(f"reconstruct.{name}={value}" for name, value in drawn.items()), "true-label.scheduler=ddim")
    planned, _ = plan_cells(cells_of(table, set=given))
    method, label, told, pixels = planned
    drawn["scheduler"] = method.configs["reconstruct"].scheduler
    assert label.as_json()["options"] == drawn
    assert told.as_json()["options"] == {**drawn, "guidance_scale": 4, "scheduler": "ddim"}
    assert pixels.as_json()["options"] == {}


def test_files_among_a_baselines_options_count_by_content(write, made, tmp_path):
    def key(name, content):
        path = tmp_path / name
        path.write_text(content)
        rows = f"rows:\n  - {{name: a, baseline: bayes, options: {{images: {path}}}}}\n"
        return plan_cells(cells_of(write(rows)))[0][0].keys["reconstruct"]

    assert key("x", "same") == key("y", "same") != key("x", "other")


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("simulate", "simulate.classifier=PATH"),
        ("simulate", "simulate.classifier=timm:PATH"),
        ("reconstruct", "reconstruct.class_images=PATH"),
        ("reconstruct", "reconstruct.rerank=PATH"),
        ("reconstruct", "reconstruct.rerank_features=[pixels, 'mine=PATH']"),
        ("evaluate", "evaluate.judge=PATH"),
        ("evaluate", "evaluate.eyes={mine: 'timm:PATH', lpips: PATH}"),
        ("reconstruct", "bayes.features=[pixels, 'mine=PATH']"),
    ],
)
def test_what_settings_name_by_a_path_counts_by_content_and_not_by_place(
    write, made, tmp_path, stage, setting
):
    def keys(name, content):
        path = tmp_path / name / "weights"
        path.mkdir(parents=True, exist_ok=True)
        (path / "file").write_text(content)
        rows = "rows:\n  - {name: a" + (", baseline: bayes}\n" if setting.startswith("bayes") else "}\n")
        given = setting.replace("PATH", str(path))
        return plan_cells(cells_of(write(rows), set=(given,)))[0][0].keys

    first, elsewhere, changed = keys("x", "same"), keys("y", "same"), keys("x", "other")
    assert first == elsewhere and first[stage] != changed[stage]
    assert (first["simulate"] == changed["simulate"]) == (stage != "simulate")


def test_every_setting_that_is_text_is_known_as_a_path_or_as_a_word():
    """A new one must be put into `LOCAL`, or here."""
    words = {"preset", "voxels_per_roi", "roi_dims", "rois", "only_rois", "without_rois", "headline"}

    def texts(cls):
        for name, field in cls.model_fields.items():
            kinds, parts = [field.annotation], []
            while kinds:
                parts.append(kinds.pop())
                kinds += get_args(parts[-1])
            for part in parts:
                if part in (str, Path):
                    yield name
                elif isinstance(part, type) and issubclass(part, Config):
                    yield from texts(part)

    steps = [stage_config(stage, None) for stage in STAGES if stage != "prior"]
    assert {name for config in steps for name in texts(type(config))} == words | {*LOCAL} - {"options"}


def test_a_folder_that_is_called_like_a_word_of_the_settings_is_no_path(write, made, tmp_path, monkeypatch):
    rows = (
        "rows:\n  - {name: a, set: {reconstruct.rerank: encoding, reconstruct.rerank_features: [pixels]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    table, given = write(rows), ("evaluate.judge=efficientnet-lite2",)
    before = plan_cells(cells_of(table, set=given))[0][0].keys
    for name in ("encoding", "pixels", "efficientnet-lite0", "efficientnet-lite2", "test", "realistic"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("anything")
    assert plan_cells(cells_of(table, set=given))[0][0].keys == before


def test_a_word_among_a_baselines_options_wins_over_a_folder_of_its_name(write, made, tmp_path, monkeypatch):
    options = ["images: training", "images: prior, prior: shipped, output: map, fit: pad", "features: gabor"]
    options += ["features: [gabor, pixels]"]
    rows = "".join(f"  - {{name: r{i}, baseline: bayes, options: {{{o}}}}}\n" for i, o in enumerate(options))
    rows += "  - {name: gan, baseline: ic-gan, options: {generator: somewhere, matching: training, noise: drawn}}\n"
    rows += "  - {name: label, baseline: ridge-label, options: {scheduler: ddim}}\n"
    monkeypatch.chdir(tmp_path)

    def plans():
        return plan_cells(cells_of(write(f"rows:\n{rows}")))[0]

    before = plans()
    for name in ("training", "prior", "shipped", "map", "pad", "gabor", "pixels", "drawn", "ddim"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("anything")
    assert [one.keys for one in plans()] == [one.keys for one in before]
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "file").write_text("a generator")
    assert [i for i, one in enumerate(plans()) if one.keys != before[i].keys] == [len(options)]


def test_a_folder_that_is_called_like_a_word_is_given_with_its_place(write, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training").mkdir()

    def planned(content):
        (tmp_path / "training" / "file").write_text(content)
        rows = "rows:\n  - {name: a, baseline: bayes, options: {images: ./training}}\n"
        return plan_cells(cells_of(write(rows)))[0][0]

    first, other = planned("same"), planned("other")
    assert first.keys["reconstruct"] != other.keys["reconstruct"]
    given: dict[str, Any] = {}
    monkeypatch.setattr("cadiff.baselines.stage.run_baseline", lambda *a, **options: given.update(options))
    steps, _ = restored(first.as_json())
    step = next(step for step in steps if step.kind == "baseline")
    step.run({"simulate": tmp_path}, tmp_path / "out", False)
    assert given["images"] == "./training"  # the bare word would be the pictures of the training trials


def test_a_text_option_of_anyones_own_baseline_may_be_a_file(write, made, tmp_path, monkeypatch):
    (tmp_path / "own_words.py").write_text(
        "from __future__ import annotations\nfrom typing import Literal\n\n\nclass Own:\n    @classmethod\n"
        "    def fit(cls, dataset: Dataset, rows, *, weights: str = 'usual', how: Literal['fast'] = 'fast', **more): ...\n"
        "    def reconstruct(self, betas, *, stimulus_ids, repeats): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("weights", "usual", "further"):
        (tmp_path / name).write_text("first")
    rows = "rows:\n  - {name: a, baseline: 'own_words:Own', options: {%s}}\n"

    def key(options):
        return plan_cells(cells_of(write(rows % options)))[0][0].keys["reconstruct"]

    for options, is_file in (
        ("weights: weights", True),
        ("further: further", True),
        ("weights: usual", False),
    ):
        before = key(options)
        (tmp_path / options.partition(": ")[2]).write_text("other")
        assert (key(options) != before) == is_file, options


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rows: []\n", "has no rows"),
        ("", "has no rows"),
        ("rowz:\n  - {name: a}\n", "has no rows"),
        ("sedes: [1]\nrows:\n  - {name: a}\n", "unknown key 'sedes', did you mean 'seeds'"),
        (
            "reference: b\nrows:\n  - {name: a}\n",
            "reference 'b' is no row, did you mean|reference 'b' is no row",
        ),
        ("seeds: [-1]\nrows:\n  - {name: a}\n", "seeds.*greater than or equal to 0"),
        ("seeds: 3\nrows:\n  - {name: a}\n", "seeds: input should be a list"),
        ("rows:\n  - {name: a, set: }\n", "set: input should be a group of settings"),
        ("seeds: []\nrows:\n  - {name: a}\n", "seeds.*at least 1 item"),
        ("rows:\n  - {name: a, grid: {seed: [0, -1]}}\n", "seed -1 is not a whole number from 0 on"),
        ("rows:\n  - {name: a, columns: {hours: .nan}}\n", "finite"),
        ("subjects: 5\nrows:\n  - {name: a}\n", "subjects is 5, expected a list"),
        ("subjects: {x: 5}\nrows:\n  - {name: a}\n", "subjects, x: found 5"),
        ("subjects: {x: {datset: y}}\nrows:\n  - {name: a}\n", "subjects, x: unknown key 'datset', did you"),
        ("seeded: [evaluate]\nrows:\n  - {name: a}\n", "'evaluate' is not one of"),
        ("rows: [\n", "not valid YAML"),
    ],
)
def test_a_wrong_table_is_one_sentence(write, text, says):
    with pytest.raises(UserError, match=says) as caught:
        cells_of(write(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ridge-label.x=[1", r"'\[1' is not a value that YAML can read"),
        ("ridge-label.guidance_scale", "is not of the form"),
        ("ridge-label", "is not of the form"),
        ("ridge-label=5", "must begin with a stage, or a baseline"),
    ],
)
def test_an_option_of_a_baseline_that_cannot_be_read_is_one_sentence(write, given, says):
    table = write("rows:\n  - {name: a, baseline: ridge-label}\n")
    with pytest.raises(UserError, match=says) as caught:
        cells_of(table, set=(given,))
    assert "\n" not in str(caught.value)


def test_subjects_may_have_nothing_under_their_names(write, tmp_path):
    table = write("subjects:\n  sub-01:\n  sub-02:\n  3: {number: 7}\nrows:\n  - {name: a}\n")
    assert [cell.subject for cell in cells_of(table)] == ["sub-01", "sub-02", "3"]
    (given,) = cells_of(table, datasets={"sub-02": tmp_path})
    assert (given.subject, given.dataset) == ("sub-02", tmp_path)


def test_a_table_in_another_encoding_is_one_sentence(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("rows:\n  - {name: café}\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.yaml, line 2, is not UTF-8"):
        read_table(path)


def test_numbers_without_a_point_are_columns_and_options_too(write):
    """1e-4 is text to YAML's reader."""
    rows = (
        "rows:\n  - {name: a, grid: {diffuse.fit.learning_rate: [1e-4, 3.0e-4]}}\n"
        "  - {name: b, baseline: ridge-label, options: {guidance_scale: 2e0, scheduler: nan}}\n"
    )
    *method, baseline = cells_of(write(rows))
    assert [cell.columns for cell in method] == [{"diffuse.fit.learning_rate": x} for x in (1e-4, 3e-4)]
    assert baseline.columns == {"guidance_scale": 2}
    assert baseline.options == {"guidance_scale": 2, "scheduler": "nan"}


def test_an_unknown_table_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="table-2"):
        read_table("table-3")
    with pytest.raises(UserError, match=r"No table nowhere\.yaml"):
        read_table("nowhere.yaml")


@pytest.mark.parametrize("name", shipped_tables())
def test_tables_that_come_along_are_settled_on_simulated_and_on_real_subjects(name, tmp_path):
    source = read_table(name)
    subjects = source.table.subjects if isinstance(source.table.subjects, dict) else {}
    given = Given({subject: tmp_path for subject in subjects} or {"": tmp_path})
    real = expand(source, given)[0] if not isinstance(source.table.subjects, tuple) else []
    for cell in [*expand(source, Given())[0], *real]:
        if not cell.optional:
            _configs(cell)
    if name == "table-2":
        printed = {cell.row: cell.published for cell in real}
        assert len(printed) == 14 and printed["ID 14"] == 25.08 and printed["ID 1"] == 12.52

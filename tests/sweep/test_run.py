"""A sweep: what runs share is made once, what fails stops nothing else, what is there is not made again."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from filelock import FileLock

from cadiff.artifacts import provenance, read_json, write_json
from cadiff.errors import ArtifactError, ConfigError, UserError
from cadiff.experiments import steps
from cadiff.looks import NAME, read_ledger
from cadiff.runs import LOCK
from cadiff.sweep import Given, compare_made, describe, plan_sweep, run_sweep
from cadiff.sweep.drive import Work, drive
from cadiff.sweep.executors import parse_slurm
from cadiff.sweep.plan import place
from cadiff.sweep.work import make_cell

ROWS = """
corpus: []
rows:
  - {name: CAD, published: 3}
  - {name: noisier, set: {attend.gamma_f: 0.9}, published: 1}
  - {name: no phase 2, set: {stages.attend: false}, published: 4}
  - {name: guided, set: {reconstruct.guidance_scale: 3}}
  - {name: pixels, baseline: ridge-pixels}
"""


def sweep(table, out, executor, **options):
    return run_sweep(table, out, executor=executor, jobs=1, show=False, **options)


def test_a_stage_records_the_command_of_the_sweep(write, made, executor, tmp_path, monkeypatch):
    """What starts the processes of a sweep is no command of the user's; this one can be pasted into a shell."""
    table, out = write("corpus: []\nrows: [{name: pixels, baseline: ridge-pixels}]"), tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["/usr/bin/cadiff", "sweep", str(table), "--out", str(out)])
    assert not sweep(table, out, executor).failed
    (cell,) = executor.started
    for record in (
        *out.glob("stages/baseline-*/config.json"),
        *out.glob("stages/evaluate-*/evaluation.json"),
    ):
        assert read_json(record)["provenance"]["command"] == f"cadiff sweep {table} --out {out}  # {cell}"
    monkeypatch.undo()
    assert "#" not in provenance()["command"]


def test_what_is_there_is_compared_without_running_anything(write, made, executor, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match="holds no sweep"):
        compare_made(write(ROWS), out)
    sweep(write("corpus: []\nrows: [{name: CAD}]"), out, executor)
    table, before = write(ROWS), len(made)
    outcome = compare_made(table, out)
    assert outcome.failed == {} and len(outcome.missing) == outcome.num_cells - 1
    assert set(outcome.missing.values()) == {("not made", "not made yet")}
    found = pd.read_csv(out / "results.tsv", sep="\t")
    assert set(found.query("status == 'done'")["row"]) == {"CAD"}
    assert set(found.query("row != 'CAD'")["status"]) == {"not made"}
    assert {row["status"] for row in read_json(out / "results.json")["runs"]} == {"done", "not made"}
    assert outcome.page is not None and "not made yet" in outcome.page.read_text()
    assert len(made) == before


def test_a_comparison_tells_what_failed_from_what_runs_and_from_what_nobody_began(
    write, made, executor, tmp_path
):
    out, rows = tmp_path / "out", "rows:\n  - {name: a}\n  - {name: b, set: {attend.gamma_f: 13}}\n"
    rows += "  - {name: shares, set: {attend.gamma_f: 13, reconstruct.guidance_scale: 3}}\n"
    first = sweep(write(rows), out, executor)
    more = "".join(
        f"  - {{name: {name}, set: {{attend.gamma_f: 0.{i}}}}}\n" for i, name in enumerate("cde", 1)
    )
    table = write(rows + more)
    work = Work(out, plan_sweep(table).cells)

    def claims(name, status):
        """As left by a process that makes the second phase of a row; its lock."""
        planned = next(one for one in work.cells if one.cell.row == name)
        stage = next(place(s, planned.keys[s.name]) for s in planned.steps if s.name == "attend")
        work.folder(planned).mkdir(parents=True)
        write_json(work.folder(planned) / "status.json", {"status": status, "step": "attend", "stage": stage})
        return FileLock(out / "stages" / ".locks" / stage)

    claims("c", "making")  # and was cut off
    with claims("d", "making"):
        outcome = compare_made(table, out)
    assert {name.split("/")[0]: status for name, (status, _) in outcome.missing.items()} == {
        "b": "failed",
        "shares": "failed",
        "c": "not made",
        "d": "running",
        "e": "not made",
    }
    assert outcome.failed == first.failed  # also the one that was never begun
    found = pd.read_csv(out / "results.tsv", sep="\t").drop_duplicates("row").set_index("row")
    assert found["status"].to_dict() == {
        "a": "done",
        **{k.split("/")[0]: v.status for k, v in outcome.missing.items()},
    }
    assert found["error"]["d"] == "being made now: attend"
    # what failed under other settings says nothing of these
    fixed = compare_made(write(rows.replace("13", "0.7")), out)
    assert {status for status, _ in fixed.missing.values()} == {"not made"}


def test_two_comparisons_at_once_leave_a_page_and_no_error(write, made, executor, tmp_path, monkeypatch):
    """`--page` may be asked for while the sweep itself comes to its end."""
    from cadiff.sweep import results

    table, out, write_crossed = (
        write("corpus: []\nrows: [{name: CAD}]"),
        tmp_path / "out",
        results.write_crossed,
    )
    sweep(table, out, executor)

    def interrupted(*args, **options):
        page = write_crossed(*args, **options)
        monkeypatch.setattr(results, "write_crossed", write_crossed)
        assert compare_made(table, out).page == out / "comparison.html"
        return page

    monkeypatch.setattr(results, "write_crossed", interrupted)
    (out / "comparison.html").unlink()
    assert compare_made(table, out).page == out / "comparison.html"
    assert sorted(path.name for path in out.glob("*.html")) == ["comparison.html"]


def test_a_stage_is_made_once_for_all_runs_that_share_it(write, made, executor, tmp_path):
    table = write("seeds: [0, 1]\nreference: CAD\n" + ROWS.replace("corpus: []\n", ""))
    plan = describe(plan_sweep(table))
    outcome = sweep(table, tmp_path / "out", executor)
    assert outcome.failed == {} and outcome.page == tmp_path / "out" / "comparison.html"
    count = {name: made.count(name) for name in set(made)}
    # one subject and one corpus; phase 1 by seed; phase 2 by seed and gamma_f; all that differs is drawn anew
    assert count == {"simulate": 2, "contrast": 2, "attend": 4, "diffuse": 6, "reconstruct": 8}
    for name, number in count.items():
        line = next(line for line in plan if line.startswith(name))
        assert int(line.split()[1]) == number
    # ridge-pixels has a seed of its own (folds), so it is run with both
    assert outcome.num_cells == 10
    assert executor.started == list(dict.fromkeys(executor.started))

    cell = tmp_path / "out" / "cells" / "CAD" / "sim-01-seed-1"
    assert read_json(cell / "evaluation" / "evaluation.json")["kind"] == "evaluation"
    assert (cell / "report.html").is_file() and (cell / "contrast" / "encoder").is_dir()
    assert not (tmp_path / "out" / "cells" / "no-phase-2" / "sim-01-seed-1" / "attend").exists()

    found = read_json(tmp_path / "out" / "results.json")
    table_of = pd.read_csv(tmp_path / "out" / "results.tsv", sep="\t")
    own = table_of[(table_of["row"] == "CAD") & (table_of["metric"] == "pcc")]
    pooled = next(system for system in found["systems"] if system["name"] == "CAD")["metrics"]["pcc"]
    assert sorted(own["seed"]) == [0, 1] and pooled["mean"] == pytest.approx(own["mean"].mean(), abs=1e-6)
    assert found["order"]["num"] == 3 and {row["second"] for row in found["comparisons"]} == {"CAD"}


def test_the_same_again_makes_nothing_and_a_longer_table_only_what_is_new(write, made, executor, tmp_path):
    out = tmp_path / "out"
    sweep(write(ROWS), out, executor)
    made.clear()
    before = (out / "results.tsv").read_bytes()
    assert sweep(write(ROWS), out, executor).failed == {}
    assert made == [] and (out / "results.tsv").read_bytes() == before
    sweep(write(f"{ROWS}  - {{name: more, set: {{attend.gamma_f: 0.7}}}}\n"), out, executor)
    assert made == ["attend", "diffuse", "reconstruct"]
    made.clear()
    sweep(write(f"  contrast.fit.steps: 7\n{ROWS}"), out, executor)  # upstream of everything but the subject
    assert (
        sorted(set(made)) == ["attend", "contrast", "diffuse", "reconstruct"] and made.count("contrast") == 1
    )


def keys(table):
    return {planned.cell.row: planned.keys for planned in plan_sweep(table).cells}


def test_a_setting_changes_the_keys_of_its_stage_and_of_all_after_it(write, made):
    base = keys(write("rows:\n  - {name: a}\n"))["a"]
    order = ["simulate", "corpus-02", "contrast", "attend", "diffuse", "reconstruct", "evaluate", "report"]
    assert list(base) == order
    for setting, first in (
        ("simulate.snr: 0.7", "simulate"),
        ("corpus.num_volumes: 7", "corpus-02"),
        ("contrast.gamma_c: 0.7", "contrast"),
        ("attend.gamma_f: 0.7", "attend"),
        ("diffuse.context_length: 7", "diffuse"),
        ("reconstruct.guidance_scale: 7", "reconstruct"),
    ):
        other = keys(write(f"rows:\n  - {{name: a, set: {{{setting}}}}}\n"))["a"]
        same = [name for name in order if other[name] == base[name]]
        after = order[order.index(first) :]
        changed = [
            name for name in after if not (first == "simulate" and name == "corpus-02" and name in same)
        ]
        assert not set(same) & set(changed), setting
        assert [name for name in order[: order.index(first)] if name not in same] == []


def test_data_count_by_content_not_by_place(write, made, linear_brain, tmp_path):
    table = write("preset: demo\nrows:\n  - {name: a}\n")
    copy = shutil.copytree(linear_brain, tmp_path / "elsewhere")
    first, second = (plan_sweep(table, Given({"": folder})).cells[0].keys for folder in (linear_brain, copy))
    assert first == second
    about = read_json(copy / "dataset_description.json")
    about["sha256"]["betas.npy"] = "0" * 64
    (copy / "dataset_description.json").write_text(json.dumps(about))
    third = plan_sweep(table, Given({"": copy})).cells[0].keys
    assert all(third[name] != first[name] for name in first)


def test_a_failed_run_stops_nothing_else_and_is_tried_again(write, made, executor, tmp_path):
    out, rows = (
        tmp_path / "out",
        "rows:\n  - {name: a}\n  - {name: b, set: {attend.gamma_f: 13}}\n  - {name: c}\n",
    )
    rows = rows.replace("{name: c}", "{name: c, set: {reconstruct.guidance_scale: 3}}")
    rows += "  - {name: d, set: {attend.gamma_f: 13, reconstruct.guidance_scale: 3}}\n"
    outcome = sweep(write(rows), out, executor)
    assert set(outcome.failed) == {"b/sim-01-seed-0", "d/sim-01-seed-0"}
    assert outcome.failed["b/sim-01-seed-0"] == "attend: ValueError: thirteen"
    assert outcome.failed["d/sim-01-seed-0"].startswith("attend, shared with b, failed")
    assert made.count("attend") == 2  # d does not try again what it shares with b
    page = outcome.page.read_text()
    assert "ValueError: thirteen" in page and "1 run missing" in page
    failed = pd.read_csv(out / "results.tsv", sep="\t").query("status == 'failed'")
    assert list(failed["row"]) == ["b", "d"] and "thirteen" in failed["error"].iloc[0]
    made.clear()
    assert set(sweep(write(rows), out, executor).failed) == set(outcome.failed)
    assert made == ["attend"]


def test_nothing_but_failures_is_no_page(write, made, executor, tmp_path):
    outcome = sweep(write("rows:\n  - {name: b, set: {attend.gamma_f: 13}}\n"), tmp_path / "out", executor)
    assert outcome.page is None and outcome.num_cells == len(outcome.failed) == 1


def test_a_typo_in_the_last_row_is_told_before_the_first_runs(write, made, executor, tmp_path):
    with pytest.raises(UserError, match=r"line 7, row 'z'.*unknown key 'guidance'"):
        sweep(
            write("rows:\n  - {name: a}\n  - {name: z, set: {reconstruct.guidance: 3}}\n"),
            tmp_path / "out",
            executor,
        )
    assert made == [] and not (tmp_path / "out").exists()


def test_another_sweep_in_the_folder_is_refused_and_other_peoples_folders_too(
    write, made, executor, tmp_path
):
    out = tmp_path / "out"
    out.mkdir()
    table = write("rows:\n  - {name: a}\n")
    with FileLock(out / LOCK), pytest.raises(ArtifactError, match="Another process is working in"):
        sweep(table, out, executor)
    (out / "thesis.txt").touch()
    with pytest.raises(ArtifactError, match="already exists"):
        sweep(table, out, executor)
    assert made == []


def test_a_run_starts_as_soon_as_nobody_else_makes_what_it_needs(tmp_path, monkeypatch):
    """One further down does not wait for it; and two never make one stage at once."""
    monkeypatch.setattr("cadiff.sweep.drive.POLL_S", 0)
    needs = {"a": {"subject", "phase 1", "a"}, "b": {"subject", "phase 1", "b"}, "c": {"other subject"}}
    there: set[str] = set()
    ended: dict[str, int] = {}

    class Known(Work):
        def missing(self, planned: Any):
            return needs[planned] - there

        def folder(self, planned: Any):
            return tmp_path / planned

    def start(out, cell, slot):
        return SimpleNamespace(poll=lambda: ended.get(cell.name), stop=lambda: None)

    news = iter(
        [
            (["a", "c"], lambda: there.add("subject")),
            (["a", "c"], lambda: there.add("phase 1")),
            (["a", "c"], lambda: ended.update(c=0)),  # no slot is free until now
            (["a", "b"], lambda: ended.update(a=0)),
            (["b"], lambda: ended.update(b=0)),
        ]
    )

    def watch(running):
        if running:
            expected, happens = next(news)
            assert running == expected
            happens()

    cells, executor = cast("Any", list(needs)), cast("Any", SimpleNamespace(start=start))
    events = drive(Known(tmp_path, cells), executor, 2, watch=watch)
    assert [event.planned for event in events] == ["c", "a", "b"] and not list(news)


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (64, r"reads 64: its last 24 places repeat them"),
        (32, "reads 32: the last 8 are left out"),
        (40, None),
    ],
)
def test_a_subject_with_other_voxels_than_the_encoder_is_explained(
    write, made, linear_brain, tmp_path, monkeypatch, length, says
):
    weights = tmp_path / "weights"
    (weights / "phase1").mkdir(parents=True)
    (weights / "phase1" / "x").touch()
    encoder = SimpleNamespace(config=SimpleNamespace(num_voxels=length, patch_size=16))
    monkeypatch.setattr("cadiff.contrast.load_encoder", lambda _: (encoder, None))
    table = write("preset: demo\nrows:\n  - {name: a}\n")
    remarks = plan_sweep(table, Given({"": linear_brain}, weights=weights)).remarks
    assert bool(remarks) == (says is not None)
    if says is not None:
        assert re.search(f"subject has 40 voxels and the encoder in .* {says}", remarks[0])


def test_two_runs_are_evaluated_at_once_and_both_count_as_looks(
    write, begun, linear_brain, tmp_path, monkeypatch
):
    data = shutil.copytree(linear_brain, tmp_path / "data")
    (data / NAME).unlink(missing_ok=True)
    rows = "".join(f"  - {{name: {name}, baseline: {name}}}\n" for name in ("mean-image", "retrieval"))
    work = begun(write(f"dataset: {data}\nrows:\n{rows}"), tmp_path / "out")
    together, alone = Barrier(2), steps._evaluate

    def evaluate(*about):
        together.wait(60)
        alone(*about)

    monkeypatch.setattr(steps, "_evaluate", evaluate)
    with ThreadPoolExecutor(2) as threads:
        codes = threads.map(lambda planned: make_cell(work.out, work.folder(planned)), work.cells)
        assert list(codes) == [0, 0]
    looks, intact = read_ledger(data / NAME)
    assert intact and [look["look"] for look in looks] == [1, 2]
    assert looks[0]["systems"] != looks[1]["systems"]


def test_places_are_names_that_tell_the_stage(write, made):
    planned = plan_sweep(write("rows:\n  - {name: a}\n")).cells[0]
    places = {step.name: place(step, planned.keys[step.name]) for step in planned.steps}
    assert places["corpus-02"].startswith("simulate-") and places["report"].endswith(".html")
    with pytest.raises(ConfigError, match="form key=value"):
        parse_slurm("partition")

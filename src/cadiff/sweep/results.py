"""What a sweep ends in: results.tsv (long form), results.json and comparison.html, made anew from the evaluations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from cadiff.artifacts import atomic_path, provenance, write_json
from cadiff.report.crossed import Measured, System, cross
from cadiff.report.crossed_page import write_crossed
from cadiff.report.inputs import Evaluated, open_evaluated
from cadiff.sweep.drive import Missing, Work
from cadiff.sweep.plan import STAGES_FOLDER, Planned, place
from cadiff.sweep.table import Source

PAGE, TABLE, RECORD = "comparison.html", "results.tsv", "results.json"


def write_results(
    source: Source, work: Work, missing: Mapping[str, Missing], remarks: Sequence[str] = ()
) -> Path | None:
    """Writes all three and returns the page; None where no run has come to an evaluation.

    Args:
        missing: cell -> why it has no score.
        remarks: to be read before the numbers.
    """
    opened = {
        planned.cell.name: open_evaluated(work.out / STAGES_FOLDER / _place(planned, "evaluate"))
        for planned in work.cells
        if planned.cell.name not in missing
    }
    rows = [row for planned in work.cells for row in _rows(planned, opened.get(planned.cell.name), missing)]
    with atomic_path(work.out / TABLE) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    table = source.table
    about = {"title": table.title, "table": source.name, "runs": rows, "provenance": provenance()}
    if not opened:
        write_json(work.out / RECORD, about)
        return None
    systems = _systems(source, work, opened, missing)
    found = cross(systems, reference=table.reference)
    write_json(work.out / RECORD, {**about, **found})
    label = (table.curve.label or table.curve.x) if table.curve else None
    # in a folder of its own: another process may compare meanwhile (--page)
    with TemporaryDirectory(dir=work.out, prefix=".page.") as scratch:
        page = write_crossed(
            found,
            systems,
            Path(scratch) / PAGE,
            title=table.title or source.name,
            source=table.source,
            x_label=label,
            remarks=remarks,
        )
        return page.replace(work.out / PAGE)


def link(work: Work, planned: Planned) -> None:
    """Names in the cell's folder for what it is made of, as in the folder of `cadiff run`; where the disk has links."""
    folder = work.folder(planned)
    for step in planned.steps:
        name, target = folder / step.folder, work.out / STAGES_FOLDER / place(step, planned.keys[step.name])
        with contextlib.suppress(OSError):  # cell.json says the same
            if name.is_symlink():
                name.unlink()
            if target.exists():
                name.symlink_to(os.path.relpath(target, folder))


def _place(planned: Planned, name: str) -> str:
    step = next(step for step in planned.steps if step.name == name)
    return place(step, planned.keys[name])


def _systems(
    source: Source, work: Work, opened: Mapping[str, Evaluated], missing: Mapping[str, Missing]
) -> list[System]:
    curve, found = source.table.curve, dict[str, System]()
    by_subject = {row.name for row in source.table.rows if isinstance(row.published, dict)}
    for planned in work.cells:
        cell = planned.cell
        x = cell.columns.get(curve.x) if curve else None
        system = found.setdefault(cell.row, System(cell.row, line=cell.base, x=x))
        if cell.published is not None:
            key = cell.subject if cell.base in by_subject else ""
            system.published = {**system.published, key: cell.published}
        if cell.name in opened:
            system.measured.append(Measured(cell.subject, cell.seed, opened[cell.name]))
        else:
            system.failures.append(f"{cell.subject}, seed {cell.seed}: {missing[cell.name].why}")
    return list(found.values())


def _rows(planned: Planned, part: Evaluated | None, missing: Mapping[str, Missing]) -> list[dict[str, Any]]:
    """One row a metric, or one that says why there is none."""
    cell = planned.cell
    who: dict[str, Any] = {"row": cell.row, "subject": cell.subject, "seed": cell.seed}
    tail = {
        **{f"column:{key}": value for key, value in cell.columns.items()},
        "published": cell.published,
        "preset": cell.preset if cell.baseline is None else None,
        "baseline": cell.baseline,
        "run": f"cells/{cell.name}",
    }
    if part is None:
        status, why = missing[cell.name]
        return [{**who, "status": status, "metric": None, **_blank(), **tail, "error": why}]
    rows = []
    condition = part.scores["conditions"][part.primary]
    for metric, score in condition["metrics"].items():
        brain = part.scores["from_the_brain"].get(metric) or {}
        numbers = {
            "mean": score["mean"],
            "ci95_low": score["ci95"][0],
            "ci95_high": score["ci95"][1],
            "chance": score["chance"],
            "num_images": condition["num_images"],
            "num_samples": condition["num_samples"],
            "control": brain.get("control"),
            "gain_over_control": brain.get("gain"),
            "p_holm": brain.get("p_holm"),
            "protocol": score["protocol"],
        }
        rows.append({**who, "status": "done", "metric": metric, **numbers, **tail, "error": None})
    return rows


def _blank() -> dict[str, None]:
    names = "mean ci95_low ci95_high chance num_images num_samples control gain_over_control p_holm protocol"
    return dict.fromkeys(names.split())

"""A record as a table in Markdown, as docs/benchmarks.md has it."""

from __future__ import annotations

from collections.abc import Sequence

from cadiff.benchmark.cases import PAPER, Case
from cadiff.benchmark.record import Measurement, Record

HEAD = (
    "stage",
    "case",
    "speed",
    "step",
    "first step",
    "peak memory",
    "TFLOP a step",
    "floor",
    "share of peak",
)
COMPARED = ("goal, one H100", "released code, one H100", "ratio")


def rows(record: Record) -> list[list[str]]:
    """Head and one row a measurement; at the paper's sizes with the goals and the released code's speed."""
    compared = record.size == "paper"
    table = [[*HEAD, *(COMPARED if compared else ())]]
    for found in record.measurements:
        table.append([*_row(found), *(_compared(found) if compared else ())])
    return table


def markdown(record: Record, command: str) -> str:
    """What ran, on what, the table, and what was left out.

    Args:
        command: the command that it was made with.
    """
    machine = record.machine
    rates = ", ".join(f"{name} {getattr(machine, name) / 1e12:,.3g}" for name in ("bf16", "tf32", "fp32"))
    packages = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    lines = [
        f"`{command}`: {machine.name}; {packages}.",
        f"Measured peaks: matrix products {rates} TFLOP/s, copying {machine.bandwidth / 1e9:,.0f} GB/s.",
        "",
    ]
    head, *body = rows(record)
    lines += [_line(head), f"|{'---|' * len(head)}", *map(_line, body)]
    lines += [f"\nLeft out: {name}: {why}" for name, why in record.skipped.items()]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(found: Measurement) -> list[str]:
    settings = f"{found.case}, {found.precision}{', compiled' if found.compiled else ''}"
    return [
        found.stage,
        settings,
        _speed(found.rate, found.unit),
        _seconds(found.step_s),
        _seconds(found.first_s),
        f"{found.memory / 2**30:.1f} GiB" if found.memory else "",
        f"{found.flops / 1e12:.3g}" if found.flops else "",
        _seconds(found.floor_s) if found.floor_s else "",
        "" if found.share is None else f"{100 * found.share:.0f} %",
    ]


def _compared(found: Measurement) -> list[str]:
    case = _case(found)
    if case is None:
        return [""] * len(COMPARED)
    goal = "" if case.goal is None else _speed(case.goal, found.unit)
    if case.goal_memory is not None:
        goal += f", {case.goal_memory:g} GiB"
    if case.released is None:
        return [goal, "", ""]
    return [goal, _speed(case.released, found.unit), f"{found.rate / case.released:.1f}"]


def _case(found: Measurement) -> Case | None:
    """The case of the paper's table that this is."""
    for case in PAPER:
        same = (case.stage, case.batch) == (
            found.stage,
            found.batch,
        ) or case.stage == found.stage == "reconstruct"
        if same and found.case.startswith(str(case.settings.get("scheduler", ""))):
            return case
    return None


def _speed(rate: float, unit: str) -> str:
    """Samples a second; pictures as seconds each, as the field gives them."""
    return f"{1 / rate:.3g} s an image" if unit == "images" else f"{rate:,.4g} {unit}/s"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"

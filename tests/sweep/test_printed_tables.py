"""The table that docs/sweeps.md prints is one that a sweep takes."""

from __future__ import annotations

import re
from pathlib import Path

from cadiff.sweep.cells import Given, expand
from cadiff.sweep.plan import plan_cells
from cadiff.sweep.table import read_table

MANUAL = Path(__file__).parents[2] / "docs" / "sweeps.md"


def test_the_printed_table_is_accepted(tmp_path):
    (printed,) = re.findall(r"```yaml\n(.*?)```", MANUAL.read_text(encoding="utf-8"), re.DOTALL)
    table = tmp_path / "mine.yaml"
    table.write_text(printed)
    rows = {cell.row: cell for cell in expand(read_table(table), Given())[0]}
    assert "contrasts, gamma_c=0, gamma_s=1" in rows  # as the manual names a row of a grid
    assert len(plan_cells(list(rows.values()))[0]) == len(rows)

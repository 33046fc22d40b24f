"""Tables of runs: the paper's and your own grids, seeds and subjects; one comparison page at the end.

table.py    TABLE.yaml                       drive.py      who is made when
cells.py    rows x subjects x seeds          executors.py  processes, or Slurm through submitit
plan.py     steps and their keys             work.py       one run, in a process of its own
run.py      all of it                        results.py    results.tsv, results.json, comparison.html
"""

from cadiff.sweep.cells import Given
from cadiff.sweep.run import Outcome, Sweep, compare_made, describe, plan_sweep, run_sweep
from cadiff.sweep.table import read_table, shipped_tables

__all__ = [
    "Given",
    "Outcome",
    "Sweep",
    "compare_made",
    "describe",
    "plan_sweep",
    "read_table",
    "run_sweep",
    "shipped_tables",
]

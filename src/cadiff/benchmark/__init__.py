"""How fast this machine does what a stage does, against what it could do.

cases.py      what is timed: stages, batches, goals     training.py   steps of the training loop
machine.py    memory at its peak, and its reset          drawing.py    pictures from betas
record.py     what was measured, as JSON                reading.py    trials from disk
tables.py     the same as a table                         judging.py    a whole evaluation
suite.py      all of it in order
"""

from cadiff.benchmark.cases import STAGES, Case, cases_of
from cadiff.benchmark.record import Measurement, Record, efficiencies, read_record, write_record
from cadiff.benchmark.suite import run_benchmark
from cadiff.benchmark.tables import markdown

__all__ = [
    "STAGES",
    "Case",
    "Measurement",
    "Record",
    "cases_of",
    "efficiencies",
    "markdown",
    "read_record",
    "run_benchmark",
    "write_record",
]

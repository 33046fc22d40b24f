"""ROOM 6: an evaluation in, one self-contained HTML page out; several evaluations in, one page that compares them."""

from cadiff.report.compare import compare
from cadiff.report.page import report

__all__ = ["compare", "report"]

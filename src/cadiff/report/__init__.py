"""ROOM 6: an evaluation in, one self-contained HTML page out."""

from cadiff.report.page import report

__all__ = ["report"]

"""How much of the stimulus is left at each station between betas and picture, and which stage loses or adds what."""

from cadiff.trace.places import Places, find_run, run_of
from cadiff.trace.stage import trace

__all__ = ["Places", "find_run", "run_of", "trace"]

"""ROOM 5: arrays in, numbers out; knows no model of ours.

Scores any folder of reconstructions against the stimuli of a dataset: `evaluate`. The pure functions behind
it are in `pixel`, `semantic` and `statistics`.
"""

from cadiff.evaluate.stage import EvaluateConfig, evaluate

__all__ = ["EvaluateConfig", "evaluate"]

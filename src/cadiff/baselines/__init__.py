"""Side room: what any method has to beat; fitted on training trials, written like the folder of `reconstruct`.

ridge.py        ridge voxels -> pixels; ridge voxels -> label embedding -> image prior; the label oracle
retrieval.py    nearest training picture, mean picture, and the class-mean oracle
stage.py        the table of baselines, and `run_baseline`: dataset folder in, reconstructions folder out
"""

from cadiff.baselines.stage import BASELINES, Baseline, find_baseline, run_baseline

__all__ = ["BASELINES", "Baseline", "find_baseline", "run_baseline"]

"""Side room: what any method has to beat; fitted on training trials, written like the folder of `reconstruct`.

ridge.py        ridge voxels -> pixels, -> latents decoded, -> features of pictures, nearest training picture
labels.py       ridge voxels -> label embedding -> image prior; the label oracle
retrieval.py    training picture with the nearest response, mean picture, and the class-mean oracle
bayes.py        pictures weighed by the likelihood of the betas under an encoding model
fitted.py       what was fitted as a folder, opened for other datasets of the same subject
stage.py        the table of baselines, and `run_baseline`: dataset folder in, reconstructions folder out
"""

from cadiff.baselines.stage import BASELINES, Baseline, find_baseline, run_baseline

__all__ = ["BASELINES", "Baseline", "find_baseline", "run_baseline"]

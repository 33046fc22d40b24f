"""Encoding models: from pictures to voxels, with the noise around what is predicted (Naselaris et al. 2009).

features.py     the literal table of feature spaces, and how a picture becomes features
ridge.py        ridge regression whose penalty is chosen by cross-validation, shared or one a target; all rooms use it
components.py   the same onto principal components of what the distinct stimuli look like
banded.py       its kernel form for several feature spaces at once, penalty and mixture chosen voxel by voxel
noise.py        covariance of what predictions miss, shrunk (Ledoit & Wolf 2004), for more voxels than trials
calibrate.py    everything that is measured on trials whose stimulus no fit has seen: residuals, r2, temperature
responses.py    betas of the training trials, kept once, and what predictions miss of them, made in parts
gram.py         Gram matrices summed over parts of a table and decomposed in place
model.py        EncodingModel: fit, predict, log_likelihood, save, load
"""

from cadiff.encoding.features import FEATURES
from cadiff.encoding.model import EncodingModel

__all__ = ["FEATURES", "EncodingModel"]

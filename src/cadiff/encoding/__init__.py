"""Encoding models: from pictures to voxels, with the noise around what is predicted (Naselaris et al. 2009).

features.py     the literal table of feature spaces, and how a picture becomes features
ridge.py        ridge regression whose penalty is chosen by cross-validation, shared or one a target; all rooms use it
banded.py       its kernel form for several feature spaces at once, penalty and mixture chosen voxel by voxel
noise.py        covariance of what predictions miss, shrunk (Ledoit & Wolf 2004), for more voxels than trials
calibrate.py    everything that is measured on trials whose stimulus no fit has seen: residuals, r2, temperature
trained_on.py   who a saved model was fitted on, so that it never decodes its own training stimuli
model.py        EncodingModel: fit, predict, log_likelihood, save, load
"""

from cadiff.encoding.features import FEATURES
from cadiff.encoding.model import EncodingModel

__all__ = ["FEATURES", "EncodingModel"]

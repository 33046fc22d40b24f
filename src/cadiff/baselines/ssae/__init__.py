"""SS-AE (Beliy et al. 2019, Gaziv et al. 2022): an encoder and a decoder of pictures that check each other.

settings.py   every option, with what was published
eye.py        the frozen network whose maps the encoder reads and the image loss compares
encoder.py    E: maps of a picture -> responses of voxels
decoder.py    D: responses of voxels -> picture
losses.py     errors of voxels and of pictures, and the penalties on both networks
pools.py      what is learnt from: pairs, responses without pictures, pictures without responses
train.py      the two stages of training, each in its own run folder
stage.py      the baseline that `cadiff baseline ssae` runs
"""

"""Instance-conditioned GAN (Casanova et al. 2021): draws pictures that are like a given one, from features of it.

layers.py, networks.py   BigGAN's layers and both networks, by the names of the released checkpoints
features.py              which network looks at the instances, and their neighbours
folder.py                the generator's folder: `load_generator`, `save_generator`
loop.py, train.py        adversarial training, `cadiff prior train --kind icgan`
invert.py                noise and dense vectors from which a generator redraws given pictures
"""

"""Packs MNIST's IDX files into the .npz that `cadiff prior train` reads.

Run: python recipes/make_mnist_npz.py MNIST_FOLDER digits.npz --classes 6 9 --exclude mnist_exclude.npz

`--exclude` names an .npz whose array `exclude` holds rows of the training set to leave out: the digits that a brain data set
showed, so that the prior has never seen a picture it is later asked to reconstruct.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from cadiff.errors import UserError
from cadiff.priors.images import write_mnist

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "folder", type=Path, help="holds train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz"
)
parser.add_argument("out", type=Path, help="the .npz to write")
parser.add_argument("--classes", type=int, nargs="+", help="digits to keep; default: all ten")
parser.add_argument("--exclude", type=Path, help=".npz with the rows to leave out")
arguments = parser.parse_args()

names = (arguments.folder / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
try:
    write_mnist(*names, arguments.out, exclude=arguments.exclude, classes=arguments.classes)
except UserError as error:
    sys.exit(str(error))
with np.load(arguments.out) as archive:
    digits, counts = np.unique(archive["labels"], return_counts=True)
print(f"{arguments.out}: {counts.sum()} pictures, {dict(zip(digits.tolist(), counts.tolist(), strict=True))}")

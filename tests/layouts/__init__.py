"""Small files in exactly the layouts that public datasets have, made by code.

A maker is a function `(folder: Path, rng: np.random.Generator) -> Sample`: it writes the source below `folder` and says
what a correct import of it holds. The tests of each reader, the contract test and the fuzz test share them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Sample(NamedTuple):
    reader: str
    """Key of `READERS`."""
    source: Path
    """What is handed to the reader."""
    options: dict[str, Any]
    """Keyword options for it."""
    trials: dict[str, int]
    """Trials per split in the result, splits without trials left out."""
    num_voxels: int


LAYOUTS: dict[str, str] = {
    "god-npz": "layouts.god:make_npz",
    "god-h5": "layouts.god:make_h5",
    "god-h5-lower-case": "layouts.god:make_h5_lower_case",
    "bold5000": "layouts.bold5000:make",
    "bold5000-img-dict": "layouts.bold5000:make_with_img_dict",
    "hcp-dtseries": "layouts.hcp:make_dtseries",
    "hcp-npz": "layouts.hcp:make_npz",
    "nsd-nifti": "layouts.nsd:make_nifti",
    "nsd-hdf5": "layouts.nsd:make_hdf5",
    "bids": "layouts.bids:make",
    "miyawaki": "layouts.miyawaki:make",
    "digit69": "layouts.digit69:make",
    "objects81": "layouts.objects81:make",
    "arrays": "layouts.arrays:make",
    "arrays-mat": "layouts.arrays:make_mat",
}


def make_sample(name: str, folder: Path, rng: np.random.Generator) -> Sample:
    module, _, function = LAYOUTS[name].partition(":")
    maker: Callable[[Path, np.random.Generator], Sample] = getattr(import_module(module), function)
    return maker(folder, rng)

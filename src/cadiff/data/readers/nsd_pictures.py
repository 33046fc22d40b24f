"""The pictures that the Natural Scenes Dataset showed, from nsd_stimuli.hdf5.

imgBrick is uint8 (73000, 425, 425, 3) as h5py shows what MATLAB calls 3 x 425 x 425 x 73000: row n is the picture with
nsdId n, upright, red, green, blue. 37 GB; only the pictures that the trials show are read, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from cadiff.data.files import need_file
from cadiff.data.readers.nsd_betas import hdf5_array, reading
from cadiff.data.readers.nsd_design import load_info, stimulus_id
from cadiff.data.writer import DatasetWriter
from cadiff.errors import DataError

SIDE = 425
LICENCE = "COCO photograph (Flickr terms of use of its owner), by way of the NSD Terms and Conditions"
MAX_SIDE = 4096


class Pictures:
    """The pictures of some trials; looked at when made, read when they are added to a writer.

    Args:
        source: the folder with nsddata and nsddata_stimuli.
        trials: `nsd_id` and `split` of the trials.
        size: side of the stored pictures; None as they are.
        wanted: False: the ids only.
        num_pictures: how many imgBrick must hold; None for any number.
    """

    def __init__(
        self, source: Path, trials: pd.DataFrame, *, size: int | None, wanted: bool, num_pictures: int | None
    ) -> None:
        self.path = source / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
        self.shown = sorted(set(trials["nsd_id"].tolist()))
        self.size, self.wanted = size, wanted
        info = source / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
        self.info = load_info(info, trials) if info.is_file() else pd.DataFrame()
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise DataError(
                f"image_size={size!r}: give the side of the stored pictures in pixels, or leave it out."
            )
        self.about: dict[str, Any] = {"stored": "none, ids only"}
        if wanted:
            side = self._check(num_pictures)
            self.about = {"side": side, "stored": size or side}

    def add_to(self, writer: DatasetWriter) -> None:
        """Adds every picture once, in the order of the file."""
        about = self.info.to_dict("index")
        pictures = self._read() if self.wanted else iter([None] * len(self.shown))
        progress = tqdm(self.shown, desc="pictures", unit="picture", disable=None if self.wanted else True)
        for nsd_id, pixels in zip(progress, pictures, strict=True):
            row = {str(key): value for key, value in about.get(nsd_id, {}).items()}
            writer.add_stimulus(stimulus_id(nsd_id), pixels, licence=LICENCE, **row)

    def _read(self) -> Iterator[np.ndarray]:
        """The pictures of `shown`, uint8 (side, side, 3)."""
        import h5py

        expected = "HDF5 with the data set 'imgBrick'"
        with reading(self.path, expected), h5py.File(self.path, "r") as file:
            data = hdf5_array(file, "imgBrick", self.path)
            for nsd_id in self.shown:
                pixels = data[nsd_id]
                if self.size is not None and self.size != len(pixels):
                    small = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BICUBIC)
                    pixels = np.asarray(small)
                yield pixels

    def _check(self, num_pictures: int | None) -> int:
        """The side of the pictures, once the file is what it should be."""
        import h5py

        need_file(self.path, "the pictures, 37 GB; or give pictures=false to keep their ids only.")
        with reading(self.path, "HDF5 with the data set 'imgBrick'"), h5py.File(self.path, "r") as file:
            data = hdf5_array(file, "imgBrick", self.path)
            shape, dtype = tuple(data.shape), data.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not 0 < shape[1] == shape[2] <= MAX_SIDE:
            raise DataError(
                f"{self.path}: imgBrick is {dtype} {shape}, expected uint8 (pictures, side, side, 3)."
            )
        if num_pictures is not None and shape != (num_pictures, SIDE, SIDE, 3):
            raise DataError(
                f"{self.path}: imgBrick is {shape}, published is {(num_pictures, SIDE, SIDE, 3)}; give design=any if this "
                "is meant."
            )
        if self.shown[-1] >= shape[0]:
            raise DataError(
                f"{self.path} has {shape[0]} pictures, the trials show number {self.shown[-1]} (counted from 0): is it "
                "whole?"
            )
        if self.size is not None and self.size > shape[1]:
            raise DataError(
                f"image_size={self.size}: the pictures have {shape[1]} pixels a side, give that or less."
            )
        return shape[1]

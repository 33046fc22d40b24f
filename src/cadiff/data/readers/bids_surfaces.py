"""BOLD on the cortical surface: two GIFTI files of vertices, or a CIFTI-2 file of grayordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from typing_extensions import override

from cadiff.data.files import need_file
from cadiff.data.readers.bids_images import CHUNK_BYTES, Series, Volume, image_values, in_one_line, load_image
from cadiff.errors import DataError

HEMISPHERES = ("L", "R")


class Grayordinates(Series):
    """A CIFTI-2 dense time series."""

    kind = "grayordinates"

    def __init__(self, paths: tuple[Path, ...]) -> None:
        image = load_image(paths[0])
        self.models, series = _cifti_axes(image, paths[0])
        step = getattr(series, "step", None)
        if step is None or str(getattr(series, "unit", "")).upper() != "SECOND":
            raise DataError(f"{paths[0]} is not a time series in seconds: expected a CIFTI-2 .dtseries.nii.")
        super().__init__(paths, len(self.models), len(series), float(step) or None)

    @override
    def read(self, points: np.ndarray) -> np.ndarray:
        image = load_image(self.path)
        values = np.empty((self.num_volumes, len(points)), dtype=np.float32)
        step = max(1, CHUNK_BYTES // (8 * self.num_volumes))
        for start in range(0, self.num_points, step):  # time runs fastest in the file
            first, last = np.searchsorted(points, (start, start + step))
            part = image_values(self.path, image.dataobj, (slice(None), slice(start, start + step)))
            values[:, first:last] = part[:, points[first:last] - start]
        return values

    @override
    def places(self) -> pd.DataFrame:
        names = [str(name).removeprefix("CIFTI_STRUCTURE_").lower() for name in self.models.name]
        table = pd.DataFrame({"grayordinate": np.arange(self.num_points), "structure": names})
        inside = ~self.models.surface_mask
        table[["x", "y", "z"]] = np.nan
        if inside.any():
            index, affine = self.models.voxel[inside], np.asarray(self.models.affine)
            with np.errstate(all="ignore"):  # a damaged affine gives places that are not finite
                millimetres = index @ affine[:3, :3].T + affine[:3, 3]
            table.loc[inside, ["x", "y", "z"]] = np.round(millimetres, 3)
        return table

    @override
    def map_values(self, path: Path) -> tuple[np.ndarray, dict[int, str]]:
        image = load_image(need_file(path, "expected a CIFTI-2 .dlabel.nii or .dscalar.nii."))
        models, maps = _cifti_axes(image, path)
        if models != self.models:
            raise DataError(
                f"{path} has other grayordinates than {self.path} ({len(models)}, {self.num_points})."
            )
        names = getattr(maps, "label", [{}])[0]
        values = image_values(path, image.dataobj, (slice(0, 1),), np.float64).reshape(-1)
        return values, {int(key): str(value[0]) for key, value in dict(names).items()}

    @override
    def differs(self, other: Series) -> str | None:
        if not isinstance(other, Grayordinates) or other.models != self.models:
            return f"other grayordinates ({other.num_points}, expected {self.num_points})"
        return None


class Surface(Series):
    """Two GIFTI files of functional data, which cannot be read in part."""

    kind = "surface"

    def __init__(self, paths: tuple[Path, ...]) -> None:
        sizes = [(len(image), len(image[0])) for image in map(_gifti, paths)]
        if len(sizes) != len(HEMISPHERES) or sizes[0][0] != sizes[1][0]:
            raise DataError(
                f"{paths[0]} and {paths[-1].name} hold {' and '.join(str(size[0]) for size in sizes)} volumes, "
                "expected two hemispheres with the same number."
            )
        self.vertices = [vertices for _, vertices in sizes]
        super().__init__(paths, sum(self.vertices), sizes[0][0], None)

    @override
    def read(self, points: np.ndarray) -> np.ndarray:
        both = np.concatenate([np.stack(_gifti(path)) for path in self.paths], axis=1)
        if both.shape != (self.num_volumes, self.num_points):
            raise DataError(f"{self.path} changed while it was read.")
        return both[:, points]

    @override
    def places(self) -> pd.DataFrame:
        hemispheres = np.repeat(HEMISPHERES, self.vertices)
        return pd.DataFrame(
            {"hemi": hemispheres, "vertex": np.concatenate([np.arange(n) for n in self.vertices])}
        )

    @override
    def map_values(self, path: Path) -> tuple[np.ndarray, dict[int, str]]:
        if "{hemi}" not in path.name:
            raise DataError(
                f"{path}: a map of a surface is two GIFTI files; write {{hemi}} where L or R stands."
            )
        paths = [path.with_name(path.name.replace("{hemi}", hemi)) for hemi in HEMISPHERES]
        parts, names = [], {}
        for part, number in zip(paths, self.vertices, strict=True):
            values, named = _gifti_map(need_file(part, "expected a GIFTI file."))
            if values.shape != (number,):
                raise DataError(
                    f"{part} holds values {values.shape}, expected one for each of {number} vertices."
                )
            parts.append(values)
            names |= named
        return np.concatenate(parts), names

    @override
    def differs(self, other: Series) -> str | None:
        found = getattr(other, "vertices", None)
        return (
            None if found == self.vertices else f"{found} vertices left and right, expected {self.vertices}"
        )


def _gifti(path: Path) -> list[np.ndarray]:
    """The arrays of a GIFTI file, float32 (vertices,) a volume."""
    image = load_image(path)
    try:
        with np.errstate(all="ignore"):
            arrays = [np.asarray(array.data, dtype=np.float32) for array in image.darrays]
    except Exception as error:  # another kind of image, or arrays without numbers
        raise DataError(f"{path} is not a GIFTI file of time series: {in_one_line(error)}.") from None
    if len(arrays) == 1 and arrays[0].ndim == 2:
        arrays = list(arrays[0].T)
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or min(shapes) < (1,) or len(min(shapes)) != 1:
        raise DataError(
            f"{path} holds arrays of the shapes {sorted(shapes)}, expected one number a vertex and volume."
        )
    return arrays


def _gifti_map(path: Path) -> tuple[np.ndarray, dict[int, str]]:
    """The first array of a GIFTI file, float64, and the names in its label table."""
    image = load_image(path)
    try:
        names = {int(key): str(name) for key, name in image.labeltable.get_labels_as_dict().items()}
        with np.errstate(all="ignore"):
            return np.asarray(image.darrays[0].data, dtype=np.float64), names
    except Exception as error:  # another kind of image, none or other than numbers in it
        raise DataError(f"{path} is not a GIFTI file of a map: {in_one_line(error)}.") from None


def _cifti_axes(image: Any, path: Path) -> tuple[Any, Any]:
    """The brain models, and the other axis."""
    from nibabel.cifti2 import BrainModelAxis, Cifti2Image

    try:
        if isinstance(image, Cifti2Image) and image.ndim == 2:
            models = list(image.header.matrix.get_index_map(1).brain_models)
            # An axis of more points than the data have could be of any size, so it is not made.
            if sum(model.index_count for model in models) == image.shape[1]:
                rows, columns = image.header.get_axis(0), image.header.get_axis(1)
                if isinstance(columns, BrainModelAxis) and image.shape == (len(rows), len(columns)):
                    return columns, rows
    except Exception as error:  # an XML part that contradicts itself
        raise DataError(f"{path} cannot be read as CIFTI-2: {in_one_line(error)}.") from None
    raise DataError(
        f"{path} is not a CIFTI-2 file of grayordinates: expected .dtseries.nii, .dlabel.nii or .dscalar.nii."
    )


def open_series(paths: tuple[Path, ...]) -> Series:
    """The series in one NIfTI or CIFTI file, or in two GIFTI files; raises `DataError` for damaged ones."""
    if paths[0].name.endswith(".gii"):
        return Surface(paths)
    return Grayordinates(paths) if paths[0].name.endswith(".dtseries.nii") else Volume(paths)

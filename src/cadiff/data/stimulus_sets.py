"""Where a simulated subject's pictures come from: the shipped set, or a folder of labelled pictures.

Three layouts are read, and nothing is written:

    <folder>/<class>/<picture>.png|jpg            the class folder is the label
    <folder>/*.png|jpg and <folder>/<any>.tsv     columns file, label and optionally stimulus_id, imagenet_index, licence
    the shipped `assets/stimuli.zip`              200 classes x 8 pictures of 64 x 64, drawn from the shipped image prior
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cadiff.data.dataset import read_table
from cadiff.errors import DataError
from cadiff.framing import framed

PICTURES = (".png", ".jpg", ".jpeg")
SHIPPED = "stimuli.zip"
SHIPPED_SOURCE = (
    "drawn from the shipped image prior: such stimuli flatter any reconstruction by the same prior, "
    "because what the subject saw is by construction what the prior can draw"
)


@dataclass(frozen=True, eq=False)
class StimulusSet:
    """Labelled pictures that a simulated subject can be shown."""

    table: pd.DataFrame
    """One row a picture: stimulus_id, file, label, imagenet_index (Int64, may be NA), licence."""
    source: str
    """Where the pictures came from, in words for the dataset's description."""
    read: Callable[[str], Image.Image]
    """file -> picture."""

    def images(self, stimulus_ids: Sequence[str], size: int) -> np.ndarray:
        """Pictures uint8 (n, size, size, 3): their middle squares, by `cadiff.framing`."""
        files = self.table.set_index("stimulus_id")["file"]
        out = np.empty((len(stimulus_ids), size, size, 3), np.uint8)
        for row, name in enumerate(stimulus_ids):
            try:
                out[row] = framed(np.asarray(self.read(str(files[name])).convert("RGB")), (size, size))
            except OSError as error:
                raise DataError(
                    f"The picture of stimulus {name!r}, {files[name]}, cannot be read: {error}."
                ) from None
        return out


def load_stimuli(folder: Path | None = None) -> StimulusSet:
    """The pictures of `folder`, or the shipped set.

    Raises DataError: no such folder, no picture in it, a table that cannot be read, lacks a column or names a missing file,
    two pictures of one name.
    """
    stimuli = _shipped() if folder is None else _from_folder(Path(folder))
    names = stimuli.table["stimulus_id"]
    if names.duplicated().any():
        raise DataError(
            f"Two pictures have the stimulus id {names[names.duplicated()].iloc[0]!r}; expected one each."
        )
    return stimuli


def _shipped() -> StimulusSet:
    asset = resources.files("cadiff") / "assets" / SHIPPED
    if not asset.is_file():
        raise DataError(
            "The shipped stimuli are not installed (assets/stimuli.zip): name a folder of pictures instead."
        )
    archive = zipfile.ZipFile(io.BytesIO(asset.read_bytes()))
    text = {"stimulus_id": str, "label": str}
    table = pd.read_csv(io.BytesIO(archive.read("stimuli.tsv")), sep="\t", dtype=text, keep_default_na=False)
    return StimulusSet(
        _complete(table), SHIPPED_SOURCE, lambda file: Image.open(io.BytesIO(archive.read(file)))
    )


def _from_folder(folder: Path) -> StimulusSet:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; expected <class>/<picture>.png, or pictures and a table of labels."
        )
    tables = sorted(folder.glob("*.tsv"))
    if len(tables) > 1:
        raise DataError(
            f"{folder} holds {len(tables)} .tsv tables ({', '.join(t.name for t in tables)}); expected one."
        )
    table = _read_table(tables[0]) if tables else _class_folders(folder)
    if table.empty:
        raise DataError(
            f"{folder} holds no picture: expected <class>/<picture>.png|jpg, or pictures and a table of labels."
        )
    return StimulusSet(_complete(table), f"pictures of {folder.name}", lambda file: Image.open(folder / file))


def _class_folders(folder: Path) -> pd.DataFrame:
    rows = []
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in PICTURES:
            label = path.parent.name
            name = path.stem if path.stem.startswith(label) else f"{label}_{path.stem}"
            rows.append({"stimulus_id": name, "file": f"{label}/{path.name}", "label": label})
    return pd.DataFrame(rows, columns=["stimulus_id", "file", "label"])


def _read_table(path: Path) -> pd.DataFrame:
    text = dict.fromkeys(("stimulus_id", "file", "label", "licence"), str)
    table = read_table(path, dtype=text, keep_default_na=False).replace("", np.nan)  # "NA" may be a name
    for column in ("file", "label"):
        if column not in table:
            there = ", ".join(map(str, table.columns))
            tabs = "; are there tabs between the columns?" if len(table.columns) == 1 else ""
            raise DataError(f"{path} has no column {column!r} (found: {there}{tabs}).")
    if table["file"].isna().any():
        row = int(table["file"].isna().to_numpy().argmax()) + 1
        raise DataError(f"{path}: row {row} names no file; every row needs a picture.")
    missing = [file for file in table["file"] if not (path.parent / str(file)).is_file()]
    if missing:
        raise DataError(f"{path} names {len(missing)} pictures that are not there (first: {missing[0]!r}).")
    return table


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `StimulusSet.table`, with ids from file names and ImageNet indices from WordNet ids where absent."""
    table = table.copy()
    stems = pd.Series([Path(str(file)).stem for file in table["file"]], table.index, dtype=object)
    table["stimulus_id"] = table["stimulus_id"].fillna(stems) if "stimulus_id" in table else stems
    # ids become file names of the dataset
    table["stimulus_id"] = [re.sub(r"[^\w.-]", "_", str(name)) for name in table["stimulus_id"]]
    if "imagenet_index" not in table:
        table["imagenet_index"] = table["label"].map(imagenet_indices())
    table["imagenet_index"] = pd.to_numeric(table["imagenet_index"], errors="coerce").astype("Int64")
    if "licence" not in table:
        table["licence"] = None
    return table[["stimulus_id", "file", "label", "imagenet_index", "licence"]]


def imagenet_indices() -> dict[str, int]:
    """WordNet id -> ImageNet-1k index of the classes that the shipped prior knows."""
    asset = resources.files("cadiff") / "assets" / "prior" / "prior.json"
    if not asset.is_file():
        return {}
    prior = json.loads(asset.read_text())
    return dict(zip(prior["classes"], prior.get("imagenet_index") or [], strict=False))

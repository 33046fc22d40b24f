"""What evaluation reads from disk: a folder of reconstructions and the stimuli they are compared with.

Only the written layouts are used, no code of the rooms that made them, so that other people's folders can be
scored.

    reconstructions/config.json      {"kind": "reconstructions", "config": {...}, "provenance": {...}}
    reconstructions/samples.tsv      condition, stimulus_id, sample, file
    reconstructions/images/...       RGB or grey 8-bit PNG, all of one size
    dataset/stimuli.tsv              stimulus_id, file, label, imagenet_index, ...
    dataset/stimuli/...              any size; the middle part of the reconstructions' proportions, resized to their size
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from cadiff.artifacts import read_json, what_is_at
from cadiff.errors import ArtifactError, DataError
from cadiff.framing import framed

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
SAMPLE_COLUMNS = ("condition", "stimulus_id", "sample", "file")


@dataclass(frozen=True)
class Reconstructions:
    """A checked folder of reconstructions: every condition shows the same stimuli, each with equally many
    samples."""

    folder: Path
    about: dict[str, Any]
    """The whole config.json."""
    table: pd.DataFrame
    """samples.tsv, ordered by condition, stimulus and sample."""
    conditions: list[str]
    stimulus_ids: list[str]

    def rows(self, condition: str) -> pd.DataFrame:
        """The samples of a condition, stimuli in the order of `stimulus_ids`."""
        return self.table.query("condition == @condition")

    def num_samples(self, condition: str) -> int:
        """Samples per stimulus."""
        return len(self.rows(condition)) // len(self.stimulus_ids)

    def images(self, condition: str, size: int | None = None) -> np.ndarray:
        """uint8 (stimuli, samples, H, W, 3); `size`: the side in pixels that each is brought to.

        Raises `DataError` for pictures that differ in size where none is given.
        """
        files = [self.folder / file for file in self.rows(condition)["file"]]
        pictures = [
            picture if size is None else framed(picture, (size, size)) for picture in map(read_picture, files)
        ]
        shapes = {picture.shape for picture in pictures}
        if len(shapes) > 1:
            raise DataError(
                f"{self.folder}: the {condition} images differ in size ({sorted(shapes)[:3]}); expected one, or a side in pixels "
                "that all are brought to: --set size=N."
            )
        stack = np.stack(pictures)
        return stack.reshape(len(self.stimulus_ids), -1, *stack.shape[1:])


def open_reconstructions(folder: Path) -> Reconstructions:
    """Reads and checks a folder of reconstructions (layout above).

    Raises:
        ArtifactError: not such a folder. DataError: a table that would silently change what is averaged:
            duplicates, missing stimuli, uneven samples.
    """
    if not (folder / "samples.tsv").is_file() or not (folder / "config.json").is_file():
        there = (
            ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
        )
        raise ArtifactError(
            f"{folder} holds no reconstructions (found: {there or 'nothing'}; expected config.json, "
            "samples.tsv): make some with `cadiff reconstruct`."
        )
    about = read_json(folder / "config.json")
    if not isinstance(about, dict):
        raise ArtifactError(
            f"{folder / 'config.json'} holds a {type(about).__name__}, expected names and values, among them kind: make the "
            "reconstructions again."
        )
    if about.get("kind") != "reconstructions":
        raise ArtifactError(
            f"{folder} holds a {about.get('kind', 'folder of unknown kind')}, expected reconstructions."
        )
    path = folder / "samples.tsv"
    text = {"condition": str, "stimulus_id": str, "file": str}
    try:
        table = pd.read_csv(path, sep="\t", dtype=text, na_filter=False)
    except (OSError, ValueError) as error:  # pandas' EmptyDataError and ParserError are ValueErrors
        raise DataError(
            f"{path} is not a table of samples ({error}): make the reconstructions again."
        ) from None
    if missing := [c for c in SAMPLE_COLUMNS if c not in table]:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))})."
        )
    if table.empty:
        raise DataError(f"{path} lists no samples.")
    table["sample"] = whole_numbers(table["sample"], path)
    conditions = list(dict.fromkeys(table["condition"]))
    stimulus_ids = list(dict.fromkeys(table["stimulus_id"]))
    check_balanced(path, table, conditions, stimulus_ids)
    return Reconstructions(
        folder, about, sort_samples(table, conditions, stimulus_ids), conditions, stimulus_ids
    )


def whole_numbers(column: pd.Series, path: Path) -> pd.Series:
    """The column as int64; `DataError` with the first cell that is no whole number."""
    numbers = pd.Series(pd.to_numeric(column, errors="coerce"))
    bad = ~(numbers.abs() < 2**53) | (numbers % 1 != 0)  # NaN is not below anything
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}: {column.name} in row {row + 1} is {str(column.iloc[row])!r}; expected a whole number (0, 1, ...) in every "
            "row."
        )
    return numbers.astype(np.int64)


def sort_samples(table: pd.DataFrame, conditions: list[str], stimulus_ids: list[str]) -> pd.DataFrame:
    """Samples ordered by condition, stimulus and sample number; conditions and stimuli in the order given."""
    keys = table.assign(
        _c=table["condition"].map({name: i for i, name in enumerate(conditions)}),
        _s=table["stimulus_id"].map({name: i for i, name in enumerate(stimulus_ids)}),
    )
    return table.loc[keys.sort_values(["_c", "_s", "sample"], kind="stable").index].reset_index(drop=True)


def open_stimuli(dataset: Path) -> pd.DataFrame:
    """The stimuli, indexed by `stimulus_id`: stimuli.tsv of a dataset, or a folder of pictures named after them.

    `path` is the place of the picture, `split` is "test" where the stimulus is tested (everything, in a mere folder), `trained`
    says whether any training trial shows it.
    """
    if dataset.is_dir() and not (dataset / "stimuli.tsv").is_file():
        return _plain_stimuli(dataset)
    if not (dataset / "stimuli.tsv").is_file():
        raise ArtifactError(
            f"{dataset} is not a cadiff dataset (expected stimuli.tsv and stimuli/): "
            "name the folder that the reconstructions were made from."
        )
    text = {"stimulus_id": str, "file": str, "label": str}
    table = pd.read_csv(
        dataset / "stimuli.tsv", sep="\t", dtype=text, keep_default_na=False, na_values=["n/a"]
    )
    for column in ("stimulus_id", "file"):
        if column not in table:
            raise DataError(f"{dataset / 'stimuli.tsv'} lacks the column {column!r}.")
    for column in ("imagenet_index", "label", "sha256"):
        if column not in table:
            table[column] = np.nan
    numbers = pd.Series(pd.to_numeric(table["imagenet_index"], errors="coerce"))
    table["imagenet_index"] = numbers.astype("Int64")
    table["path"] = [str(dataset / "stimuli" / str(file)) for file in table["file"]]
    if (twice := table["stimulus_id"].duplicated()).any():
        raise DataError(
            f"{dataset / 'stimuli.tsv'} lists {table.loc[twice, 'stimulus_id'].iloc[0]!r} twice: stimuli need distinct names."
        )
    table = table.set_index("stimulus_id")
    if (dataset / "trials.tsv").is_file():
        trials = pd.read_csv(
            dataset / "trials.tsv", sep="\t", dtype={"stimulus_id": str}, keep_default_na=False
        )
        table["split"] = trials.drop_duplicates("stimulus_id").set_index("stimulus_id")["split"]
        table["trained"] = table.index.isin(trials.loc[trials["split"] == "train", "stimulus_id"])
        return table
    return table.assign(split="test", trained=False)


def _plain_stimuli(folder: Path) -> pd.DataFrame:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise ArtifactError(
            f"{folder} is not a cadiff dataset (expected stimuli.tsv and stimuli/) nor a folder of pictures "
            f"(found: {what_is_at(folder)})."
        )
    names = [path.stem for path in files]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{folder} holds two pictures called {twice[0]!r}: stimuli need distinct names.")
    about = {"file": [p.name for p in files], "path": [str(p) for p in files]}
    table = pd.DataFrame(about, index=pd.Index(names, name="stimulus_id"))
    unknown = pd.array([None] * len(files), dtype="Int64")
    return table.assign(label=None, sha256=None, split="test", trained=False, imagenet_index=unknown)


def stimulus_images(stimuli: pd.DataFrame, stimulus_ids: list[str], size: tuple[int, int]) -> np.ndarray:
    """The stimuli in the order asked for, `framed` at `size` (height, width): uint8 (n, H, W, 3)."""
    if missing := [s for s in stimulus_ids if s not in stimuli.index]:
        raise DataError(
            f"{len(missing)} reconstructed stimuli are not in the dataset (first: {missing[0]!r}): "
            "was it another dataset that was decoded?"
        )
    if nameless := [s for s in stimulus_ids if not isinstance(stimuli.at[s, "file"], str)]:
        raise DataError(
            f"Of {len(nameless)} of {len(stimulus_ids)} stimuli only the label is known (first: {nameless[0]!r}; its file is "
            "n/a): scoring needs the pictures that were seen."
        )
    paths = [Path(str(stimuli.at[stimulus_id, "path"])) for stimulus_id in stimulus_ids]
    return np.stack([framed(read_picture(path), size) for path in paths])


def read_picture(path: Path) -> np.ndarray:
    """One picture as uint8 (H, W, 3); grey becomes three equal channels.

    Raises `DataError` for anything that would have to be guessed at: missing, unreadable, transparent or
    16-bit files.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "L", "P", "1") or "transparency" in image.info:
                raise DataError(
                    f"{path} has mode {image.mode}; expected 8-bit RGB or grey without transparency."
                )
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing, though its table lists it.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as a picture ({error}).") from None


def check_balanced(path: Path, table: pd.DataFrame, conditions: list[str], stimulus_ids: list[str]) -> None:
    """Every condition: all stimuli, equally many samples, none twice."""
    twice = table[table.duplicated(["condition", "stimulus_id", "sample"])]
    if len(twice):
        row = twice.iloc[0]
        raise DataError(
            f"{path} lists sample {row['sample']} of {row['stimulus_id']!r} ({row['condition']}) twice."
        )
    counts = pd.crosstab(table["condition"], table["stimulus_id"]).loc[conditions, stimulus_ids]
    for condition, row in counts.iterrows():
        if row.min() != row.max():
            least = str(row.idxmin())
            raise DataError(
                f"{path}: condition {condition!r} has {row.max()} samples of some stimuli but {row.min()} "
                f"of {least!r}; means over unequal sets would not be comparable."
            )

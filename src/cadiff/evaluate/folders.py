"""Anyone's folder of pictures as reconstructions: which file shows which stimulus, by table, by pattern, or by name.

    by name       a picture per stimulus, photo-1.png; several as photo-1_0.png, photo-1_1.png (any of _ - . space, with or
                  without "sample", "rec" before the number); or a sub-folder per stimulus, photo-1/anything.png
    by pattern    "{stimulus_id}/run{sample}.png", "recon_{stimulus_id}": {sample} is a number, * is anything
    by table      a TSV with the columns stimulus_id, file and optionally sample, condition

Every picture must belong to a stimulus and every stimulus must have its pictures: what does not fit is refused by name, so
the number of images behind a score is never another than it seems.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cadiff.artifacts import what_is_at
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.evaluate.pictures import (
    SAMPLE_COLUMNS,
    SUFFIXES,
    Reconstructions,
    check_balanced,
    open_reconstructions,
    sort_samples,
    whole_numbers,
)

NUMBERED = re.compile(r"(?P<name>.+?)[_\-. ]*(?:sample|rec|recon)?[_\-. ]?(?P<sample>\d+)")


def open_pictures(
    folder: Path,
    stimulus_ids: Sequence[str],
    *,
    pattern: str | None = None,
    table: Path | None = None,
    subset: bool = False,
) -> Reconstructions:
    """A folder of `cadiff reconstruct` or `cadiff baseline`, or any folder of pictures.

    Args:
        folder: the pictures, in sub-folders or not.
        stimulus_ids: the stimuli that were seen.
        pattern: how files are named, see the head of this module; not for folders of ours.
        table: which file shows what, as a TSV; paths are relative to `folder`.
        subset: allow stimuli without a picture; they are left out of the score, and the protocol says how many remain.

    Raises:
        ArtifactError: nothing of the kind there. ConfigError: a pattern without {stimulus_id}.
        DataError: pictures that belong to no stimulus, stimuli without picture, or unequal numbers of samples.
    """
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder} is not a folder (found: {what_is_at(folder)}): name the folder of pictures."
        )
    ours = [
        name
        for name in ("samples.tsv", "config.json", "dataset_description.json")
        if (folder / name).is_file()
    ]
    if (
        ours and ours[0] != "samples.tsv" and table is None
    ):  # an encoder, a dataset: open_reconstructions says so
        return open_reconstructions(folder)
    if (folder / "samples.tsv").is_file() and pattern is None and table is None:
        found = open_reconstructions(folder)
        _refuse_unknown(folder, found.stimulus_ids, stimulus_ids)
        return found
    if pattern is not None and table is not None:
        raise ConfigError("Give a pattern or a table of file names, not both.")
    if table is not None:
        samples = _by_table(table)
    else:
        files = sorted(
            p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES
        )
        if not files:
            raise ArtifactError(
                f"{folder} holds no pictures (found: {what_is_at(folder)}; expected {', '.join(SUFFIXES)})."
            )
        samples = _by_pattern(folder, files, pattern) if pattern else _by_name(folder, files, stimulus_ids)
    _refuse_unknown(folder, list(samples["stimulus_id"]), stimulus_ids)
    shown = set(samples["stimulus_id"])
    missing = [name for name in stimulus_ids if name not in shown]
    if missing and not subset:
        raise DataError(
            f"{folder} has no picture of {len(missing)} of {len(stimulus_ids)} stimuli (first: {missing[0]!r}); to score "
            "the others alone, set subset=true."
        )
    ids = [name for name in stimulus_ids if name in shown]
    conditions = list(dict.fromkeys(samples["condition"]))
    check_balanced(table or folder, samples, conditions, ids)
    about = {"kind": "pictures", "config": {}}
    return Reconstructions(folder, about, sort_samples(samples, conditions, ids), conditions, ids)


def _by_name(folder: Path, files: Sequence[str], stimulus_ids: Collection[str]) -> pd.DataFrame:
    known = set(stimulus_ids)
    rows, strange = [], []
    for file in files:
        path = Path(file)
        match = NUMBERED.fullmatch(path.stem)
        if path.stem in known:
            rows.append((path.stem, 0, file))
        elif match and match["name"] in known:
            rows.append((match["name"], int(match["sample"]), file))
        elif path.parent.name in known:
            rows.append((path.parent.name, None, file))
        else:
            strange.append(file)
    if strange:
        raise DataError(
            f"{folder}: {len(strange)} of {len(files)} pictures are named after no stimulus (first: {strange[0]!r}; stimuli are "
            f"called {next(iter(stimulus_ids))!r} and so on): say how they are named with pattern or table."
        )
    return _numbered(pd.DataFrame(rows, columns=["stimulus_id", "sample", "file"]))


def _by_pattern(folder: Path, files: Sequence[str], pattern: str) -> pd.DataFrame:
    held = re.findall(r"{(.*?)}", pattern)
    if held.count("stimulus_id") != 1 or held.count("sample") > 1 or set(held) - {"stimulus_id", "sample"}:
        raise ConfigError(
            f"The pattern {pattern!r} must hold {{stimulus_id}} once, and may hold {{sample}} once, and *: for example "
            "'{stimulus_id}_{sample}.png'."
        )
    named = {"{stimulus_id}": "(?P<id>[^/]+?)", "{sample}": r"(?P<sample>\d+)", "*": "[^/]*?"}
    pieces = re.split(r"({stimulus_id}|{sample}|\*)", pattern)
    expression = re.compile("".join(named.get(piece, re.escape(piece)) for piece in pieces))
    suffixed = Path(pattern).suffix.lower() in SUFFIXES
    rows, strange = [], []
    for file in files:
        match = expression.fullmatch(file if suffixed else str(Path(file).with_suffix("")))
        if match is None:
            strange.append(file)
        else:
            sample = match.groupdict().get("sample")
            rows.append((match["id"], None if sample is None else int(sample), file))
    if strange:
        raise DataError(
            f"{folder}: {len(strange)} of {len(files)} pictures do not fit the pattern {pattern!r} (first: {strange[0]!r})."
        )
    return _numbered(pd.DataFrame(rows, columns=["stimulus_id", "sample", "file"]))


def _by_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"There is no table {path}.")
    try:
        table = pd.read_csv(
            path, sep="\t", dtype={"stimulus_id": str, "file": str, "condition": str}, na_filter=False
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a table ({' '.join(str(error).split())}): expected tabs between columns."
        ) from None
    if missing := [column for column in ("stimulus_id", "file") if column not in table]:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))})."
        )
    for file in table["file"]:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise DataError(f"{path} names {file!r}: files must lie inside the folder of pictures.")
    if "sample" not in table:
        return _numbered(table.assign(sample=None))
    return _numbered(table.assign(sample=whole_numbers(table["sample"], path)))


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    """With `condition` and `sample` filled in: samples without a number count in the order of their files."""
    if "condition" not in table:
        table = table.assign(condition="brain")
    if table["sample"].isna().any():
        table = table.sort_values("file", kind="stable")
        table["sample"] = table.groupby(["condition", "stimulus_id"]).cumcount()
    return table.assign(sample=table["sample"].astype(np.int64))[list(SAMPLE_COLUMNS)].reset_index(drop=True)


def _refuse_unknown(folder: Path, found: Sequence[str], stimulus_ids: Collection[str]) -> None:
    known = set(stimulus_ids)
    if extra := list(dict.fromkeys(name for name in found if name not in known)):
        raise DataError(
            f"{folder} shows {len(extra)} stimuli that were not tested (first: {extra[0]!r}): was it another dataset that "
            "was decoded?"
        )

"""Names of a judge's classes for people: its own labels, else what the dataset or the shipped prior know of ImageNet-1k."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import pandas as pd

WORDNET_ID = re.compile(r"n\d{8}")


def class_names(
    classes: Iterable[int], labels: Sequence[str] | None, is_imagenet: bool, stimuli: pd.DataFrame
) -> dict[int, str]:
    """Class number -> a name for people, of those classes that have one; a WordNet id where nothing else is known.

    Args:
        labels: the judge's own, in the order of its classes. is_imagenet: whether its numbers are ImageNet-1k's.
        stimuli: of `cadiff.evaluate.pictures.open_stimuli`; its `label` names the `imagenet_index`.
    """
    sources: list[Mapping[int, str]] = [dict(enumerate(labels or ()))]
    if is_imagenet:
        labelled = stimuli[["imagenet_index", "label"]].dropna().drop_duplicates("imagenet_index")
        sources.append({int(index): str(label) for index, label in labelled.itertuples(index=False)})
        prior = _shipped_prior()
        sources.append(dict(zip(prior.get("imagenet_index", ()), prior.get("classes", ()), strict=False)))
    words, found = shipped_names(), {}
    for number in map(int, classes):
        known = [words.get(source[number], source[number]) for source in sources if number in source]
        plain = [name for name in known if not WORDNET_ID.fullmatch(name)]
        if known:
            found[number] = (plain or known)[0].split(",")[0]
    return found


def shipped_names() -> dict[str, str]:
    """WordNet id -> name of the classes that the shipped prior was trained on."""
    prior = _shipped_prior()
    return dict(zip(prior["classes"], prior.get("names", prior["classes"]), strict=False)) if prior else {}


def _shipped_prior() -> dict[str, Any]:
    asset = resources.files("cadiff") / "assets" / "prior" / "prior.json"
    return json.loads(asset.read_text(encoding="utf-8")) if asset.is_file() else {}

"""Which pictures are scored under which name: the conditions of one folder, and the systems it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.folders import open_pictures
from cadiff.evaluate.pictures import Reconstructions, sort_samples
from cadiff.evaluate.summary import BRAIN


@dataclass(frozen=True)
class System:
    """One condition of one folder, under the name it has in the evaluation."""

    condition: str
    folder: Reconstructions
    inside: str
    """Its name in that folder."""
    origin: str
    """Which folder: empty for the first, else the name given in `against`."""

    def images(self, size: int | None) -> np.ndarray:
        """uint8 (stimuli, samples, H, W, 3), each brought to `size` pixels square where that is given."""
        return self.folder.images(self.inside, size)


def open_systems(
    opened: Mapping[str, Path],
    stimuli: pd.DataFrame,
    *,
    pattern: str | None = None,
    table: Path | None = None,
    subset: bool = False,
) -> list[System]:
    """Every condition to score: all of the first folder (named ""), the brain condition of each of the others.

    Args:
        opened: name -> folder.
        stimuli: of `open_stimuli`.
        pattern, table, subset: as `cadiff.evaluate.folders.open_pictures` takes them; the table is of the first folder.

    Raises:
        ConfigError: a name that is taken. DataError: systems that show other stimuli.
    """
    tested = [str(name) for name in stimuli.index[stimuli["split"] == "test"]] or list(stimuli.index)
    systems: list[System] = []
    for origin, path in opened.items():
        plain = not (path / "samples.tsv").is_file()
        folder = open_pictures(
            path,
            tested if plain else list(stimuli.index),
            pattern=pattern if plain else None,
            table=table if not origin else None,
            subset=subset,
        )
        if systems and folder.stimulus_ids != systems[0].folder.stimulus_ids:
            folder = _same_stimuli(folder, systems[0].folder)
        if not origin:
            systems += [System(name, folder, name, "") for name in folder.conditions]
            continue
        if origin in {system.condition for system in systems}:
            raise ConfigError(
                f"The name {origin!r} is taken by a condition already scored: give another one."
            )
        inside = BRAIN if BRAIN in folder.conditions else folder.conditions[0]
        systems.append(System(origin, folder, inside, origin))
    return systems


def _same_stimuli(folder: Reconstructions, first: Reconstructions) -> Reconstructions:
    """`folder` with its stimuli in the first one's order; refused when they are others."""
    if set(folder.stimulus_ids) != set(first.stimulus_ids):
        odd = sorted(set(folder.stimulus_ids) ^ set(first.stimulus_ids))
        raise DataError(
            f"{folder.folder} and {first.folder} do not show the same stimuli ({len(odd)} are in one only, first: "
            f"{odd[0]!r}); systems are compared image by image."
        )
    order = sort_samples(folder.table, folder.conditions, first.stimulus_ids)
    return replace(folder, table=order, stimulus_ids=first.stimulus_ids)

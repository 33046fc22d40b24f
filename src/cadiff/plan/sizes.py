"""The sizes of an experiment, from its settings and what it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cadiff.contrast.mae import FmriMaeConfig
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import choose_voxels, target_length
from cadiff.plan.workloads import Models


def find_models(
    configs: Mapping[str, Any],
    datasets: Sequence[Path] = (),
    *,
    prior: str | Path = "shipped",
    image_mae: str | Path = "shipped",
) -> Models:
    """What decides the sizes of the stages beside their settings.

    Args:
        configs: settings of the stages by name.
        datasets: what phase 1 learns from; the longest decides. Without any it is the simulated subject of the settings.
        prior, image_mae: see `Models`.
    """
    config = configs["contrast"]
    length = config.num_voxels
    if length is None:
        simulated = (sum(configs["simulate"].voxels_per_roi.values()), None)
        tables = [BrainDataset.open(folder).voxels for folder in datasets]
        length = max(
            target_length(
                len(choose_voxels(count, config.preprocess.rois, voxels)),
                config.mae.patch_size,
                None,
                config.preprocess.length_policy,
            )
            for count, voxels in [(len(table), table) for table in tables] or [simulated]
        )
    sizes = FmriMaeConfig(**config.mae.model_dump(), num_voxels=length)
    return Models(sizes, image_mae, prior, configs["diffuse"].context_length)

"""What is made from the network that a simulated subject's voxels were made from does not say what it is worth on a brain."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from cadiff.data.dataset import BrainDataset


def warn_of_the_truth(networks: Iterable[str], dataset: BrainDataset) -> None:
    """Warns where the dataset is a simulated subject whose voxels were made from one of these networks, which were read here.

    The warning points at the caller of the function that calls this one.
    """
    network = dataset.description.get("classifier")
    if dataset.description.get("simulated") and network in set(networks):
        warnings.warn(
            f"The voxels of this simulated subject were made from {network}, so what is fitted to features of the same network "
            "is the truth itself: for figures that mean something take another one (for an encoding model features=vq, for a "
            "prior `cadiff prior adapt --set eye=..`), or a subject made from one (`cadiff simulate --set classifier=..`).",
            stacklevel=3,
        )

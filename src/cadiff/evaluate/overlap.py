"""Are test pictures among the training pictures? Copies by checksum, look-alikes by fingerprint (`cadiff.fingerprints`).

A decoder that has met a test picture in training can score by memory. The audit runs in every evaluation of a dataset; the
doctor (`cadiff data doctor`) asks the same of a dataset before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cadiff import fingerprints as fp
from cadiff.artifacts import sha256_file
from cadiff.errors import DataError
from cadiff.evaluate.metrics import Metric
from cadiff.evaluate.pictures import read_picture
from cadiff.evaluate.statistics import bootstrap_interval, compare
from cadiff.evaluate.summary import Draws

MAX_TRAINING = 12_000
"""Training pictures that are looked at; of more, so many drawn by seed. Checksums on record are compared for all."""
MAX_PAIRS = 200


@dataclass(frozen=True)
class Overlap:
    """What the audit of test against training stimuli found."""

    num_test: int
    num_train: int
    num_compared: int
    """Training pictures that were looked at: those with a readable file, at most `MAX_TRAINING`."""
    same_id: list[str]
    """Test stimuli that training trials show as well."""
    copies: list[tuple[str, str]]
    """(test, training) stimuli with the same file."""
    alike: list[tuple[str, str, float]]
    """(test, training, similarity) of pictures that show the same in different files."""
    usual_similarity: float | None
    """How similar the nearest neighbours among training pictures are; None where too few were looked at."""
    least_similarity: float
    """From where on two pictures count as the same."""
    may_be_chance: bool
    """Whether all pictures are so alike that look-alikes may come by chance."""

    @property
    def affected(self) -> list[str]:
        """The test stimuli concerned, in the order found."""
        return list(
            dict.fromkeys([*self.same_id, *(a for a, _ in self.copies), *(a for a, _, _ in self.alike)])
        )

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        if not self.affected:
            if not self.num_compared:
                return (
                    f"None of {self.num_test:,} test stimuli is among the {self.num_train:,} training stimuli by id or checksum; "
                    "look-alikes could not be looked for, for no training picture has a readable file here."
                )
            some = (
                ""
                if self.num_compared == self.num_train
                else f" that could be looked at, of {self.num_train:,}"
            )
            return (
                f"None of {self.num_test:,} test pictures is, or looks like, one of the {self.num_compared:,} training "
                f"pictures{some}."
            )
        kinds = (
            (len(self.same_id), "shown in training as well"),
            (len(self.copies), "the same file as a training picture"),
            (len(self.alike), "a look-alike of a training picture"),
        )
        told = ", ".join(f"{number:,} {what}" for number, what in kinds if number)
        doubt = " These pictures are all alike, so look-alikes may be chance." if self.may_be_chance else ""
        return (
            f"{len(self.affected):,} of {self.num_test:,} test pictures were met in training: {told}.{doubt}"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for evaluation.json."""
        pairs = [
            *({"test": a, "train": b, "similarity": 1.0, "kind": "same file"} for a, b in self.copies),
            *({"test": a, "train": b, "similarity": s, "kind": "look-alike"} for a, b, s in self.alike),
        ]
        return {
            "sentence": self.sentence,
            "num_test": self.num_test,
            "num_train": self.num_train,
            "num_compared": self.num_compared,
            "affected": self.affected,
            "same_id": self.same_id,
            "pairs": pairs[:MAX_PAIRS],
            "usual_similarity": self.usual_similarity,
            "least_similarity": self.least_similarity,
            "may_be_chance": self.may_be_chance,
        }


def audit(stimuli: pd.DataFrame, stimulus_ids: Sequence[str], *, seed: int = 0) -> Overlap | None:
    """Compares the evaluated stimuli with those of training trials; None where no training stimulus is known.

    Args:
        stimuli: of `cadiff.evaluate.pictures.open_stimuli`. seed: of the sample of very many training pictures.

    Training pictures without a file, or with one that cannot be read, are compared by id and by the checksum on record.
    """
    train = [str(name) for name in stimuli.index[stimuli["trained"]]]
    if not train:
        return None
    there = [name for name in train if isinstance(stimuli.at[name, "file"], str)]
    if len(there) > MAX_TRAINING:
        there = [str(n) for n in np.random.default_rng(seed).permutation(there)[:MAX_TRAINING]]
    names = list(dict.fromkeys([*there, *stimulus_ids]))
    paths = [Path(str(stimuli.at[name, "path"])) for name in names]
    with ThreadPoolExecutor() as pool:  # reading and resizing leave Python free
        looks = dict(zip(names, pool.map(_look, paths), strict=True))
    recorded = {str(name): str(digest) for name, digest in stimuli["sha256"].dropna().items()}
    digests = recorded | {name: look[0] for name, look in looks.items() if look is not None}
    same_id = sorted(set(stimulus_ids) & set(train))
    first = {digests[name]: name for name in reversed(train) if name in digests}
    rest = [name for name in stimulus_ids if name not in set(same_id)]
    copies = [(name, first[digests[name]]) for name in rest if digests.get(name) in first]
    asked = sorted(set(rest) - {name for name, _ in copies}, key=rest.index)
    thumbnails = {name: look[1] for name, look in looks.items() if look is not None}
    asked, there = ([name for name in some if name in thumbnails] for some in (asked, there))
    found = fp.LookAlikes([], None, fp.least_similarity(None))
    if asked and there:
        pictures, among = (
            fp.fingerprints(np.stack([thumbnails[n] for n in some])) for some in (asked, there)
        )
        found = fp.look_alikes(pictures, among, np.random.default_rng(seed))
    alike = [(asked[a], there[b], s) for a, b, s in sorted(found.pairs, key=lambda pair: -pair[2])]
    return Overlap(
        len(stimulus_ids),
        len(train),
        len(there),
        same_id,
        copies,
        alike,
        found.usual,
        found.least,
        found.may_be_chance and bool(alike),
    )


def without(
    affected: Sequence[str],
    stimulus_ids: Sequence[str],
    metric: Metric,
    brain: np.ndarray,
    control: np.ndarray | None,
    draws: Draws,
) -> dict[str, Any] | None:
    """The headline over the stimuli that training has not met; None where all or none are affected.

    Args:
        brain, control: scores (n,) of the system and of its strongest control, in the order of `stimulus_ids`.
    """
    kept = ~np.isin(stimulus_ids, list(affected))
    if kept.all() or kept.sum() < 2:
        return None
    options: Mapping[str, Any] = {"num_draws": draws.num, "seed": draws.seed}
    found: dict[str, Any] = {
        "n": int(kept.sum()),
        "mean": float(brain[kept].mean()),
        "ci95": list(bootstrap_interval(brain[kept], **options)),
    }
    if control is not None:
        row = compare(brain[kept], control[kept], **options)
        sign = 1.0 if metric.higher_is_better else -1.0
        found |= {
            "gain": sign * row.difference,
            "gain_ci95": sorted([sign * row.low, sign * row.high]),
            "p": row.p,
        }
    return found


def _look(path: Path) -> tuple[str, np.ndarray] | None:
    """SHA-256 of a file and the thumbnail of its picture; None where it cannot be read."""
    try:
        return sha256_file(path), fp.thumbnail(read_picture(path))
    except (DataError, OSError):
        return None

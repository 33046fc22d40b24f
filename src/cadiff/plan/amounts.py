"""How much there is to do: trials that training goes through, and pictures to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cadiff.data.dataset import BrainDataset
from cadiff.data.merge import dataset_folders

DRAWN_ONCE = "autoencoded"
"""The control that no sampler draws."""


@dataclass(frozen=True)
class Amounts:
    """Counts of an experiment; None where it is not known before there are data."""

    phase_1: int | None
    """Trials of phase 1."""
    trials: int | None
    """Training trials of the subject under study."""
    stimuli: int | None
    """Stimuli to reconstruct, or trials where repeats are not averaged."""

    def steps(self, stage: str, config: Any) -> int | None:
        """Optimiser steps of a training stage."""
        if config.fit.epochs is None:
            return config.fit.for_trials(1).steps
        trials = self.phase_1 if stage == "contrast" else self.trials
        return None if trials is None else config.fit.for_trials(trials).steps

    def pictures(self, config: Any) -> int | None:
        """Pictures that `reconstruct` draws: every condition of every stimulus; parts of the brain (ROIs) are not counted."""
        if self.stimuli is None:
            return None
        stimuli = min(self.stimuli, config.max_stimuli or self.stimuli)
        controls = [name for name in dict.fromkeys(config.controls) if name != DRAWN_ONCE]
        return stimuli * config.num_images_per_trial * (1 + len(controls) + len(config.repeats))


def find_amounts(
    configs: Mapping[str, Any],
    dataset: Path | None = None,
    corpus: Sequence[Path] = (),
    *,
    simulated: bool = False,
) -> Amounts:
    """The amounts of an experiment.

    Args:
        configs: settings of the stages by name.
        dataset: of the subject under study.
        corpus: further datasets of phase 1, or folders of them.
        simulated: without a dataset the subject is simulated as the settings say; otherwise nothing is known.
    """
    reconstruct, corpus_config = configs["reconstruct"], configs["corpus"]
    if dataset is None and not simulated:
        return Amounts(None, None, None)
    if dataset is None:
        subject = configs["simulate"]
        trials = subject.num_train_classes * subject.images_per_class * subject.train_repeats
        unlabelled = subject.unlabelled_trials
        repeats = 1 if reconstruct.average_repeats else subject.test_repeats
        stimuli = subject.num_test_images * repeats
        others = corpus_config.num_subjects * corpus_config.num_volumes
    else:
        data = BrainDataset.open(dataset)
        trials, unlabelled = len(data.rows("train")), len(data.rows("unlabelled"))
        split = reconstruct.split
        stimuli = len(data.stimulus_ids(split)) if reconstruct.average_repeats else len(data.rows(split))
        others = 0
    for folder in (found for path in corpus for found in dataset_folders(path)):
        if dataset is None or folder.resolve() != dataset.resolve():
            more = BrainDataset.open(folder)
            others += len(more.rows("train")) + len(more.rows("unlabelled"))
    own = trials + unlabelled if corpus_config.include_studied else 0
    return Amounts(own + others, trials, stimuli)

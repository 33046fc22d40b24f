"""Phase 1: train the fMRI auto-encoder with two contrasts, on unlabelled and training trials, never on test.

Source: Sun et al. 2023 (CAD), sections 3.1 and 4.2.1. Each sample is sparsified once and masked twice; both
views go through the network as one batch of 2N.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from cadiff.artifacts import provenance
from cadiff.config import Config, protocol_of
from cadiff.contrast.encoder_folder import fit_preprocessor, save_encoder, warn_of_length
from cadiff.contrast.losses import CrossNegatives, SelfNegatives, SelfViews, double_contrast, masked_error
from cadiff.contrast.mae import FmriMae, FmriMaeConfig, FmriMaeSize, initialise
from cadiff.contrast.masking import num_visible, patchify, sparsify
from cadiff.contrast.trials import EpochFit, TrialPool, dataset_digest
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, choose_voxels, target_length
from cadiff.data.splits import check_disjoint
from cadiff.data.trained_on import stages_trained_on
from cadiff.errors import ConfigError, DataError
from cadiff.processes import on_main
from cadiff.runs import RunFolder
from cadiff.training import epoch_batches, fit, refuse_uneven


class ContrastFit(EpochFit):
    """How phase 1 trains."""

    batch_size: int = Field(default=250, ge=2)
    """Samples in one batch; the others of a batch are the negatives."""
    learning_rate: float = Field(default=2.5e-4, gt=0)
    """Peak learning rate of AdamW."""


class ContrastConfig(Config):
    """Settings of phase 1. The gammas and the mask ratio are those of GOD subject 3 (Sun et al. 2023)."""

    mae: FmriMaeSize = FmriMaeSize()
    """Sizes of the auto-encoder."""
    num_voxels: int | None = Field(default=None, ge=1)
    """Input length of the encoder; by default the longest dataset, filled up to whole patches."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """ROI choice, normalisation and length policy; statistics are measured on each dataset by itself."""
    mask_ratio: float = Field(default=0.75, ge=0, lt=1)
    """Fraction of tokens hidden in each of the two views."""
    gamma_c: float = Field(default=0.5, ge=0)
    """Weight of the contrast between views, L_C."""
    gamma_s: float = Field(default=1.0, ge=0)
    """Weight of the contrast between prediction and input, L_S."""
    temperature: float = Field(default=0.1, gt=0)
    """Of both contrasts."""
    cross_negatives: CrossNegatives = "cross_view"
    """Negatives of L_C: the other view of other samples (released code), or their same view (eq. 1)."""
    self_negatives: SelfNegatives = "inputs"
    """Negatives of L_S: other inputs (released code), or other predictions (eq. 2)."""
    self_views: SelfViews = "first"
    """L_S of the first view only (released code), or the mean over both."""
    masked_error_weight: float = Field(default=0.0, ge=0)
    """Weight of the squared error on hidden patches; 0 as published, and then predictions have no scale."""
    legacy_scaling: bool = False
    """Also multiply gamma_c by 0.5 and gamma_s by 0.25, as the released code does unasked."""
    sparsify_rate: float = Field(default=0.2, ge=0, lt=1)
    """Fraction of voxels set to 0, anew at every access to a sample; both views share it."""
    sparsify_target: Literal["sparsified", "clean"] = "sparsified"
    """What predictions are compared with: the sparsified vector or the whole one."""
    gradient_checkpointing: bool = False
    """Recompute the blocks in the backward pass: less memory, a quarter slower (on a CPU), the same gradients."""
    fit: ContrastFit = ContrastFit()
    """Optimiser, schedule, precision, checkpoints."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "ContrastConfig":
        if not (self.gamma_c or self.gamma_s or self.masked_error_weight):
            raise ValueError(
                "gamma_c, gamma_s and masked_error_weight are all 0, so there is nothing to learn: give one of them a weight"
            )
        return self


def contrast(config: ContrastConfig, datasets: Sequence[Path], out: Path, *, resume: bool = False) -> Path:
    """Train the auto-encoder on the trials of `datasets` with split unlabelled or train.

    Datasets may be of different subjects with different voxel counts: each is normalised by its own
    statistics and brought to the common length. The folder keeps the preprocessing of the first one. Warns where
    `num_voxels` leaves voxels out.

    Returns:
        the encoder folder, `out`/encoder.

    Raises:
        DataError: no trial to train on, or a test stimulus among the training stimuli.
        ConfigError: a batch larger than the number of trials, or a mask that hides everything.
        ArtifactError: `out` is in use or cannot be resumed.
    """
    opened = [BrainDataset.open(folder) for folder in datasets]
    refuse_unfit(config, opened)
    pool = _pool(config, opened)
    schedule = config.fit.for_trials(len(pool))
    sizes = FmriMaeConfig(**config.mae.model_dump(), num_voxels=pool.preprocessors[0].num_voxels)
    inputs = {f"dataset_{k}": dataset_digest(dataset) for k, dataset in enumerate(pool.datasets, start=1)}
    run = RunFolder.open(out, stage="contrast", config=config, resume=resume, inputs=inputs)
    encoder = run.path / "encoder"
    if not encoder.is_dir():  # a folder that is there is whole: it appears in one rename
        model = FmriMae(sizes)
        model.recompute = config.gradient_checkpointing
        initialise(model, torch.Generator().manual_seed(schedule.seed))
        # a trial that came twice would be among its own negatives
        indices = epoch_batches(len(pool), schedule.batch_size, schedule.seed, distinct=True)

        def batches(step: int) -> Tensor:
            return torch.from_numpy(pool.betas(indices(step)))

        def loss(betas: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
            return phase_1_loss(model, betas, generator, config)

        fit(loss, {"fmri": model}, batches, schedule, run=run, description="contrast", capturable=True)
        subjects = [f"{d.description.get('name')} {d.description.get('subject')}" for d in pool.datasets]
        about = provenance(
            stage="contrast",
            protocol=protocol_of("contrast", config),
            subjects=subjects,
            trials=len(pool),
            inputs=inputs,
            seed=schedule.seed,
            trained_on=stages_trained_on("contrast", [], pool.datasets, pool.rows),
        )
        on_main(lambda: save_encoder(encoder, model, pool.preprocessors[0], about))
    run.finish()
    return encoder


def phase_1_loss(
    model: FmriMae, betas: Tensor, generator: torch.Generator, config: ContrastConfig
) -> dict[str, Tensor]:
    """Eq. 3 on one batch of preprocessed betas (N, V); all draws come from `generator`.

    Returns scalars `loss` (to minimise), `cross`, `self` and, where it has a weight, `masked_error`.
    """
    visible = sparsify(betas, config.sparsify_rate, generator=generator)
    target = visible if config.sparsify_target == "sparsified" else betas
    prediction, mask = model(visible.repeat(2, 1), config.mask_ratio, generator, views=2)  # (2N, V), (2N, L)
    first, second = prediction.chunk(2)
    terms = double_contrast(
        first,
        second,
        target,
        gamma_c=config.gamma_c * (0.5 if config.legacy_scaling else 1.0),
        gamma_s=config.gamma_s * (0.25 if config.legacy_scaling else 1.0),
        temperature=config.temperature,
        cross_negatives=config.cross_negatives,
        self_negatives=config.self_negatives,
        self_views=config.self_views,
    )
    if config.masked_error_weight:
        size = config.mae.patch_size
        error = masked_error(patchify(prediction, size), patchify(target, size).repeat(2, 1, 1), mask)
        terms = {**terms, "masked_error": error, "loss": terms["loss"] + config.masked_error_weight * error}
    return terms


def refuse_unfit(config: ContrastConfig, datasets: Sequence[BrainDataset]) -> None:
    """Raises what `contrast` raises about these datasets, as far as their tables tell, without a look at the betas."""
    if not datasets:
        raise DataError("Phase 1 needs at least one dataset folder.")
    refuse_uneven(config.fit)
    size, lengths = config.mae.patch_size, []
    for dataset in datasets:
        check_disjoint(dataset)
        try:
            kept = choose_voxels(len(dataset.voxels), config.preprocess.rois, dataset.voxels)
            policy = config.preprocess.length_policy
            lengths.append(target_length(len(kept), size, config.num_voxels, policy))
        except DataError as error:
            raise DataError(f"{dataset.folder}: {error}") from None
    num_trials = sum(len(rows) for rows in trial_rows(datasets))
    if config.fit.batch_size > num_trials:
        raise ConfigError(
            f"fit.batch_size={config.fit.batch_size} is larger than the {num_trials} trials to train on, so copies "
            f"of a trial would be each other's negatives: set fit.batch_size to at most {num_trials}."
        )
    num_visible(max(lengths) // size, config.mask_ratio)


def trial_rows(datasets: Sequence[BrainDataset]) -> list[np.ndarray]:
    """Rows of each dataset that phase 1 learns from."""
    return [np.sort(np.concatenate([d.rows("train"), d.rows("unlabelled")])) for d in datasets]


def _pool(config: ContrastConfig, datasets: Sequence[BrainDataset]) -> TrialPool:
    """Trials to train on, every dataset at the common length."""
    size = config.mae.patch_size
    fitted = [
        fit_preprocessor(d, config.preprocess, patch_size=size, num_voxels=config.num_voxels)
        for d in datasets
    ]
    longest = max(preprocessor.num_voxels for preprocessor in fitted)
    common = [replace(p, num_voxels=longest) for p in fitted]  # the statistics do not depend on the length
    for dataset, preprocessor in zip(datasets, common, strict=True):
        if (count := len(preprocessor.voxel_index)) > longest:
            warn_of_length(
                dataset, preprocessor, f"set num_voxels to {-(-count // size) * size:,} or more, or to null"
            )
    return TrialPool(datasets, common, trial_rows(datasets))

"""Draw reconstructions of a split, and of the controls that show what the brain contributes.

A control is the same pipeline with the same noise and another condition, drawn in the same batches, so that a picture
and its control differ by the condition alone:

    prior_only      "no brain": what the image prior draws anyway
    shuffled        the betas of another stimulus: what any brain makes it draw
    label_oracle    the true label instead of betas: what the generator could do with a perfect category

Further brain conditions (fewer repeats, one ROI alone or left out: `cadiff.diffuse.variants`) are drawn in the same batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from cadiff.artifacts import folder_digest, new_folder, provenance, refuse_existing, write_json
from cadiff.config import Config
from cadiff.contrast.trials import dataset_digest
from cadiff.data.dataset import BrainDataset, write_table
from cadiff.data.splits import average_repeats
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.importance import condition_importance, importance_table
from cadiff.diffuse.pipeline import FmriToImagePipeline, find_pipeline, open_pipeline
from cadiff.diffuse.sampling import Precision, SchedulerName, trial_noise
from cadiff.diffuse.variants import repeat_variants, roi_variants
from cadiff.errors import ConfigError, DataError

Control = Literal["prior_only", "shuffled", "label_oracle"]
KIND = "reconstructions"


class ReconstructConfig(Config):
    """How to draw reconstructions. Defaults are the published protocol: 250 PLMS steps, no guidance, 5 samples."""

    split: Literal["train", "test"] = "test"
    """Which trials."""
    average_repeats: bool = True
    """Average the trials of each stimulus first; otherwise every trial is reconstructed."""
    max_stimuli: int | None = Field(None, ge=1)
    """Only the first so many stimuli (or trials); all by default."""
    num_images_per_trial: int = Field(5, ge=1)
    """Samples of each."""
    num_inference_steps: int = Field(250, ge=1)
    """Denoising steps."""
    scheduler: SchedulerName = "pndm"
    """pndm is PLMS; dpm++ or unipc with 20 to 30 steps are several times faster."""
    guidance_scale: float = Field(1.0, ge=0)
    """1 turns guidance off."""
    strength: float = Field(1.0, gt=0, le=1)
    """Below 1, begin at the noised latent start, which the pipeline must have."""
    controls: tuple[Control, ...] = ("prior_only", "shuffled")
    """Conditions drawn beside the brain's."""
    repeats: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Also draw from averages of so many presentations of each stimulus, for a curve: [1, 2, 4]."""
    only_rois: tuple[str, ...] = ()
    """Also draw from each of these ROIs alone, other voxels at their training mean; all: from every ROI in turn."""
    without_rois: tuple[str, ...] = ()
    """Also draw without each of these ROIs, its voxels at their training mean; all: without every ROI in turn."""
    importance: bool = True
    """Also write how much each voxel moves the condition (voxel_importance.tsv)."""
    batch_size: int = Field(16, ge=1)
    """Pictures drawn at a time."""
    precision: Precision = "auto"
    """auto: bf16 on CUDA, fp32 elsewhere."""
    seed: int = 0
    """Of the noise, of the shuffling and of which presentations are averaged."""

    @field_validator("repeats", "only_rois", "without_rois", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) else value

    @model_validator(mode="after")
    def _repeats_are_averages(self) -> ReconstructConfig:
        if self.repeats and not self.average_repeats:
            raise ValueError(
                "repeats=... are averages of presentations, which average_repeats=false rules out."
            )
        return self


def reconstruct(config: ReconstructConfig, pipeline: Path, dataset: Path, out: Path) -> Path:
    """Draws pictures for every stimulus of a split into a new folder.

    Args:
        pipeline: pipeline folder of `diffuse`.
        dataset: dataset folder of the subject that the pipeline was tuned on. Betas and labels are read, pictures never.
        out: folder to make: config.json, samples.tsv (condition, stimulus_id, sample, file), images/, and
            voxel_importance.tsv (voxel, rois, importance, x, y, z where known). Under "variants", config.json says what
            each further brain condition is: {"repeats_4": {"kind": "repeats", "value": 4}}; the other kinds, "only_roi" and
            "without_roi", have the ROI as value and, as num_voxels, how many voxels are left to read.

    Raises:
        ArtifactError: `out` exists, or the pipeline is missing or damaged.
        DataError: no trials, another number of voxels, or a control, repeats or ROIs that the data do not allow.
        ConfigError: settings that the pipeline cannot follow.
    """
    refuse_existing(out)  # before minutes of sampling
    data = BrainDataset.open(dataset)
    pipe = open_pipeline(pipeline)
    betas, stimulus_ids, repeats = _trials(config, data)
    conditions, variants, guess = _conditions(config, pipe, data, betas, stimulus_ids, repeats)
    importance = None
    if config.importance:
        importance = condition_importance(
            pipe.conditioner, betas, repeats, with_guess=guess is not None, seed=config.seed
        )
    names = list(conditions)
    # rows in the order (trial, condition): the conditions of a trial go through the network together
    together = Condition(
        torch.stack([c.context for c in conditions.values()], 1).flatten(0, 1),
        torch.stack([c.time for c in conditions.values()], 1).flatten(0, 1),
    )
    noise = trial_noise(len(stimulus_ids), config.num_images_per_trial, pipe.latent_shape, config.seed)
    pictures = pipe(
        condition=together,
        guess=guess,
        noise=noise.repeat_interleave(len(names), 0),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        scheduler=config.scheduler,
        strength=config.strength,
        batch_size=config.batch_size,
        precision=config.precision,
    )
    pictures = pictures.reshape(len(stimulus_ids), len(names), *pictures.shape[1:])
    inputs = {"pipeline": folder_digest(find_pipeline(pipeline)), "dataset": dataset_digest(data)}
    facts = provenance(inputs=inputs)
    about = {"kind": KIND, "format": 1, "config": config.model_dump(mode="json"), "provenance": facts}
    if variants:
        about["variants"] = variants
    with new_folder(out) as folder:
        write_json(folder / "config.json", about)
        table = save_pictures(folder, {name: pictures[:, k] for k, name in enumerate(names)}, stimulus_ids)
        table.to_csv(folder / "samples.tsv", sep="\t", index=False, lineterminator="\n")
        if importance is not None:
            write_table(importance_table(data.voxels, importance), folder / "voxel_importance.tsv")
    return out


def save_pictures(folder: Path, pictures: dict[str, np.ndarray], stimulus_ids: Sequence[str]) -> pd.DataFrame:
    """Writes images/<condition>/<stimulus>_<sample>.png and returns the table of them.

    Args:
        folder: an existing folder.
        pictures: condition -> uint8 (trials, samples, H, W, 3).
        stimulus_ids: (trials,); samples of a stimulus that occurs more than once are numbered on.
    """
    files = {name: re.sub(r"[^\w.-]", "_", name) for name in dict.fromkeys(stimulus_ids)}
    if len(set(files.values())) < len(files):  # ids that differ only in characters a file name cannot have
        files = {name: f"{file}-{i}" for i, (name, file) in enumerate(files.items())}
    rows = []
    for condition, stack in pictures.items():
        (folder / "images" / condition).mkdir(parents=True)
        drawn: dict[str, int] = {}
        for stimulus_id, samples in zip(stimulus_ids, stack, strict=True):
            for picture in samples:
                sample = drawn[stimulus_id] = drawn.get(stimulus_id, -1) + 1
                file = f"images/{condition}/{files[stimulus_id]}_{sample}.png"
                Image.fromarray(picture).save(folder / file, compress_level=1)
                rows.append(
                    {"condition": condition, "stimulus_id": stimulus_id, "sample": sample, "file": file}
                )
    return pd.DataFrame(rows)


def derangement(groups: Sequence[str], seed: int) -> np.ndarray:
    """A permutation (n,) that gives every row a row of another group, drawn by `seed`.

    Raises:
        DataError: one group has more than half of the rows, so that no such permutation exists.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.unique(np.asarray(groups, dtype=str)))
    rank = {name: i for i, name in enumerate(names)}
    ordered = np.argsort([rank[str(group)] for group in groups], kind="stable")
    largest = max(np.unique(np.asarray(groups, dtype=str), return_counts=True)[1])
    if 2 * largest > len(groups):
        raise DataError(
            f"The control 'shuffled' needs betas of other stimuli; {largest} of {len(groups)} trials show the same one: "
            "reconstruct more stimuli, or leave the control out."
        )
    # sorted by group and rolled by the largest group's size, no row can meet its own group
    permutation = np.empty(len(groups), dtype=np.int64)
    permutation[ordered] = np.roll(ordered, -largest)
    return permutation


def _trials(config: ReconstructConfig, data: BrainDataset) -> tuple[np.ndarray, list[str], np.ndarray]:
    if config.average_repeats:
        betas, stimulus_ids, repeats = average_repeats(data, config.split)
    else:
        rows = data.rows(config.split)
        betas, repeats = data.betas[rows], np.ones(len(rows), dtype=np.int64)
        stimulus_ids = [str(s) for s in data.trials["stimulus_id"].to_numpy()[rows]]
    if not stimulus_ids:
        raise DataError(f"{data.folder} has no trials of split {config.split}.")
    kept = slice(config.max_stimuli)
    return betas[kept], stimulus_ids[kept], repeats[kept]


def _conditions(
    config: ReconstructConfig,
    pipe: FmriToImagePipeline,
    data: BrainDataset,
    betas: np.ndarray,
    stimulus_ids: list[str],
    repeats: np.ndarray,
) -> tuple[dict[str, Condition], dict[str, Any], Tensor | None]:
    """Name -> condition of every trial; what each variant is; and the guesses in the order (trial, condition)."""
    brain, guess = pipe.condition(betas, repeats)
    conditions, guesses = {"brain": brain}, {"brain": guess}
    latent_start = pipe.conditioner.latent_start
    if config.strength < 1 and (latent_start is None or guess is None):
        raise ConfigError("strength below 1 needs a pipeline that was tuned with latent_start.")
    mean = (
        None
        if guess is None or latent_start is None
        else latent_start.mean.view(guess[0].shape).expand_as(guess)
    )
    for control in dict.fromkeys(config.controls):
        if control == "shuffled":
            other = torch.from_numpy(derangement(stimulus_ids, config.seed))
            conditions[control], guesses[control] = brain.rows(other), None if guess is None else guess[other]
        elif control == "prior_only":
            conditions[control], guesses[control] = pipe.conditioner.null(len(betas)), mean
        else:
            conditions[control], guesses[control] = _oracle(pipe, data, stimulus_ids), mean
    variants: dict[str, Any] = {}
    for name, variant in chain(
        repeat_variants(data, config.split, stimulus_ids, config.repeats, config.seed),
        roi_variants(
            data,
            pipe.conditioner.preprocessor,
            betas,
            repeats,
            only=config.only_rois,
            without=config.without_rois,
        ),
    ):
        conditions[name], guesses[name] = pipe.condition(variant.betas, variant.repeats)
        variants[name] = variant.as_json()
    if guess is None or config.strength == 1:
        return conditions, variants, None
    return conditions, variants, torch.stack([g for g in guesses.values() if g is not None], 1).flatten(0, 1)


def _oracle(pipe: FmriToImagePipeline, data: BrainDataset, stimulus_ids: list[str]) -> Condition:
    table = data.stimuli.loc[stimulus_ids]
    rows = pipe.conditioner.label_rows(list(table["label"]), list(table["imagenet_index"]))
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        missing = stimulus_ids[rows.index(None)]
        raise DataError(
            f"The control 'label_oracle' needs the label of every stimulus; the prior has no class for {missing!r} "
            f"({len(rows) - len(known)} such): leave the control out."
        )
    return pipe.conditioner.label_condition(known)

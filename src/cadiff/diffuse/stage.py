"""The third stage: tune a latent diffusion model to draw what the fMRI encoder saw.

Source: Sun et al. 2023 (CAD), sections 3.3 and 4.2.2, on the recipe of Chen et al. 2023 (MinD-Vis): epsilon loss, AdamW at
a constant 5.3e-5, batch 5, 500 epochs, no average of weights. Everything else about the image prior stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadiff.artifacts import folder_checksums, folder_digest, new_folder, provenance, write_json
from cadiff.config import protocol_of
from cadiff.contrast import load_encoder, preprocessor_for
from cadiff.contrast.encoder_folder import encoder_protocol, encoder_trained_on
from cadiff.contrast.mae import stretched
from cadiff.contrast.masking import sparsify
from cadiff.contrast.trials import dataset_digest
from cadiff.data.dataset import BrainDataset
from cadiff.data.splits import check_disjoint
from cadiff.data.trained_on import refuse_tested, stages_trained_on
from cadiff.diffuse.attention import write_out_wide_heads
from cadiff.diffuse.conditioner import Condition, FmriConditioner
from cadiff.diffuse.pipeline import FmriToImagePipeline
from cadiff.diffuse.recompute import has_dropout, recompute_blocks
from cadiff.diffuse.sampling import make_scheduler
from cadiff.diffuse.settings import DiffuseConfig, DiffuseFit
from cadiff.diffuse.trainable import gradients_on_the_way_up, mark_trainable
from cadiff.diffuse.trials import (
    fit_image_start,
    fit_label_start,
    fit_latent_start,
    read_trials,
    start_labels,
)
from cadiff.draws import drawn
from cadiff.errors import DataError
from cadiff.priors.load import ImagePrior, load_prior
from cadiff.processes import on_main
from cadiff.runs import RunFolder
from cadiff.sharing import whole
from cadiff.training import epoch_batches, fit, refuse_uneven

__all__ = ["DiffuseConfig", "DiffuseFit", "EpsilonLoss", "diffuse"]


def diffuse(
    config: DiffuseConfig,
    dataset: Path,
    encoder: Path,
    out: Path,
    *,
    prior: str | Path = "shipped",
    resume: bool = False,
) -> Path:
    """Tunes an image prior on the training trials of one subject.

    Args:
        dataset: dataset folder; only trials with split train are read, and those with pictures.
        encoder: encoder folder of phase 1 or 2.
        out: run folder to make.
        prior: "shipped" or a folder, see `load_prior`.
        resume: go on with an unfinished run in `out`.

    Returns:
        the pipeline folder, `out`/pipeline.

    Raises:
        DataError: no training trials, a test stimulus among them or among those of the encoder, or no labels where the start
            needs them.
        ConfigError: the prior lacks what the settings ask for.
        ArtifactError: a folder is missing, damaged, or in the way.
    """
    refuse_uneven(config.fit)
    data = BrainDataset.open(dataset)
    check_disjoint(data)
    if len(data.rows("train")) == 0:
        raise DataError(f"{data.folder} has no training trials with pictures, which this stage needs.")
    fmri, stored = load_encoder(encoder)
    before = encoder_trained_on(encoder)
    refuse_tested(before, [data], encoder)
    image_prior = load_prior(prior)
    labels = start_labels(
        config, data, image_prior
    )  # what cannot work is refused before the run folder is made
    inputs = {"dataset": dataset_digest(data), "encoder": folder_digest(encoder)}
    inputs["prior"] = image_prior.digest
    schedule = config.fit.for_trials(len(data.rows("train")))
    rows = data.rows("train")
    preprocessor = preprocessor_for(data, fmri, stored.config, own_length=config.own_length)
    if preprocessor.num_voxels != fmri.config.num_voxels:
        fmri = stretched(fmri, preprocessor.num_voxels)
    betas = preprocessor(data.betas[rows])
    data.refuse_unreadable(rows)
    run = RunFolder.open(out, stage="diffuse", config=config, resume=resume, inputs=inputs)
    target = run.path / "pipeline"
    if target.is_dir():  # a folder that is there is whole: it appears in one rename
        run.finish()
        return target
    trials = read_trials(config, data, betas, image_prior)
    label_start, trials, found = fit_label_start(config, data, trials, image_prior, labels)
    image_start, trials, seen = fit_image_start(config, data, trials, image_prior)
    latent_start, more = fit_latent_start(config, data, trials)
    conditioner = FmriConditioner.build(
        fmri,
        preprocessor,
        image_prior,
        context_length=config.context_length,
        null=config.null,
        start=image_start or label_start,
        latent_start=latent_start,
        generator=torch.Generator().manual_seed(schedule.seed),
    )
    unet = image_prior.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    write_out_wide_heads(unet)
    if config.gradient_checkpointing:
        recompute_blocks(unet)
    train_null = config.null == "learned"
    mark_trainable(
        unet,
        conditioner,
        train_encoder=config.train_encoder,
        train_positions=config.train_positions,
        train_null=train_null,
        blocks=config.unet_blocks,
    )
    indices = epoch_batches(len(trials.betas), schedule.batch_size, schedule.seed)
    loss = EpsilonLoss(config, image_prior, conditioner)
    # one module, so that the gradient is clipped as a whole
    both = nn.ModuleDict({"conditioner": conditioner, "unet": unet})
    fit(
        loss,
        {"model": both},
        lambda step: trials.batch(indices(step)),
        schedule,
        run=run,
        description="diffuse",
        capturable=not has_dropout(unet),
    )
    if config.null == "mean":
        conditioner.set_null(conditioner.encode(data.betas[data.rows("train")], split="train"))
    facts = {
        "stage": "diffuse",
        "protocol": protocol_of("diffuse", config, before=encoder_protocol(encoder)),
        "inputs": inputs,
        "seed": schedule.seed,
        "trials": len(trials.betas),
        "stimuli": len(trials.stimulus_ids),
        "trained_on": stages_trained_on("diffuse", before, [data], [rows]),
        **found,
        **seen,
        **more,
    }
    on_main(lambda: save_pipeline(target, image_prior, conditioner, provenance(**facts)))
    run.finish()
    return target


class EpsilonLoss:
    """Eq. 9: the squared error of the predicted noise, with augmentation, dropout of the condition and weights."""

    def __init__(self, config: DiffuseConfig, prior: ImagePrior, conditioner: FmriConditioner) -> None:
        self.config, self.prior, self.conditioner = config, prior, conditioner
        alphas = prior.scheduler.alphas_cumprod.float()
        snr = alphas / (1 - alphas)
        gamma = config.min_snr_gamma
        self.weights = torch.ones_like(snr) if gamma is None else snr.clamp(max=gamma) / snr

    def __call__(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Batch: betas (B, V), latents (B, 1 + crops, c, h, w), maybe start (B, C or F) -> {"loss": scalar}."""
        config, device, size = self.config, batch["betas"].device, len(batch["betas"])
        betas = sparsify(batch["betas"], config.sparsify_rate, generator=generator)
        crops, shape = batch["latents"].shape[1], batch["latents"].shape[2:]
        everyone, levels = whole(size), len(self.weights)
        self.weights = self.weights.to(device)
        cropped = drawn(lambda g: torch.rand(everyone, generator=g), generator, device)
        choice = drawn(lambda g: torch.randint(1, max(2, crops), (everyone,), generator=g), generator, device)
        choice = torch.where(cropped < config.crop_probability, choice, 0).clamp(max=crops - 1)
        latents = batch["latents"][torch.arange(size, device=device), choice]
        noise = drawn(lambda g: torch.randn(everyone, *shape, generator=g), generator, device)
        timesteps = drawn(lambda g: torch.randint(levels, (everyone,), generator=g), generator, device)
        dropped = drawn(lambda g: torch.rand(everyone, generator=g), generator, device)
        dropped = dropped < config.condition_dropout
        condition = self._condition(betas, batch.get("start"), dropped)
        noisy = self.prior.scheduler.add_noise(latents, noise, timesteps)  # pyright: ignore
        unet = self.prior.unet
        with gradients_on_the_way_up(unet) if config.unet_blocks == "up" else nullcontext():
            epsilon = unet(
                noisy.to(memory_format=torch.channels_last),
                timesteps,
                encoder_hidden_states=condition.context,
                class_labels=condition.time,
                return_dict=False,
            )[0]
        errors = (epsilon.float() - noise).square().mean((1, 2, 3))  # in float32, also under autocast
        return {"loss": (self.weights[timesteps] * errors).mean()}

    def _condition(self, betas: Tensor, start: Tensor | None, dropped: Tensor) -> Condition:
        with torch.set_grad_enabled(self.config.train_encoder):
            tokens = self.conditioner.encoder.tokens(betas)
        condition, null = (
            self.conditioner.from_tokens(tokens, betas, start=start),
            self.conditioner.null(len(betas)),
        )
        return Condition(
            torch.where(dropped[:, None, None], null.context, condition.context),
            torch.where(dropped[:, None], null.time, condition.time),
        )


def save_pipeline(
    target: Path, prior: ImagePrior, conditioner: FmriConditioner, facts: Mapping[str, Any]
) -> Path:
    """Writes the pipeline folder that `reconstruct` takes, atomically; `facts` become its provenance.json."""
    prior.vqvae.register_to_config(scaling_factor=prior.scaling_factor)
    scheduler = make_scheduler("pndm", prior.scheduler.config)
    pipeline = FmriToImagePipeline(prior.vqvae, prior.unet, scheduler, conditioner)
    with new_folder(target) as folder:
        pipeline.save_pretrained(folder)
        write_json(folder / "provenance.json", facts)
        write_json(folder / "checksums.json", folder_checksums(folder))
    return target

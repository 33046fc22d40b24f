"""Phase 2: go on training the fMRI encoder on the training trials of a subject, or of several, guided by the pictures seen.

Source: Sun et al. 2023 (CAD), sections 3.2 and 4.2.1. Only the fMRI side is kept; the folder it is saved in
is of the same kind as phase 1's. Test trials and test pictures are never read.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cadiff.artifacts import folder_digest, provenance
from cadiff.attend.image_mae import ImageMae, load_image_mae
from cadiff.attend.model import ImageCross, Trainable, phase_2_loss
from cadiff.config import Config, protocol_of
from cadiff.contrast.cross import CrossConfig, FmriCross, initialise_cross
from cadiff.contrast.encoder_folder import (
    encoder_protocol,
    encoder_trained_on,
    load_encoder,
    preprocessor_for,
    save_encoder,
)
from cadiff.contrast.mae import FmriEncoder, FmriMae
from cadiff.contrast.masking import num_visible, sparsify
from cadiff.contrast.trials import EpochFit, TrialPool, dataset_digest
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig
from cadiff.data.splits import check_disjoint, check_disjoint_between
from cadiff.data.trained_on import refuse_tested, stages_trained_on
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.frozen import kept, tensor_digest
from cadiff.processes import on_main
from cadiff.runs import RunFolder
from cadiff.training import LossFunction, epoch_batches, fit, refuse_uneven


class AttendFit(EpochFit):
    """How phase 2 trains."""

    batch_size: int = Field(default=16, ge=1)
    """Trials in one batch."""
    learning_rate: float = Field(default=5.3e-5, gt=0)
    """Peak learning rate of AdamW."""


class AttendConfig(Config):
    """Settings of phase 2. Weights and ratios are the best of Sun et al. 2023, Table 2 (GOD subject 3)."""

    gamma_f: float = Field(default=0.25, ge=0)
    """Weight of the fMRI's masked error."""
    gamma_i: float = Field(default=1.5, ge=0)
    """Weight of the picture's masked error."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Fraction of fMRI tokens hidden."""
    image_mask_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Fraction of image tokens hidden."""
    decoder_depth: int = Field(default=6, ge=1)
    """fMRI decoder blocks: the first ones of phase 1, all where it has fewer."""
    image_decoder_depth: int = Field(default=6, ge=1)
    """Image decoder blocks: the first ones of the image auto-encoder, all where it has fewer."""
    cross_depth: int = Field(default=3, ge=1)
    """Cross blocks on either side."""
    cross_residual: bool = True
    """fMRI side: add the input of the cross blocks to their output."""
    trainable: Trainable = "code"
    """Image side besides the cross blocks: decoder (code) or encoder (paper). fMRI side: always all."""
    train_decoder_positions: bool = False
    """With trainable=code, the position table of the image decoder learns as well, as in the released code."""
    rescale_twice: bool = False
    """Divide pictures by 255 twice, as the released code does: its image branch sees almost constant pictures."""
    preprocess: PreprocessConfig | None = None
    """Preprocessing to go on with, such as for an imported encoder; null: that which the encoder was made with."""
    raw_betas: bool = False
    """Feed betas as they are imported, wrapped to the encoder's length, as the released code does for BOLD5000 in this phase
    alone; what the later stages read is not changed."""
    sparsify_rate: float = Field(default=0.2, ge=0, lt=1)
    """Fraction of voxels set to 0, anew at every access to a trial."""
    sparsify_target: Literal["sparsified", "clean"] = "sparsified"
    """What the fMRI prediction is compared with."""
    cache_support: bool = True
    """Keep features of whole pictures, in memory and on disk; only with a frozen image encoder (`trainable=code`)."""
    fit: AttendFit = AttendFit()
    """Optimiser, schedule, precision, checkpoints."""


def attend(
    config: AttendConfig,
    datasets: Path | Sequence[Path],
    encoder: Path,
    out: Path,
    *,
    image_mae: Path | str = "shipped",
    resume: bool = False,
) -> Path:
    """Train the encoder of phase 1 on training trials with their pictures, those of one subject as in the paper.

    The preprocessing has the settings (unless `config` has its own) and length of `encoder` and the statistics
    of each subject's training trials, since phase 1 may have seen other subjects. The folder keeps that of the first one.

    Args:
        config: see `AttendConfig`.
        datasets: dataset folder with training trials, or several, of different subjects.
        encoder: encoder folder of phase 1 (or of an earlier phase 2).
        out: folder of the run.
        image_mae: "shipped", a transformers ViT-MAE folder, or a prior folder that holds one.
        resume: go on with an unfinished run in `out`.

    Returns:
        the encoder folder, `out`/encoder.

    Raises:
        DataError: no training trials, or a test stimulus of one dataset among the training stimuli of it, of another, or of
            the encoder's own phase 1.
        ArtifactError: an encoder without decoder, no image auto-encoder, or `out` is in use.
    """
    refuse_uneven(config.fit)
    opened = [BrainDataset.open(d) for d in ([datasets] if isinstance(datasets, Path) else datasets)]
    rows = [_training_rows(data) for data in opened]
    check_disjoint_between(opened)
    start, stored = load_encoder(encoder)
    before = encoder_trained_on(encoder)
    refuse_tested(before, opened, encoder)
    images = load_image_mae(image_mae, decoder_depth=config.image_decoder_depth)
    schedule = config.fit.for_trials(sum(map(len, rows)))
    fmri, image = join(start, images, config, torch.Generator().manual_seed(schedule.seed), encoder)
    for tokens, ratio in (
        (fmri.config.num_tokens, config.mask_ratio),
        (image.num_tokens, config.image_mask_ratio),
    ):
        num_visible(tokens, ratio)  # refuses before a folder is made
    preprocessors = [preprocessor_for(data, start, config.preprocess or stored.config) for data in opened]
    seen = preprocessors
    if config.raw_betas:
        as_imported = {"normalise": "none", "length_policy": "wrap"}
        settings = preprocessors[0].config.model_copy(update=as_imported)
        seen = [preprocessor_for(data, start, settings) for data in opened]
    pool = TrialPool(opened, seen, rows)
    inputs = {
        **{f"dataset_{k}" if k > 1 else "dataset": dataset_digest(d) for k, d in enumerate(opened, start=1)},
        "encoder": folder_digest(encoder),
        "image_mae": folder_digest(images.folder),
    }
    for data, chosen in zip(opened, rows, strict=True):
        data.refuse_unreadable(chosen)
    run = RunFolder.open(out, stage="attend", config=config, resume=resume, inputs=inputs)
    result = run.path / "encoder"
    if not result.is_dir():  # a folder that is there is whole: it appears in one rename
        batches = trial_batches(pool, image, config, schedule.batch_size, schedule.seed)
        fit(
            attend_loss(config, fmri, image),
            {"fmri": fmri, "image": image},
            batches,
            schedule,
            run=run,
            description="attend",
            capturable=True,
        )
        subjects = [f"{d.description.get('name')} {d.description.get('subject')}" for d in opened]
        about = provenance(
            stage="attend",
            protocol=protocol_of("attend", config, before=encoder_protocol(encoder)),
            subjects=subjects,
            trials=len(pool),
            inputs=inputs,
            seed=schedule.seed,
            trained_on=stages_trained_on("attend", before, opened, rows),
        )
        on_main(lambda: save_encoder(result, fmri, preprocessors[0], about))
    run.finish()
    return result


def attend_loss(config: AttendConfig, fmri: FmriCross, image: ImageCross) -> LossFunction:
    """Eq. 7 on a batch of `trial_batches`, whose betas are sparsified first."""

    def loss(batch: Mapping[str, Tensor], generator: torch.Generator) -> Mapping[str, Tensor]:
        visible = sparsify(batch["betas"], config.sparsify_rate, generator=generator)
        return phase_2_loss(
            fmri,
            image,
            visible,
            visible if config.sparsify_target == "sparsified" else batch["betas"],
            image.normalise(batch["images"]),
            generator,
            mask_ratio=config.mask_ratio,
            image_mask_ratio=config.image_mask_ratio,
            gamma_f=config.gamma_f,
            gamma_i=config.gamma_i,
            image_support=batch.get("support"),
        )

    return loss


def _training_rows(data: BrainDataset) -> np.ndarray:
    check_disjoint(data)
    rows = data.rows("train")
    if len(rows) == 0:
        raise DataError(
            f"{data.folder} has no training trials with pictures: phase 2 needs split train in trials.tsv."
        )
    return rows


def refuse_without_decoder(start: FmriEncoder, source: Path) -> FmriMae:
    """`start`, read from `source`, as what phase 2 can go on training. Raises ArtifactError when it lacks a decoder."""
    if not isinstance(start, FmriMae):
        raise ArtifactError(
            f"{source} holds an encoder without decoder, which phase 2 goes on training: take the encoder "
            "folder of `cadiff contrast`."
        )
    return start


def cross_config(image: Any, config: AttendConfig) -> CrossConfig:
    """Sizes of the cross blocks on both sides, from the image auto-encoder's config (transformers' ViTMAEConfig)."""
    return CrossConfig(
        width=image.hidden_size,
        depth=config.cross_depth,
        num_heads=image.num_attention_heads,
        mlp_dim=image.intermediate_size,
        layer_norm_eps=image.layer_norm_eps,
        residual=config.cross_residual,
    )


def join(
    start: FmriEncoder, images: ImageMae, config: AttendConfig, generator: torch.Generator, source: Path
) -> tuple[FmriCross, ImageCross]:
    """Both sides of phase 2: known weights, fresh cross blocks where there are none, trainable parts set.

    Raises ArtifactError when `start`, read from `source`, has no decoder; ConfigError when it has other cross
    blocks.
    """
    start = refuse_without_decoder(start, source)
    cross = cross_config(images.model.config, config)
    depth = min(config.decoder_depth, start.config.decoder_depth)
    fmri = FmriCross(start.config.model_copy(update={"decoder_depth": depth}), cross)
    for part in (fmri.cross_map_in, fmri.cross_blocks, fmri.cross_map_out):
        initialise_cross(part, generator)
    if isinstance(start, FmriCross) and start.cross != cross:
        raise ConfigError(
            f"{source} has cross blocks of another size ({start.cross}) than these settings and this image "
            f"auto-encoder ask for ({cross}): use the same, or start from an encoder of `cadiff contrast`."
        )
    wanted = fmri.state_dict()  # deeper decoder blocks of phase 1 are left behind
    known = {name: tensor for name, tensor in start.state_dict().items() if name in wanted}
    fmri.load_state_dict({**wanted, **known})
    image = ImageCross(images, start.config.embed_dim, cross, rescale_twice=config.rescale_twice)
    for part in (image.cross_map_in, image.cross_blocks):
        initialise_cross(part, generator)
    image.set_trainable(config.trainable, decoder_positions=config.train_decoder_positions)
    return fmri, image


def trial_batches(
    pool: TrialPool, image: ImageCross, config: AttendConfig, batch_size: int, seed: int
) -> Callable[[int], dict[str, Tensor]]:
    """Step -> `betas` (B, V), `images` uint8 (B, S, S, 3) and, where kept in memory, `support` (B, 1 + P, W).

    Pictures are read, resized and (with a frozen image encoder) put through it once per stimulus.
    """
    shown, read = [], []
    for data, rows in zip(pool.datasets, pool.rows, strict=True):
        stimuli = data.stimulus_ids("train")
        place = {stimulus: k for k, stimulus in enumerate(stimuli, start=sum(map(len, read)))}
        shown += [place[stimulus] for stimulus in data.trials["stimulus_id"].to_numpy()[rows]]
        read.append(data.images(stimuli, image.image_size))
    pictures, shown = torch.from_numpy(np.concatenate(read)), np.array(shown)
    cached = _support(image, pictures) if config.cache_support and config.trainable == "code" else None
    indices = epoch_batches(len(pool), batch_size, seed)

    def batch(step: int) -> dict[str, Tensor]:
        chosen = indices(step)
        which = torch.from_numpy(shown[chosen])
        parts = {"betas": torch.from_numpy(pool.betas(chosen)), "images": pictures[which]}
        return parts if cached is None else {**parts, "support": cached[which]}

    return batch


@torch.no_grad()
def _support(image: ImageCross, pictures: Tensor, batch_size: int = 64) -> Tensor:
    """Features of every whole picture (n, 1 + P, W), float32 on the CPU; kept on disk for the next run."""

    def make() -> Tensor:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        image.to(device)
        parts: Sequence[Tensor] = pictures.split(batch_size)
        return torch.cat([image.support(image.normalise(part.to(device))).cpu() for part in parts])

    scales = [
        image.scale,
        *image.get_buffer("mean").flatten().tolist(),
        *image.get_buffer("std").flatten().tolist(),
    ]
    about = {"pictures": tensor_digest(pictures), "normalised": scales, "batch_size": batch_size}
    return kept("features", image.mae.vit, about, make)

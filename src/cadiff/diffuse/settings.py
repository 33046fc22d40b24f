"""Settings of the third stage, and of drawing from what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from cadiff.config import Config
from cadiff.contrast.trials import EpochFit
from cadiff.diffuse.conditioner import Null
from cadiff.diffuse.controls import Control
from cadiff.diffuse.precision import Precision
from cadiff.diffuse.sampling import SchedulerName
from cadiff.diffuse.trainable import UnetBlocks
from cadiff.errors import ConfigError
from cadiff.training import Decay

RerankMode = Literal["pick", "mean", "order"]


class DiffuseFit(EpochFit):
    """How the diffusion model is tuned; the published values (method D11)."""

    epochs: float | None = Field(500, gt=0)
    """Passes over the training trials; takes the place of `steps`."""
    batch_size: int = Field(5, ge=1)
    """Trials in one batch."""
    learning_rate: float = Field(5.3e-5, gt=0)
    """Learning rate of AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Applied to matrices and kernels, not to vectors."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Moment decay rates of AdamW."""
    schedule: Literal["cosine", "constant"] = "constant"
    """After the warm-up: half a cosine down to `min_learning_rate`, or constant."""
    clip_norm: float | None = Field(0.5, gt=0)
    """Largest norm of the whole gradient; null for no clipping."""


class DiffuseConfig(Config):
    """Settings of the third stage. Defaults are the published method; what is ours says so and is off."""

    context_length: int = Field(77, ge=1)
    """Context tokens that the U-Net attends to."""
    train_encoder: bool = True
    """Tune the fMRI encoder too."""
    train_positions: bool = False
    """With train_encoder, tune the encoder's position table as well, as the released code does unasked."""
    own_length: bool = False
    """Read betas at the subject's own length, the encoder's position table stretched to it, as the released code does;
    otherwise at the length and the positions of phases 1 and 2."""
    unet_blocks: UnetBlocks = "all"
    """Tune cross-attention everywhere, or only on the way up (faster; ours)."""
    null: Null = "label"
    """"No brain", for guidance and the prior-only control: the prior's null label, a trained vector, or the mean context."""
    condition_dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that a sample is trained with "no brain", which guidance needs (ours; the published model has no guidance)."""
    label_start: bool = False
    """Begin the context at a ridge prediction of the label embedding (ours)."""
    image_start: bool = False
    """Begin the condition at a ridge prediction of the stimulus's features, which takes a prior that was adapted to them
    (`cadiff prior adapt`; ours)."""
    start_groups: Literal["stimulus", "class"] = "stimulus"
    """What the label starts that training trials get leave out: their own stimulus, or all of its class (as for test
    classes that were never seen). The ridge penalty is always chosen by stimulus."""
    latent_start: int = Field(0, ge=0)
    """Components of a ridge from betas to latents, from which sampling may begin; 0 for none (ours)."""
    sparsify_rate: float = Field(0.2, ge=0, lt=1)
    """Fraction of voxels set to 0 in every training sample."""
    crop_probability: float = Field(0.5, ge=0, le=1)
    """Chance that a sample's target is a crop of its picture."""
    crop_ratio: float = Field(0.2, ge=0, lt=1)
    """Share of the side that a crop loses."""
    num_crops: int = Field(4, ge=0)
    """Crops prepared per picture; a crop is drawn among them (the published code draws afresh)."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weigh the loss by min(SNR, gamma) / SNR (Hang et al. 2023); none for equal weights."""
    gradient_checkpointing: bool = False
    """Recompute the U-Net in the backward pass: less memory, a third slower."""
    fit: DiffuseFit = DiffuseFit()  # pyright: ignore[reportCallIssue]
    """Optimiser, schedule, precision, checkpoints."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.null == "learned" and self.condition_dropout == 0:
            raise ValueError("null=learned needs condition_dropout above 0, or it is never trained")
        if self.label_start and self.image_start:
            raise ValueError("label_start and image_start begin the same thing: set one of them to false")
        if self.null == "mean" and self.condition_dropout > 0:
            raise ValueError(
                "null=mean is known only after training: set condition_dropout=0, or another null"
            )
        return self


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
    likelihood: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Pull every denoising step towards latents under which the betas are likely, by a linear encoding model fitted on the
    training trials: 1 believes its own noise, 0 leaves it out (ours; docs/likelihood.md)."""
    controls: tuple[Control, ...] = ("prior_only", "shuffled")
    """Conditions beside the brain's: prior_only, shuffled, label_oracle, autoencoded, noise_free (simulated subjects)."""
    repeats: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Also draw from averages of so many presentations of each stimulus, for a curve: [1, 2, 4]."""
    only_rois: tuple[str, ...] = ()
    """Also draw from each of these ROIs alone, other voxels at their training mean; all: from every ROI in turn."""
    without_rois: tuple[str, ...] = ()
    """Also draw without each of these ROIs, its voxels at their training mean; all: without every ROI in turn."""
    class_start: bool = False
    """Begin the context at the class that the betas name by an encoding model, not at the ridge start (docs/best.md)."""
    class_pictures: int = Field(12, ge=2)
    """Pictures that the pipeline draws of every class of the prior, to know what a class would evoke."""
    class_images: Path | None = None
    """Labelled pictures of the prior's classes instead of drawn ones: class folders or an .npz, as for `cadiff prior train`."""
    rerank: str | None = None
    """Choose among the samples of a trial by the likelihood of its betas under an encoding model: `encoding` fits one on the
    training trials, else the folder of one; none by default (ours). Controls are treated alike, docs/rivals.md."""
    rerank_mode: RerankMode = "pick"
    """pick: only the most likely sample is kept; mean: their average, weighed by the posterior; order: all, likeliest first."""
    rerank_rounds: int = Field(1, ge=1)
    """Generations of samples: each after the first is drawn around the likeliest quarter so far (Kneeland et al. 2023)."""
    rerank_strength: float = Field(0.5, gt=0, lt=1)
    """Share of the denoising steps that the last generation takes; the first takes `strength`, the rest go in equal strides."""
    rerank_features: tuple[str, ...] | None = None
    """Also of class_start. What the encoding model predicts voxels from (docs/rivals.md); none: what suits the pictures."""
    importance: bool = True
    """Also write how much each voxel moves the condition (voxel_importance.tsv)."""
    batch_size: int = Field(16, ge=1)
    """Pictures drawn at a time."""
    precision: Precision = "auto"
    """auto: bf16 on CUDA, fp32 elsewhere; native: bf16 also on CPUs that multiply it themselves (AVX-512 BF16, AMX)."""
    compile: bool | None = None
    """Compile the repeated blocks of the networks; null: on CUDA, where there is so much to draw that it pays."""
    seed: int = 0
    """Of the noise, of the shuffling and of which presentations are averaged."""

    @field_validator("repeats", "only_rois", "without_rois", "rerank_features", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) else value

    @field_validator("rerank_features")
    @classmethod
    def _there_are_such_features(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from cadiff.encoding.features import find_spaces

        if value is not None:
            try:
                find_spaces(value)
            except ConfigError as error:
                raise ValueError(str(error).rstrip(".")) from None
        return value

    @model_validator(mode="after")
    def _repeats_are_averages(self) -> ReconstructConfig:
        if self.repeats and not self.average_repeats:
            raise ValueError(
                "repeats=... are averages of presentations, which average_repeats=false rules out."
            )
        return self

    @model_validator(mode="after")
    def _likelihood_is_asked_once(self) -> ReconstructConfig:
        if self.likelihood and (self.only_rois or self.without_rois):
            raise ValueError(
                "likelihood is not known of silenced voxels: leave only_rois and without_rois out, or set likelihood=0"
            )
        if self.likelihood and self.split == "train":
            raise ValueError(
                "likelihood is fitted on the training trials, so drawings of these would look better than any others: set "
                "split=test, or likelihood=0"
            )
        if self.likelihood and self.rerank is not None and self.rerank_mode == "mean":
            raise ValueError(
                "rerank_mode=mean weighs samples by the likelihood of the betas, which drew them already: set likelihood=0, or "
                "another mode"
            )
        return self

    @model_validator(mode="after")
    def _there_is_a_choice(self) -> ReconstructConfig:
        if self.rerank is None:
            if self.rerank_rounds > 1:
                raise ValueError("rerank_rounds are rounds of choosing: set rerank=encoding too")
            return self
        if self.rerank_rounds > 1 and self.rerank_mode == "mean":
            raise ValueError(
                "rerank_mode=mean weighs samples that were equally probable beforehand, which those of later rounds are not: "
                "set rerank_rounds=1, or another mode"
            )
        if self.rerank_rounds > 1 and self.rerank_strength > self.strength:
            raise ValueError(
                f"rounds are to add less and less noise: set rerank_strength (now {self.rerank_strength:g}) to at most strength "
                f"({self.strength:g})"
            )
        if self.num_images_per_trial < 2:
            raise ValueError("rerank chooses among samples: set num_images_per_trial to 2 or more")
        if self.only_rois or self.without_rois:
            raise ValueError(
                "rerank has no likelihood of silenced voxels: leave only_rois and without_rois out, or rerank"
            )
        return self

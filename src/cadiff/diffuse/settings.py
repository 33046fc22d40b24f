"""Settings of the third stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from cadiff.config import Config
from cadiff.contrast.trials import EpochFit
from cadiff.diffuse.conditioner import Null
from cadiff.diffuse.trainable import UnetBlocks


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
    betas: tuple[float, float] = (0.9, 0.999)
    """Moment decay rates of AdamW."""
    schedule: Literal["cosine", "constant"] = "constant"
    """After the warm-up: half a cosine down to `min_learning_rate`, or constant."""
    clip_norm: float | None = 0.5
    """Largest norm of the whole gradient; none for no clipping."""


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
    def _null_is_trained(self) -> Self:
        if self.null == "learned" and self.condition_dropout == 0:
            raise ValueError("null=learned needs condition_dropout above 0, or it is never trained")
        if self.null == "mean" and self.condition_dropout > 0:
            raise ValueError(
                "null=mean is known only after training: set condition_dropout=0, or another null"
            )
        return self

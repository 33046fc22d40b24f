"""Options of SS-AE and the sizes that follow from the side of the pictures; what was published stands beside each.

Beliy et al. 2019 (github.com/WeizmannVision/ssfmri2im) and Gaziv et al. 2022 (github.com/WeizmannVision/SelfSuperReconst).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from cadiff.config import Config
from cadiff.evaluate.settings import EvaluateConfig
from cadiff.training import FitConfig

PUBLISHED_SIZE = 112
"""Pixels a side of the published networks; from here on theirs are the defaults, below a laptop's."""
PUBLISHED_VOXELS = 4643
"""Voxels of the published subject (GOD, subject 3); penalties that are means over voxels are scaled from there."""


class SsAeConfig(Config):
    """How SS-AE is fitted. The defaults are the released settings of 2022 unless a line says otherwise."""

    protocol: Literal["default", "official"] = "default"
    """official: also train on the fMRI of the TEST trials, and weigh voxels by it, as Beliy et al. 2019 did."""
    size: int | None = Field(default=None, ge=16, le=512)
    """Side of the pictures, pixels; null: that of the stimuli, at most 112 (published)."""
    eye: str = "efficientnet-lite0"
    """Frozen network of encoder and image loss: efficientnet-lite0, efficientnet-lite1, or a file of AlexNet or VGG16."""
    judge: str = EvaluateConfig.model_fields["judge"].default
    """The network that will score the pictures: never the eye."""
    images: str | None = None
    """Folder of pictures without fMRI; null: the shipped ones (up to 64 pixels); `none`: only the training pictures."""
    max_images: int = Field(default=10_000, ge=1)
    """Pictures taken from the folder, drawn by seed where it has more."""
    pairs_weight: float = Field(default=1.0, ge=0)
    """Weight of D(r) ~ x on pairs."""
    images_weight: float = Field(default=1.0, ge=0)
    """Weight of D(E(x)) ~ x on pictures without fMRI."""
    fmri_weight: float = Field(default=1.0, ge=0)
    """Weight of E(D(r)) ~ r on fMRI without pictures; 1 in both papers' code, 0 in its released command for RGB."""
    cosine_weight: float = Field(default=0.1, ge=0)
    """Weight of 1 - cosine beside the error of voxels."""
    perceptual_weights: tuple[float, float, float, float, float] = (10.0, 10.0, 10.0, 10.0, 2.0)
    """Weights of 1 - cosine of the eye's five maps, from fine to coarse."""
    pixel_weight: float = Field(default=1.0, ge=0)
    """Weight of the absolute error of pixels."""
    tv_weight: float = Field(default=0.3, ge=0)
    """Weight of the total variation."""
    penalty: float = Field(default=1.0, ge=0)
    """Multiplies all penalties on weights."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of the encoder's maps while it trains."""
    shift: float = Field(default=0.03, ge=0, lt=0.5)
    """Largest shift of a picture while the encoder trains, as a fraction of its side."""
    encoder_channels: int = Field(default=32, ge=1)
    """Channels that each map of the eye is brought to."""
    decoder_channels: int | None = Field(default=None, ge=2, multiple_of=2)
    """Channels of the decoder; null: 64 as published from 112 pixels on, 32 below."""
    kernel_size: Literal[3, 5] | None = None
    """Of the decoder's convolutions; null: 5 as published from 112 pixels on, 3 below."""
    encoder_steps: int | None = Field(default=None, ge=1)
    """null: the published 50 epochs, at least 300 steps; below 112 pixels 300 steps."""
    decoder_steps: int | None = Field(default=None, ge=1)
    """null: the published 150 epochs, at least 400 steps; below 112 pixels 400 steps."""
    encoder_batch: int = Field(default=64, ge=1)
    """Pairs in a batch of the encoder."""
    pairs_batch: int = Field(default=24, ge=1)
    """Pairs in a batch of the decoder."""
    fmri_batch: int = Field(default=16, ge=1)
    """Responses without pictures in a batch of the decoder."""
    images_batch: int = Field(default=16, ge=1)
    """Pictures without responses in a batch of the decoder; 48 in the released command for RGB."""
    encoder_learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam, falling along half a cosine (published: a fifth every 10 epochs)."""
    decoder_learning_rate: float = Field(default=5e-3, gt=0)
    """Of Adam, falling along half a cosine (published: a fifth after 100 and after 140 of 150 epochs; AMSGrad)."""
    match_repeat_spread: bool = True
    """Rescale averages of repeats to the spread of single trials, where noise ceilings are known."""

    @field_validator("eye", "judge", "images", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value


class StageConfig(Config):
    """What a run folder of one of the two stages holds."""

    settings: SsAeConfig
    fit: FitConfig


def steps(given: int | None, epochs: int, trials: int, batch: int, size: int, few: int) -> int:
    """Optimiser steps: as given, else `few` below the published size, from there on the published epochs but no fewer.

    Epochs alone are no measure: 50 of them are 938 steps for the 1,200 published trials, but 56 for 72, which teach E nothing.
    """
    if given is not None:
        return given
    return max(few, round(epochs * trials / batch)) if size >= PUBLISHED_SIZE else few


def schedule(num_steps: int, batch: int, learning_rate: float, seed: int) -> FitConfig:
    """Adam in `cadiff.training.fit`: no decay, no clipping."""
    return FitConfig(
        steps=num_steps,
        batch_size=batch,
        learning_rate=learning_rate,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        clip_norm=None,
        checkpoint_every=max(50, num_steps // 10),
        seed=seed,
    )

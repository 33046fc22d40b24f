"""Every training stage at a size that takes a moment, as functions that another process can run and be killed in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cadiff.artifacts import folder_digest
from cadiff.attend.stage import AttendConfig, attend
from cadiff.config import load_config
from cadiff.contrast.stage import ContrastConfig, contrast
from cadiff.data.dataset import write_dataset
from cadiff.diffuse.stage import DiffuseConfig, diffuse
from cadiff.priors.train import PriorConfig, train_prior

FIT = {"steps": 14, "batch_size": 4, "checkpoint_every": 2, "log_every": 1, "epochs": None}
PRIOR = [
    "image_size=16",
    "num_heldout=4",
    "vqvae={channels: [8, 16], norm_groups: 4, num_codes: 16, perceptual_weight: 0}",
    "vqvae.codebook_start=2",
    "vqvae.revive_every=2",
    "vqvae.fit={steps: 6, batch_size: 4, checkpoint_every: 2}",
    "diffusion={channels: [8, 16], cross_attention: [true, true], norm_groups: 4, head_dim: 8, context_dim: 8}",
    "diffusion.fit={steps: 6, batch_size: 4, checkpoint_every: 2, ema_decay: 0.9}",
    "image_mae={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2, decoder_embed_dim: 16, decoder_depth: 1}",
    "image_mae.decoder_num_heads=2",
    "image_mae.fit={steps: 6, batch_size: 4, checkpoint_every: 2}",
]
MAE = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_embed_dim": 8}


def make_world(folder: Path) -> None:
    """The inputs of all stages: pictures, and a subject who saw them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "pictures.npz", images=images, labels=np.arange(24) % 2)
    ids = [f"s{k}" for k in range(24)]
    write_dataset(
        folder / "subject",
        name="tiny",
        subject="one",
        betas=rng.normal(size=(24, 30)).astype(np.float32),
        trials=pd.DataFrame(
            {
                "stimulus_id": ids,
                "split": ["train"] * 20 + ["test"] * 4,
                "session": 1,
                "run": 1,
                "repeat": 1,
            }
        ),
        voxels=pd.DataFrame({"rois": ["V1"] * 30}),
        stimuli=pd.DataFrame({"stimulus_id": ids, "label": [str(k % 2) for k in range(24)]}),
        images=dict(zip(ids, images, strict=True)),
    )


def _prior(world: Path, out: Path) -> Path:
    return train_prior(
        load_config(PriorConfig, "prior", overrides=PRIOR), world / "pictures.npz", out, resume=True
    )


def _contrast(world: Path, out: Path) -> Path:
    config = ContrastConfig.model_validate(
        {"mae": {**MAE, "decoder_depth": 2, "decoder_num_heads": 2}, "fit": FIT}
    )
    return contrast(config, [world / "subject"], out, resume=True)


def _attend(world: Path, out: Path) -> Path:
    config = AttendConfig.model_validate({"cross_depth": 1, "fit": FIT})
    return attend(
        config,
        world / "subject",
        world / "contrast" / "encoder",
        out,
        image_mae=world / "prior" / "prior",
        resume=True,
    )


def _diffuse(world: Path, out: Path) -> Path:
    config = DiffuseConfig.model_validate({"context_length": 4, "num_crops": 1, "fit": FIT})
    return diffuse(
        config,
        world / "subject",
        world / "attend" / "encoder",
        out,
        prior=world / "prior" / "prior",
        resume=True,
    )


STAGES: dict[str, Callable[[Path, Path], Path]] = {
    "prior": _prior,
    "contrast": _contrast,
    "attend": _attend,
    "diffuse": _diffuse,
}
"""In the order in which they need each other's results, `world`/<stage>."""


def run(stage: str, world: Path, out: Path) -> None:
    """One stage, begun or gone on with; what it prints is not shown."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = (out.parent / f"{out.name}.txt").open("a")
    STAGES[stage](world, out)


def weights(stage: str, out: Path) -> str:
    """SHA-256 of the weights that a finished stage hands on."""
    result = {"prior": "prior", "contrast": "encoder", "attend": "encoder", "diffuse": "pipeline"}[stage]
    return folder_digest(out / result, (".safetensors",))

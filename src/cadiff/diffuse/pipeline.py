"""FmriToImagePipeline: betas in, pictures out. A diffusers pipeline, saved and loaded like any other."""

# no `from __future__ import annotations` here: diffusers before 0.36 reads the types of __init__ and needs real ones
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from safetensors import SafetensorError
from torch import Tensor

from cadiff.artifacts import read_json, verify_checksums
from cadiff.data.preprocess import Split
from cadiff.diffuse.conditioner import Condition, FmriConditioner
from cadiff.diffuse.precision import Precision, autocast
from cadiff.diffuse.sampling import denoise, draw_noise, make_scheduler, num_calls
from cadiff.errors import ArtifactError, ConfigError
from cadiff.priors.load import Autoencoder, decode

Correct = Callable[[Tensor], Callable[[Tensor, float], Tensor]]
"""The trial of each row of a batch (B,) -> what betters guesses of its clean latents (B, c, h, w), given abar of the step too."""


class FmriToImagePipeline(DiffusionPipeline):
    """A latent diffusion model conditioned on fMRI.

    `FmriToImagePipeline.from_pretrained(folder)(betas, num_images_per_trial=5, generator=g)` gives uint8 pictures
    (trials, 5, H, W, 3). The sampler sees betas only, never an image.

    Args:
        vqvae: VQModel or AutoencoderKL.
        unet: UNet2DConditionModel with an identity class embedding, which takes the time vector.
        scheduler: any diffusers scheduler with the noise schedule of training.
        conditioner: betas -> condition.
    """

    model_cpu_offload_seq = "conditioner->unet->vqvae"

    vqvae: Any
    unet: UNet2DConditionModel
    scheduler: Any
    conditioner: FmriConditioner

    def __init__(
        self,
        vqvae: Autoencoder,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        conditioner: FmriConditioner,
    ) -> None:
        super().__init__()
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler, conditioner=conditioner)
        if unet.config["class_embed_type"] != "identity":
            raise ConfigError(
                "The U-Net must be loaded with class_embed_type='identity', which takes the time vector."
            )

    @torch.no_grad()
    def __call__(
        self,
        betas: np.ndarray | Tensor | None = None,
        *,
        repeats: np.ndarray | None = None,
        condition: Condition | None = None,
        guess: Tensor | None = None,
        num_images_per_trial: int = 5,
        num_inference_steps: int = 250,
        guidance_scale: float = 1.0,
        scheduler: str | None = None,
        strength: float = 1.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        batch_size: int = 16,
        precision: Precision = "auto",
        correct: Correct | None = None,
        output_type: Literal["uint8", "pt", "latent"] = "uint8",
        on_step: Callable[[], Any] | None = None,
    ) -> Any:
        """Draws pictures.

        Args:
            betas: (trials, voxels) or (voxels,), raw betas of the subject; preprocessing is part of the pipeline.
            repeats: (trials,) how many trials each row averages; matters with `match_repeat_spread`.
            condition: a ready condition of one row a trial instead of betas.
            guess: (trials, c, h, w), latents to begin from for a ready condition; with betas the conditioner's
                latent start gives it.
            num_images_per_trial: samples of each trial.
            num_inference_steps: steps; 250 in the published protocol, 20 to 50 are enough for most schedulers.
            guidance_scale: classifier-free guidance; 1 (the published protocol) is none.
            scheduler: pndm, ddim, dpm++, unipc or euler; by default the one saved with the pipeline (pndm).
            strength: below 1, sampling begins at a noised guess and takes this share of the steps.
            generator: draws the noise, on the CPU; the same generator gives the same pictures on every device.
            noise: (trials, samples, c, h, w), instead of `generator`.
            batch_size: pictures drawn at a time; changes memory and speed, not the result.
            precision: of the network; auto is bf16 on CUDA, float32 elsewhere (`cadiff.diffuse.precision`).
            correct: betters the guess of the clean latents in every step (`cadiff.diffuse.likelihood`).
            output_type: "uint8": array (trials, samples, H, W, 3), clamped and truncated as in the published code;
                "pt": tensor (trials, samples, 3, H, W) about [-1, 1]; "latent": tensor (trials, samples, c, h, w).
            on_step: called after every call of the network, in place of this pipeline's own progress bar.

        Raises:
            DataError: another number of voxels than the model was fitted on, or NaN.
            ConfigError: an unknown scheduler, neither or both of betas and condition, strength without a latent start.
        """
        if (betas is None) == (condition is None):
            raise ConfigError("Give either betas or a ready condition, and not both.")
        if not 0.0 < strength <= 1.0:
            raise ConfigError(
                f"strength={strength:g}; expected a number above 0, up to 1 (start at pure noise)."
            )
        if betas is not None:
            condition, guess = self.condition(betas, repeats)
        assert condition is not None
        if strength < 1.0 and guess is None:
            raise ConfigError("strength below 1 needs a pipeline tuned with latent_start, or a guess.")
        trials, device = len(condition.context), self.unet.device
        condition = Condition(*(values.to(device) for values in condition))
        guess = None if guess is None else guess.to(device)
        shape = self.latent_shape
        if noise is None:
            noise = draw_noise(trials, num_images_per_trial, shape, generator)
        samples = noise.shape[1]
        sampler = make_scheduler(scheduler, self.scheduler.config) if scheduler else self.scheduler
        self.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  at best twice as fast on a CPU, at worst as fast
        self.vqvae.to(memory_format=torch.channels_last)
        flat, pieces = noise.flatten(0, 1), []
        starts = range(0, len(flat), batch_size)
        calls = len(starts) * num_calls(sampler, num_inference_steps, strength)
        progress: Any = nullcontext() if on_step else self.progress_bar(total=calls)  # pyright: ignore[reportCallIssue]
        with progress as bar:
            for start in starts:
                index = torch.arange(start, min(start + batch_size, len(flat)), device=device)
                trial = index // samples  # the condition is computed once a trial and shared by its samples
                latents = denoise(
                    self.unet,
                    sampler,
                    flat[index.cpu()].to(device),
                    condition.rows(trial),
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    null=self.conditioner.null(len(trial)) if guidance_scale != 1.0 else None,
                    guess=None if guess is None else guess[trial],
                    strength=strength,
                    precision=precision,
                    correct=None if correct is None else correct(trial),
                    on_step=on_step or bar.update,
                )
                with autocast(precision, device):
                    pieces.append(self._output(latents, output_type))
        joined = np.concatenate(pieces) if output_type == "uint8" else torch.cat(pieces)
        return joined.reshape(trials, samples, *joined.shape[1:])

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; weights are brought back to the usual memory layout, which safetensors asks for."""
        for part in (self.unet, self.vqvae):
            part.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        size = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config["in_channels"], height, width

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels."""
        return self.latent_shape[1] * 2 ** (len(self.vqvae.config["block_out_channels"]) - 1)

    @torch.no_grad()
    def condition(
        self,
        betas: np.ndarray | Tensor,
        repeats: np.ndarray | None = None,
        *,
        split: Split = "test",
        start: Tensor | None = None,
    ) -> tuple[Condition, Tensor | None]:
        """Raw betas -> condition, and latents to begin from when the pipeline was tuned with a latent start.

        `split`: which trials these are, see `Preprocessor.__call__`. `start`: see `FmriConditioner.encode`.
        """
        array = betas.detach().cpu().numpy() if isinstance(betas, Tensor) else np.asarray(betas)
        condition = self.conditioner.encode(array, repeats, split=split, start=start)
        latent_start = self.conditioner.latent_start
        if latent_start is None:
            return condition, None
        ready = self.conditioner.prepare(array, repeats, split=split)
        return condition, latent_start(ready).unflatten(1, self.latent_shape)

    def _output(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents.cpu()
        images = decode(self.vqvae, latents, self.vqvae.config["scaling_factor"])
        return to_uint8(images) if output_type == "uint8" else images.float().cpu()


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), clamped and truncated as in the published code."""
    scaled = ((images.float() + 1) / 2).clamp(0, 1) * 255
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def find_pipeline(folder: Path | str) -> Path:
    """The pipeline folder itself, given that or the run folder of `diffuse` around it.

    Raises:
        ArtifactError: neither.
    """
    folder = Path(folder)
    if (folder / "pipeline" / "model_index.json").is_file():
        folder = folder / "pipeline"
    if not (folder / "model_index.json").is_file():
        there = (
            ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        )
        raise ArtifactError(
            f"{folder} holds no pipeline (found: {there or 'nothing'}): make one with `cadiff diffuse`."
        )
    name = read_json(folder / "model_index.json").get("_class_name")
    if name != FmriToImagePipeline.__name__:
        raise ArtifactError(f"{folder} holds a {name}, expected a {FmriToImagePipeline.__name__}.")
    return folder


def pipeline_protocol(folder: Path | str) -> str | None:
    """The protocol (docs/protocols.md) that all stages up to this pipeline followed; None where it does not say.

    Raises:
        ArtifactError: as `find_pipeline`.
    """
    about = find_pipeline(folder) / "provenance.json"
    return read_json(about).get("protocol") if about.is_file() else None


def open_pipeline(folder: Path | str) -> FmriToImagePipeline:
    """Opens a pipeline made by `cadiff diffuse`, on the GPU when there is one; checksums are compared first.

    Raises:
        ArtifactError: not such a folder, or damaged.
    """
    folder = find_pipeline(folder)
    if (folder / "checksums.json").is_file():  # absent where a user saved the pipeline again
        verify_checksums(folder)
    logging.disable_progress_bar()  # opening takes a moment; sampling shows its own bar
    try:
        pipeline = FmriToImagePipeline.from_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"The pipeline {folder} is incomplete or damaged ({error}): make or copy it again."
        ) from None
    finally:
        logging.enable_progress_bar()
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

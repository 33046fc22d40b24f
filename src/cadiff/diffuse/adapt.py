"""Opens a label-conditioned prior to the features of a picture: `cadiff prior adapt`.

    out/run.json        settings, digests of pictures and prior, status
    out/prior/          what `load_prior` opens: the name of the prior that was adapted, and what is new
        prior.json                      base and its digest, what was measured
        image_context/                  `cadiff.priors.image_context.ImageContext`
        unet_changes.safetensors        weights of the denoiser that are others now
    out/samples.png     held-out pictures, and what is drawn from all of their features, from half, and from none

No brain is needed: pictures alone, with their features made uncertain on purpose, teach the denoiser to draw what is known and
to leave open what is not. Trained are the new module and the transformer blocks of the U-Net's way up, by the loss of tuning.

Letters in shapes: n or B pictures, F coordinates, K tokens, C context width, T time width; latents (B, c, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from cadiff.artifacts import provenance
from cadiff.config import Config
from cadiff.diffuse.attention import write_out_wide_heads
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.pipeline import to_uint8
from cadiff.diffuse.recompute import has_dropout
from cadiff.diffuse.sampling import denoise, make_scheduler, sample_noise
from cadiff.diffuse.trainable import UnetBlocks, gradients_on_the_way_up
from cadiff.draws import drawn
from cadiff.encoding.features import JUDGE
from cadiff.errors import ConfigError, DataError
from cadiff.priors.adapted import name_base, save_adapted
from cadiff.priors.image_context import ImageContext, uncertain
from cadiff.priors.images import LabelledImages, load_images
from cadiff.priors.load import ImagePrior, load_prior
from cadiff.priors.seeing import see
from cadiff.priors.sheets import save_sheet
from cadiff.processes import on_main
from cadiff.runs import RunFolder
from cadiff.sharing import whole
from cadiff.training import FitConfig, epoch_batches, fit, refuse_several
from cadiff.vision import CLASSIFIERS


class AdaptConfig(Config):
    """Settings of `cadiff prior adapt`."""

    num_heldout: int = Field(256, ge=16)
    """Pictures that are not trained on; what is measured is measured on them."""
    seed: int = Field(default=0, ge=0)
    """Of the pictures held out and of the weights that training starts from."""
    eye: str = "efficientnet-lite0"
    """Classifier whose features are drawn from; never the one that judges. Simulated subjects are made from Lite0 by default."""
    eye_size: int = Field(160, ge=32, multiple_of=32)
    """Pixels a side that it is shown."""
    feature_components: int = Field(128, ge=1)
    """Principal components kept of the eye's pooled features."""
    latent_components: int = Field(64, ge=1)
    """Principal components kept of the latents: layout and colour."""
    num_tokens: int = Field(8, ge=1)
    """Context tokens; `diffuse.context_length` has to be the same."""
    width: int = Field(512, ge=1)
    """Of the hidden layer."""
    unet_blocks: UnetBlocks = "up"
    """Transformer blocks trained: those on the way up, or all."""
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of pictures drawn from "no label" instead, for guidance."""
    min_snr_gamma: float | None = Field(5.0, gt=0)
    """Loss weight min(SNR, gamma) / SNR (Hang et al. 2023); null for none."""
    fit: FitConfig = FitConfig(
        steps=20_000,
        batch_size=64,
        learning_rate=2e-4,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        warmup_steps=200,
        ema_decay=0.999,
        clip_norm=1.0,
    )
    """Optimiser and schedule."""

    @field_validator("eye")
    @classmethod
    def _check_eye(cls, name: str) -> str:
        if name == JUDGE:
            raise ValueError(
                f"{JUDGE} is the default judge: a prior that reads it would be scored by its own eye"
            )
        if name not in CLASSIFIERS:
            raise ValueError(f"unknown eye {name!r}; there are {', '.join(CLASSIFIERS)}")
        return name


def adapt_prior(
    config: AdaptConfig, images: Path, out: Path, *, prior: str | Path = "shipped", resume: bool = False
) -> Path:
    """Trains on the pictures `images` (see `cadiff.priors.images`; classes are used only to begin well).

    Returns:
        The folder `out/prior`.

    Raises:
        DataError: pictures that cannot be read, too few of them, or too much alike.
        ConfigError: a prior without labels or null label, one that is adapted already, or several processes.
        ArtifactError: `out` is in use, or is resumed with other settings, pictures or prior.
    """
    refuse_several("An adapted prior")  # errors of other pictures are taken from the whole batch
    base = load_prior(prior)
    if base.image_context is not None:
        raise ConfigError(f"{prior} draws from features of pictures already: adapt the prior it was made of.")
    if base.label_embedding is None or base.null_label is None:
        raise ConfigError(
            f"{prior} has no label table with a null label, which an adapted prior starts from."
        )
    pictures = load_images(images, base.image_size)
    most = max(config.feature_components, config.latent_components)
    if len(pictures) < 2 * config.num_heldout or len(pictures) - config.num_heldout <= most:
        raise DataError(
            f"{len(pictures)} pictures are too few: {config.num_heldout} are held out, and {most} components need more than as "
            "many to train on; give more, or lower num_heldout, feature_components or latent_components."
        )
    inputs = {"images": pictures.digest, "prior": base.digest}
    open_run = partial(RunFolder.open, out, stage="prior-adapt", config=config, resume=resume, inputs=inputs)
    # what is there already is checked before the pictures are looked at, which takes minutes; a new folder is made after it
    run = open_run() if out.is_file() or (out.is_dir() and any(out.iterdir())) else None
    target = out / "prior"
    if run is not None and target.is_dir():  # written in one rename, so it is whole
        run.finish()
        return target
    train, heldout = pictures.split(config.num_heldout, seed=config.seed)
    features, latents = see(base, pictures.images, eye=config.eye, eye_size=config.eye_size)
    context = build_context(config, base, features[train], latents[train], _labels(base, pictures, train))
    run = run or open_run()
    coordinates = context.coordinates(features, latents)
    base.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    write_out_wide_heads(base.unet)
    loss = AdaptLoss(config, base, context)
    trained = tuned_parameters(base.unet, config.unet_blocks)
    indices = epoch_batches(len(train), config.fit.batch_size, config.fit.seed)

    def batches(step: int) -> dict[str, Tensor]:
        rows = torch.from_numpy(train[indices(step)])
        return {"coordinates": coordinates[rows], "latents": latents[rows]}

    both = nn.ModuleDict({"context": context, "unet": base.unet})
    result = fit(
        loss,
        {"model": both},
        batches,
        config.fit,
        run=run,
        description="adapt",
        capturable=not has_dropout(base.unet),
    )
    about = {
        "base": name_base(prior),
        "base_digest": base.digest,
        "num_images": len(train),
        "images_digest": pictures.digest,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        **measure(loss, coordinates[heldout], latents[heldout]),
        "provenance": provenance(),
    }
    sheet = np.concatenate([pictures.images[heldout[:16]], *sample(base, context, coordinates[heldout[:16]])])
    on_main(lambda: save_sheet(out / "samples.png", sheet, columns=16))
    on_main(
        lambda: save_adapted(
            target, context, {name: base.unet.get_parameter(name) for name in trained}, about
        )
    )
    run.finish()
    return target


def build_context(
    config: AdaptConfig, prior: ImagePrior, features: Tensor, latents: Tensor, labels: Tensor | None
) -> ImageContext:
    """The untrained module with its coordinates measured on training pictures; `labels` (n, C): their embedded classes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            config.seed
        )  # diffusers' models initialise from the global generator
        context = ImageContext(
            num_features=features.shape[1],
            num_latents=latents[0].numel(),
            context_dim=prior.context_dim,
            time_dim=prior.time_dim,
            sizes=[config.feature_components, config.latent_components],
            num_tokens=config.num_tokens,
            width=config.width,
            eye=config.eye,
            eye_size=config.eye_size,
        )
    context.fit_coordinates(features, latents)
    if labels is not None:
        generator = torch.Generator().manual_seed(config.seed)
        known = context.coordinates(features, latents)
        others = known[torch.randperm(len(known), generator=generator)]
        context.fit_base(uncertain(known, others, context.sizes, generator), labels)
    return context


def _labels(prior: ImagePrior, pictures: LabelledImages, rows: np.ndarray) -> Tensor | None:
    """The label embedding (n, C) of each picture, or None where the prior does not know all their classes."""
    known = prior.label_rows(pictures.classes, pictures.imagenet_index)
    if None in known or prior.label_embedding is None:
        return None
    return prior.label_embedding[torch.tensor(known)[torch.from_numpy(pictures.labels[rows])]]


def tuned_parameters(unet: nn.Module, blocks: UnetBlocks) -> list[str]:
    """Marks the transformer blocks as trainable, and nothing else; their names."""
    unet.requires_grad_(False)
    names = [
        name
        for name, _ in unet.named_parameters()
        if ".attentions." in name and (blocks == "all" or name.startswith("up_blocks."))
    ]
    for name in names:
        unet.get_parameter(name).requires_grad_(True)
    return names


class AdaptLoss:
    """The squared error of the predicted noise (Sun et al. 2023, Eq. 9), conditioned on uncertain features."""

    def __init__(self, config: AdaptConfig, prior: ImagePrior, context: ImageContext) -> None:
        self.config, self.prior, self.context = config, prior, context
        assert prior.label_embedding is not None and prior.null_label is not None
        self.null = prior.label_embedding[prior.null_label]
        snr = prior.scheduler.alphas_cumprod.float() / (1 - prior.scheduler.alphas_cumprod.float())
        gamma = config.min_snr_gamma
        self.weights = torch.ones_like(snr) if gamma is None else snr.clamp(max=gamma) / snr

    def __call__(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Batch: coordinates (B, F), latents (B, c, h, w) -> {"loss": scalar}."""
        z, latents = batch["coordinates"], batch["latents"]
        device, count, levels = z.device, whole(len(z)), len(self.weights)
        y = uncertain(z, z.roll(1, 0), self.context.sizes, generator, count)
        noise = drawn(lambda g: torch.randn(count, *latents.shape[1:], generator=g), generator, device)
        timesteps = drawn(lambda g: torch.randint(levels, (count,), generator=g), generator, device)
        dropped = (
            drawn(lambda g: torch.rand(count, generator=g), generator, device) < self.config.condition_dropout
        )
        self.weights, self.null = self.weights.to(device), self.null.to(device)
        context, time = self.context(y)
        context = torch.where(dropped[:, None, None], self.null.to(context.dtype), context)
        time = torch.where(dropped[:, None], torch.zeros_like(time), time)
        noisy = self.prior.scheduler.add_noise(latents, noise, timesteps)  # pyright: ignore
        unet = self.prior.unet
        with gradients_on_the_way_up(unet) if self.config.unet_blocks == "up" else nullcontext():
            epsilon = unet(
                noisy.to(memory_format=torch.channels_last),
                timesteps,
                encoder_hidden_states=context,
                class_labels=time,
                return_dict=False,
            )[0]
        errors = (epsilon.float() - noise).square().mean((1, 2, 3))
        return {"loss": (self.weights[timesteps] * errors).mean()}


@torch.no_grad()
def measure(loss: AdaptLoss, coordinates: Tensor, latents: Tensor) -> dict[str, float]:
    """The loss of held-out pictures with their own features, and with those of other pictures: the gap is what is heeded."""
    device, found = loss.prior.unet.device, {}
    for name, given in (
        ("heldout_loss", coordinates),
        ("heldout_loss_other_features", coordinates.roll(1, 0)),
    ):
        generator, values = torch.Generator().manual_seed(0), []
        for rows in torch.arange(len(given)).split(64):
            batch = {"coordinates": given[rows].to(device), "latents": latents[rows].to(device)}
            values.append(float(loss(batch, generator)["loss"]) * len(rows))
        found[name] = round(sum(values) / len(given), 5)
    return found


@torch.no_grad()
def sample(prior: ImagePrior, context: ImageContext, coordinates: Tensor, seed: int = 0) -> list[np.ndarray]:
    """Pictures uint8 (n, H, W, 3) drawn from all of the coordinates, from half (rho = .7), and from none."""
    device, n = prior.unet.device, len(coordinates)
    assert prior.label_embedding is not None and prior.null_label is not None
    null = prior.label_embedding[prior.null_label].to(device).expand(n, context.num_tokens, -1)
    noise = torch.stack([sample_noise(i, 0, prior.latent_shape, seed) for i in range(n)]).to(device)
    other = coordinates.roll(1, 0)
    pictures = []
    for rho in (1.0, 0.7, 0.0):
        known = rho * (rho * coordinates + (1 - rho**2) ** 0.5 * other)
        latents = denoise(
            prior.unet,
            make_scheduler("dpm++", prior.scheduler.config),
            noise,
            Condition(*context(known.to(device))),
            num_inference_steps=20,
            guidance_scale=2.0,
            null=Condition(null, torch.zeros(n, prior.time_dim, device=device)),
        )
        pictures.append(to_uint8(prior.decode(latents)))
    return pictures

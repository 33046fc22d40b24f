"""The baseline SS-AE: fits encoder and decoder on training trials, and reconstructs with the decoder.

Beliy et al. 2019, "From voxels to pixels and back" (NeurIPS); Gaziv et al. 2022, "Self-supervised natural image reconstruction
and large-scale semantic classification from brain activity" (NeuroImage 254). What differs from both: docs/ssae.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cadiff.artifacts import load_artifact, save_artifact
from cadiff.baselines.fitted import State
from cadiff.baselines.ssae.decoder import Decoder
from cadiff.baselines.ssae.encoder import Encoder, initialise_encoder, initialise_layers
from cadiff.baselines.ssae.eye import FrozenEye, load_frozen_eye
from cadiff.baselines.ssae.losses import ImageLoss, decoder_penalty, encoder_penalty
from cadiff.baselines.ssae.pools import Pools, gather
from cadiff.baselines.ssae.settings import PUBLISHED_SIZE, SsAeConfig, StageConfig, schedule, steps
from cadiff.baselines.ssae.train import Learnt, Weights, train_decoder, train_encoder
from cadiff.config import validate
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.runs import RunFolder
from cadiff.training import refuse_several

BATCH = 32
NETWORK = "ssae-network"
TEST_FMRI = "TRAINED ON THE FMRI OF THE TEST TRIALS (protocol official): does not compare with methods that never saw it"


@dataclass(frozen=True)
class SsAe:
    """A fitted decoder, and what it learnt from."""

    config: SsAeConfig
    preprocessor: Preprocessor
    decoder: Decoder
    size: int
    about: dict[str, Any]

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        work: Path | None = None,
        seed: int = 0,
        **options: Any,
    ) -> SsAe:
        """Trains encoder, then decoder, on the trials in `rows`, on unlabelled trials and on pictures without fMRI.

        Args:
            work: folder of the two run folders; a fit that was cut off goes on there. Without one nothing is kept.
            seed: of weights, batches and draws.
            options: of `SsAeConfig`.

        Raises:
            ConfigError: an unknown option, the judge as eye, or several processes.
            DataError: a held-out picture among those without fMRI.
        """
        config = validate(SsAeConfig, options, where="baseline 'ssae'")
        refuse_several("The baseline 'ssae'")
        pools = gather(dataset, rows, config, seed)
        eye = load_frozen_eye(config.eye, config.judge)
        with nullcontext(work) if work is not None else tempfile.TemporaryDirectory() as folder:
            decoder = _train(pools, eye, config, Path(folder), seed)
        return cls(config, pools.preprocessor, decoder, pools.size, {**pools.facts, "eye": eye.describe()})

    @staticmethod
    def check_options(options: dict[str, Any]) -> None:
        """Raises `ConfigError` for options of `fit` that cannot be, before anything is read."""
        validate(SsAeConfig, options, where="baseline 'ssae'")

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, 1, S, S, 3)."""
        values = torch.from_numpy(self.preprocessor(betas, repeats))
        device = next(self.decoder.parameters()).device
        with torch.inference_mode():
            parts = [self.decoder(part.to(device)).cpu() for part in values.split(BATCH)]
        return (torch.cat(parts) * 255.0).round().byte().permute(0, 2, 3, 1).numpy()[:, None]

    def facts(self) -> dict[str, Any]:
        """What it learnt from, and every option."""
        warning = {"warning": TEST_FMRI} if self.config.protocol == "official" else {}
        return {**warning, **self.about, "settings": self.config.model_dump(mode="json")}

    def state(self) -> State:
        """Decoder and preprocessing; the encoder only served to train it."""
        config = {
            "settings": self.config.model_dump(mode="json"),
            "preprocess": self.preprocessor.config.model_dump(mode="json"),
            "size": self.size,
            "about": self.about,
        }
        tensors = {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        for name, value in self.preprocessor.to_tensors().items():
            tensors[f"preprocess.{name}"] = torch.from_numpy(np.array(value))
        return State(config, tensors)

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> SsAe:
        """The inverse of `state`."""
        config = SsAeConfig.model_validate(state.config["settings"])
        tensors = {name: value.numpy() for name, value in _below("preprocess.", state.tensors).items()}
        preprocess = PreprocessConfig.model_validate(state.config["preprocess"])
        preprocessor = Preprocessor.from_tensors(preprocess, tensors)
        decoder = _decoder(config, preprocessor.num_voxels, state.config["size"])
        decoder.load_state_dict(_below("decoder.", state.tensors))
        decoder.eval().requires_grad_(False)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        cast(Any, decoder).to(device, memory_format=torch.channels_last)  # as it was trained
        return cls(config, preprocessor, decoder, state.config["size"], state.config["about"])


def _train(pools: Pools, eye: FrozenEye, config: SsAeConfig, work: Path, seed: int) -> Decoder:
    device, trials, size = eye.device, len(pools.betas), pools.size
    learnt = Learnt(
        torch.from_numpy(pools.betas).to(device),
        torch.from_numpy(pools.picture).to(device),
        torch.from_numpy(pools.fmri).to(device),
        torch.from_numpy(pools.pictures).permute(0, 3, 1, 2).contiguous().to(device),
    )
    inputs = {"pools": pools.digest(), **{f"eye_{key}": value for key, value in eye.describe().items()}}
    known = torch.unique(learnt.picture)  # the training pictures
    with torch.no_grad():
        seen = [eye(learnt.images(some)) for some in known.split(BATCH)]
    shapes = [maps.shape for maps in seen[0]]
    sizes = {"channels": config.encoder_channels, "dropout": config.dropout}
    encoder = Encoder(shapes, size, pools.betas.shape[1], **sizes)
    initialise_encoder(encoder, torch.Generator().manual_seed(seed))
    encoder.to(device).standardise(seen)
    del seen

    count = steps(config.encoder_steps, 50, trials, config.encoder_batch, size, 300)
    first = schedule(count, config.encoder_batch, config.encoder_learning_rate, seed)
    _once(
        encoder,
        lambda run: train_encoder(
            encoder,
            eye,
            learnt,
            first,
            shift=round(config.shift * size),
            cosine_weight=config.cosine_weight,
            penalty=lambda: config.penalty * encoder_penalty(encoder),
            run=run,
        ),
        work / "encoder",
        StageConfig(settings=config, fit=first),
        inputs,
    )
    encoder.eval().requires_grad_(False)

    decoder = _decoder(config, pools.betas.shape[1], size)
    initialise_layers(decoder, torch.Generator().manual_seed(seed + 1))
    cast(Any, decoder).to(device, memory_format=torch.channels_last)  # a third faster
    snr = torch.from_numpy(pools.snr).to(device)
    unreliability = 1.0 / snr.clamp(min=0.05)
    mean = learnt.images(known).mean(dim=(0, 2, 3))[:, None, None].clamp(min=1e-3)
    compare = ImageLoss(config.perceptual_weights, config.pixel_weight, config.tv_weight, mean)
    count = steps(config.decoder_steps, 150, trials, config.pairs_batch, size, 400)
    second = schedule(count, config.pairs_batch, config.decoder_learning_rate, seed)
    _once(
        decoder,
        lambda run: train_decoder(
            decoder,
            encoder,
            eye,
            learnt,
            second,
            fmri_batch=config.fmri_batch,
            images_batch=config.images_batch,
            weights=Weights(
                config.pairs_weight, config.images_weight, config.fmri_weight, config.cosine_weight
            ),
            snr=snr,
            compare=compare,
            penalty=lambda: config.penalty * decoder_penalty(decoder, unreliability / unreliability.mean()),
            run=run,
        ),
        work / "decoder",
        StageConfig(settings=config, fit=second),
        inputs,
    )
    return decoder.eval().requires_grad_(False)


def _once(
    network: nn.Module,
    train: Callable[[RunFolder], None],
    folder: Path,
    config: StageConfig,
    inputs: dict[str, str],
) -> None:
    """Trains a network in its run folder, goes on with what was cut off there, or takes what is there whole."""
    run = RunFolder.open(folder, stage=f"ssae-{folder.name}", config=config, resume=True, inputs=inputs)
    result = run.path / NETWORK
    if not result.is_dir():  # a folder that is there is whole: it appears in one rename
        train(run)
        about = {"stage": f"ssae-{folder.name}", "inputs": inputs}
        save_artifact(result, kind=NETWORK, config={}, tensors=network.state_dict(), provenance=about)
    network.load_state_dict(load_artifact(result, NETWORK)[1])
    if not run.complete:
        run.finish()


def _decoder(config: SsAeConfig, num_voxels: int, size: int) -> Decoder:
    published = size >= PUBLISHED_SIZE
    channels = config.decoder_channels or (64 if published else 32)
    kernel = config.kernel_size or (5 if published else 3)
    return Decoder(num_voxels, size, channels=channels, kernel_size=kernel)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

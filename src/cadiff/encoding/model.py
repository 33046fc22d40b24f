"""EncodingModel: which betas a picture would evoke, and how likely measured betas are under it.

    betas = f(picture) + noise,  f: ridge from features of the picture, noise: normal with a shrunk covariance

Naselaris et al. 2009 (Neuron 63:902) rank pictures by this likelihood; Kneeland et al. 2023 (arXiv 2312.07705) refine samples of
a diffusion model by it. Fitted on training trials only; what it needs to be honest about itself is measured on trials
whose stimulus no fit has seen (`cadiff.encoding.calibrate`).

Letters in shapes: n training stimuli, m rows of betas, k pictures, V voxels, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.special import softmax

from cadiff.artifacts import load_artifact, provenance, save_artifact
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.data.trained_on import trained_on
from cadiff.encoding.banded import PENALTIES, final_dual, mixtures
from cadiff.encoding.calibrate import Calibration, Measured, calibrate, measure, spread
from cadiff.encoding.features import FeatureBlock, Spaces, default_features
from cadiff.encoding.noise import NoiseCovariance
from cadiff.encoding.pictures import common_side, shown_pictures
from cadiff.encoding.responses import Responses, normalised
from cadiff.encoding.simulated import warn_of_the_truth
from cadiff.errors import DataError

KIND = "encoding-model"
NOISE = ("scale", "vectors", "values")
OWN = ("coefficients", "mixture", "mean", "voxels")


@dataclass(frozen=True, eq=False)
class EncodingModel:
    """A fitted encoding model. Make one with `EncodingModel.fit`."""

    preprocessor: Preprocessor
    spaces: Spaces
    blocks: list[FeatureBlock]
    features: list[np.ndarray]
    """Scaled features (n, F) float32 of the training pictures, one array a feature space."""
    coefficients: np.ndarray
    """(n, V) float32: predictions are kernels with the training pictures times these."""
    mixture: np.ndarray
    """(V, spaces) float32: share of each feature space in a voxel's kernel."""
    mean: np.ndarray
    """(V,) float32 mean response."""
    voxels: np.ndarray
    """(V,) bool: those that the likelihood reads."""
    noise: NoiseCovariance
    """Of single trials, of the voxels read, in units of the training trials' spread."""
    misfit: float
    """Share of the noise that averaging repeats leaves (`calibrate.misfit_share`)."""
    temperature: float
    """Factor of the log likelihood that makes probabilities as sure as they are right."""
    mean_temperature: float | None
    """Factor that makes posterior means of pictures best, where it was measured."""
    image_shape: tuple[int, int]
    """Height and width that pictures are brought to."""
    facts: dict[str, Any]
    """What was chosen and how well it predicts held out, as JSON values."""
    trained_on: dict[str, Any]
    """Subject, voxels and stimuli that it was fitted on (`cadiff.data.trained_on`)."""

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        features: Sequence[str] | None = None,
        prior: str | Path = "shipped",
        size: int | None = None,
        min_r2: float | None = None,
        distractors: np.ndarray | None = None,
        num_folds: int = 5,
        seed: int = 0,
    ) -> EncodingModel:
        """Fits on training trials.

        Args:
            dataset: the subject. rows: its training trials.
            features: names of `FEATURES`, or NAME=PATH of a network; what suits the pictures when absent.
            prior: whose auto-encoder the features `vq` are.
            size: side of the pictures in pixels; when absent as they are where all are squares of one size, else `common_side`,
                and `image_shape` says so.
            min_r2: read only voxels whose held-out r2 is above this; all when absent.
            distractors: uint8 (d, H, W, 3), further pictures that held-out stimuli are told from where temperatures are
                fitted; besides them there are only the stimuli of the same fold, and no temperature of means.
            num_folds: of the cross-validation by stimulus; fewer where there are fewer stimuli.
            seed: of the folds.

        Raises:
            DataError: fewer than 3 training stimuli, or betas that are not finite.
            ConfigError: unknown features, or those of the default judge.
        """
        ids = [str(name) for name in dataset.trials["stimulus_id"].to_numpy()[rows]]
        names = list(dict.fromkeys(ids))
        if len(names) < 3:
            raise DataError(
                f"{dataset.folder}: {len(names)} training stimuli; an encoding model with held-out noise needs at least 3."
            )
        place = {name: i for i, name in enumerate(names)}
        preprocessor, trials = normalised(dataset.betas[rows])
        responses = Responses.of(trials, np.array([place[name] for name in ids]))
        side = common_side(dataset, names, size)
        images = shown_pictures(dataset, names, side)
        shape = images.shape[1:3]
        spaces = Spaces(features or default_features(images), prior)
        warn_of_the_truth(spaces.names, dataset)
        found = spaces(images)
        del images  # 5 GB of 9,000 pictures of 425 pixels
        blocks = [FeatureBlock.fit(name, part) for name, part in zip(spaces.names, found, strict=True)]
        scaled = [block(part) for block, part in zip(blocks, found, strict=True)]
        del found
        across, others = [], None
        if distractors is not None and len(distractors):
            others = _resized(distractors, shape)
            across = [b(c) @ a.T for a, b, c in zip(scaled, blocks, spaces(others), strict=True)]
        ring: dict[str, Any] = {
            "within": noise_variance(
                dataset.voxels["noise_ceiling"].to_numpy(dtype=float)[preprocessor.voxel_index]
            ),
            "min_r2": min_r2,
            "num_folds": num_folds,
            "seed": seed,
        }
        kernels = [part @ part.T for part in scaled]
        every = [np.concatenate(both) for both in zip(kernels, across, strict=True)] if across else kernels

        def pictures(stimuli: np.ndarray) -> np.ndarray:
            return shown_pictures(dataset, [names[i] for i in stimuli], side)

        found_out = calibrate(every, responses, pictures, others, **ring)
        del every
        measured = measure(kernels, responses, **ring)
        mean = responses.means.mean(axis=0, dtype=np.float64)
        dual = final_dual(kernels, responses.means, measured.choice, np.float32)
        mixture = mixtures(len(blocks))[measured.choice.mixture]
        return cls(
            preprocessor=preprocessor,
            spaces=spaces,
            blocks=blocks,
            features=scaled,
            coefficients=dual,
            mixture=mixture.astype(np.float32),
            mean=mean.astype(np.float32),
            voxels=measured.voxels,
            noise=measured.noise,
            misfit=measured.misfit,
            temperature=found_out.temperature,
            mean_temperature=found_out.mean_temperature,
            image_shape=(shape[0], shape[1]),
            facts=_facts(spaces, mixture, measured, found_out),
            trained_on=trained_on(dataset, rows),
        )

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Pictures uint8 (k, H, W, 3) -> normalised betas float32 (k, V)."""
        found = self.spaces(_resized(images, self.image_shape))
        predicted = np.zeros((len(images), len(self.mean)), np.float32)
        for b, (block, part) in enumerate(zip(self.blocks, found, strict=True)):
            predicted += (block(part) @ self.features[b].T) @ self.coefficients * self.mixture[:, b]
        return predicted + self.mean

    def log_likelihood(
        self, betas: np.ndarray, images: np.ndarray, repeats: int | np.ndarray = 1
    ) -> np.ndarray:
        """log p(betas | picture), not tempered, (m, k).

        Args:
            betas: (m, V) raw betas of the subject.
            images: uint8 (k, H, W, 3).
            repeats: how many trials each row averages, a number or (m,).
        """
        return self.log_likelihood_of(betas, self.predict(images), repeats)

    def log_likelihood_of(
        self, betas: np.ndarray, predicted: np.ndarray, repeats: int | np.ndarray = 1
    ) -> np.ndarray:
        """As `log_likelihood`, of ready predictions (k, V)."""
        measured = self.preprocessor(betas)[:, self.voxels]
        share = spread(np.broadcast_to(repeats, len(measured)), self.misfit)[:, None]
        distances = self.noise.squared_distances(measured, predicted[:, self.voxels])
        volume = self.noise.log_determinant() + measured.shape[1] * np.log(2 * np.pi * share)
        return -0.5 * (distances / share + volume)

    def weights(self, log_likelihood: np.ndarray, *, of_mean: bool = False) -> np.ndarray:
        """Posterior (m, k) of pictures that are equally probable beforehand; rows sum to 1.

        `of_mean`: with the temperature that is best for their mean, where it was measured.
        """
        measured = self.mean_temperature if of_mean else None
        return softmax((self.temperature if measured is None else measured) * log_likelihood, axis=1)

    def save(self, folder: Path, **facts: Any) -> Path:
        """Writes the model as a self-describing folder; `facts` go into its provenance."""
        about = provenance(**facts)
        return save_artifact(
            folder, kind=KIND, config=self.to_config(), tensors=self.to_tensors(), provenance=about
        )

    @classmethod
    def load(cls, folder: Path) -> EncodingModel:
        """Opens a model that `save` wrote; networks of its features open when they are needed.

        Raises:
            ArtifactError: no such folder, or damaged. ConfigError: its features are not known here.
        """
        return cls.from_tensors(*load_artifact(folder, KIND))

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON values; with `to_tensors` everything that `from_tensors` needs."""
        return {
            "features": list(self.spaces.names),
            "prior": str(self.spaces.prior),
            "misfit": self.misfit,
            "temperature": self.temperature,
            "mean_temperature": self.mean_temperature,
            "shrinkage": self.noise.shrinkage,
            "image_shape": list(self.image_shape),
            "facts": self.facts,
            "trained_on": self.trained_on,
        }

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Everything but the settings."""
        arrays = {f"preprocess.{key}": value for key, value in self.preprocessor.to_tensors().items()}
        for i, (block, part) in enumerate(zip(self.blocks, self.features, strict=True)):
            arrays |= {f"features.{i}": part, f"mean.{i}": block.mean, f"scale.{i}": block.scale}
        arrays |= {f"noise.{key}": getattr(self.noise, key) for key in NOISE}
        arrays |= {key: getattr(self, key) for key in OWN}
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> EncodingModel:
        """The inverse of `to_config` and `to_tensors`."""
        arrays = {key: value.numpy() for key, value in tensors.items()}
        names = config["features"]
        start = "preprocess."
        fitted = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        return cls(
            preprocessor=Preprocessor.from_tensors(PreprocessConfig(), fitted),
            spaces=Spaces(names, config["prior"]),
            blocks=[FeatureBlock(n, arrays[f"mean.{i}"], arrays[f"scale.{i}"]) for i, n in enumerate(names)],
            features=[arrays[f"features.{i}"] for i in range(len(names))],
            noise=NoiseCovariance(
                shrinkage=config["shrinkage"], **{key: arrays[f"noise.{key}"] for key in NOISE}
            ),
            misfit=config["misfit"],
            temperature=config["temperature"],
            mean_temperature=config["mean_temperature"],
            image_shape=(config["image_shape"][0], config["image_shape"][1]),
            facts=config["facts"],
            trained_on=config["trained_on"],
            **{key: arrays[key] for key in OWN},
        )


def noise_variance(ceiling: np.ndarray) -> np.ndarray | None:
    """(V,) of normalised single trials, whose variance is 1, by noise ceilings (V,), NaN where unknown; None without any."""
    known = ceiling[np.isfinite(ceiling)]
    return 1.0 - np.where(np.isfinite(ceiling), ceiling, np.median(known)) if known.size else None


def _facts(spaces: Spaces, mixture: np.ndarray, measured: Measured, found_out: Calibration) -> dict[str, Any]:
    return {
        **spaces.facts(),
        "mean_share_of_features": mixture.mean(axis=0).tolist(),
        "voxels_of_penalty": _counts(PENALTIES[measured.choice.penalty]),
        "held_out_r2": {
            "median": float(np.median(measured.r2)),
            "p90": float(np.quantile(measured.r2, 0.9)),
            "share_above_0": float((measured.r2 > 0).mean()),
        },
        "voxels_read": int(measured.voxels.sum()),
        "shrinkage": measured.noise.shrinkage,
        "misfit": measured.misfit,
        "temperature": found_out.temperature,
        "mean_temperature": found_out.mean_temperature,
        "held_out_identification": {
            "two_way": found_out.two_way,
            "top_1": found_out.top_1,
            "mean_candidates": found_out.num_candidates,
            "stimuli": found_out.num_stimuli,
        },
    }


def _counts(penalties: np.ndarray) -> dict[str, int]:
    """Voxels a penalty."""
    tried, counts = np.unique(penalties, return_counts=True)
    return {f"{penalty:.3g}": int(count) for penalty, count in zip(tried, counts, strict=True)}


def _resized(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 (k, H, W, 3) at height and width `shape`, bicubic as the pictures of a dataset."""
    height, width = shape
    if images.shape[1:3] == (height, width):
        return images
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in images])

"""Instance-conditioned GAN (Ozcelik et al. 2022): ridge from voxels to what a generator draws from.

The generator (Casanova et al. 2021) draws pictures like the one whose features it is given. Features are predicted by ridge
regression. Noise z is drawn by a seed, or predicted; so are the dense vectors d, which the first layer otherwise makes of z.
Their targets are those that redraw the training pictures (`cadiff.priors.icgan.invert`).

n trials, m test rows, V voxels, F features, Z noise numbers, W numbers of a dense vector, k samples a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from cadiff.artifacts import folder_digest
from cadiff.baselines.fitted import State, preprocessor_of, preprocessor_state, put, take
from cadiff.baselines.matched import Matching, Regression
from cadiff.baselines.ridge import prepare
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import Preprocessor
from cadiff.diffuse.sampling import trial_noise
from cadiff.errors import ArtifactError, ConfigError
from cadiff.priors.icgan.features import instance_features, open_eye
from cadiff.priors.icgan.folder import InstanceGan, load_generator
from cadiff.priors.icgan.invert import InversionConfig, invert
from cadiff.priors.perceptual import EYE as PERCEPTUAL_EYE

Source = Literal["drawn", "predicted"]
OFFICIAL = {"features": 500.0, "noise": 1.0, "dense": 100.0}
"""Penalties of the released code, as scikit-learn's Ridge counts them."""
NO_GENERATOR = (
    "The baseline ic-gan draws with an instance-conditioned generator, and none comes with cadiff: give its folder with "
    "--set generator=FOLDER, made by `cadiff weights import` from the released G_ema_best0.pth or by `cadiff prior train --kind "
    "icgan` (docs/ic-gan.md says where to get it); without one it draws nothing."
)


@dataclass(frozen=True)
class IcGan:
    """Betas to instance features, and to noise and dense vectors where these are predicted; then the generator."""

    preprocessor: Preprocessor
    gan: InstanceGan
    regressions: dict[str, Regression]
    """features; noise and dense where they are predicted."""
    matching: Matching
    num_images_per_trial: int
    seed: int
    found: dict[str, Any]
    """The networks that had a say, and errors of the inversion."""

    @classmethod
    def fit(
        cls,
        dataset: BrainDataset,
        rows: np.ndarray,
        *,
        generator: str | Path | None = None,
        eye_weights: str | Path | None = None,
        protocol: Literal["default", "official"] = "default",
        matching: Matching | None = None,
        noise: Source | None = None,
        dense: Source | None = None,
        num_images_per_trial: int | None = None,
        noise_steps: int = 200,
        dense_steps: int = 100,
        perceptual_weight: float = 0.1,
        match_repeat_spread: bool = True,
        seed: int = 0,
    ) -> IcGan:
        """Fits on training trials.

        Args:
            generator: folder of the generator.
            eye_weights: file of the network that the generator reads, where it does not come with cadiff (SwAV's).
            protocol: official fixes what follows as the released code: matching over the test set, noise and dense vectors
                predicted, its penalties, one sample.
            matching: training (out-of-fold mean and deviation of each feature), length, or none.
            noise: predicted, or drawn by the seed. dense: drawn (made of the noise), or predicted.
            num_images_per_trial: k; 1, or 5 where the noise is drawn.
            noise_steps, dense_steps, perceptual_weight: of the inversion of the training pictures, where something is predicted.
            match_repeat_spread: rescale averages of repeats to the spread of single trials, where noise ceilings are known.
            seed: of the folds and of the noise.

        Raises:
            ConfigError: no generator, or options that do not go together.
            ArtifactError: the generator cannot be opened.
        """
        if generator is None:
            raise ConfigError(NO_GENERATOR)
        official = protocol == "official"
        chosen = _choose(protocol, matching, noise, dense, num_images_per_trial)
        gan = load_generator(Path(generator))
        eye = open_eye(gan.features, eye_weights)
        preprocessor, betas, ids = prepare(dataset, rows, match_repeat_spread)
        names = list(dict.fromkeys(ids))
        shown = torch.tensor([names.index(name) for name in ids])
        side = gan.generator.config.image_size
        features = instance_features(eye, gan.features.layer, _pictures(dataset, names), progress=True)
        sha256 = next(iter(eye.digest().values()), None)
        targets, found = {"features": features}, {"eye": {"name": gan.features.eye, "sha256": sha256}}
        if wanted := [key for key in ("noise", "dense") if chosen[key] == "predicted"]:
            steps = {"noise_steps": noise_steps, "dense_steps": dense_steps if "dense" in wanted else 0}
            config = InversionConfig(perceptual_weight=perceptual_weight, **steps)
            redrawn = invert(gan.generator, dataset.images(names, side), features, config, progress=True)
            found["inversion_error"] = redrawn.errors
            if perceptual_weight:
                found["inversion_eye"] = {"name": PERCEPTUAL_EYE}
            targets |= {key: getattr(redrawn, key) for key in wanted}
        regressions = {
            key: Regression.fit(
                betas, value, ids, shown, seed=seed, alpha=OFFICIAL[key] if official else None
            )
            for key, value in targets.items()
        }
        return cls(
            preprocessor,
            gan,
            regressions,
            chosen["matching"],
            chosen["num_images_per_trial"],
            seed,
            found,
        )

    @staticmethod
    def check_options(options: dict[str, Any]) -> None:
        """Raises `ConfigError` for options of `fit` that cannot be, before anything is read."""
        if options.get("generator") is None:
            raise ConfigError(NO_GENERATOR)
        given = (options.get(key) for key in ("matching", "noise", "dense", "num_images_per_trial"))
        _choose(options.get("protocol", "default"), *given)

    def reconstruct(
        self, betas: np.ndarray, *, stimulus_ids: Sequence[str], repeats: np.ndarray
    ) -> np.ndarray:
        """Raw betas (m, V) -> uint8 (m, k, S, S, 3); sample s of row i has the noise of (seed, i, s), where it is drawn."""
        ready = torch.from_numpy(self.preprocessor(betas, repeats))
        count = self.num_images_per_trial
        features = self.predict(betas, repeats=repeats)
        if "noise" in self.regressions:
            noise = self.regressions["noise"](ready, "none").repeat_interleave(count, dim=0)
        else:
            shape = (1, 1, self.gan.generator.config.noise_dim)
            noise = trial_noise(len(ready), count, shape, self.seed).flatten(0, 3).view(-1, shape[2])
        dense = self.regressions["dense"](ready, "none") if "dense" in self.regressions else None
        drawn = self.gan.draw(
            noise,
            features.repeat_interleave(count, dim=0),
            dense.repeat_interleave(count, dim=0) if dense is not None else None,
        )
        return drawn.reshape(len(ready), count, *drawn.shape[1:])

    def predict(self, betas: np.ndarray, *, repeats: np.ndarray | None = None) -> Tensor:
        """Raw betas (m, V) -> instance features (m, F), matched."""
        return self.regressions["features"](
            torch.from_numpy(self.preprocessor(betas, repeats)), self.matching
        )

    def facts(self) -> dict[str, Any]:
        """The generator's digest, what is predicted and how, penalties, held-out scores, networks, errors of the inversion."""
        about = {"generator": folder_digest(self.gan.folder), "matching": self.matching}
        return {
            **about,
            **{key: regression.found for key, regression in self.regressions.items()},
            **self.found,
        }

    def state(self) -> State:
        """Everything but the generator, which is named with its digest."""
        config, tensors = preprocessor_state(self.preprocessor)
        config |= {
            "generator": str(self.gan.folder.resolve()),
            "digest": folder_digest(self.gan.folder),
            "matching": self.matching,
            "num_images_per_trial": self.num_images_per_trial,
            "seed": self.seed,
            "found": self.found,
            "regressions": {key: regression.found for key, regression in self.regressions.items()},
        }
        for key, regression in self.regressions.items():
            tensors |= put(key, regression.tensors())
        return State(config, tensors)

    @classmethod
    def from_state(cls, state: State, dataset: BrainDataset) -> IcGan:
        """The inverse of `state`.

        Raises:
            ArtifactError: the generator is not where it was, or another one is.
        """
        config = state.config
        gan = load_generator(Path(config["generator"]))
        if folder_digest(gan.folder) != config["digest"]:
            raise ArtifactError(
                f"{gan.folder} is another generator than the one that ic-gan was fitted with: fit it anew."
            )
        regressions = {
            key: Regression.from_tensors(take(key, state.tensors), found)
            for key, found in config["regressions"].items()
        }
        rest = {key: config[key] for key in ("matching", "num_images_per_trial", "seed", "found")}
        return cls(preprocessor_of(state), gan, regressions, **rest)


def _choose(
    protocol: str, matching: str | None, noise: str | None, dense: str | None, count: int | None
) -> dict[str, Any]:
    """The four settings, from what was given, the protocol and the defaults."""
    given = {"matching": matching, "noise": noise, "dense": dense, "num_images_per_trial": count}
    allowed = {
        "matching": ("training", "length", "none"),
        "noise": get_args(Source),
        "dense": get_args(Source),
    }
    if protocol not in ("default", "official"):
        raise ConfigError(f"ic-gan has no protocol {protocol!r}; there are default and official.")
    if protocol == "official":
        if other := next((key for key, value in given.items() if value is not None), None):
            raise ConfigError(f"protocol=official fixes {other!r}: leave one of the two out.")
        return {"matching": "test", "noise": "predicted", "dense": "predicted", "num_images_per_trial": 1}
    for key, values in allowed.items():
        if given[key] not in (None, *values):
            raise ConfigError(f"ic-gan has no {key}={given[key]!r}; there are {', '.join(values)}.")
    chosen = {"matching": "training", "noise": "predicted", "dense": "drawn"}
    chosen |= {key: value for key, value in given.items() if value is not None}
    if chosen["noise"] == "predicted":
        if count not in (None, 1):
            raise ConfigError(
                f"With noise=predicted nothing is drawn by chance, and {count} samples of a trial would be the same picture: "
                "leave num_images_per_trial out, or set noise=drawn."
            )
        count = 1
    if count is not None and count < 1:
        raise ConfigError(f"num_images_per_trial={count}: expected at least 1.")
    return {**chosen, "num_images_per_trial": count or 5}


def _pictures(dataset: BrainDataset, names: Sequence[str]) -> np.ndarray:
    """Pictures uint8 (n, H, W, 3) of one size: that of the first."""
    side = min(dataset.image(names[0]).shape[:2])
    return dataset.images(names, side)

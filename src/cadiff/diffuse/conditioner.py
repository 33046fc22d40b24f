"""From betas to what the denoiser is conditioned on: context tokens and a time vector.

Source: Chen et al. 2023 (MinD-Vis), double conditioning, as Sun et al. 2023 use it: the tokens of the fMRI encoder are
mixed over positions and mapped to the width of the cross-attention; a second head turns them into one vector that is
added to the time embedding. Names of `channel_mapper` and `dim_mapper` are those of the released checkpoints
(`cond_stage_model.*`); `time_head` is their `time_embed_condtion`, which stands inside the U-Net there.

Shapes: B batch, V voxels, N encoder tokens of width D, L context length, C context width, T time width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from cadiff.contrast.mae import FmriEncoder, FmriMaeConfig
from cadiff.data.preprocess import PreprocessConfig, Preprocessor, Split
from cadiff.diffuse.start import ImageStart, LabelStart, LatentStart
from cadiff.errors import ConfigError
from cadiff.priors.image_context import ImageContext
from cadiff.priors.load import ImagePrior, label_rows

Null = Literal["label", "learned", "mean"]


class Condition(NamedTuple):
    """What the denoiser is conditioned on."""

    context: Tensor
    """(B, L, C), what the cross-attention reads."""
    time: Tensor
    """(B, T), added to the time embedding."""

    def repeat(self, times: int) -> Condition:
        """Every row `times` times in a row: (B, ...) -> (B * times, ...)."""
        return Condition(self.context.repeat_interleave(times, 0), self.time.repeat_interleave(times, 0))

    def rows(self, index: Any) -> Condition:
        """Some rows, by slice or index."""
        return Condition(self.context[index], self.time[index])


class FmriConditioner(ModelMixin, ConfigMixin):
    """Preprocessing, fMRI encoder and the two heads, saved and loaded as one diffusers model.

    Args:
        encoder_config: `FmriMaeConfig` as a dict.
        preprocess_config: `PreprocessConfig` as a dict.
        context_dim: C, the U-Net's cross_attention_dim.
        time_dim: T, 4 times the U-Net's first channel count.
        context_length: L; 77 in the published model.
        labels: `classes`, `names`, `imagenet_index` of the prior, for the label oracle; or None.
        tables: name -> [dtype, shape] of what is fitted or given rather than trained: the preprocessor's arrays
            ("preprocess_*"), the starts ("start_*", "image_*", "latent_*") and "label_embedding".
        image_context_config: settings of the prior's `ImageContext`, with an image start; or None.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        preprocess_config: dict[str, Any],
        context_dim: int,
        time_dim: int,
        context_length: int = 77,
        labels: dict[str, Any] | None = None,
        tables: dict[str, Any] | None = None,
        image_context_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        size = FmriMaeConfig(**encoder_config)
        self.encoder = FmriEncoder(size)
        half = max(1, size.num_tokens // 2)
        self.channel_mapper = nn.Sequential(
            nn.Conv1d(size.num_tokens, half, 1), nn.Conv1d(half, context_length, 1)
        )
        self.dim_mapper = nn.Linear(size.embed_dim, context_dim)
        half = max(1, context_length // 2)
        self.time_head = nn.Sequential(
            nn.Conv1d(context_length, half, 1), nn.Conv1d(half, 1, 1), nn.Linear(context_dim, time_dim)
        )
        self.image_context = None if image_context_config is None else ImageContext(**image_context_config)
        self.null_context = nn.Parameter(torch.zeros(context_length, context_dim))
        self.null_time = nn.Parameter(torch.zeros(time_dim))
        for name, (dtype, shape) in (tables or {}).items():
            self.register_buffer(name, torch.zeros(tuple(shape), dtype=getattr(torch, dtype)))

    @classmethod
    def build(
        cls,
        encoder: FmriEncoder,
        preprocessor: Preprocessor,
        prior: ImagePrior,
        *,
        context_length: int = 77,
        null: Null = "label",
        start: LabelStart | ImageStart | None = None,
        latent_start: LatentStart | None = None,
        generator: torch.Generator,
    ) -> FmriConditioner:
        """A conditioner that has not been trained yet.

        The heads start as PyTorch's layers do. With a `start`, the mapped tokens and the time vector start at zero, so
        that the condition is exactly the start's.

        Args:
            encoder: of phase 1 or 2; only the weights of a plain `FmriEncoder` are taken, as a copy.
            prior: gives the widths, the label table, and the null label.
            null: what stands for "no brain": the prior's null label, a trained vector (which starts there), or the
                mean context of the training trials (filled in after training with `set_null`).

        Raises:
            ConfigError: `null="label"` with a prior that has no null label; an image start with a prior that is not adapted, or
                with another number of context tokens.
        """
        features = prior.image_context if isinstance(start, ImageStart) else None
        if isinstance(start, ImageStart) and (features is None or features.num_tokens != context_length):
            raise ConfigError(
                "image_start needs a prior that was adapted to features of pictures (`cadiff prior adapt`)."
                if features is None
                else f"This prior makes {features.num_tokens} context tokens of a picture's features: set "
                f"context_length={features.num_tokens} (it is {context_length})."
            )
        arrays = {
            f"preprocess_{k}": torch.from_numpy(np.array(v)) for k, v in preprocessor.to_tensors().items()
        }
        for prefix, fitted in (("start" if features is None else "image", start), ("latent", latent_start)):
            if fitted is not None:
                arrays |= {f"{prefix}_{key}": value for key, value in vars(fitted).items()}
        if prior.label_embedding is not None:
            arrays["label_embedding"] = prior.label_embedding
        size = {key: getattr(encoder.config, key) for key in FmriMaeConfig.model_fields}
        model = cls(
            encoder_config=size,
            preprocess_config=preprocessor.config.model_dump(mode="json"),
            context_dim=prior.context_dim,
            time_dim=prior.time_dim,
            context_length=context_length,
            labels=None
            if prior.label_embedding is None
            else {"classes": prior.classes, "names": prior.names, "imagenet_index": prior.imagenet_index},
            tables={k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in arrays.items()},
            image_context_config=None if features is None else _settings(features),
        )
        weights = encoder.state_dict()
        model.encoder.load_state_dict({key: weights[key] for key in model.encoder.state_dict()})
        if model.image_context is not None and features is not None:
            model.image_context.load_state_dict(features.state_dict())
        with torch.no_grad():
            for key, value in arrays.items():
                getattr(model, key).copy_(value)
            for head in (model.channel_mapper, model.dim_mapper, model.time_head):
                _initialise(head, generator)
            if start is not None:
                for layer in (model.dim_mapper, model.time_head[2]):
                    nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
                    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
            if prior.null_label is not None and prior.label_embedding is not None:
                model.null_context.copy_(
                    prior.label_embedding[prior.null_label].expand_as(model.null_context)
                )
            elif null == "label":
                raise ConfigError("This prior has no null label: choose null=learned or null=mean.")
        return model.eval()

    @property
    def preprocessor(self) -> Preprocessor:
        """The fitted map from a subject's raw betas to encoder input."""
        prefix = "preprocess_"
        arrays = {
            k.removeprefix(prefix): v.cpu().numpy() for k, v in self.named_buffers() if k.startswith(prefix)
        }
        return Preprocessor.from_tensors(PreprocessConfig(**self.config["preprocess_config"]), arrays)

    @property
    def start(self) -> LabelStart | None:
        """The label start, when the model was built with one."""
        return self._table(LabelStart, "start")

    @property
    def image_start(self) -> ImageStart | None:
        """The image start, when the model was built with one."""
        return self._table(ImageStart, "image")

    @property
    def latent_start(self) -> LatentStart | None:
        """The latent start, when the model was built with one."""
        return self._table(LatentStart, "latent")

    def forward(self, betas: Tensor, *, start: Tensor | None = None) -> Condition:
        """Preprocessed betas (B, V) -> condition.

        Args:
            start: taken instead of this model's own start, which tuning does with the held-out one: embeddings (B, C) in place
                of a label start, coordinates (B, F) in place of an image start.
        """
        return self.from_tokens(self.encoder.tokens(betas), betas, start=start)

    def from_tokens(self, tokens: Tensor, betas: Tensor, *, start: Tensor | None = None) -> Condition:
        """The same from encoder tokens (B, N, D); `betas` only serve the start."""
        context = self.dim_mapper(self.channel_mapper(tokens))  # (B, N, D) -> (B, L, D) -> (B, L, C)
        own, time = self.start or self.image_start, None
        if own is not None:
            begun = own(betas) if start is None else start
            tokens, time = (begun[:, None], None) if self.image_context is None else self.image_context(begun)
            context = context + tokens
        head = self.time_head(context).squeeze(1)
        return Condition(context, head if time is None else head + time)

    @torch.no_grad()
    def encode(
        self,
        betas: np.ndarray,
        repeats: np.ndarray | None = None,
        *,
        split: Split = "test",
        start: Tensor | None = None,
        batch_size: int = 64,
    ) -> Condition:
        """A subject's raw betas (n, voxels of the subject) -> condition, on this model's device.

        Args:
            repeats: (n,) how many trials each row averages.
            split: see `Preprocessor.__call__`.
            start: (n, C) or (n, F), taken instead of this model's own start.

        Raises:
            DataError: another number of voxels, or values that are not finite.
        """
        ready = self.prepare(betas, repeats, split=split).split(batch_size)
        starts = [None] * len(ready) if start is None else start.split(batch_size)
        parts = [self(part, start=first) for part, first in zip(ready, starts, strict=True)]
        return Condition(torch.cat([p.context for p in parts]), torch.cat([p.time for p in parts]))

    def prepare(
        self, betas: np.ndarray, repeats: np.ndarray | None = None, *, split: Split = "test"
    ) -> Tensor:
        """Raw betas -> encoder input (n, V) on this model's device."""
        return torch.from_numpy(self.preprocessor(betas, repeats, split=split)).to(self.device)

    def null(self, batch: int) -> Condition:
        """The condition that stands for "no brain", for `batch` samples."""
        return Condition(self.null_context.expand(batch, -1, -1), self.null_time.expand(batch, -1))

    @torch.no_grad()
    def set_null(self, condition: Condition) -> None:
        """Takes the mean of a condition as "no brain"."""
        self.null_context.copy_(condition.context.mean(0))
        self.null_time.copy_(condition.time.mean(0))

    def label_rows(
        self, labels: Sequence[Any], imagenet_index: Sequence[Any] | None = None
    ) -> list[int | None]:
        """The prior's label of each stimulus, None where it has none; see `ImagePrior.label_rows`."""
        known: Mapping[str, Any] = self.config["labels"] or {
            "classes": [],
            "names": [],
            "imagenet_index": None,
        }
        return label_rows(known["classes"], known["names"], known["imagenet_index"], labels, imagenet_index)

    def label_condition(self, rows: Sequence[int]) -> Condition:
        """The condition that the prior itself was trained with: the label's embedding, no time vector."""
        table: Tensor = self.get_buffer("label_embedding")
        context = table[torch.as_tensor(rows, device=table.device)][:, None].expand(
            -1, len(self.null_context), -1
        )
        return Condition(context, torch.zeros_like(self.null_time).expand(len(context), -1))

    def _table(self, cls: Any, prefix: str) -> Any:
        if f"{prefix}_weight" not in (self.config["tables"] or {}):
            return None
        return cls(**{name: self.get_buffer(f"{prefix}_{name}") for name in cls.__dataclass_fields__})


def _settings(model: ConfigMixin) -> dict[str, Any]:
    """What a diffusers model was made with, as JSON values."""
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default for linear and convolution layers, U(-1, 1) / sqrt(fan in), from an explicit generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

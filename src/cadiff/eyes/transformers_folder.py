"""Local transformers folders: image classifiers as judges, CLIP image embeddings as an eye. Nothing is ever fetched.

A folder holds config.json, model.safetensors (or pytorch_model.bin) and preprocessor_config.json, as `save_pretrained` writes
them and as they lie on a model hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_logging

from cadiff.artifacts import read_json
from cadiff.errors import ArtifactError
from cadiff.eyes.eye import Classifier, Eye
from cadiff.eyes.labels import are_imagenet
from cadiff.eyes.names import judge_name
from cadiff.eyes.pixels import Preprocessing, from_transformers


class _Classifying(nn.Module):
    """Logits, and what the last linear layer reads."""

    def __init__(self, model: Any, num_classes: int, folder: Path):
        super().__init__()
        self.model, self._folder = model, folder
        heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == num_classes]
        if not heads:
            raise ArtifactError(
                f"{folder}: {type(model).__name__} has no linear layer with {num_classes} classes; other kinds of heads are "
                "not supported."
            )
        self._seen: list[tuple[Any, Any]] = []
        # The last one by place: earlier layers may happen to be as wide as there are classes.
        heads[-1].register_forward_hook(lambda _, inputs, output: self._seen.append((inputs[0], output)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self._seen.clear()
        logits = self.model(pixel_values=x).logits
        pooled, output = self._seen.pop()
        if output.shape != logits.shape or not torch.equal(output, logits):
            raise ArtifactError(
                f"{self._folder}: the classes of {type(self.model).__name__} are not read from one linear layer; it cannot serve "
                "as a judge."
            )
        return {"pooled": pooled, "logits": logits}


class _Embedding(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"image_embeds": self.model(pixel_values=x).image_embeds}


def load_transformers_classifier(folder: Path, device: str | torch.device | None = None) -> Classifier:
    """A classifier from a folder of any `...ForImageClassification` model.

    Raises:
        ArtifactError: no such folder, a model without trained classes, damaged weights, or a preprocessing not known here.
    """
    config = _config(folder)
    prepare = _preprocessing(folder)
    model = _load(AutoModelForImageClassification, folder)
    num_classes = int(model.config.num_labels)
    labels = _labels(config, num_classes)
    return Classifier(
        judge_name(str(folder)),
        _Classifying(model, num_classes, folder),
        prepare,
        num_classes=num_classes,
        labels=labels,
        is_imagenet=are_imagenet(labels),
        weights=_weight_files(folder),
        device=device,
    )


def load_clip(folder: Path, device: str | torch.device | None = None) -> Eye:
    """CLIP with the layer `image_embeds`, the projected embedding before its scaling to unit length (Radford et al. 2021)."""
    folder = Path(folder)
    config = _config(folder)
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ArtifactError(f"{folder} holds a {kind or 'model of unknown type'}, expected a clip.")
    prepare = _preprocessing(folder)
    vision = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
    if kind == "clip":  # of a whole CLIP the outer width counts
        vision.projection_dim = config.get("projection_dim", vision.projection_dim)
    model = _load(CLIPVisionModelWithProjection, folder, config=vision)
    return Eye(
        "clip", _Embedding(model), prepare, ("image_embeds",), weights=_weight_files(folder), device=device
    )


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        there = (
            ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
        )
        raise ArtifactError(
            f"{folder} is not a transformers folder (found: {there or 'nothing'}): expected config.json, model.safetensors and "
            "preprocessor_config.json."
        )
    config = read_json(folder / "config.json")
    if "architecture" in config and "model_type" not in config:
        raise ArtifactError(f"{folder} is a folder of timm: name it timm:{folder}.")
    return config


def _preprocessing(folder: Path) -> Preprocessing:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return from_transformers(read_json(path), str(path))
    nested = folder / "processor_config.json"
    if nested.is_file() and "image_processor" in (found := read_json(nested)):
        return from_transformers(found["image_processor"], str(nested))
    raise ArtifactError(
        f"{folder} lacks preprocessor_config.json, which says how pictures are prepared: take it from where the weights "
        "come from."
    )


def _load(kind: Any, folder: Path, **settings: Any) -> Any:
    """The model in float32; every weight of it must be in the folder."""
    # Mismatches are reported in our own words below, hence "ignored" here.
    settings |= {"local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with _quiet():
        try:
            model, info = kind.from_pretrained(folder, **settings)
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ArtifactError(f"The model in {folder} cannot be loaded: {reason}") from None
    wrong = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if wrong:
        raise ArtifactError(
            f"{folder} lacks {len(wrong)} weights of a {type(model).__name__}, or holds them in another shape (first: "
            f"{wrong[0]}): it was not trained for this."
        )
    return model.float()


def _labels(config: dict[str, Any], num_classes: int) -> tuple[str, ...] | None:
    stated = config.get("id2label") or {}
    try:
        labels = tuple(str(stated[str(i)]) for i in range(num_classes))
    except KeyError:
        return None
    return None if all(label == f"LABEL_{i}" for i, label in enumerate(labels)) else labels


def _weight_files(folder: Path) -> tuple[Path, ...]:
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return tuple(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no table of unused weights while a model loads."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()

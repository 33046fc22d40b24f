"""Local timm folders as judges: config.json and model.safetensors as they lie on a model hub. Nothing is ever fetched.

timm is optional. It imports torchvision, which has to fit the installed torch exactly.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadiff.artifacts import read_json
from cadiff.errors import ArtifactError, MissingExtraError
from cadiff.eyes.eye import Classifier, Eye
from cadiff.eyes.labels import are_imagenet
from cadiff.eyes.names import judge_name
from cadiff.eyes.pixels import from_timm
from cadiff.eyes.weights import fill, read_weights


class _Timm(nn.Module):
    """timm's own split: features, then what its head reads, then classes."""

    def __init__(self, model: Any, num_classes: int):
        super().__init__()
        self.model, self._num_classes = model, num_classes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.model.forward_features(x)
        found = {"pooled": self.model.forward_head(maps, pre_logits=True)}
        return {**found, "logits": self.model.forward_head(maps)} if self._num_classes else found


def load_timm_classifier(folder: Path, device: str | torch.device | None = None) -> Classifier:
    """A classifier from a local timm folder.

    1,000 classes without names are taken for ImageNet-1k in the usual order, as timm does.

    Raises:
        MissingExtraError: timm cannot be imported. ArtifactError: no such folder, another layout, a network without classes,
            an unknown architecture, or weights that do not fit.
    """
    found = load_timm(folder, device)
    if not isinstance(found, Classifier):
        raise ArtifactError(
            f"{folder} has no classes (num_classes is 0): it can be an eye, but it cannot judge."
        )
    return found


def load_timm(folder: Path, device: str | torch.device | None = None) -> Eye:
    """`load_timm_classifier`, or an eye with the layer `pooled` where the network has no classes, such as DINOv2's."""
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not (folder / "config.json").is_file() or len(files) != 1:
        there = (
            ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
        )
        raise ArtifactError(
            f"{folder} is not a folder of timm (found: {there or 'nothing'}): expected config.json and one model.safetensors."
        )
    config = read_json(folder / "config.json")
    if missing := [key for key in ("architecture", "num_classes", "pretrained_cfg") if key not in config]:
        raise ArtifactError(
            f"{folder / 'config.json'} lacks {missing[0]!r}, so it is not one of timm's; for a transformers folder leave out "
            '"timm:".'
        )
    num_classes, about = int(config["num_classes"]), config["pretrained_cfg"]
    prepare = from_timm(about, str(folder / "config.json"))
    network = _Timm(_build(config, folder, files[0]), num_classes)
    name = judge_name(str(folder))
    if num_classes == 0:
        return Eye(name, network, prepare, ("pooled",), weights=files, device=device)
    labels = config.get("label_names") or about.get("label_names")
    return Classifier(
        name,
        network,
        prepare,
        num_classes=num_classes,
        labels=labels,
        is_imagenet=are_imagenet(labels) if labels else num_classes == 1000,
        weights=files,
        device=device,
    )


def _build(config: dict[str, Any], folder: Path, file: Path) -> Any:
    """The network with its weights."""
    timm = _import_timm()
    settings = {**(config.get("model_args") or {}), "num_classes": int(config["num_classes"])}
    if config.get("global_pool") is not None:
        settings["global_pool"] = config["global_pool"]
    try:
        model = timm.create_model(config["architecture"], pretrained=False, **settings)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"timm {timm.__version__} cannot build the {config['architecture']!r} of {folder}: {reason}"
        ) from None
    return fill(model, read_weights(file), source=file, layout=f"timm's {config['architecture']}")


def _import_timm() -> Any:
    try:
        return import_module("timm")
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: a torchvision that was built for another torch
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingExtraError(
            f"Judges of timm need the extra eval ({reason}): pip install 'cadiff[eval]', with torchvision from the same index "
            "as torch."
        ) from error

"""Networks that look at pictures, from weights that lie on this machine: judges, feature spaces, perceptual distance.

    load_eye("alexnet", path)            named layers: the MindEye set, or any local classifier
    load_local_classifier(path)          a judge from a folder of transformers or timm, or a file of torchvision's ViT
    load_lpips(path)                     perceptual distance

Nothing is fetched and nothing in a file is run: safetensors, or PyTorch files by `weights_only`. The tables `EYES` and `MINDEYE`
say what there is without loading a network. Networks load when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from cadiff.errors import ArtifactError, ConfigError
from cadiff.eyes.names import EYES, MINDEYE, TIMM, is_local, judge_name

if TYPE_CHECKING:
    import torch

    from cadiff.eyes.alexnet import Lpips
    from cadiff.eyes.eye import Classifier, Eye

__all__ = [
    "EYES",
    "MINDEYE",
    "is_local",
    "judge_name",
    "load_eye",
    "load_local_classifier",
    "load_lpips",
]


def load_eye(name: str, path: Path | str, device: str | torch.device | None = None) -> Eye:
    """An eye by name from its weights.

    Args:
        name: a key of `EYES`; any other name stands for a local classifier, with the layers `pooled` and `logits`.
        path: what the entry of `EYES` says; for other names as `load_local_classifier` takes it, and a timm folder without
            classes has the layer `pooled` alone.
        device: CUDA where there is one by default.

    Raises:
        ConfigError: an unknown name whose path is no classifier either. ArtifactError: missing, damaged or other weights.
    """
    if name not in EYES:
        if not is_local(str(path)):
            raise ConfigError(
                f"Unknown eye {name!r} with the weights {str(path)!r}; there are {', '.join(EYES)}, or any name with the "
                "path of a local classifier."
            )
        eye = _load_any(str(path), device)
        eye.name = name
        return eye
    if not Path(path).exists():
        raise ArtifactError(
            f"The weights of the eye {name} are not at {path}: expected {EYES[name].weights}."
        )
    module, _, function = EYES[name].load.partition(":")
    return getattr(import_module(module), function)(Path(path), device)


def load_local_classifier(path: Path | str, device: str | torch.device | None = None) -> Classifier:
    """A judge from local weights.

    Args:
        path: a transformers folder; "timm:" and a timm folder; or a file of torchvision's ViT weights (.pth, .safetensors).

    Raises:
        ArtifactError: nothing there, or of another kind. MissingExtraError: timm is needed and not installed.
    """
    text = str(path)
    if text.startswith(TIMM):
        from cadiff.eyes.timm_folder import load_timm_classifier

        return load_timm_classifier(Path(text.removeprefix(TIMM)), device)
    if Path(path).is_file():
        from cadiff.eyes.vit import load_torchvision_vit

        return load_torchvision_vit(Path(path), device)
    from cadiff.eyes.transformers_folder import load_transformers_classifier

    return load_transformers_classifier(Path(path), device)


def _load_any(path: str, device: str | torch.device | None) -> Eye:
    if path.startswith(TIMM):
        from cadiff.eyes.timm_folder import load_timm

        return load_timm(Path(path.removeprefix(TIMM)), device)
    return load_local_classifier(path, device)


def load_lpips(path: Path | str, device: str | torch.device | None = None) -> Lpips:
    """Perceptual distance from the file that recipes/alexnet_weights.py writes, with AlexNet or VGG16."""
    from cadiff.eyes import alexnet

    return alexnet.load_lpips(Path(path), device)

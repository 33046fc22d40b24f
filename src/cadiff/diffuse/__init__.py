"""The third stage: condition a latent diffusion model on the fMRI encoder, and draw reconstructions with it.

`reconstruct` is in the module of the same name: `from cadiff.diffuse.reconstruct import reconstruct`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadiff.diffuse.conditioner import FmriConditioner
    from cadiff.diffuse.pipeline import FmriToImagePipeline, open_pipeline
    from cadiff.diffuse.reconstruct import ReconstructConfig
    from cadiff.diffuse.stage import DiffuseConfig, diffuse

# public name -> module; loaded on first use
_LAZY = {
    "DiffuseConfig": "stage",
    "FmriConditioner": "conditioner",
    "FmriToImagePipeline": "pipeline",
    "ReconstructConfig": "reconstruct",
    "diffuse": "stage",
    "open_pipeline": "pipeline",
}

__all__ = [
    "DiffuseConfig",
    "FmriConditioner",
    "FmriToImagePipeline",
    "ReconstructConfig",
    "diffuse",
    "open_pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)

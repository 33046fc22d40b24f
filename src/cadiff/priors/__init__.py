"""Image priors: `load_prior("shipped")` or any diffusers folder; `cadiff prior train` makes new ones."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadiff.priors.load import ImagePrior, load_prior, save_prior, shipped_prior

# public name -> module; loaded on first use, so that importing the room does not load torch
_LAZY = dict.fromkeys(("ImagePrior", "load_prior", "save_prior", "shipped_prior"), "cadiff.priors.load")

__all__ = ["ImagePrior", "load_prior", "save_prior", "shipped_prior"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    return getattr(import_module(_LAZY[name]), name)

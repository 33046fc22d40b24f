"""Weights that other projects published -> cadiff's folders: `describe` says what they are, `import_weights` converts them.

torch_files.py    files of torch.save, without running them      weight_file.py    any file of weights, mapped from the disk
recognise.py      what a file is, by its names and shapes        folders.py        folders of diffusers, transformers and ours
ldm.py            CompVis latent diffusion -> prior              fmri.py           MinD-Vis, CAD phases 1 and 2 -> encoder
brain_ldm.py      MinD-Vis, CAD tuned models -> pipeline         image_mae.py      facebook's and transformers' MAE -> image_mae
icgan.py          instance-conditioned GAN -> generator
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadiff.convert.description import describe
    from cadiff.convert.importing import Imported, import_weights

# public name -> module; loaded on first use
_LAZY = {"Imported": "importing", "describe": "description", "import_weights": "importing"}

__all__ = ["Imported", "describe", "import_weights"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)

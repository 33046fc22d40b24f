"""cadiff: Contrast, Attend and Diffuse. Reconstruct the image a person saw from their fMRI.

Sun et al., NeurIPS 2023, and the systems it compares with. A map of the package; data flows downwards, and what passes
from one room to the next is a folder on disk that describes itself:

    data        disk -> BrainDataset; readers, simulated subjects, preprocessing, splits, reliability
    priors      image priors (VQ auto-encoder, label-to-image latent diffusion, image MAE): load, train
    contrast    phase 1: double-contrastive masked auto-encoder on unlabelled fMRI
    attend      phase 2: the same encoder, guided by the images through cross attention
    diffuse     a latent diffusion model conditioned on the encoder; sample reconstructions
    baselines   ridge, retrieval, oracles: the same output folder as `diffuse`
    evaluate    reconstructions -> scores with intervals and controls; knows no model
    report      scores -> one self-contained HTML page

    trace       what is left of the stimulus at every station between betas and picture
    experiments tables of runs, the demo among them
    training    fit(): the one training loop
    sharing     one batch over several processes (processes, blocks and feed belong to it)
    artifacts   self-describing folders, run folders, provenance
    config      presets (YAML) and dotted overrides onto typed configs
    cli         the `cadiff` command

Importing `cadiff` imports none of these (and no torch); `from cadiff import FmriToImagePipeline` loads what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors see; at run time __getattr__ loads on first use
    from cadiff.data.dataset import BrainDataset
    from cadiff.diffuse.pipeline import FmriToImagePipeline
    from cadiff.priors.load import load_prior

# public name -> (module, attribute)
_LAZY = {
    "BrainDataset": ("cadiff.data.dataset", "BrainDataset"),
    "FmriToImagePipeline": ("cadiff.diffuse.pipeline", "FmriToImagePipeline"),
    "load_prior": ("cadiff.priors.load", "load_prior"),
}

__all__ = ["BrainDataset", "FmriToImagePipeline", "__version__", "load_prior"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562), so that `import cadiff` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'cadiff' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

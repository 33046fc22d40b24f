"""Phase 1: a double-contrastive masked auto-encoder of fMRI, and the encoder folder that it makes."""

from cadiff.contrast.cross import CrossBlock, CrossConfig, FmriCross
from cadiff.contrast.encoder_folder import load_encoder, preprocessor_for, save_encoder
from cadiff.contrast.mae import FmriEncoder, FmriMae, FmriMaeConfig, FmriMaeSize
from cadiff.contrast.stage import ContrastConfig, contrast

__all__ = [
    "ContrastConfig",
    "CrossBlock",
    "CrossConfig",
    "FmriCross",
    "FmriEncoder",
    "FmriMae",
    "FmriMaeConfig",
    "FmriMaeSize",
    "contrast",
    "load_encoder",
    "preprocessor_for",
    "save_encoder",
]

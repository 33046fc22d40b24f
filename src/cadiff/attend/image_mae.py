"""Load the image auto-encoder that guides phase 2: any transformers `ViTMAEForPreTraining` folder.

Source: He et al. 2022 (MAE). The folder may also be an image prior of ours, with one under `image_mae/`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.utils import logging as transformers_logging

from cadiff.artifacts import read_json
from cadiff.errors import ArtifactError
from cadiff.priors.train_mae import sine_positions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageMae:
    """A loaded image auto-encoder, float32 on the CPU, and how its input is normalised."""

    model: ViTMAEForPreTraining
    mean: tuple[float, ...]
    """Of RGB in [0, 1]."""
    std: tuple[float, ...]
    """Of RGB in [0, 1]."""
    folder: Path


def find_image_mae(source: Path | str = "shipped") -> Path:
    """The folder `source` stands for: "shipped", a ViT-MAE folder, or a prior folder with an `image_mae/`.

    Raises ArtifactError when there is no ViT-MAE.
    """
    if str(source) == "shipped":
        return Path(str(resources.files("cadiff") / "assets" / "prior" / "image_mae"))
    folder = Path(source)
    about = read_json(folder / "prior.json") if (folder / "prior.json").is_file() else {}
    if "base" in about:  # an adapted prior has its base's
        from cadiff.priors.adapted import find_base

        return find_image_mae(find_base(folder, about))
    if not (folder / "config.json").is_file() and (folder / "image_mae").is_dir():
        folder = folder / "image_mae"
    if not (folder / "config.json").is_file():
        there = (
            ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
        )
        raise ArtifactError(
            f"{folder} holds no image auto-encoder (found: {there or 'nothing'}): expected a transformers "
            'ViT-MAE folder with config.json and weights (in a prior: under image_mae/), or "shipped".'
        )
    return folder


def load_image_mae(source: Path | str = "shipped", *, decoder_depth: int | None = None) -> ImageMae:
    """Load weights and input normalisation; keep the first `decoder_depth` decoder blocks, or all of fewer.

    Position tables are taken as they are stored; one that is missing is the sine table of He et al. 2022.

    Raises:
        ArtifactError: no ViT-MAE there, a damaged one, or one without decoder (facebook's `mae_pretrain_*` files
            lack it).
    """
    folder = find_image_mae(source)
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "vit_mae":
        raise ArtifactError(f"{folder} holds a {kind or 'model of unknown type'}, expected a vit_mae.")
    with _quiet():
        try:
            loaded: Any = ViTMAEForPreTraining.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"The weights in {folder} cannot be read: {str(error).splitlines()[0]}"
            ) from None
    model, info = loaded  # a pair, because of output_loading_info
    tables = {
        "vit.embeddings.position_embeddings": model.vit.embeddings.position_embeddings,
        "decoder.decoder_pos_embed": model.decoder.decoder_pos_embed,
    }
    missing = sorted(set(info["missing_keys"]) - tables.keys())
    if missing:
        raise ArtifactError(
            f"{folder} lacks {len(missing)} weights of a ViT-MAE with decoder (first: {missing[0]}): "
            "phase 2 needs encoder and decoder, take a checkpoint that holds both."
        )
    model = model.float()  # the folder may be half precision, which transformers keeps
    side = model.config.image_size // model.config.patch_size
    for name, table in tables.items():
        if name in info["missing_keys"]:  # transformers 5 leaves it empty, or even as the memory was
            table.data.zero_()
            table.data[0, 1:] = sine_positions(side, table.shape[2])
        table.requires_grad_(False)  # transformers 5 gives back tables that would learn
    decoder = model.decoder
    depth = min(decoder_depth or len(decoder.decoder_layers), len(decoder.decoder_layers))
    decoder.decoder_layers = decoder.decoder_layers[:depth]
    model.config.decoder_num_hidden_layers = depth
    mean, std = _normalisation(folder)
    return ImageMae(model, mean, std, folder)


def image_mae_without_weights(
    source: Path | str = "shipped", *, decoder_depth: int | None = None
) -> ImageMae:
    """The auto-encoder in its sizes, weights as they begin: for counting parameters and memory.

    source: as for `load_image_mae`, or "published": ViT-MAE base, the default sizes of transformers.
    """
    published = str(source) == "published"
    folder = Path() if published else find_image_mae(source)
    about = {} if published else json.loads((folder / "config.json").read_text())
    config = ViTMAEConfig(**about)
    config.decoder_num_hidden_layers = min(
        decoder_depth or config.decoder_num_hidden_layers, config.decoder_num_hidden_layers
    )
    return ImageMae(ViTMAEForPreTraining(config), *_normalisation(folder), folder)


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of RGB in [0, 1]: input.json (ours), preprocessor_config.json, or ImageNet's."""
    sources = (("input.json", ("mean", "std")), ("preprocessor_config.json", ("image_mean", "image_std")))
    for name, keys in sources:
        if (folder / name).is_file():
            about: dict[str, Any] = json.loads((folder / name).read_text())
            if all(key in about for key in keys):
                return tuple(about[keys[0]]), tuple(about[keys[1]])
    return IMAGENET_MEAN, IMAGENET_STD


@contextmanager
def _quiet() -> Iterator[None]:
    """No second progress bar while weights load."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()

"""Folders of weights: those that cadiff opens as they are, and diffusers' and transformers' that need another file format.

A diffusers folder whose weights are .safetensors under the usual name is a prior already. What `import` makes one of is a folder
with .bin files (pickles, which diffusers would open itself) or with half-precision variants (`*.fp16.safetensors`).
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import save_file

from cadiff.artifacts import read_json, refuse_existing, what_is_at
from cadiff.convert.ldm import precision
from cadiff.convert.recognise import attributes
from cadiff.convert.tensor_refs import TensorRef
from cadiff.convert.weight_file import SUFFIXES, WeightFile
from cadiff.errors import ArtifactError, ConfigError, UserError
from cadiff.priors.load import WEIGHTS, ImagePrior, load_prior, save_prior

PARTS = ("vqvae", "vae", "unet")
OURS = {
    "fmri-encoder": "encoder",
    "FmriToImagePipeline": "pipeline",
    "reconstructions": "reconstructions",
    "evaluation": "evaluation",
    "instance-gan": "generator",
}
TAKES = {
    "encoder": "`cadiff attend` and `cadiff diffuse` take it with --encoder",
    "pipeline": "`cadiff reconstruct` takes it with --pipeline",
    "prior": "`cadiff diffuse` takes it with --prior",
    "generator": "`cadiff baseline ic-gan` takes it with --set generator=FOLDER",
    "reconstructions": "`cadiff evaluate` takes it",
    "evaluation": "`cadiff report` takes it",
}


class Place(NamedTuple):
    """What a path that was handed over stands for."""

    path: Path
    """A file of weights, or a folder."""
    kind: str
    """ "file"; "vit-mae": a file in a transformers folder; "diffusers"; or a kind of cadiff's own."""


def find(source: Path) -> Place:
    """A file of weights, a folder of diffusers or transformers, a folder of ours, or the only file of weights in a folder.

    Raises:
        ArtifactError: nothing there, or nothing that is known.
    """
    source = Path(source)
    if not source.is_dir():
        return Place(source, "file")
    about = _settings(source / "config.json")
    for key in (about.get("kind"), _settings(source / "model_index.json").get("_class_name")):
        if isinstance(key, str) and key in OURS:
            return Place(source, OURS[key])
    for name in ("encoder", "pipeline", "prior", "generator"):  # a run folder is as good as what it holds
        if (
            (source / name / "config.json").is_file()
            or (source / name / "model_index.json").is_file()
            or (source / name / "prior.json").is_file()
        ):
            return find(source / name)
    if (source / "unet").is_dir() and any((source / name).is_dir() for name in ("vqvae", "vae")):
        return Place(source, "diffusers")
    files = weight_files(source)
    if about.get("model_type") == "vit_mae" and files:
        return Place(next((file for file in files if file.name == "model.safetensors"), files[0]), "vit-mae")
    if len(files) == 1 and not about:
        return Place(files[0], "file")
    if files:
        raise ArtifactError(
            f"{source} holds {len(files)} files of weights ({', '.join(f.name for f in files[:5])}): name one of them."
        )
    raise ArtifactError(
        f"{source} holds no weights that this knows (found: {what_is_at(source)}): expected a checkpoint, a "
        "diffusers folder (unet/ and vqvae/ or vae/), or a transformers ViTMAE folder."
    )


def weight_files(folder: Path) -> list[Path]:
    """Files that look like weights, by their suffix."""
    return sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES and not p.name.startswith(".")
    )


def opens_as_prior(folder: Path) -> bool:
    """Whether every part has its weights where diffusers looks for them."""
    return all((folder / part / WEIGHTS).is_file() for part in PARTS if (folder / part).is_dir())


def what_next(folder: Path) -> tuple[str, str]:
    """(label, text): whether a diffusers folder is a prior, becomes one, or cannot."""
    try:
        refuse_unfit(folder)
    except ConfigError as error:
        return "import", f"not possible: {error}"
    if opens_as_prior(folder):
        return "next", "it is a prior as it is: `cadiff diffuse` takes it with --prior"
    return "next", shlex.join(["cadiff", "weights", "import", str(folder), "OUT"])


def refuse_unfit(folder: Path) -> None:
    """Raises `ConfigError` for a denoiser that its settings say cannot be tuned, before anything is loaded."""
    predicts = _schedule(folder).get("prediction_type", "epsilon")
    if predicts != "epsilon":
        raise ConfigError(
            f"{folder}: the denoiser predicts {predicts!r}; expected epsilon, which tuning trains it to predict."
        )
    unet = _settings(folder / "unet" / "config.json")
    more = next((key for key in ("addition_embed_type", "encoder_hid_dim_type") if unet.get(key)), None)
    if more:
        raise ConfigError(
            f"{folder}: the denoiser asks for more than a context ({more}={unet[more]!r}), as Stable Diffusion XL does: take a "
            "model of the layout of Stable Diffusion 1 or 2."
        )


def import_diffusers(folder: Path, out: Path, facts: Mapping[str, Any]) -> Path:
    """Writes a prior folder from a diffusers folder in another file format, in the precision it is stored in.

    Raises:
        ArtifactError: a part is missing or damaged, or `out` exists.
        ConfigError: parts that do not fit together, or a denoiser that does not predict the noise; as `load_prior`.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        staging = Path(name)
        dtypes = {
            precision(list(_stage(folder / part, staging / part).values()))
            for part in PARTS
            if (folder / part).is_dir()
        }
        for extra in ("scheduler", "prior.json", "label_embedding.safetensors", "image_mae"):
            if (folder / extra).is_dir():
                shutil.copytree(folder / extra, staging / extra)
            elif (folder / extra).is_file():
                shutil.copy2(folder / extra, staging / extra)
        prior = _open(staging, folder)
        about = attributes(read_json(staging / "prior.json")) if (staging / "prior.json").is_file() else {}
        scheduler: DDIMScheduler = prior.scheduler
        return save_prior(
            out,
            vqvae=prior.vqvae,
            unet=prior.unet,
            scheduler=scheduler,
            label_embedding=prior.label_embedding,
            about={**about, "scaling_factor": prior.scaling_factor, **facts},
            image_mae=prior.image_mae,
            dtype=getattr(torch, dtypes.pop()) if len(dtypes) == 1 else torch.float32,
        )


def _open(staging: Path, folder: Path) -> ImagePrior:
    try:
        return load_prior(staging)
    except UserError as error:  # speak of the user's folder
        raise type(error)(str(error).replace(str(staging), str(folder))) from None


def part_weights(part: Path) -> WeightFile:
    """The file with the weights of one part: the usual one, else a variant, else a pickle.

    Raises:
        ArtifactError: there is none, they are in several pieces, or the file cannot be read.
    """
    files = weight_files(part)
    if any("-of-" in file.name for file in files):
        raise ArtifactError(
            f"{part} keeps its weights in {len(files)} pieces: save it in one with diffusers, "
            "save_pretrained(max_shard_size='100GB')."
        )
    order = sorted(
        files,
        key=lambda file: (
            file.name != WEIGHTS,
            file.suffix != ".safetensors",
            "non_ema" in file.name,
            file.name,
        ),
    )
    if not order:
        raise ArtifactError(f"{part} holds no weights (found: {what_is_at(part)}): copy the folder again.")
    return WeightFile.open(order[0])


def _stage(part: Path, target: Path) -> dict[str, TensorRef]:
    target.mkdir()
    if (part / "config.json").is_file():
        shutil.copy2(part / "config.json", target)
    file = part_weights(part)
    value = file.contents.value
    refs = (
        {name: ref for name, ref in value.items() if isinstance(ref, TensorRef)}
        if isinstance(value, dict)
        else {}
    )
    if not refs:
        raise ArtifactError(f"{file.path} holds no weights by name: copy the folder again.")
    if file.path.suffix == ".safetensors":
        (target / WEIGHTS).symlink_to(file.path.resolve())
    else:
        tensors = {name: tensor.contiguous() for name, tensor in file.tensors(refs).items()}
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return refs


def _schedule(folder: Path) -> dict[str, Any]:
    return _settings(folder / "scheduler" / "scheduler_config.json")


def _settings(path: Path) -> dict[str, Any]:
    return attributes(read_json(path)) if path.is_file() else {}


def facts(folder: Path) -> list[tuple[str, str]]:
    """What `describe` says of a diffusers folder, from its settings and the headers of its files: (label, text)."""
    lines = []
    for part in PARTS:
        if not (folder / part).is_dir():
            continue
        config, file = _settings(folder / part / "config.json"), part_weights(folder / part)
        refs = [ref for ref in attributes(file.contents.value).values() if isinstance(ref, TensorRef)]
        widths = ", ".join(map(str, config.get("block_out_channels") or ["unknown"]))
        text = f"{config.get('_class_name', 'of unknown class')} of widths {widths}, "
        if part == "unet":
            text += f"cross attention to width {config.get('cross_attention_dim')}, latents {config.get('in_channels')}"
            text += f" x {config.get('sample_size')} x {config.get('sample_size')}"
        else:
            text += f"latents times {config.get('scaling_factor', 'unknown')}"
        numel = sum(ref.numel for ref in refs)
        lines.append((part, f"{text}: {numel:,} parameters, {precision(refs)}, {file.path.name}"))
    schedule = _schedule(folder)
    predicts = schedule.get("prediction_type", "epsilon") if schedule else "unknown"
    lines.append(("noise", f"{schedule.get('_class_name', 'missing')}, predicts {predicts}"))
    labels = _settings(folder / "prior.json").get("classes")
    lines.append(("labels", f"{len(labels)} classes" if labels else "none: what needs labels says so"))
    return lines

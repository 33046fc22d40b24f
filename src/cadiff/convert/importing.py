"""`import_weights`: whatever it is, to the folder of ours that it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from cadiff.artifacts import folder_digest, provenance, refuse_existing, sha256_file
from cadiff.convert.brain_ldm import import_brain_ldm
from cadiff.convert.fmri import has_decoder as encoder_has_decoder
from cadiff.convert.fmri import import_encoder
from cadiff.convert.folders import TAKES, find, import_diffusers, opens_as_prior, refuse_unfit
from cadiff.convert.icgan import import_generator
from cadiff.convert.image_mae import has_decoder, import_image_mae
from cadiff.convert.ldm import import_label_ldm
from cadiff.convert.recognise import SYSTEMS, Found, recognise
from cadiff.errors import ArtifactError, ConfigError
from cadiff.priors.load import load_prior


class Imported(NamedTuple):
    """What came of it."""

    folder: Path
    kind: Literal["prior", "encoder", "pipeline", "image_mae", "generator"]
    complete: bool
    """False for an auto-encoder without its decoder."""
    made: bool
    """False where the source is such a folder already, and nothing was written."""


def import_weights(source: Path, out: Path, *, dataset: Path | None = None, ema: bool = False) -> Imported:
    """Turns weights that another project published into a folder of ours; nothing in them is executed.

    Args:
        source: a file of weights, or a folder of diffusers or transformers.
        out: the folder to make; it must not exist.
        dataset: dataset folder of the subject; a model tuned on fMRI needs it, an encoder may have it.
        ema: take the averaged weights, where a latent diffusion model keeps them.

    Raises:
        ArtifactError: the source cannot be read or is not known, or `out` exists.
        ConfigError: an option that does not go with the source, or a model that cannot be taken.
        DataError: the dataset is not that of the model.
    """
    place = find(source)
    if place.kind in TAKES:
        if place.kind not in ("encoder", "pipeline", "prior", "generator"):
            raise ArtifactError(f"{place.path} holds {place.kind}, not weights: {TAKES[place.kind]}.")
        return Imported(place.path, place.kind, True, False)  # pyright: ignore[reportArgumentType]
    if place.kind == "diffusers":
        _refuse_options("a diffusers folder", dataset=dataset, ema=ema)
        refuse_unfit(place.path)
        if opens_as_prior(place.path):
            load_prior(place.path)
            return Imported(place.path, "prior", True, False)
        refuse_existing(out)
        facts = provenance(
            stage="import", source={"folder": place.path.name, "digest": folder_digest(place.path)}
        )
        return Imported(import_diffusers(place.path, out, {"provenance": facts}), "prior", True, True)
    found = recognise(place.path)
    if SYSTEMS[found.system].refusal:
        system = SYSTEMS[found.system]
        raise ArtifactError(f"{place.path} is {system.title}, which cannot be imported: {system.refusal}.")
    refuse_existing(out)
    return _import_file(found, out, dataset=dataset, ema=ema)


def _import_file(found: Found, out: Path, *, dataset: Path | None, ema: bool) -> Imported:
    title = SYSTEMS[found.system].title
    if found.system == "label-ldm":
        _refuse_options(title, dataset=dataset)
        return Imported(
            import_label_ldm(found, out, ema=ema, facts={"provenance": _facts(found)}), "prior", True, True
        )
    if found.system == "brain-ldm":
        return Imported(
            import_brain_ldm(found, out, dataset, ema=ema, facts=_facts(found)), "pipeline", True, True
        )
    if found.system in ("fmri-mae", "fmri-cross"):
        _refuse_options(title, ema=ema)
        return Imported(
            import_encoder(found, out, dataset, _facts(found)), "encoder", encoder_has_decoder(found), True
        )
    _refuse_options(title, dataset=dataset, ema=ema)
    if found.system == "icgan":
        return Imported(import_generator(found, out, _facts(found)), "generator", True, True)
    return Imported(import_image_mae(found, out, _facts(found)), "image_mae", has_decoder(found), True)


def _facts(found: Found) -> dict[str, Any]:
    path = found.file.path
    source = {
        "file": path.name,
        "bytes": found.file.size,
        "sha256": sha256_file(path),
        "is": SYSTEMS[found.system].title,
    }
    epoch = found.about.get("epoch")
    return provenance(stage="import", source={**source, "epoch": epoch} if type(epoch) is int else source)


def _refuse_options(title: str, **options: Any) -> None:
    for name, value in options.items():
        if value:
            meant = (
                "a model tuned on fMRI, or an fMRI encoder"
                if name == "dataset"
                else "latent diffusion models"
            )
            raise ConfigError(f"--{name} is for {meant}; this is {title}: leave it out.")

"""What a file or folder of weights is, in lines for a terminal; nothing in it is executed, and no weight is read."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cadiff.artifacts import read_json
from cadiff.convert import brain_ldm, fmri, folders, icgan, image_mae, ldm
from cadiff.convert.recognise import SYSTEMS, Found, attributes, class_name, recognise
from cadiff.convert.tensor_refs import TensorRef
from cadiff.errors import UserError
from cadiff.safe_pickle import StandIn

Lines = list[tuple[str, str]]
FACTS: dict[str, Callable[[Found], Lines]] = {
    "brain-ldm": brain_ldm.facts,
    "label-ldm": ldm.facts,
    "icgan": icgan.facts,
    "fmri-cross": fmri.facts,
    "fmri-mae": fmri.facts,
    "facebook-mae": image_mae.facts,
    "vit-mae": image_mae.facts,
}
CHECKS: dict[str, Callable[[Found], None]] = {
    "brain-ldm": brain_ldm.check,
    "label-ldm": ldm.check,
    "icgan": icgan.check,
    "fmri-cross": fmri.check,
    "fmri-mae": fmri.check,
    "facebook-mae": image_mae.check,
    "vit-mae": image_mae.check,
}


def describe(source: Path) -> Lines:
    """(label, text) of everything that is known of a file or folder of weights.

    Raises:
        ArtifactError: it is not what this knows, truncated, damaged, or made to run code.
    """
    return [(label, "".join(c if c.isprintable() else "?" for c in text)) for label, text in _lines(source)]


def _lines(source: Path) -> Lines:
    place = folders.find(source)
    if place.kind in folders.TAKES:
        return [
            ("folder", str(place.path)),
            ("is", f"cadiff's own folder of kind {place.kind}: {folders.TAKES[place.kind]}"),
            *_own(place),
        ]
    if place.kind == "diffusers":
        lines = [("folder", str(place.path)), ("is", "a latent diffusion model in the diffusers layout")]
        return [*lines, *folders.facts(place.path), folders.what_next(place.path)]
    found = recognise(place.path)
    system = SYSTEMS[found.system]
    lines = [
        ("file", f"{found.file.path}: {found.file.contents.layout}, {found.file.size:,} bytes"),
        ("is", system.title),
        *_beside(found),
        ("precision", _precision(found)),
    ]
    if system.refusal:
        return [*lines, ("import", f"not possible: {system.refusal}")]
    try:
        lines += FACTS[found.system](found)
        CHECKS[found.system](found)
    except UserError as error:
        return [*lines, ("missing", str(error))]
    command = ["cadiff", "weights", "import", str(source), "OUT"]
    command += ["--dataset", "DATASET"] if found.system == "brain-ldm" else []
    return [
        *lines,
        ("complete", "every weight of what is listed above is there"),
        ("next", shlex.join(command)),
    ]


def _precision(found: Found) -> str:
    counts = Counter(ref.dtype for ref in found.weights.values() if "float" in ref.dtype)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{dtype} ({count} weights)" for dtype, count in counts.most_common()) or "no floats"


def _beside(found: Found) -> Lines:
    """What the checkpoint keeps beside the weights: epoch, and the rest by kind."""
    lines: Lines = []
    epoch = found.about.get("epoch")
    if type(epoch) is int:
        lines.append(("epoch", str(epoch)))
    rest = [
        f"{key[:40]} ({_kind(value)})"
        for key, value in sorted(found.about.items())
        if key != "epoch" and key.isprintable()
    ]
    return [*lines, ("beside", ", ".join(rest[:12]))] if rest else lines


def _kind(value: Any) -> str:
    if isinstance(value, StandIn):
        return f"an object of {class_name(value)}, not run"
    if isinstance(value, TensorRef):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, int | float | str | bool | None):
        return str(value)[:30] if str(value).isprintable() else "text"
    return f"{len(value)} entries" if isinstance(value, dict | list) else type(value).__name__


def _own(place: folders.Place) -> Lines:
    about = (
        attributes(read_json(place.path / "config.json")) if (place.path / "config.json").is_file() else {}
    )
    sizes = attributes(attributes(about.get("config")).get("mae"))
    if not sizes:
        return []
    text = ", ".join(
        f"{key}={sizes[key]}"
        for key in ("num_voxels", "patch_size", "embed_dim", "depth", "num_heads")
        if key in sizes
    )
    return [("class", str(about["config"].get("class"))), ("sizes", text)]

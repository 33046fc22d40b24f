"""The verbs beside the flow: prior train, prior adapt, presets, settings."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from cadiff.cli.options import STAGES, Out, Preset, Prior, Protocol, Resume, Set, load, shipped_or_path
from cadiff.errors import UserError

if TYPE_CHECKING:
    from cadiff.config import Config


def prior_train(
    images: Annotated[
        Path, typer.Argument(help="Folder with one sub-folder of pictures a class, or an .npz file.")
    ],
    out: Out,
    preset: Preset = None,
    kind: Annotated[
        str | None,
        typer.Option(help="diffusion, or icgan: an instance-conditioned GAN.", show_default=False),
    ] = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Train an image prior: VQ auto-encoder, label-to-image latent diffusion, image MAE; or an instance-conditioned GAN.

    - `cadiff prior train photos --out runs/prior`
    - `cadiff prior train digits.npz --preset recipes/prior_mnist.yaml --out runs/digit-prior`
    - `cadiff prior train photos --kind icgan --out runs/icgan`

    Hand it to the later stages with `cadiff diffuse --prior runs/prior/prior`; a generator to the baseline `ic-gan`.
    """
    from cadiff.priors.train import train_prior

    overrides = [*(set_ or ()), *([f"kind={kind}"] if kind else ())]
    config = load("prior", preset, overrides)
    made = train_prior(config, images, out, resume=resume)
    where = shlex.quote(str(made))
    if config.kind == "icgan":
        typer.echo(f"generator: {made}\nuse it with: cadiff baseline ic-gan ... --set generator={where}")
    else:
        typer.echo(f"prior: {made}\nuse it with: cadiff diffuse ... --prior {where}")


def prior_adapt(
    images: Annotated[
        Path, typer.Argument(help="Folder with one sub-folder of pictures a class, or an .npz file.")
    ],
    out: Out,
    prior: Prior = "shipped",
    preset: Preset = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Open a label-conditioned image prior to the features of a picture, so that it draws what a brain knows beyond the class.

    - `cadiff prior adapt photos --out runs/adapted`

    Hand it on: `cadiff baseline ridge-features D --set prior=runs/adapted/prior`, `cadiff diffuse ... --prior
    runs/adapted/prior --set image_start=true --set context_length=8 --set label_start=false`. Leave the stimuli of the brain
    data out of the pictures.
    """
    from cadiff.diffuse.adapt import adapt_prior

    made = adapt_prior(load("adapt", preset, set_), images, out, prior=shipped_or_path(prior), resume=resume)
    where = shlex.quote(str(made))
    typer.echo(f"prior: {made}\nuse it with: cadiff baseline ridge-features ... --set prior={where}")


def presets() -> None:
    """List the presets and protocols that come with cadiff.

    A preset says what is run; a protocol (`--protocol NAME`, docs/protocols.md) says how the paper is read.
    """
    from cadiff.config import PROTOCOLS, load_preset, load_protocol, preset_names

    names = preset_names()
    width = max(map(len, (*names, *PROTOCOLS)), default=0)
    for name in names:
        about = load_preset(name)
        published = f"; published: {about['published']} ({about['source']})" if "published" in about else ""
        typer.echo(f"{name:<{width}}  {about.get('title', '')}{published}")
    typer.echo("\nprotocols, for --protocol:")
    for name in PROTOCOLS:
        typer.echo(f"{name:<{width}}  {load_protocol(name)['title']}")


def settings(
    stage: Annotated[str, typer.Argument(help=f"One of {STAGES}.")],
    preset: Preset = None,
    protocol: Protocol = None,
    set_: Set = None,
) -> None:
    """Every setting of a stage with its value and meaning: what `--set` accepts.

    - `cadiff settings contrast --preset demo`
    - `cadiff settings contrast --preset paper/god-sub-03 --protocol official`
    """
    if stage not in STAGES.split(", "):
        raise UserError(f"No stage {stage!r}; stages with settings are {STAGES}.")
    fixed = _by_protocol(stage)
    for key, value, meaning in _flatten(load(stage, preset, set_, protocol)):
        typer.echo(f"{key}={_as_yaml(value)}" + (f"\n    {' '.join(meaning.split())}" if meaning else ""))
        if key in fixed:
            typer.echo(
                f"    protocols: {', '.join(f'{name} {wanted}' for name, wanted in fixed[key].items())}"
            )


def _by_protocol(stage: str) -> dict[str, dict[str, str]]:
    """What the protocols want of the settings on which they are not at one: dotted key -> protocol -> value or values."""
    from cadiff.config import PROTOCOLS, load_protocol

    found: dict[str, dict[str, str]] = {}

    def walk(values: dict[str, Any], name: str, prefix: str = "") -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, name, f"{prefix}{key}.")
            else:
                options = value if isinstance(value, list) else [value]
                found.setdefault(prefix + key, {})[name] = " or ".join(map(_as_yaml, options))

    for name in PROTOCOLS:
        walk(load_protocol(name).get(stage) or {}, name)
    return {key: by for key, by in found.items() if len(by) < len(PROTOCOLS) or len(set(by.values())) > 1}


def _as_yaml(value: Any) -> str:
    """A value as `--set` reads it: null for None, a list for a tuple."""
    plain = json.loads(json.dumps(value, default=str))
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _flatten(config: Config, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(dotted key, value, docstring) of every setting, nested configs opened."""
    rows: list[tuple[str, Any, str]] = []
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if hasattr(type(value), "model_fields"):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value, field.description or ""))
    return rows

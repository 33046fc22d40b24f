"""What the verbs share: their options, loading of settings, and the line that says what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

STAGES = "stages, simulate, corpus, prior, contrast, attend, diffuse, reconstruct, evaluate, prepare, adapt"

Dataset = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Dataset folder (`simulate`, `data import`).")
]
Encoder = Annotated[Path, typer.Option(help="Encoder folder of `contrast` or `attend`.", show_default=False)]
Prior = Annotated[str, typer.Option(help="Folder of an image prior; `shipped` comes with cadiff.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="What to make; never overwritten.", show_default=False)
]
Preset = Annotated[
    str | None, typer.Option("--preset", "-p", help="Name (`cadiff presets`) or path of a .yaml file.")
]
PROTOCOL_HELP = "Reading of the paper: default, paper or official (docs/protocols.md)."
Protocol = Annotated[str | None, typer.Option("--protocol", help=PROTOCOL_HELP, show_default=False)]
SET_HELP = "Override one setting (`cadiff settings STAGE`); repeatable."
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help=SET_HELP)]
OPTION_HELP = "One option of it; repeatable."
Options = Annotated[list[str] | None, typer.Option("--set", metavar="A=B", help=OPTION_HELP)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run in --out.")]


def load(
    section: str, preset: str | None, overrides: Sequence[str] | None, protocol: str | None = None
) -> Any:
    """The settings of a stage: defaults, preset, protocol, overrides; `diffuse.fit.steps=5`, as for `cadiff run`, will do too."""
    from cadiff.experiments import stage_config

    own = [text.removeprefix(f"{section}.") for text in overrides or ()]
    return stage_config(section, preset, own, protocol)


def inside(folder: Path, name: str) -> Path:
    """`folder`, or the artefact of that name in it: a run folder is as good as what it holds."""
    return folder / name if (folder / name).is_dir() else folder


def shipped_or_path(source: str) -> str | Path:
    """ "shipped", or a path."""
    return source if source == "shipped" else Path(source)


def next_command(*words: str | Path, **options: str | Path | None) -> None:
    """Prints the command of the next stage, ready to paste."""
    flags = [part for key, value in options.items() if value is not None for part in (f"--{key}", str(value))]
    typer.echo(f"next: {shlex.join(['cadiff', *map(str, words), *flags])}")

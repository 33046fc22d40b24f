"""The verbs about weights of other projects: describe, import."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cadiff.cli.options import next_command

Source = Annotated[
    Path, typer.Argument(help="A checkpoint, or a folder of diffusers or transformers; it is not changed.")
]
USES = {
    "prior": "cadiff diffuse ... --prior {}",
    "encoder": "cadiff attend ... --encoder {0}    (or: cadiff diffuse ... --encoder {0})",
    "image_mae": "cadiff attend ... --image-mae {}",
    "generator": "cadiff baseline ic-gan ... --set generator={} --set eye_weights=swav_800ep_pretrain.pth.tar",
}


def weights_describe(source: Source) -> None:
    """What weights from elsewhere are: system, stage, sizes, precision, and what is missing. Nothing in them is executed.

    - `cadiff weights describe pretrains/GOD/fmri_encoder.pth`
    """
    from rich.console import Console
    from rich.table import Table

    from cadiff.convert import describe

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for label, text in describe(source):
        table.add_row(label, text)
    Console(highlight=False, markup=False, soft_wrap=False).print(table)


def weights_import(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder to make; never overwritten.")],
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="The subject's dataset: a model tuned on fMRI needs its statistics.", show_default=False
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the averaged weights of a latent diffusion model.")
    ] = False,
) -> None:
    """Turn weights that another project published into a folder that the stages take.

    - `cadiff weights import pretrains/ldm/label2img/model.ckpt priors/label2img`
    - `cadiff weights import pretrains/GOD/fmri_encoder.pth runs/god-encoder`
    - `cadiff weights import finetuned.pth runs/mind-vis/pipeline --dataset data/god-3-vc`
    """
    from cadiff.convert import import_weights

    made = import_weights(source, out, dataset=dataset, ema=ema)
    place = shlex.quote(str(made.folder))
    if not made.made:
        typer.echo(f"{made.folder} is a folder of kind {made.kind} already; nothing was written.")
    else:
        typer.echo(f"{made.kind}: {made.folder}")
    if made.kind == "pipeline":
        next_command(
            "reconstruct", dataset or "DATASET", pipeline=made.folder, out=Path("runs/reconstructions")
        )
    elif made.kind == "image_mae" and not made.complete:
        typer.echo(
            "it has no decoder, which phase 2 (attend) needs: take a checkpoint that holds both to go on with it"
        )
    elif made.kind == "encoder" and not made.complete:
        typer.echo(f"use it with: cadiff diffuse ... --encoder {place}")
    else:
        typer.echo(f"use it with: {USES[made.kind].format(place)}")

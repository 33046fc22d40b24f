"""`trace`: what is left of the stimulus at every station between betas and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cadiff.errors import ConfigError


def trace(
    source: Annotated[
        Path, typer.Argument(metavar="DATASET|RUN", help="Dataset folder, or the folder of `run` or `demo`.")
    ],
    pipeline: Annotated[
        Path | None,
        typer.Option(help="Pipeline folder of `diffuse`; found in a RUN.", show_default=False),
    ] = None,
    encoder: Annotated[
        list[Path] | None,
        typer.Option(
            help="Encoder of an earlier stage, `contrast` or `attend`; repeatable, in their order.",
            show_default=False,
        ),
    ] = None,
    reconstructions: Annotated[
        Path | None,
        typer.Option(help="Folder of `reconstruct`: the last station.", show_default=False),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(help="Whose features are read out: a judge, or an eye as NAME=PATH (docs/judges.md)."),
    ] = "efficientnet-lite2",
    split: Annotated[
        Literal["test", "train"],
        typer.Option(help="test counts as a look at the test set; train predicts held-out folds."),
    ] = "test",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="What to make; trace/ beside the run of `diffuse` by default.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """What is left of the stimulus at every station between betas and picture, and which stage adds or loses it.

    - `cadiff trace demo`
    - `cadiff trace data/sub-01 --pipeline runs/diffuse --encoder runs/attend/encoder --reconstructions runs/drawn`
    - `cadiff trace data/sub-01 --pipeline runs/diffuse --split train --out runs/trace-train`

    Linear read-outs of betas, tokens, context and time vector, beside the pictures that were drawn (docs/trace.md).
    """
    from cadiff.cli.options import inside
    from cadiff.trace import Places, find_run, run_of
    from cadiff.trace import trace as run_trace

    if pipeline is None:
        found = find_run(source)
        drawn = found.reconstructions if split == "test" else None
        if encoder:
            raise ConfigError(
                "--encoder goes with --pipeline; in the folder of a run the encoders are found."
            )
    else:
        encoders = tuple(inside(folder, "encoder") for folder in encoder or ())
        found, drawn = Places(source, pipeline, encoders), None
    made = run_trace(
        found.dataset,
        found.pipeline,
        out or run_of(found.pipeline) / "trace",
        encoders=found.encoders,
        reconstructions=reconstructions or drawn,
        judge=judge,
        split=split,
    )
    typer.echo(f"trace: {(made / 'trace.html').resolve()}")

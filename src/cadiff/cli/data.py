"""The verbs about datasets: import, describe, doctor, split, prepare, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cadiff.cli.options import Dataset, Options, Out, Set, load, next_command
from cadiff.errors import ConfigError


def data_import(
    reader: Annotated[
        str,
        typer.Argument(help="A format (`cadiff data formats`), or your own as `package.module:function`."),
    ],
    source: Annotated[Path, typer.Argument(help="What the reader reads; it is not changed.")],
    out: Annotated[Path, typer.Argument(help="Dataset folder to make; never overwritten.")],
    set_: Options = None,
) -> None:
    """Turn data in another format into a dataset folder.

    - `cadiff data import god Kamitani/npz data/god-3 --set subject=3`
    - `cadiff data import arrays my-scans data/sub-01 --set subject=sub-01`

    Importing the same source again with the same options changes nothing.
    """
    from cadiff.data.dataset import BrainDataset
    from cadiff.data.readers import parse_options, read

    made = read(reader, source, out, **parse_options(set_ or []))
    if (made / "dataset_description.json").is_file():
        data = BrainDataset.open(made)
        if dropped := data.description.get("dropped_voxels"):
            typer.echo(
                f"{dropped} of {len(data.voxels) + dropped} voxels dropped, for NaN or infinite values; source_voxel in "
                "voxels.tsv has the numbers of the others."
            )
        next_command("data", "doctor", made)
    else:  # a reader of many subjects made a folder of datasets
        next_command(
            "data", "merge", *sorted(made.iterdir())[:2], "...", out=made.with_name(made.name + "-merged")
        )


def data_formats() -> None:
    """List the formats that `cadiff data import` reads."""
    from cadiff.data.readers import READERS

    width = max(map(len, READERS))
    for name, entry in READERS.items():
        typer.echo(f"{name:<{width}}  {entry.help}")


def data_describe(
    dataset: Dataset,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every file with its checksum.")
    ] = False,
) -> None:
    """What is in a dataset: trials, stimuli, voxels, noise ceilings, hashes, and what looks wrong.

    - `cadiff data describe data/sub-01 --verify`
    """
    from rich.console import Console

    from cadiff.data.dataset import BrainDataset
    from cadiff.data.describe import describe

    Console().print(describe(BrainDataset.open(dataset, verify=verify)))
    next_command("contrast", dataset, out=Path("runs/contrast"))


def data_doctor(
    dataset: Dataset,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="DATASET", help="Another subject, to find copies; repeatable."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page.", show_default=False)] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write the findings as JSON.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of permutations and of samples of large datasets.")] = 0,
) -> None:
    """What is wrong with a dataset, and what to do; leaves with exit code 1 when something is.

    - `cadiff data doctor data/sub-01 --html doctor.html`
    - `cadiff data doctor data/sub-01 --against data/sub-02 --against data/sub-03`
    """
    from rich.console import Console

    from cadiff.data.doctor import doctor
    from cadiff.data.doctor.terminal import show

    diagnosis = doctor(dataset, against=against or [], html=html, json=json, seed=seed)
    Console().print(show(diagnosis))
    if html is not None:
        typer.echo(f"page: {html.resolve()}")
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)
    stimuli = diagnosis.finding("splits").details["stimuli"]
    if stimuli["train"] > 1 and not stimuli["test"]:
        next_command("data", "split", dataset, out=dataset.with_name(dataset.name + "-split"), fraction="0.2")
    else:
        next_command("contrast", dataset, out=Path("runs/contrast"))


def data_split(
    dataset: Dataset,
    out: Out,
    test: Annotated[
        str | None, typer.Option(help="Stimuli to test on, ids with commas between.", show_default=False)
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Test on this share of the training stimuli.", show_default=False)
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Make this many datasets for cross-validation.", show_default=False)
    ] = None,
    by: Annotated[str, typer.Option(help="Keep `stimulus` or whole `class` together.")] = "stimulus",
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Choose which stimuli are tested; no stimulus is ever on both sides.

    - `cadiff data split data/sub-01 --out data/sub-01-val --fraction 0.1 --by class`   (validation; test trials stay unseen)
    - `cadiff data split data/digit69 --out data/digit69-folds --folds 5`
    - `cadiff data split data/miyawaki --out data/miyawaki-s --test image-07`
    """
    from cadiff.data.dataset import BrainDataset
    from cadiff.data.splits import resplit, split_train, write_folds

    if by not in ("stimulus", "class"):
        raise ConfigError(f"--by {by!r}: choose stimulus or class.")
    if sum(option is not None for option in (test, fraction, folds)) != 1:
        raise ConfigError("Say how to split: exactly one of --test, --fraction and --folds.")
    data = BrainDataset.open(dataset)
    if folds is not None:
        made = write_folds(data, out, folds, by=by, seed=seed)
        typer.echo("\n".join(f"fold: {folder}" for folder in made))
        return
    if fraction is not None:
        held = split_train(data, fraction, seed, by)[1]
        chosen, rows = sorted(set(data.trials["stimulus_id"].to_numpy()[held])), data.rows("train")
    else:
        chosen, rows = [name.strip() for name in (test or "").split(",") if name.strip()], None
    next_command("data", "describe", resplit(data, out, chosen, rows))


def data_merge(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="DATASET...", help="Datasets, or folders of datasets, of several subjects."),
    ],
    out: Out,
    length: Annotated[
        str, typer.Option(help="Voxels a trial gets: of the `longest` subject, the `shortest`, or a number.")
    ] = "longest",
    normalise: Annotated[
        str, typer.Option(help="z-score each subject's voxels one by one (`voxel`) or together (`scalar`).")
    ] = "voxel",
) -> None:
    """Put several subjects into one dataset for phase 1, all trials unlabelled; test trials are left out.

    - `cadiff data merge data/hcp/* data/god-3 --out data/corpus`
    """
    from cadiff.artifacts import read_json
    from cadiff.data.merge import merge

    if normalise not in ("voxel", "scalar"):
        raise ConfigError(f"--normalise {normalise!r}: choose voxel or scalar.")
    if length not in ("longest", "shortest") and not length.isdigit():
        raise ConfigError(f"--length {length!r}: choose longest, shortest or a number of voxels.")
    wanted: Any = int(length) if length.isdigit() else length
    made = merge(sources, out, length=wanted, normalise=normalise)
    typer.echo(read_json(made / "dataset_description.json")["note"])
    next_command("contrast", made, out=Path("runs/contrast"))


def data_prepare(dataset: Dataset, out: Out, set_: Set = None) -> None:
    """Choose ROIs, z-score within runs or sessions, keep reliable voxels; all fitted on training trials.

    - `cadiff data prepare data/god-3 --out data/god-3-vc --set rois=[VC]`
    - `cadiff data prepare data/nsd-1 --out data/nsd-1-z --set normalise=voxel --set within=session`

    The stages normalise and fit lengths on their own; this is for what must happen before. `cadiff settings prepare`
    lists what can be set.
    """
    from cadiff.data.dataset import BrainDataset
    from cadiff.data.prepare import prepare

    made = prepare(BrainDataset.open(dataset), out, load("prepare", None, set_))
    for line in BrainDataset.open(made).description["prepared"][-1]["changes"]:
        typer.echo(line)
    next_command("data", "doctor", made)

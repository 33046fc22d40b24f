"""The verbs of the flow: simulate, contrast, attend, diffuse, reconstruct, evaluate, report; and all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cadiff.cli.options import (
    Dataset,
    Encoder,
    Options,
    Out,
    Preset,
    Prior,
    Protocol,
    Resume,
    Set,
    inside,
    load,
    next_command,
    shipped_or_path,
)
from cadiff.cli.plan import VRAM_HELP
from cadiff.errors import ConfigError


def demo(out: Out = Path("demo"), resume: Resume = False) -> None:
    """Every stage for real on a simulated subject, ending in an HTML report.

    - `cadiff demo --out demo`
    """
    _run_all("demo", out, resume=resume)


def run_preset(
    preset: Annotated[
        str, typer.Argument(help="Name of a preset (`cadiff presets`) or path of a .yaml file.")
    ],
    out: Out,
    dataset: Annotated[
        Path | None,
        typer.Option(
            "--dataset", "--data", help="Dataset folder; without one the preset's subject is simulated."
        ),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATASET", help="More data for phase 1: a dataset, or a folder of them; repeatable."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from: a folder with prior/, image_mae/ or phase1/.", show_default=False
        ),
    ] = None,
    prior: Prior = "shipped",
    protocol: Protocol = None,
    vram: Annotated[float | None, typer.Option(help=VRAM_HELP, min=0.1, show_default=False)] = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Every stage of a preset, one after the other, ending in an HTML report.

    - `cadiff run demo --set diffuse.fit.steps=400 --out runs/longer`
    - `cadiff run digit69 --dataset data/digit69 --prior runs/digit-prior/prior --out runs/digit69`
    - `cadiff run paper/god-sub-03 --dataset data/god-3 --corpus data/hcp --corpus data/god-1 --weights weights --out runs/god-3`

    `--weights` is what `cadiff weights import` makes; with a phase1/ in it, phase 1 is skipped. `--resume` goes on with a run
    that was interrupted; what is finished is skipped.
    """
    _run_all(
        preset,
        out,
        dataset=dataset,
        corpus=corpus or [],
        weights=weights,
        prior=shipped_or_path(prior),
        protocol=protocol,
        vram=vram,
        overrides=set_ or [],
        resume=resume,
    )


def simulate(
    out: Out,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of labelled pictures instead of the shipped ones.", show_default=False),
    ] = None,
    preset: Preset = None,
    protocol: Protocol = None,
    set_: Set = None,
) -> None:
    """A simulated subject: a dataset whose code and noise ceiling are known.

    - `cadiff simulate --preset demo --out sub-01`
    - `cadiff simulate --set seed=2 --images my-photos --out sub-02`
    """
    from cadiff.data.simulate import simulate as run_simulate

    overrides = [*([f"images={images}"] if images else []), *(set_ or [])]
    made = run_simulate(load("simulate", preset, overrides, protocol), out)
    next_command("contrast", made, preset=preset, protocol=protocol, out=out.parent / "contrast")


def contrast(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET", help="One or more dataset folders.")],
    out: Out,
    preset: Preset = None,
    protocol: Protocol = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Phase 1: the fMRI encoder learns from unlabelled and training trials (never from test trials).

    - `cadiff contrast data/sub-01 --preset demo --out runs/contrast`
    - `cadiff contrast data/sub-01 data/sub-02 --set fit.steps=2000 --out runs/contrast`
    - `cadiff contrast data/sub-01 --preset demo --out runs/contrast --resume`
    """
    from cadiff.contrast.stage import contrast as run_contrast

    encoder = run_contrast(load("contrast", preset, set_, protocol), datasets, out, resume=resume)
    next_command(
        "attend", datasets[0], encoder=encoder, preset=preset, protocol=protocol, out=out.parent / "attend"
    )


def attend(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET", help="One or more dataset folders.")],
    encoder: Encoder,
    out: Out,
    image_mae: Annotated[
        str, typer.Option(help="Folder of a ViTMAE; `shipped` is the one of the prior.")
    ] = "shipped",
    preset: Preset = None,
    protocol: Protocol = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Phase 2: the encoder is guided by the images through cross attention. Optional.

    - `cadiff attend data/sub-01 --encoder runs/contrast/encoder --preset demo --out runs/attend`
    - `cadiff attend data/sub-01 data/sub-02 --encoder runs/contrast/encoder --out runs/attend` (then `diffuse` on a third)
    """
    from cadiff.attend.stage import attend as run_attend

    settings, source = load("attend", preset, set_, protocol), inside(encoder, "encoder")
    made = run_attend(settings, datasets, source, out, image_mae=shipped_or_path(image_mae), resume=resume)
    next_command(
        "diffuse", datasets[0], encoder=made, preset=preset, protocol=protocol, out=out.parent / "diffuse"
    )


def diffuse(
    dataset: Dataset,
    encoder: Encoder,
    out: Out,
    prior: Prior = "shipped",
    preset: Preset = None,
    protocol: Protocol = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Tune a latent diffusion model to the encoder's view of the training trials.

    - `cadiff diffuse data/sub-01 --encoder runs/attend/encoder --preset demo --out runs/diffuse`
    - `cadiff diffuse data/digit69 --encoder runs/attend/encoder --prior runs/digit-prior/prior --out runs/diffuse`
    """
    from cadiff.diffuse.stage import diffuse as run_diffuse

    settings, source = load("diffuse", preset, set_, protocol), inside(encoder, "encoder")
    made = run_diffuse(settings, dataset, source, out, prior=shipped_or_path(prior), resume=resume)
    next_command(
        "reconstruct",
        dataset,
        pipeline=made,
        preset=preset,
        protocol=protocol,
        out=out.parent / "reconstructions",
    )


def reconstruct(
    dataset: Dataset,
    pipeline: Annotated[Path, typer.Option(help="Pipeline folder of `diffuse`.", show_default=False)],
    out: Out,
    rerank: Annotated[
        str | None,
        typer.Option(
            help="Pick the sample under which the betas are likeliest: `encoding`, or the folder of an encoding model.",
            show_default=False,
        ),
    ] = None,
    preset: Preset = None,
    protocol: Protocol = None,
    set_: Set = None,
) -> None:
    """Draw images for the test trials, and for the controls (prior only, shuffled brains).

    - `cadiff reconstruct data/sub-01 --pipeline runs/diffuse/pipeline --out runs/reconstructions`
    - `cadiff reconstruct data/sub-01 --pipeline runs/diffuse --rerank encoding --set num_images_per_trial=16 --out runs/picked`
    - add `--set num_images_per_trial=2 --set num_inference_steps=20` for a quick look
    """
    from cadiff.diffuse.reconstruct import reconstruct as run_reconstruct
    from cadiff.experiments import refuse_absent

    overrides = [*(set_ or []), *([f"rerank={rerank}"] if rerank is not None else [])]
    config = load("reconstruct", preset, overrides, protocol)
    refuse_absent({"reconstruct": config})
    made = run_reconstruct(config, inside(pipeline, "pipeline"), dataset, out)
    next_command(
        "evaluate", made, dataset=dataset, preset=preset, protocol=protocol, out=out.parent / "evaluation"
    )


def baseline(
    name: Annotated[
        str, typer.Argument(help="One of the names above, or your own as `package.module:Class`.")
    ],
    dataset: Dataset,
    out: Out,
    prior: Prior = "shipped",
    fitted: Annotated[
        Path | None,
        typer.Option(help="Fit nothing: the model/ of an earlier run on this subject.", show_default=False),
    ] = None,
    model: Annotated[bool, typer.Option(help="Save what was fitted as OUT/model.")] = True,
    set_: Options = None,
) -> None:
    """Reconstruct with a baseline; the same `evaluate` scores it.

    `ridge-pixels`, `ridge-latents` and `ridge-label` (decoded or drawn by the prior), `ridge-features` (drawn by a prior of
    `cadiff prior adapt`), `ridge-retrieval` and `retrieval` (nearest training picture), `bayes` (pictures weighed by an encoding
    model), `bayes-label` (the class they name, drawn), `ssae`, `ic-gan` (needs a generator), `mean-image`; and the oracles
    `class-mean` and `true-label`, which are told the true class.

    - `cadiff baseline ridge-pixels data/sub-01 --out runs/ridge`
    - `cadiff baseline ridge-label data/sub-01 --set guidance_scale=2 --out runs/ridge-label`
    - `cadiff baseline bayes data/digit69 --set images=digits69.npz --set fit=pad --out runs/bayes`
    - `cadiff baseline ridge-pixels data/sub-01-next-session --fitted runs/ridge/model --out runs/ridge-next`
    """
    from cadiff.baselines import run_baseline
    from cadiff.data.readers import parse_options

    options = parse_options(set_ or [])
    if prior != "shipped":
        options["prior"] = Path(prior)
    made = run_baseline(name, dataset, out, fitted=fitted, save_model=model, **options)
    next_command("evaluate", made, dataset=dataset, out=out.with_name(f"{out.name}-evaluation"))


def evaluate(
    reconstructions: Annotated[
        Path, typer.Argument(help="Folder of `reconstruct` or `baseline`, or any folder of pictures.")
    ],
    out: Out,
    dataset: Annotated[
        Path | None, typer.Option(help="The dataset that holds the stimuli.", show_default=False)
    ] = None,
    stimuli: Annotated[
        Path | None,
        typer.Option(
            help="Instead: a folder of the pictures that were seen, named by id.", show_default=False
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FOLDER", help="Another system on the same stimuli; repeatable."),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="How files are named: '{stimulus_id}_{sample}.png'.", show_default=False),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="TSV of stimulus_id, file and sample instead.", show_default=False)
    ] = None,
    preset: Preset = None,
    protocol: Protocol = None,
    set_: Set = None,
) -> None:
    """Score reconstructions against the stimuli, with intervals, chance levels and controls.

    - `cadiff evaluate runs/reconstructions --dataset data/sub-01 --out runs/evaluation`
    - `cadiff evaluate their-images --stimuli seen --pattern "{stimulus_id}/{sample}.png" --out runs/theirs`
    - `cadiff evaluate runs/reconstructions --dataset data/sub-01 --against ridge=runs/ridge --out runs/both`
    """
    from cadiff.evaluate.stage import evaluate as run_evaluate

    seen = dataset or stimuli
    if seen is None or (dataset and stimuli):
        raise ConfigError(
            "Say what was seen: exactly one of --dataset (a dataset folder) and --stimuli (a folder)."
        )
    rivals: dict[str, Path] = {}
    for item in against or []:
        name, _, folder = item.rpartition("=")
        name = name or Path(folder).name
        if name in rivals:
            raise ConfigError(
                f"--against: two systems are called {name!r}; name them: --against NAME=FOLDER."
            )
        rivals[name] = Path(folder)
    made = run_evaluate(
        load("evaluate", preset, set_, protocol),
        reconstructions,
        seen,
        out,
        against=rivals,
        pattern=pattern,
        table=table,
    )
    page = (
        out.name.removesuffix("evaluation") + "report.html"
    )  # a report beside the report of another decoder
    next_command(
        "report", made, out=out.with_name(page if out.name.endswith("evaluation") else f"{out.name}.html")
    )


def report(
    evaluations: Annotated[
        list[Path],
        typer.Argument(metavar="EVALUATION...", help="Folder of `evaluate`; several are compared or pooled."),
    ],
    out: Out,
    json: Annotated[
        Path | None,
        typer.Option(help="Also write the pooled numbers of several subjects as JSON.", show_default=False),
    ] = None,
) -> None:
    """One self-contained HTML page: stimuli, reconstructions (worst included), scores, controls; or several evaluations.

    Systems on the same stimuli are compared, several subjects (or folds) are pooled.

    - `cadiff report runs/evaluation --out runs/report.html`
    - `cadiff report runs/evaluation runs/ridge-evaluation --out runs/comparison.html`
    - `cadiff report runs/sub-*/evaluation --out runs/pooled.html --json runs/pooled.json`
    """
    from cadiff.report import compare
    from cadiff.report import report as run_report

    if len(evaluations) == 1 and json is not None:
        raise ConfigError(
            f"--json is for several subjects pooled; the numbers of one are in {evaluations[0]}/evaluation.json."
        )
    page = run_report(evaluations[0], out) if len(evaluations) == 1 else compare(evaluations, out, json=json)
    typer.echo(f"report: {Path(page).resolve()}")


def _run_all(preset: str, out: Path, **options: Any) -> None:
    from cadiff.experiments import run_experiment

    page = run_experiment(preset, out, announce=lambda line: typer.secho(line, bold=True), **options)
    typer.echo(f"report: {Path(page).resolve()}")

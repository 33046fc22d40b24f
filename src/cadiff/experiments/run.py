"""`cadiff run`: every step of one experiment in one folder, each skipped when its result is already there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from pydantic import ValidationError

from cadiff.artifacts import read_json, refuse_existing, write_json
from cadiff.config import Config, load_preset
from cadiff.errors import ArtifactError, ConfigError
from cadiff.experiments.settings import preset_configs
from cadiff.experiments.steps import experiment_steps, refuse_absent
from cadiff.processes import on_main
from cadiff.runs import lock_folder, only_locked, unlock_folder

if TYPE_CHECKING:
    from cadiff.preflight import Sources


def run_experiment(
    preset: str | Path,
    out: Path,
    *,
    dataset: Path | None = None,
    corpus: Sequence[Path] = (),
    prior: str | Path = "shipped",
    weights: Path | None = None,
    overrides: Sequence[str] = (),
    protocol: str | None = None,
    vram: float | None = None,
    resume: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Path:
    """Runs every stage of a preset and returns the path of the report.

    Args:
        preset: name or path of a preset.
        out: folder for all results.
        dataset: a dataset folder; without one the preset's subject is simulated.
        corpus: further datasets, or folders of them, that phase 1 learns from.
        prior: "shipped" or a prior folder.
        weights: a folder of weights to start from, see `find_sources`; its encoder takes the place of phase 1.
        overrides: "section.key=value", for example "diffuse.fit.steps=50".
        protocol: default, paper or official; by default the one that the preset names.
        vram: GiB of the GPU: batches are taken in parts that fit, see `cadiff.plan`.
        resume: go on with an unfinished experiment of the same settings; finished stages are skipped.
        announce: receives one line before each stage.

    Raises:
        UserError: `out` is in use, settings differ from those of the run to resume, or a stage refuses its input.
    """
    configs = preset_configs(preset, overrides, protocol)
    about = load_preset(preset, protocol)
    refuse_without_data(preset, dataset, protocol)
    refuse_absent({name: one for name, one in configs.items() if dataset is None or name != "simulate"})
    from cadiff.preflight import find_sources, refuse_unfit

    if vram is None:
        on_main(
            partial(_refuse_started, out, configs, resume)
        )  # at once, where nothing has to be counted first
    sources = find_sources(dataset, corpus, prior, weights, configs["corpus"].include_studied)
    if vram is not None:
        configs = _fit_to(vram, configs, sources, announce)
        on_main(partial(_refuse_started, out, configs, resume))
    refuse_unfit(configs, sources)
    about = {"preset": str(preset), "protocol": about["protocol"], "sources": sources.as_json()}
    with _claimed(out, configs, about):
        return _run_steps(configs, sources, out, resume, announce)


def refuse_without_data(preset: str | Path, dataset: Path | None, protocol: str | None = None) -> None:
    """Raises `ConfigError` for a preset about real data that was given none."""
    if dataset is None and "simulate" not in load_preset(preset, protocol):
        raise ConfigError(
            f"Preset {preset} is about real data: import them (cadiff data formats) and give the folder with --dataset."
        )


def _run_steps(
    configs: dict[str, Any], sources: Sources, out: Path, resume: bool, announce: Callable[[str], None]
) -> Path:
    places: dict[str, Path] = {}
    for step in experiment_steps(configs, sources):
        folder = out / step.folder
        places[step.name] = result = folder / step.result
        there = step.make is not None and on_main(result.exists)
        if step.line:
            announce(f"{step.line.partition(':')[0]}: there already, {result}" if there else step.line)
        if step.trains:  # in all processes; one that is there is asked whether it was of the same inputs
            step.run(places, folder, resume)
        elif not there:
            on_main(partial(step.run, places, folder, resume))
    return out / "report.html"


def _fit_to(
    vram: float, configs: dict[str, Any], sources: Sources, announce: Callable[[str], None]
) -> dict[str, Any]:
    """The settings with batches that fit into `vram` GiB; what each stage needs is announced."""
    from cadiff.plan import find_models, plan_stages, with_plan

    datasets = [*sources.phase_1, *([sources.dataset] if sources.dataset else [])]
    models = find_models(configs, datasets, prior=sources.prior, image_mae=sources.image_mae)
    stages = plan_stages(configs, models, vram=vram)
    for stage in stages:
        parts = f" in {stage.accumulate} parts" if stage.accumulate > 1 else ""
        announce(
            f"plan: {stage.stage} needs about {stage.memory / 2**30:.1f} GiB with batches of {stage.batch_size}{parts}"
        )
    return with_plan(configs, stages)


def _refuse_started(out: Path, configs: dict[str, Config], resume: bool) -> None:
    """Raises ArtifactError unless `out` is free, or holds this experiment and is to be resumed."""
    record = out / "experiment.json"
    if not record.is_file():
        if not only_locked(out):
            refuse_existing(out)
        return
    if not resume:
        raise ArtifactError(
            f"{out} holds an experiment and is never overwritten: add --resume to go on with it, or choose another --out."
        )
    there = read_json(record)
    if differing := [name for name, config in configs.items() if not _same(there.get(name), config)]:
        raise ArtifactError(
            f"{out} was started with other settings (section {differing[0]}): choose another --out or the same preset, "
            "protocol and --set."
        )


def _same(recorded: Any, config: Config) -> bool:
    """Whether a section is as it was; it, or a setting in it, that is younger than the record must be at its default."""
    try:
        return type(config).model_validate(recorded or {}) == config
    except ValidationError:
        return False


@contextmanager
def _claimed(out: Path, configs: dict[str, Any], about: dict[str, Any]) -> Iterator[None]:
    """`out` is this process's own within the block; what the experiment is, is recorded before anything is made."""
    locks: list[FileLock] = []

    def claim() -> None:
        out.mkdir(parents=True, exist_ok=True)
        locks.append(lock_folder(out))
        if not (out / "experiment.json").is_file():
            settings = {name: config.model_dump(mode="json") for name, config in configs.items()}
            write_json(out / "experiment.json", {**about, **settings})

    try:
        on_main(claim)
        yield
    finally:
        for lock in locks:
            unlock_folder(lock)

"""Whole experiments: every stage of a preset in order, each skipped when its result is already there.

out/experiment.json   settings of all stages, preset and protocol, and what the experiment starts from
out/subject           the dataset (simulated here, or given)
out/corpus-KK         unlabelled data of other simulated subjects, for phase 1
out/contrast          phase 1: double-contrastive masked auto-encoder (absent with an encoder that is given)
out/attend            phase 2: cross-modality guidance
out/diffuse           tuning of the latent diffusion model; out/diffuse/pipeline reconstructs
out/reconstructions, out/evaluation, out/report.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cadiff.artifacts import read_json, refuse_existing, write_json
from cadiff.config import Config, load_config, load_preset
from cadiff.errors import ArtifactError, ConfigError
from cadiff.runs import lock_folder, only_locked, unlock_folder

if TYPE_CHECKING:
    from cadiff.preflight import Sources

STAGES: dict[str, str] = {
    "simulate": "cadiff.data.simulate:SimulateConfig",
    "corpus": "cadiff.experiments:CorpusConfig",
    "prior": "cadiff.priors.train:PriorConfig",
    "contrast": "cadiff.contrast.stage:ContrastConfig",
    "attend": "cadiff.attend.stage:AttendConfig",
    "diffuse": "cadiff.diffuse.stage:DiffuseConfig",
    "reconstruct": "cadiff.diffuse.reconstruct:ReconstructConfig",
    "evaluate": "cadiff.evaluate.stage:EvaluateConfig",
}
OTHERS = {"prepare": "cadiff.data.prepare:PrepareConfig"}


class CorpusConfig(Config):
    """What phase 1 learns from beside the subject under study: further simulated subjects, or the datasets given."""

    include_studied: bool = True
    """Phase 1 also learns from the training and unlabelled trials of the subject under study."""
    num_subjects: int = Field(1, ge=0)
    """Simulated subjects, numbered after the one under study."""
    num_volumes: int = Field(600, ge=1)
    """Volumes of rest and viewing of each."""


def stage_config(
    section: str, preset: str | Path | None, overrides: Sequence[str] = (), protocol: str | None = None
) -> Any:
    """The validated settings of one stage of a preset and protocol, or of another part that has settings."""
    module, _, name = {**STAGES, **OTHERS}[section].partition(":")
    cls: type[Config] = getattr(import_module(module), name)
    return load_config(cls, section, preset, overrides, protocol)


def preset_configs(
    preset: str | Path | None, overrides: Sequence[str] = (), protocol: str | None = None
) -> dict[str, Any]:
    """The validated settings of every stage; overrides begin with a stage: "diffuse.fit.steps=50"."""
    return {
        section: stage_config(section, preset, _section(overrides, section), protocol) for section in STAGES
    }


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
    if dataset is None and "simulate" not in about:
        raise ConfigError(
            f"Preset {preset} is about real data: import them (cadiff data formats) and give the folder with --dataset."
        )
    from cadiff.preflight import find_sources, refuse_unfit

    if vram is None:
        _refuse_started(out, configs, resume)  # at once, where nothing has to be counted first
    sources = find_sources(dataset, corpus, prior, weights, configs["corpus"].include_studied)
    if vram is not None:
        configs = _fit_to(vram, configs, sources, announce)
        _refuse_started(out, configs, resume)
    refuse_unfit(configs, sources)
    about = {"preset": str(preset), "protocol": about["protocol"], "sources": sources.as_json()}
    with _claimed(out, configs, about):
        return _run_stages(configs, sources, out, resume, announce)


def _run_stages(
    configs: dict[str, Any], sources: Sources, out: Path, resume: bool, announce: Callable[[str], None]
) -> Path:

    from cadiff.attend.stage import attend
    from cadiff.contrast.stage import contrast
    from cadiff.diffuse.reconstruct import reconstruct
    from cadiff.diffuse.stage import diffuse
    from cadiff.evaluate.stage import evaluate
    from cadiff.report import report

    def say(line: str, result: Path) -> bool:
        """Announces a stage; whether its result is still to be made."""
        announce(f"{line.partition(':')[0]}: there already, {result}" if result.exists() else line)
        return not result.exists()

    phase_1, dataset = sources.phase_1, sources.dataset
    if dataset is None:
        say("simulate: a subject with a known code looks at pictures", out / "subject")
        dataset, others = _simulate(configs["simulate"], configs["corpus"], out)
        phase_1 = [*phase_1, *others, *([dataset] if configs["corpus"].include_studied else [])]
    if sources.encoder is None:
        num = f"{len(phase_1)} dataset{'s' * (len(phase_1) != 1)}"
        what = f"contrast: phase 1, a masked auto-encoder learns from the fMRI of {num}"
        say(what, out / "contrast" / "encoder")
        encoder = contrast(configs["contrast"], phase_1, out / "contrast", resume=resume)
        attend_config = configs["attend"]
    else:
        announce(f"contrast: skipped, phase 1 is the encoder in {sources.encoder}")
        encoder, attend_config = sources.encoder, with_preprocess(configs)
    say("attend: phase 2, images guide the fMRI encoder through cross-attention", out / "attend" / "encoder")
    image_mae = sources.image_mae
    encoder = attend(attend_config, dataset, encoder, out / "attend", image_mae=image_mae, resume=resume)
    say("diffuse: the latent diffusion model learns to listen to the encoder", out / "diffuse" / "pipeline")
    pipeline = diffuse(
        configs["diffuse"], dataset, encoder, out / "diffuse", prior=sources.prior, resume=resume
    )
    reconstructions, evaluation, page = out / "reconstructions", out / "evaluation", out / "report.html"
    if say(
        "reconstruct: images from test trials, and from the controls with the same noise", reconstructions
    ):
        reconstruct(configs["reconstruct"], pipeline, dataset, reconstructions)
    if say("evaluate: a judge that no training loss has seen", evaluation):
        evaluate(configs["evaluate"], reconstructions, dataset, evaluation)
    if say("report: everything on one page", page):
        report(evaluation, page)
    return page


def with_preprocess(configs: dict[str, Any]) -> Any:
    """Settings of phase 2 for an encoder that phase 1 of this experiment did not make: its preprocessing is the preset's."""
    attend = configs["attend"]
    return attend.model_copy(update={"preprocess": attend.preprocess or configs["contrast"].preprocess})


def _simulate(subject: Any, corpus: CorpusConfig, out: Path) -> tuple[Path, list[Path]]:
    from cadiff.data.simulate import simulate

    studied = {out / "subject": subject}
    others = {}
    for number in range(subject.subject + 1, subject.subject + 1 + corpus.num_subjects):
        changes = {"subject": number, "only_unlabelled": True, "unlabelled_trials": corpus.num_volumes}
        others[out / f"corpus-{number:02d}"] = subject.model_copy(update=changes)
    for folder, config in {**studied, **others}.items():
        if not folder.is_dir():
            simulate(config, folder)
    return out / "subject", list(others)


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


def _section(overrides: Sequence[str], section: str) -> list[str]:
    for override in overrides:
        if override.partition(".")[0] not in STAGES:
            raise ConfigError(
                f"--set {override!r} must begin with a stage: {', '.join(STAGES)} (diffuse.fit.steps=50)."
            )
    return [o.partition(".")[2] for o in overrides if o.partition(".")[0] == section]


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
    return recorded == config.model_dump(mode="json")


@contextmanager
def _claimed(out: Path, configs: dict[str, Any], about: dict[str, Any]) -> Iterator[None]:
    """`out` is this process's own within the block; what the experiment is, is recorded before anything is made."""
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out)
    try:
        if not (out / "experiment.json").is_file():
            settings = {name: config.model_dump(mode="json") for name, config in configs.items()}
            write_json(out / "experiment.json", {**about, **settings})
        yield
    finally:
        unlock_folder(lock)


def preset_title(preset: str | Path) -> str:
    """The one-line title of a preset."""
    return str(load_preset(preset).get("title", ""))

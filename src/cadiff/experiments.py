"""Whole experiments: every stage of a preset in order, each skipped when its result is already there.

out/subject        the dataset (simulated here, or given)
out/corpus-KK      unlabelled data of other simulated subjects, for phase 1
out/contrast       phase 1: double-contrastive masked auto-encoder
out/attend         phase 2: cross-modality guidance
out/diffuse        tuning of the latent diffusion model; out/diffuse/pipeline reconstructs
out/reconstructions, out/evaluation, out/report.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field

from cadiff.artifacts import read_json, refuse_existing, write_json
from cadiff.config import Config, load_config, load_preset
from cadiff.errors import ArtifactError, ConfigError

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
    """Further simulated subjects whose unlabelled volumes phase 1 learns from."""

    num_subjects: int = Field(1, ge=0)
    """Subjects, numbered after the one under study."""
    num_volumes: int = Field(600, ge=1)
    """Volumes of rest and viewing of each."""


def stage_config(section: str, preset: str | Path | None, overrides: Sequence[str] = ()) -> Any:
    """The validated settings of one stage of a preset, or of another part that has settings."""
    module, _, name = {**STAGES, **OTHERS}[section].partition(":")
    cls: type[Config] = getattr(import_module(module), name)
    return load_config(cls, section, preset, overrides)


def run_experiment(
    preset: str | Path,
    out: Path,
    *,
    dataset: Path | None = None,
    prior: str | Path = "shipped",
    overrides: Sequence[str] = (),
    resume: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Path:
    """Runs every stage of a preset and returns the path of the report.

    Args:
        preset: name or path of a preset.
        out: folder for all results.
        dataset: a dataset folder; without one the preset's subject is simulated.
        prior: "shipped" or a prior folder.
        overrides: "section.key=value", for example "diffuse.fit.steps=50".
        resume: go on with an unfinished experiment of the same settings; finished stages are skipped.
        announce: receives one line before each stage.

    Raises:
        UserError: `out` is in use, settings differ from those of the run to resume, or a stage refuses its input.
    """
    configs = {section: stage_config(section, preset, _section(overrides, section)) for section in STAGES}
    from cadiff.data.dataset import BrainDataset
    from cadiff.priors.load import load_prior

    if dataset is not None:
        BrainDataset.open(dataset)  # a wrong path is told before a folder is made, not after
    if prior != "shipped":
        load_prior(prior)
    _claim(out, {name: config.model_dump(mode="json") for name, config in configs.items()}, resume)

    from cadiff.attend.stage import attend
    from cadiff.contrast.stage import contrast
    from cadiff.diffuse.reconstruct import reconstruct
    from cadiff.diffuse.stage import diffuse
    from cadiff.evaluate.stage import evaluate
    from cadiff.report import report

    corpus: list[Path] = []
    if dataset is None:
        announce("simulate: a subject with a known code looks at pictures")
        dataset, corpus = _simulate(configs["simulate"], configs["corpus"], out)
    announce("contrast: phase 1, a masked auto-encoder learns from unlabelled fMRI")
    encoder = contrast(configs["contrast"], [*corpus, dataset], out / "contrast", resume=resume)
    announce("attend: phase 2, images guide the fMRI encoder through cross-attention")
    encoder = attend(configs["attend"], dataset, encoder, out / "attend", image_mae=prior, resume=resume)
    announce("diffuse: the latent diffusion model learns to listen to the encoder")
    pipeline = diffuse(configs["diffuse"], dataset, encoder, out / "diffuse", prior=prior, resume=resume)
    announce("reconstruct: images from test trials, and from the controls with the same noise")
    reconstructions = out / "reconstructions"
    if not reconstructions.is_dir():
        reconstruct(configs["reconstruct"], pipeline, dataset, reconstructions)
    announce("evaluate: a judge that no training loss has seen")
    evaluation = out / "evaluation"
    if not evaluation.is_dir():
        evaluate(configs["evaluate"], reconstructions, dataset, evaluation)
    announce("report: everything on one page")
    page = out / "report.html"
    return page if page.is_file() else report(evaluation, page)


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


def _section(overrides: Sequence[str], section: str) -> list[str]:
    for override in overrides:
        if override.partition(".")[0] not in STAGES:
            raise ConfigError(
                f"--set {override!r} must begin with a stage: {', '.join(STAGES)} (diffuse.fit.steps=50)."
            )
    return [o.partition(".")[2] for o in overrides if o.partition(".")[0] == section]


def _claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Records the settings in a free folder, or checks that a folder to resume has the same ones."""
    record = out / "experiment.json"
    if resume and record.is_file():
        there = read_json(record)
        if differing := [name for name in settings if there.get(name) != settings[name]]:
            raise ArtifactError(
                f"{out} was started with other settings (section {differing[0]}): choose another --out or the same preset."
            )
        return
    if record.is_file():
        raise ArtifactError(
            f"{out} holds an experiment and is never overwritten: add --resume to go on with it, or choose another --out."
        )
    refuse_existing(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(record, settings)


def preset_title(preset: str | Path) -> str:
    """The one-line title of a preset."""
    return str(load_preset(preset).get("title", ""))

"""Settings of a whole experiment: one section a stage, read from preset, protocol and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field

from cadiff.config import Config, load_config, load_preset
from cadiff.errors import ConfigError

STAGES: dict[str, str] = {
    "stages": "cadiff.experiments:StagesConfig",
    "simulate": "cadiff.data.simulate:SimulateConfig",
    "corpus": "cadiff.experiments:CorpusConfig",
    "prior": "cadiff.priors.train:PriorConfig",
    "contrast": "cadiff.contrast.stage:ContrastConfig",
    "attend": "cadiff.attend.stage:AttendConfig",
    "diffuse": "cadiff.diffuse.stage:DiffuseConfig",
    "reconstruct": "cadiff.diffuse.reconstruct:ReconstructConfig",
    "evaluate": "cadiff.evaluate.stage:EvaluateConfig",
}
OTHERS = {"prepare": "cadiff.data.prepare:PrepareConfig", "adapt": "cadiff.diffuse.adapt:AdaptConfig"}


class StagesConfig(Config):
    """Which stages of the method take part."""

    attend: bool = True
    """Phase 2. Without it the encoder goes from phase 1 straight to the tuning of the diffusion model, as in DC-LDM."""


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


def preset_title(preset: str | Path) -> str:
    """The one-line title of a preset."""
    return str(load_preset(preset).get("title", ""))


def _section(overrides: Sequence[str], section: str) -> list[str]:
    for override in overrides:
        if override.partition(".")[0] not in STAGES:
            raise ConfigError(
                f"--set {override!r} must begin with a stage: {', '.join(STAGES)} (diffuse.fit.steps=50)."
            )
    return [o.partition(".")[2] for o in overrides if o.partition(".")[0] == section]

"""Whole experiments: every stage of a preset in order, each skipped when its result is already there.

out/experiment.json   settings of all stages, preset and protocol, and what the experiment starts from
out/subject           the dataset (simulated here, or given)
out/corpus-KK         unlabelled data of other simulated subjects, for phase 1
out/contrast          phase 1: double-contrastive masked auto-encoder (absent with an encoder that is given)
out/attend            phase 2: cross-modality guidance (absent with stages.attend=false)
out/diffuse           tuning of the latent diffusion model; out/diffuse/pipeline reconstructs
out/reconstructions, out/evaluation, out/report.html
"""

from cadiff.experiments.run import refuse_without_data, run_experiment
from cadiff.experiments.settings import (
    OTHERS,
    STAGES,
    CorpusConfig,
    StagesConfig,
    preset_configs,
    preset_title,
    stage_config,
)
from cadiff.experiments.steps import (
    Of,
    Step,
    experiment_steps,
    refuse_absent,
    scoring_steps,
    simulated_steps,
    step_key,
)

__all__ = [
    "OTHERS",
    "STAGES",
    "CorpusConfig",
    "Of",
    "StagesConfig",
    "Step",
    "experiment_steps",
    "preset_configs",
    "preset_title",
    "refuse_absent",
    "refuse_without_data",
    "run_experiment",
    "scoring_steps",
    "simulated_steps",
    "stage_config",
    "step_key",
]

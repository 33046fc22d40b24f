"""Cells to steps: settings validated, sources looked at, and a key for everything that will be made, before anything is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from cadiff.artifacts import folder_digest, sha256_file
from cadiff.errors import ArtifactError, ConfigError, DataError, UserError
from cadiff.experiments import (
    STAGES,
    Of,
    Step,
    experiment_steps,
    preset_configs,
    refuse_absent,
    refuse_without_data,
    scoring_steps,
    simulated_steps,
    step_key,
)
from cadiff.sweep.cells import Cell

if TYPE_CHECKING:
    from cadiff.preflight import Sources

STAGES_FOLDER, CELLS_FOLDER = "stages", "cells"
OPTION = "option "
"""What the names of inputs begin with that are options of a baseline."""
DRAWN = ("num_images_per_trial", "num_inference_steps", "guidance_scale", "scheduler")
"""Settings of `reconstruct` that baselines which draw by the image prior have as options."""
T = TypeVar("T")


@dataclass(frozen=True)
class Planned:
    """A cell, ready to be made."""

    cell: Cell
    configs: dict[str, Any]
    sources: Sources
    steps: list[Step]
    """Those that make something, in order."""
    keys: dict[str, str]
    """Step -> what its result is a function of."""

    def as_json(self) -> dict[str, Any]:
        """cell.json: what another process needs to make it (`restored`), and what a person may want to know."""
        cell = self.cell
        return {
            "kind": "sweep-cell",
            "row": cell.row,
            "subject": cell.subject,
            "seed": cell.seed,
            "columns": cell.columns,
            "published": cell.published,
            "preset": cell.preset,
            "protocol": cell.protocol,
            "set": list(cell.overrides),
            "baseline": cell.baseline,
            "options": cell.options,
            "sources": self.sources.as_json(),
            "configs": {name: config.model_dump(mode="json") for name, config in self.configs.items()},
            "stages": {step.name: place(step, self.keys[step.name]) for step in self.steps},
        }


def place(step: Step, key: str) -> str:
    """Name of a step's folder (or page) among the shared ones."""
    return f"{step.kind or step.name}-{key[:16]}" + (".html" if step.folder.endswith(".html") else "")


def lock_of(stage: Path) -> Path:
    """The lock that a process holds while it makes a stage."""
    return stage.parent / ".locks" / stage.name


def plan_cells(cells: Sequence[Cell]) -> tuple[list[Planned], list[str]]:
    """Every cell's steps, and what is to be said of rows that are left out; raises what any would be refused for.

    Raises:
        UserError: a setting, dataset, weight or option that does not fit.
    """
    remarks: dict[str, None] = {}

    def tried(cell: Cell, make: Callable[[], T]) -> T | None:
        """`make()`, whose refusal names the row; None where the row may be left out."""
        try:
            return make()
        except UserError as error:
            if cell.optional:
                remarks[f"{cell.row} is left out: {error}"] = None
                return None
            kind = type(error) if type(error) in (ConfigError, DataError, ArtifactError) else UserError
            raise kind(f"{cell.where}: {error}") from None

    spelt = [(cell, tried(cell, partial(_configs, cell))) for cell in cells]  # first, since it costs nothing
    digests, checked, planned = Digests(), set[str](), list[Planned]()
    known: set[tuple[str, str]] = set()
    for cell, configs in spelt:
        if configs is None:
            continue
        if cell.baseline is not None and not takes_seed(cell.baseline) and (cell.row, cell.subject) in known:
            continue  # other seeds would give the same pictures
        known.add((cell.row, cell.subject))
        one = tried(cell, partial(_plan, cell, configs, digests, checked))
        planned += [one] if one is not None else []
    return planned, list(remarks)


def _configs(cell: Cell) -> dict[str, Any]:
    configs = preset_configs(cell.preset, cell.overrides, cell.protocol)
    refuse_without_data(cell.preset, cell.dataset, cell.protocol)
    used = [name for name in configs if cell.baseline is None or name in ("simulate", "evaluate")]
    refuse_absent({name: configs[name] for name in used if cell.dataset is None or name != "simulate"})
    if cell.baseline is not None:
        from cadiff.baselines.stage import find_baseline
        from cadiff.data.readers import refuse_unknown_options

        cls: Any = find_baseline(cell.baseline)
        refuse_unknown_options(cls.fit, cell.options, what=f"baseline {cell.baseline!r}", skip=2)
        if hasattr(cls, "check_options"):
            cls.check_options(cell.options)
    return configs


def _plan(cell: Cell, configs: dict[str, Any], digests: Digests, checked: set[str]) -> Planned:
    from cadiff.preflight import Sources, find_sources, refuse_unfit

    if cell.baseline is None:
        sources = find_sources(
            cell.dataset, cell.corpus, _prior(cell), cell.weights, configs["corpus"].include_studied
        )
        what = repr([sources, *(configs[name] for name in STAGES)])
        if what not in checked:
            refuse_unfit(configs, sources)
            checked.add(what)
    else:
        sources = Sources(cell.dataset, [], _prior(cell), "shipped")
        if cell.dataset is not None:
            _refuse_unscorable(cell.dataset)
        cell = replace(cell, options=_drawn_alike(cell.baseline, configs["reconstruct"]) | cell.options)
    steps = [
        step for step in cell_steps(configs, sources, cell.baseline, cell.options, cell.seed) if step.make
    ]
    keys: dict[str, str] = {}
    for step in steps:
        keys[step.name] = step_key(step, keys, digests)
    return Planned(cell, configs, sources, steps, keys)


def _prior(cell: Cell) -> str | Path:
    return cell.prior if cell.prior == "shipped" else Path(cell.prior)


def cell_steps(
    configs: Mapping[str, Any], sources: Sources, baseline: str | None, options: Mapping[str, Any], seed: int
) -> list[Step]:
    """The steps of the method, or of a baseline in its place."""
    if baseline is None:
        return experiment_steps(configs, sources)
    from cadiff.baselines.stage import find_baseline

    dataset = sources.dataset or Of("simulate")
    inputs: dict[str, Any] = {"dataset": dataset}
    if "prior" in inspect.signature(find_baseline(baseline).fit).parameters and "prior" not in options:
        inputs["prior"] = sources.prior
    plain: dict[str, Any] = {}
    for key, value in options.items():  # files count by content
        if _names_a_file(baseline, key, value):
            inputs[f"{OPTION}{key}"] = value  # the text, since Path makes a bare word of ./word
        else:
            plain[key] = value
    about = {"baseline": baseline, "options": plain, "seed": seed}
    drawn = Step(
        "reconstruct", f"baseline: {baseline}", _baseline, about, inputs, "reconstructions", kind="baseline"
    )
    return [
        *simulated_steps(configs, sources.dataset)[:1],
        drawn,
        *scoring_steps(configs["evaluate"], dataset),
    ]


def _names_a_file(baseline: str, key: str, value: Any) -> bool:
    """Whether an option is the path of a file or a folder that is there, and none of its words: its default and its `Literal`s.

    Of our own baselines only options that are annotated with `Path` may be one; of anyone's own any text may.
    """
    from cadiff.baselines.stage import BASELINES, find_baseline

    if not isinstance(value, str) or not Path(value).exists():
        return False
    fit = find_baseline(baseline).fit
    default = [option.default for name, option in inspect.signature(fit).parameters.items() if name == key]
    try:
        kinds: list[Any] = [get_type_hints(fit).get(key)]
    except Exception:  # anyone's own may be annotated with anything, or with what only type checkers see
        kinds = []
    for kind in kinds:
        kinds += get_args(kind)
    return value not in [*default, *kinds] and (Path in kinds or baseline not in BASELINES)


def _baseline(about: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    from cadiff.baselines.stage import run_baseline

    prior = {} if str(inputs.get("prior", "shipped")) == "shipped" else {"prior": inputs["prior"]}
    paths = {key.removeprefix(OPTION): str(path) for key, path in inputs.items() if key.startswith(OPTION)}
    options = {**prior, **paths, **about["options"]}
    run_baseline(about["baseline"], inputs["dataset"], out, seed=about["seed"], **options)


def _drawn_alike(baseline: str, reconstruct: Any) -> dict[str, Any]:
    """For a baseline that draws by the image prior: as many samples and steps, the guidance and the solver of the method."""
    from cadiff.baselines.stage import find_baseline

    known = inspect.signature(find_baseline(baseline).fit).parameters
    return {name: getattr(reconstruct, name) for name in DRAWN} if set(DRAWN) <= set(known) else {}


def takes_seed(baseline: str) -> bool:
    """Whether other seeds make other pictures."""
    from cadiff.baselines.stage import find_baseline

    return "seed" in inspect.signature(find_baseline(baseline).fit).parameters


def _refuse_unscorable(dataset: Path) -> None:
    from cadiff.data.dataset import BrainDataset
    from cadiff.data.splits import check_disjoint

    data = BrainDataset.open(dataset)
    check_disjoint(data)
    for split in ("train", "test"):
        if len(data.rows(split)) == 0:
            raise DataError(f"{dataset} has no {split} trials, which a baseline needs.")


def voxels_remark(planned: Planned) -> str | None:
    """A sentence where a subject is read by an encoder of another length; None where they agree up to whole patches."""
    sources = planned.sources
    if sources.encoder is None or sources.dataset is None:
        return None
    from cadiff.contrast import load_encoder
    from cadiff.data.dataset import BrainDataset
    from cadiff.data.preprocess import choose_voxels, length_remark

    data, preprocess = BrainDataset.open(sources.dataset), planned.configs["contrast"].preprocess
    num = len(choose_voxels(len(data.voxels), preprocess.rois, data.voxels))
    size = load_encoder(sources.encoder)[0].config
    how = length_remark(num, size.num_voxels, preprocess.length_policy, patch_size=size.patch_size)
    if how is None:
        return None
    return (
        f"{planned.cell.subject} has {num} voxels and the encoder in {sources.encoder} reads {size.num_voxels}: {how}, and "
        "which voxel is where is another than in the subjects that the encoder learnt from."
    )


class Digests:
    """What identifies the content of an input, each read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[bool, str], str] = {}

    def __call__(self, source: str | Path, name: str) -> str:
        """Of a dataset by its own checksums, of anything else by its files."""
        key = (name in ("dataset", "datasets"), f"{name}:shipped" if source == "shipped" else str(source))
        if key not in self._known:
            self._known[key] = self._digest(source, name)
        return self._known[key]

    def _digest(self, source: str | Path, name: str) -> str:
        if name in ("dataset", "datasets"):
            from cadiff.contrast.trials import dataset_digest
            from cadiff.data.dataset import BrainDataset

            return dataset_digest(BrainDataset.open(Path(source)))
        if name == "image_mae":
            from cadiff.attend.image_mae import find_image_mae

            source = find_image_mae(source)
        elif source == "shipped":
            from cadiff.priors.load import shipped_prior

            source = shipped_prior()
        path = Path(source)
        return sha256_file(path) if path.is_file() else folder_digest(path)


def restored(record: Mapping[str, Any]) -> tuple[list[Step], dict[str, str]]:
    """The steps of a cell.json and the place of each, in another process."""
    from cadiff.preflight import Sources

    configs: dict[str, Any] = {}
    for section in STAGES if record["baseline"] is None else ("simulate", "corpus", "evaluate"):
        module, _, name = STAGES[section].partition(":")
        configs[section] = getattr(import_module(module), name).model_validate(record["configs"][section])
    about = dict(record["sources"])
    paths: dict[str, Any] = {
        key: value if value in (None, "shipped") else Path(value)
        for key, value in about.items()
        if key != "phase_1"
    }
    sources = Sources(phase_1=[Path(folder) for folder in about["phase_1"]], **paths)
    steps = cell_steps(configs, sources, record["baseline"], record["options"], record["seed"])
    return [step for step in steps if step.make], dict(record["stages"])

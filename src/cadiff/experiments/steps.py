"""The stages of an experiment as a list: what each reads, where its result lies, and how it is made.

`cadiff run` makes them one after the other in one folder; `cadiff sweep` makes those of many experiments, each once for all
that share it, since settings and inputs of a step are known before anything is run (`step_key`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cadiff.artifacts import folder_digest, provenance, read_json
from cadiff.config import nearest
from cadiff.errors import ConfigError
from cadiff.eyes.names import TIMM

if TYPE_CHECKING:
    from cadiff.preflight import Sources


class Of(NamedTuple):
    """The result of another step, as an input."""

    step: str


Input = Of | str | Path
"""A step's result, "shipped", or a path."""
Make = Callable[[Any, Mapping[str, Any], Path, bool], object]
"""(settings, inputs as paths, folder to make, resume) makes the folder."""


def _words(name: str) -> Sequence[str]:
    """What a setting may say instead of a path."""
    from cadiff.vision import CLASSIFIERS

    return {"rerank": ["encoding"], "judge": [*CLASSIFIERS], "classifier": [*CLASSIFIERS]}.get(name, [])


LOCAL: dict[str, Callable[[str], str]] = {
    "images": lambda text: text,
    "class_images": lambda text: text,
    "rerank": lambda text: text,
    "rerank_features": lambda text: text.partition("=")[2].removeprefix(TIMM),
    "options": lambda text: text.partition("=")[2].removeprefix(TIMM),
    "classifier": lambda text: text.removeprefix(TIMM),
    "judge": lambda text: text.removeprefix(TIMM),
    "eyes": lambda text: text.removeprefix(TIMM),
}
"""Settings that may name a file or a folder: what part of their text is the path, "" for none. `options` are all of a baseline's
but those that name one as a whole, which are inputs."""


@dataclass(frozen=True)
class Step:
    """One stage of one experiment."""

    name: str
    """Unlike any other step's of the experiment."""
    line: str
    """What is announced; empty for nothing."""
    make: Make | None = None
    """None: only a line is to be said."""
    config: Any = None
    """Its settings, pydantic or plain JSON values."""
    inputs: Mapping[str, Input | Sequence[Input]] = field(default_factory=dict)
    """By the name that the stage has for them."""
    folder: str = ""
    """Its place in the folder of one experiment; one that ends in .html is a file."""
    result: str = ""
    """What it hands on, inside that folder."""
    kind: str = ""
    """What is made; steps of one kind, settings and inputs make the same. The name where empty."""

    @property
    def trains(self) -> bool:
        """Whether it is a training run that can be resumed."""
        return bool(self.result)

    def done(self, out: Path) -> bool:
        """Whether `out` holds its whole result."""
        if not self.trains:
            return out.exists()  # it appears in one rename
        record = out / "run.json"
        return (out / self.result).is_dir() and record.is_file() and read_json(record)["status"] == "complete"

    def run(self, places: Mapping[str, Path], out: Path, resume: bool) -> None:
        """Makes `out`; `places` holds what the steps before it hand on, by name."""
        if self.make is not None:
            self.make(
                self.config,
                {key: _resolved(value, places) for key, value in self.inputs.items()},
                out,
                resume,
            )


def step_key(step: Step, keys: Mapping[str, str], digest: Callable[[str | Path, str], str]) -> str:
    """What a step's result is a function of, as one SHA-256: kind, settings, and its inputs.

    Args:
        keys: of the steps that it takes results of; so a setting of any stage before it counts.
        digest: (path or "shipped", name of the input) -> what identifies its content, wherever it lies.
    """

    def of(name: str, value: Any) -> Any:
        if isinstance(value, Of):
            return keys[value.step]
        return [of(name, one) for one in value] if isinstance(value, (list, tuple)) else digest(value, name)

    settings = step.config.model_dump(mode="json") if hasattr(step.config, "model_dump") else step.config
    settings = {
        key: value for key, value in (settings or {}).items() if key not in step.inputs
    }  # by content instead
    settings = _by_content(settings, digest)
    what = [step.kind or step.name, settings, {name: of(name, value) for name, value in step.inputs.items()}]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def refuse_absent(configs: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where a setting names a file or a folder that is not there, before hours have passed."""
    for section, config in configs.items():
        for name, path in _paths(config.model_dump(mode="json")):
            if not Path(path).exists():
                what = f"{section}.{name} names {path}, and there is no such file or folder (seen from {Path.cwd()})"
                meant = nearest(path, _words(name))
                raise ConfigError(f"{what}{meant}{'' if meant.endswith('?') else '.'}")


def _paths(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(setting, path) of all that settings name by a path."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _paths(one, name if name in LOCAL else key)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _paths(one, name)
    elif path := _path(value, name):
        yield name, path


def _path(value: Any, name: str) -> str:
    """The path that a setting names; "" for none. A folder that is called like a word of the setting does not take its place."""
    return (
        LOCAL[name](value) if name in LOCAL and isinstance(value, str) and value not in _words(name) else ""
    )


def _by_content(value: Any, digest: Callable[[str | Path, str], str], name: str = "") -> Any:
    """Settings with the digests of the files and folders that they name in place of where these lie."""
    if isinstance(value, Mapping):
        return {key: _by_content(one, digest, name if name in LOCAL else key) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(one, digest, name) for one in value]
    path = _path(value, name)
    return value.removesuffix(path) + digest(path, name) if path and Path(path).exists() else value


def experiment_steps(configs: Mapping[str, Any], sources: Sources) -> list[Step]:
    """Every step of an experiment, in an order in which they can be made."""
    steps = simulated_steps(configs, sources.dataset)
    dataset: Input = sources.dataset or Of("simulate")
    phase_1: list[Input] = list(sources.phase_1)
    if sources.dataset is None:
        phase_1 += [Of(step.name) for step in steps[1:]]
        phase_1 += [dataset] if configs["corpus"].include_studied else []
    attend, preprocess = configs["attend"], configs["contrast"].preprocess
    encoder: Input = Of("contrast")
    if sources.encoder is None:
        num = f"{len(phase_1)} dataset{'s' * (len(phase_1) != 1)}"
        what = f"contrast: phase 1, a masked auto-encoder learns from the fMRI of {num}"
        inputs = {"datasets": phase_1}
        steps.append(Step("contrast", what, _contrast, configs["contrast"], inputs, "contrast", "encoder"))
    else:  # its preprocessing is the preset's
        steps.append(Step("given", f"contrast: skipped, phase 1 is the encoder in {sources.encoder}"))
        encoder, attend = (
            sources.encoder,
            attend.model_copy(update={"preprocess": attend.preprocess or preprocess}),
        )
    inputs = {"dataset": dataset, "encoder": encoder}
    if configs["stages"].attend:
        what = "attend: phase 2, images guide the fMRI encoder through cross-attention"
        inputs = {**inputs, "image_mae": sources.image_mae}
        steps.append(Step("attend", what, _attend, attend, inputs, "attend", "encoder"))
        encoder = Of("attend")
    else:
        steps.append(Step("left out", "attend: left out, the encoder goes on as phase 1 made it"))
        if sources.encoder is not None:
            steps.append(Step("encoder", "", _preprocessed, preprocess, inputs, "encoder"))
            encoder = Of("encoder")
    what = "diffuse: the latent diffusion model learns to listen to the encoder"
    inputs = {"dataset": dataset, "encoder": encoder, "prior": sources.prior}
    steps.append(Step("diffuse", what, _diffuse, configs["diffuse"], inputs, "diffuse", "pipeline"))
    what = "reconstruct: images from test trials, and from the controls with the same noise"
    inputs = {"pipeline": Of("diffuse"), "dataset": dataset}
    steps.append(Step("reconstruct", what, _reconstruct, configs["reconstruct"], inputs, "reconstructions"))
    return steps + scoring_steps(configs["evaluate"], dataset)


def simulated_steps(configs: Mapping[str, Any], dataset: Path | None) -> list[Step]:
    """The subject under study and the corpus of phase 1, where they are simulated."""
    if dataset is not None:
        return []
    subject, corpus = configs["simulate"], configs["corpus"]
    images = {"images": subject.images} if subject.images else {}
    what = "simulate: a subject with a known code looks at pictures"
    steps = [Step("simulate", what, _simulate, subject, images, "subject")]
    for number in range(subject.subject + 1, subject.subject + 1 + corpus.num_subjects):
        changes = {"subject": number, "only_unlabelled": True, "unlabelled_trials": corpus.num_volumes}
        name, config = f"corpus-{number:02d}", subject.model_copy(update=changes)
        steps.append(Step(name, "", _simulate, config, images, name, kind="simulate"))
    return steps


def scoring_steps(config: Any, dataset: Input) -> list[Step]:
    """From pictures in "reconstruct" to numbers and a page."""
    what = "evaluate: a judge that no training loss has seen"
    inputs = {"reconstructions": Of("reconstruct"), "dataset": dataset}
    page = Step(
        "report",
        "report: everything on one page",
        _report,
        None,
        {"evaluation": Of("evaluate")},
        "report.html",
    )
    return [Step("evaluate", what, _evaluate, config, inputs, "evaluation"), page]


def _resolved(value: Any, places: Mapping[str, Path]) -> Any:
    if isinstance(value, Of):
        return places[value.step]
    return [_resolved(one, places) for one in value] if isinstance(value, (list, tuple)) else value


def _simulate(config: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    from cadiff.data.simulate import simulate

    simulate(config, out)


def _contrast(config: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    from cadiff.contrast.stage import contrast

    contrast(config, inputs["datasets"], out, resume=resume)


def _preprocessed(config: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    """An encoder that was given, with other preprocessing, measured on the subject."""
    from cadiff.contrast.encoder_folder import encoder_protocol, load_encoder, preprocessor_for, save_encoder
    from cadiff.data.dataset import BrainDataset

    encoder, _ = load_encoder(inputs["encoder"])
    fitted = preprocessor_for(BrainDataset.open(inputs["dataset"]), encoder, config)
    about = provenance(
        protocol=encoder_protocol(inputs["encoder"]), inputs={"encoder": folder_digest(inputs["encoder"])}
    )
    save_encoder(out, encoder, fitted, about)


def _attend(config: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    from cadiff.attend.stage import attend

    attend(config, inputs["dataset"], inputs["encoder"], out, image_mae=inputs["image_mae"], resume=resume)


def _diffuse(config: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    from cadiff.diffuse.stage import diffuse

    diffuse(config, inputs["dataset"], inputs["encoder"], out, prior=inputs["prior"], resume=resume)


def _reconstruct(config: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    from cadiff.diffuse.reconstruct import reconstruct

    reconstruct(config, inputs["pipeline"], inputs["dataset"], out)


def _evaluate(config: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    from cadiff.evaluate.stage import evaluate

    evaluate(config, inputs["reconstructions"], inputs["dataset"], out)


def _report(config: Any, inputs: Mapping[str, Any], out: Path, resume: bool) -> None:
    from cadiff.report import report

    report(inputs["evaluation"], out)

"""A network that had a say in the pictures must not score them.

Pictures that were picked, weighed or begun by an encoding model of a network's features, or drawn by a decoder that was trained
against a network, please that network whatever the brain said. Folders of ours name such networks in config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cadiff.artifacts import sha256_file
from cadiff.errors import ConfigError
from cadiff.evaluate.settings import EvaluateConfig
from cadiff.eyes.names import TIMM, is_local, judge_name

WEIGHTS = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def choosers(about: Mapping[str, Any]) -> list[str]:
    """Networks that had a say, by the config.json of a reconstructions folder: names, NAME=PATH, or NAME=SHA-256."""
    facts = about.get("provenance") or {}
    learnt = [facts.get(part) or {} for part in ("encoding", "fitted")]
    eyes = [part["eye"] for part in learnt if isinstance(part.get("eye"), dict)]
    features = [name for part in learnt for name in part.get("features") or ()]
    return features + ["=".join(filter(None, (eye["name"], eye.get("sha256")))) for eye in eyes]


def refuse_circular(config: EvaluateConfig, networks: Iterable[str], where: Path | str) -> None:
    """Raises `ConfigError` when one of `networks` (of `choosers`) is a judge or an eye of the evaluation.

    Two are the same by name, or by the SHA-256 of their weights as far as these lie on this machine.

    Args:
        where: what the networks had a say in, for the message.
    """
    said = {name: _known_by(*name.partition("=")[::2]) for name in networks}
    if not said:
        return
    judges: dict[str, set[str]] = {}
    if config.judge is not None:
        path = config.judge if is_local(config.judge) else ""
        judges[f"judge={config.judge}"] = _known_by(judge_name(config.judge), path)
    for eye, path in config.eyes.items():
        judges[f"eyes.{eye}={path}"] = _known_by(eye, path)
    for judge, known in judges.items():
        for name, own in said.items():
            if known & own:
                raise ConfigError(
                    f"{name} had a say in the pictures of {where}, so a score by it ({judge}) is circular: judge by another "
                    "network (docs/judges.md), or leave this one out."
                )


def _known_by(name: str, path: str) -> set[str]:
    """A name and the SHA-256 of the weights at `path`; where nothing lies there, `path`'s own name."""
    if not path:
        return {name}
    place = Path(path.removeprefix(TIMM))
    if not place.exists():
        return {name, judge_name(path)}
    files = [place] if place.is_file() else [file for file in place.iterdir() if file.suffix in WEIGHTS]
    return {name, *map(sha256_file, files)}

"""A network that had a say in the pictures must not score them.

Pictures that were picked, weighed or begun by an encoding model of a network's features, or drawn by a decoder that was trained
against a network or reads its features, please that network whatever the brain said. Folders of ours name such networks in
config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cadiff.artifacts import sha256_file
from cadiff.errors import ConfigError
from cadiff.evaluate.settings import EvaluateConfig
from cadiff.eyes.names import TIMM, is_local, judge_name

EYES = ("eye", "inversion_eye")
"""Where what was fitted names a network: that a decoder was trained against or reads, and that pictures were inverted by."""
WEIGHTS = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def choosers(about: Mapping[str, Any]) -> list[str]:
    """Networks that had a say, by the config.json of a reconstructions folder: names, NAME=PATH, or NAME=SHA-256."""
    facts = about.get("provenance") or {}
    learnt = [facts.get(part) or {} for part in ("encoding", "fitted")]
    eyes = [eye for part in learnt for key in EYES if isinstance(eye := part.get(key), dict)]
    features = [name for part in learnt if isinstance(names := part.get("features"), list) for name in names]
    weights = [pair for part in learnt for pair in (part.get("feature_weights") or {}).items()]
    features += [f"{name.partition('=')[0]}={sha256}" for name, found in weights for sha256 in found]
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
    return {name, *(digests(path) or [judge_name(path)])}


def digests(path: str) -> list[str]:
    """SHA-256 of the weights of a network at `path`, a file or a folder of files; none where nothing lies there."""
    place = Path(path.removeprefix(TIMM))
    if not place.exists():
        return []
    files = [place] if place.is_file() else [file for file in place.iterdir() if file.suffix in WEIGHTS]
    return sorted(map(sha256_file, files))

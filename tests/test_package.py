"""What a user gets by installing: names, data files, and an import that costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata, resources

import pytest

import cadiff

HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "pandas",
    "sklearn",
    "scipy",
    "PIL",
    "tensorboard",
}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import cadiff; dir(cadiff)") & HEAVY


def test_importing_the_command_line_loads_nothing_heavy():
    assert not loaded_by("import cadiff.cli") & HEAVY


def test_settings_and_artifacts_load_no_torch():
    assert "torch" not in loaded_by(
        "import cadiff.config, cadiff.artifacts, cadiff.errors, cadiff.experiments"
    )


@pytest.mark.parametrize("name", [n for n in cadiff.__all__ if n != "__version__"])
def test_public_names_resolve(name):
    assert getattr(cadiff, name).__name__ == name


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match="BrainDataset"):
        _ = cadiff.BrainDatasett


def test_the_version_is_that_of_the_distribution():
    assert metadata.version("cadiff") == cadiff.__version__


@pytest.mark.parametrize(
    "file", ["prior.json", "label_embedding.safetensors", "MODEL_CARD.md", "LICENSE-weights.txt"]
)
def test_the_prior_and_its_papers_are_in_the_package(file):
    assert (resources.files("cadiff") / "assets" / "prior" / file).is_file()

"""Self-describing folders: round trip, atomicity, and what damage looks like."""

import json
import shlex

import pytest
import torch

from cadiff.artifacts import (
    atomic_path,
    folder_digest,
    load_artifact,
    made_by,
    new_folder,
    provenance,
    save_artifact,
)
from cadiff.errors import ArtifactError

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


@pytest.fixture
def artifact(tmp_path):
    return save_artifact(
        tmp_path / "thing", kind="toy", config={"width": 3}, tensors=WEIGHTS, provenance=provenance(seed=1)
    )


def test_round_trip_is_exact_and_keeps_dtypes(artifact):
    config, tensors = load_artifact(artifact, "toy")
    assert config == {"width": 3}
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[k], WEIGHTS[k]) and tensors[k].dtype == WEIGHTS[k].dtype for k in WEIGHTS)


def test_provenance_names_versions_command_and_seed(artifact):
    found = json.loads((artifact / "config.json").read_text())["provenance"]
    assert found["seed"] == 1
    assert {"python", "torch"} <= found["versions"].keys()
    assert "command" in found


@pytest.mark.parametrize("program", ["/somewhere/bin/cadiff", "/somewhere/cadiff/__main__.py"])
def test_the_command_on_record_can_be_run_as_it_stands(monkeypatch, program):
    arguments = ["baseline", "bayes", "my data", "--set", "controls=[prior_only, shuffled]"]
    monkeypatch.setattr("sys.argv", [program, *arguments])
    assert shlex.split(provenance()["command"]) == ["cadiff", *arguments]
    with made_by("cadiff sweep t.yaml --out o  # a/b-seed-0"):
        assert provenance()["command"] == "cadiff sweep t.yaml --out o  # a/b-seed-0"
    assert shlex.split(provenance()["command"]) == ["cadiff", *arguments]


def test_an_existing_folder_is_never_overwritten(artifact):
    before = folder_digest(artifact)
    with pytest.raises(ArtifactError, match="never overwritten"):
        save_artifact(artifact, kind="toy", config={}, provenance={})
    assert folder_digest(artifact) == before


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file") as path:
        path.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_of_a_file_keeps_the_old_one(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "damaged"),
        (lambda f: (f / "config.json").unlink(), "holds no toy"),
    ],
)
def test_damage_is_named(artifact, break_it, says):
    break_it(artifact)
    with pytest.raises(ArtifactError, match=says):
        load_artifact(artifact, "toy")


def test_another_kind_and_a_newer_format_are_refused(artifact):
    with pytest.raises(ArtifactError, match="holds a toy, expected a fmri-encoder"):
        load_artifact(artifact, "fmri-encoder")
    about = json.loads((artifact / "config.json").read_text())
    (artifact / "config.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        load_artifact(artifact, "toy")


def test_the_digest_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = folder_digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert folder_digest(tmp_path / "a") != first


def test_the_digest_sees_what_lies_behind_a_link_and_not_that_it_is_one(tmp_path):
    for folder in ("here/deep", "away"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x").write_text("1")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "deep").symlink_to(tmp_path / "away")
    first = folder_digest(tmp_path / "linked")
    assert first == folder_digest(tmp_path / "here")
    (tmp_path / "linked" / "again").symlink_to(tmp_path / "linked" / "deep")  # twice the same is no circle
    assert folder_digest(tmp_path / "linked") != first
    (tmp_path / "linked" / "again").unlink()
    (tmp_path / "linked" / "gone").symlink_to(tmp_path / "nowhere")
    assert folder_digest(tmp_path / "linked") == first
    (tmp_path / "away" / "x").write_text("2")
    assert folder_digest(tmp_path / "linked") != first


def test_links_that_go_round_in_circles_are_one_sentence(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "itself").symlink_to("itself")  # leads nowhere
    assert (
        folder_digest(tmp_path / "a")
        == folder_digest(tmp_path / "a" / "b")
        == folder_digest(tmp_path / "none")
    )
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"a/b/up links to .*/a, which it lies in.*remove the link"):
        folder_digest(tmp_path / "a")


def test_a_digest_of_weights_and_settings_ignores_what_is_beside_them(artifact):
    only = (".json", ".safetensors")
    first, whole = folder_digest(artifact, only), folder_digest(artifact)
    (artifact / "MODEL_CARD.md").write_text("new words")
    assert folder_digest(artifact, only) == first
    assert folder_digest(artifact) != whole
    (artifact / "config.json").write_text("{}")
    assert folder_digest(artifact, only) != first

"""A network that chose the pictures is refused as their judge, by name and by its weights."""

import shutil

import pytest

from cadiff.artifacts import read_json, sha256_file, write_json
from cadiff.errors import ConfigError
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.circular import choosers, refuse_circular


@pytest.fixture
def weights(tmp_path):
    """Files that stand for networks: only their bytes count here."""
    for name in ("clip", "vit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    shutil.copytree(tmp_path / "clip", tmp_path / "elsewhere")
    (tmp_path / "alexnet.safetensors").write_bytes(b"alexnet")
    return tmp_path


CIRCULAR = {
    "name": ("efficientnet-lite1", "efficientnet-lite1", {}),
    "eye": ("clip={}/gone", None, {"clip": "{}/also-gone"}),
    "folder": ("mine={}/clip", "{}/clip", {}),
    "copy": ("mine={}/clip", None, {"yours": "timm:{}/elsewhere"}),
    "gone": ("mine={}/gone/vit", "{}/vit", {}),
    "lpips": ("alexnet={}/alexnet.safetensors", None, {"lpips": "{}/alexnet.safetensors"}),
}


@pytest.mark.parametrize("case", CIRCULAR)
def test_a_network_that_chose_does_not_judge(case, weights):
    feature, judge, eyes = CIRCULAR[case]
    config = EvaluateConfig(
        judge=judge and judge.format(weights),
        eyes={name: path.format(weights) for name, path in eyes.items()},
    )
    with pytest.raises(ConfigError, match=r"of here, so a score by it .* is circular"):
        refuse_circular(config, ["gabor", feature.format(weights)], "here")


def test_other_networks_judge(weights):
    features = ["pixels", "vq", "efficientnet-lite0", f"clip={weights}/clip"]
    eyes = {"vit": f"{weights}/vit", "alexnet": f"{weights}/alexnet.safetensors"}
    for judge in (None, "efficientnet-lite2", f"{weights}/vit"):
        refuse_circular(EvaluateConfig(judge=judge, eyes=eyes), features, "here")


@pytest.mark.parametrize("part", ["encoding", "fitted"])
def test_an_evaluation_refuses_what_the_folder_names_and_writes_nothing(
    part, write_reconstructions, linear_brain, tmp_path
):
    folder = write_reconstructions(brain=0.3)
    about = read_json(folder / "config.json")
    write_json(folder / "config.json", {**about, "provenance": {part: {"features": ["efficientnet-lite1"]}}})
    rival = shutil.copytree(folder, tmp_path / "rival")
    config, out = EvaluateConfig(judge="efficientnet-lite1", num_bootstrap=200), tmp_path / "e"
    with pytest.raises(ConfigError, match=f"efficientnet-lite1 had a say in the pictures of {folder}, so"):
        evaluate(config, folder, linear_brain, out)
    write_json(folder / "config.json", about)
    with pytest.raises(ConfigError, match=f"of {rival}, so"):
        evaluate(config, folder, linear_brain, out, against={"rival": rival})
    assert not out.exists()
    pixels = EvaluateConfig(judge=None, num_bootstrap=200, train_pictures=0)
    assert evaluate(pixels, rival, linear_brain, out).is_dir()


@pytest.mark.parametrize("part", ["encoding", "fitted"])
def test_a_network_that_chose_is_known_by_its_weights_wherever_they_are_now(part, weights):
    """As an encoding model was fitted, its features lay elsewhere and went by another name."""
    sha256 = sha256_file(weights / "clip" / "model.safetensors")
    features = {"features": ["gabor", "mine=/gone"], "feature_weights": {"mine=/gone": [sha256]}}
    said = choosers({"provenance": {part: features}})
    with pytest.raises(ConfigError, match="circular"):
        refuse_circular(EvaluateConfig(judge=None, eyes={"yours": f"{weights}/elsewhere"}), said, "here")
    refuse_circular(EvaluateConfig(judge=f"{weights}/vit"), said, "here")


def test_the_network_that_a_decoder_was_trained_against_is_named(weights):
    file = weights / "alexnet.safetensors"
    about = {"provenance": {"fitted": {"eye": {"name": "alexnet", "sha256": sha256_file(file)}}}}
    with pytest.raises(ConfigError, match="circular"):
        refuse_circular(EvaluateConfig(judge=None, eyes={"lpips": str(file)}), choosers(about), "here")
    without = {"provenance": {"fitted": {"eye": {"name": "efficientnet-lite0"}}}}
    with pytest.raises(ConfigError, match="circular"):
        refuse_circular(EvaluateConfig(judge="efficientnet-lite0"), choosers(without), "here")
    assert choosers({"config": {}}) == []

"""Local folders of transformers and timm, made here with random weights."""

import json
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from cadiff.errors import ArtifactError, ConfigError, MissingExtraError
from cadiff.eyes import judge_name, load_eye, load_local_classifier
from cadiff.eyes.labels import ANCHORS, are_imagenet
from cadiff.vision import load_classifier

SIDE = 32
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": SIDE,
    "patch_size": 8,
}


def imagenet_names():
    names = [f"thing {i}" for i in range(1000)]
    for index, (word, _) in ANCHORS.items():
        names[index] = f"{word.title()}, and so on"
    return names


@pytest.fixture
def save(tmp_path):
    def save(model, name="folder", processor=PROCESSOR):
        torch.manual_seed(0)
        shown = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        model.save_pretrained(tmp_path / name)
        if shown:
            transformers.utils.logging.enable_progress_bar()
        if processor is not None:
            (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(processor))
        return tmp_path / name

    return save


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


def vit(num_labels=10, **kwargs):
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**VIT, num_labels=num_labels, **kwargs)
    ).eval()


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=12)
    return transformers.ResNetForImageClassification(config).eval()


def convnext():
    config = transformers.ConvNextConfig(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], num_labels=5)
    return transformers.ConvNextForImageClassification(config).eval()


@pytest.mark.parametrize("build", [vit, resnet, convnext])
def test_a_folder_judges_as_its_model_does(build, save, images):
    model = build()
    judge = load_classifier(str(save(model)), device="cpu")
    pixels = torch.from_numpy(images / 255.0 * 2 - 1).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model(pixel_values=pixels).logits.numpy()
    found = judge.features(images, batch_size=2)
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)
    np.testing.assert_array_equal(judge.logits(images, batch_size=2), found["logits"])
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    read = found["pooled"] @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(read, found["logits"], atol=1e-5)
    assert judge.num_classes == expected.shape[1] and judge.logits(images[:0]).shape == (0, judge.num_classes)
    assert (judge.name, judge.labels, judge.is_imagenet) == ("folder", None, False)
    assert judge.preprocessing.startswith("stretched to 32 x 32, bilinear, antialiased")
    assert list(judge.digest()) == ["model.safetensors"]


def test_a_folder_serves_as_an_eye_of_any_name(save, images):
    eye = load_eye("my-vit", save(vit()), "cpu")
    assert (eye.name, eye.layers) == ("my-vit", ("pooled", "logits"))
    assert eye.features(images, ("pooled",))["pooled"].shape == (3, 16)


def test_imagenet_is_recognised_by_the_names_of_its_classes(save):
    names = imagenet_names()
    assert are_imagenet(names) and not are_imagenet(names[:999]) and not are_imagenet(None)
    swapped = [names[1], names[0], *names[2:]]
    assert not are_imagenet(swapped)
    assert are_imagenet(
        [dict(enumerate(names)).get(i) if i not in ANCHORS else ANCHORS[i][1] for i in range(1000)]
    )
    known = load_local_classifier(save(vit(1000, id2label=dict(enumerate(names))), "known"), "cpu")
    known.check_classes((3, 4))
    nameless = load_local_classifier(save(vit(1000), "nameless"), "cpu")
    with pytest.raises(ConfigError, match=r"1000 classes of the judge nameless .*\(without names\)"):
        nameless.check_classes((3, 4))
    pets = load_local_classifier(save(vit(3, id2label={0: "cat", 1: "dog", 2: "cow"}), "pets"), "cpu")
    assert pets.labels == ("cat", "dog", "cow")
    with pytest.raises(ConfigError, match=r"\(cat, dog, cow, ...\)"):
        pets.check_classes((3, 4))


def test_clip_gives_its_image_embeddings(save, images):
    text = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=VIT, projection_dim=6)
    model = transformers.CLIPModel(config).eval()
    processor = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": SIDE,
        "crop_size": SIDE,
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    eye = load_eye("clip", save(model, processor=processor), "cpu")
    pixels = torch.from_numpy(images / 255.0 * 2 - 1).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output).numpy()
    np.testing.assert_allclose(eye.features(images)["image_embeds"], expected, atol=1e-5)
    with pytest.raises(ArtifactError, match="holds a vit, expected a clip"):
        load_eye("clip", save(vit(), "other"))


def test_folders_that_cannot_judge_are_one_sentence(save, tmp_path):
    with pytest.raises(ArtifactError, match=r"not a transformers folder \(found: no such folder\)"):
        load_classifier(str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactError, match=r"lacks preprocessor_config.json"):
        load_local_classifier(save(vit(), "bare", processor=None))
    headless = save(transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False), "headless")
    with pytest.raises(
        ArtifactError, match=r"lacks 2 weights of a ViTForImageClassification, .*\(first: classifier.bias\)"
    ):
        load_local_classifier(headless)
    other = save(vit(), "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    with pytest.raises(ArtifactError, match=r"lacks 6 weights of .* in another shape"):
        load_local_classifier(other)
    cut = save(vit(), "cut")
    (cut / "model.safetensors").write_bytes(b"1234567890")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_local_classifier(cut)
    text = save(
        transformers.BertModel(transformers.BertConfig(vocab_size=9, **{k: VIT[k] for k in list(VIT)[:4]})),
        "text",
    )
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_local_classifier(text)


def test_loading_prints_nothing(save, capfd):
    folder = save(vit())
    capfd.readouterr()
    load_local_classifier(folder, "cpu")
    assert capfd.readouterr() == ("", "")


def test_short_names_for_protocol_strings(save, tmp_path):
    assert judge_name("efficientnet-lite2") == "efficientnet-lite2"
    assert judge_name("timm:/weights/convnext_base.fb_in1k/") == "convnext_base.fb_in1k"
    assert judge_name("/weights/vit_h_14_swag-80465313.pth") == "vit_h_14_swag-80465313"
    snapshot = tmp_path / "models--google--vit-base-patch16-224" / "snapshots" / ("0" * 40)
    shutil.copytree(save(vit()), snapshot)
    assert judge_name(str(snapshot)) == load_local_classifier(snapshot, "cpu").name == "vit-base-patch16-224"


class FakeTimm(nn.Module):
    """The part of timm's models that a judge uses."""

    def __init__(self, num_classes, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x):
        return self.stem(x)

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)


@pytest.fixture
def timm_folder(tmp_path, monkeypatch):
    fake = ModuleType("timm")
    fake.__version__ = "1"

    def create_model(name, pretrained, num_classes, width=6):
        assert not pretrained
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        return FakeTimm(num_classes, width)

    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)

    def write(num_classes=1000, **changes):
        about = {
            "input_size": [3, SIDE, SIDE],
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        }
        config = {
            "architecture": "tiny",
            "num_classes": num_classes,
            "model_args": {"width": 5},
            "pretrained_cfg": about,
            **changes,
        }
        folder = tmp_path / f"tiny{num_classes}.in1k"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file(FakeTimm(num_classes, 5).state_dict(), folder / "model.safetensors")
        return folder

    return write


def test_a_timm_folder_judges(timm_folder, images):
    folder = timm_folder()
    judge = load_classifier(f"timm:{folder}", device="cpu")
    weights = load_file(folder / "model.safetensors")
    found = judge.features(images)
    pixels = torch.from_numpy(images / 255.0 * 2 - 1).float().permute(0, 3, 1, 2)
    pooled = torch.nn.functional.conv2d(pixels, weights["stem.weight"], weights["stem.bias"], 8).mean((2, 3))
    np.testing.assert_allclose(found["pooled"], pooled.numpy(), atol=1e-5)
    logits = pooled @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-5)
    assert (judge.name, judge.num_classes, judge.is_imagenet) == ("tiny1000.in1k", 1000, True)


def test_a_timm_folder_without_classes_is_an_eye_and_no_judge(timm_folder, images):
    folder = timm_folder(0)
    assert load_eye("dino", f"timm:{folder}", "cpu").features(images)["pooled"].shape == (3, 5)
    with pytest.raises(ArtifactError, match="cannot judge"):
        load_classifier(f"timm:{folder}")


def test_timm_folders_that_do_not_fit_are_one_sentence(timm_folder, save, monkeypatch):
    named = load_local_classifier(f"timm:{timm_folder(7, label_names=list('abcdefg'))}", "cpu")
    assert (named.labels, named.is_imagenet) == (tuple("abcdefg"), False)
    with pytest.raises(ArtifactError, match="cannot build the 'huge'"):
        load_local_classifier(f"timm:{timm_folder(8, architecture='huge')}")
    with pytest.raises(ArtifactError, match="does not fit timm's tiny"):
        load_local_classifier(f"timm:{timm_folder(9, model_args={})}")
    with pytest.raises(ArtifactError, match='leave out "timm:"'):
        load_local_classifier(f"timm:{save(vit())}")
    folder = timm_folder(6)
    with pytest.raises(ArtifactError, match="name it timm:"):
        load_local_classifier(folder)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"extra eval .*pip install 'cadiff\[eval\]'"):
        load_local_classifier(f"timm:{folder}")

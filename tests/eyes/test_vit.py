"""torchvision's ViT files against a forward written down from the equations, and against transformers' ViT."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import ViTConfig

from cadiff.errors import ArtifactError, ConfigError
from cadiff.eyes import load_local_classifier
from cadiff.eyes.pixels import Preprocessing
from cadiff.eyes.vit import VisionTransformer, load_torchvision_vit, preprocessing_of
from cadiff.vision import load_classifier

WIDTH, DEPTH, NUM_HEADS, HIDDEN, PATCH, SIDE, CLASSES = 24, 3, 4, 40, 14, 42, 7


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "class_token": (1, 1, WIDTH),
        "conv_proj.weight": (WIDTH, 3, PATCH, PATCH),
        "conv_proj.bias": (WIDTH,),
        "encoder.pos_embedding": (1, (SIDE // PATCH) ** 2 + 1, WIDTH),
        "encoder.ln.weight": (WIDTH,),
        "encoder.ln.bias": (WIDTH,),
        "heads.head.weight": (CLASSES, WIDTH),
        "heads.head.bias": (CLASSES,),
    }
    for i in range(DEPTH):
        inside = {
            "ln_1.weight": (WIDTH,),
            "ln_1.bias": (WIDTH,),
            "self_attention.in_proj_weight": (3 * WIDTH, WIDTH),
            "self_attention.in_proj_bias": (3 * WIDTH,),
            "self_attention.out_proj.weight": (WIDTH, WIDTH),
            "self_attention.out_proj.bias": (WIDTH,),
            "ln_2.weight": (WIDTH,),
            "ln_2.bias": (WIDTH,),
            "mlp.0.weight": (HIDDEN, WIDTH),
            "mlp.0.bias": (HIDDEN,),
            "mlp.3.weight": (WIDTH, HIDDEN),
            "mlp.3.bias": (WIDTH,),
        }
        shapes |= {f"encoder.layers.encoder_layer_{i}.{name}": shape for name, shape in inside.items()}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "vit_t_14_swag-12345678.pth"
    torch.save(weights, path)
    return path


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


def normed(x, scale, shift):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + shift


def forward(w, pictures):
    """Dosovitskiy et al. 2021, Eq. 1-4, in numpy: class token and logits of normalised pictures (n, 3, S, S)."""
    w = {name: value.double().numpy() for name, value in w.items()}
    n, across = len(pictures), SIDE // PATCH
    patches = (
        pictures.reshape(n, 3, across, PATCH, across, PATCH)
        .transpose(0, 2, 4, 1, 3, 5)
        .reshape(n, across**2, -1)
    )
    z = patches @ w["conv_proj.weight"].reshape(WIDTH, -1).T + w["conv_proj.bias"]
    z = np.concatenate([np.repeat(w["class_token"], n, axis=0), z], axis=1) + w["encoder.pos_embedding"]
    for i in range(DEPTH):
        own = {k.split(f"layer_{i}.")[1]: v for k, v in w.items() if f"encoder_layer_{i}." in k}
        x = normed(z, own["ln_1.weight"], own["ln_1.bias"])
        q, k, v = np.split(
            x @ own["self_attention.in_proj_weight"].T + own["self_attention.in_proj_bias"], 3, axis=-1
        )
        heads = []
        for h in range(NUM_HEADS):
            part = slice(h * WIDTH // NUM_HEADS, (h + 1) * WIDTH // NUM_HEADS)
            a = q[..., part] @ k[..., part].transpose(0, 2, 1) / np.sqrt(WIDTH / NUM_HEADS)
            a = np.exp(a - a.max(-1, keepdims=True))
            heads.append(a / a.sum(-1, keepdims=True) @ v[..., part])
        attended = np.concatenate(heads, -1)
        z = z + attended @ own["self_attention.out_proj.weight"].T + own["self_attention.out_proj.bias"]
        x = normed(z, own["ln_2.weight"], own["ln_2.bias"]) @ own["mlp.0.weight"].T + own["mlp.0.bias"]
        x = F.gelu(torch.from_numpy(x)).numpy()
        z = z + x @ own["mlp.3.weight"].T + own["mlp.3.bias"]
    token = normed(z, w["encoder.ln.weight"], w["encoder.ln.bias"])[:, 0]
    return token, token @ w["heads.head.weight"].T + w["heads.head.bias"]


def test_equals_the_equations(weights, file, images):
    judge = load_torchvision_vit(file, "cpu", num_heads=NUM_HEADS)
    scaled = (images / 255.0 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    token, logits = forward(weights, scaled.transpose(0, 3, 1, 2))
    found = judge.features(images)
    np.testing.assert_allclose(found["pooled"], token, atol=1e-4)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    assert (judge.name, judge.num_classes, judge.is_imagenet) == ("vit_t_14_swag-12345678", CLASSES, False)
    assert judge.preprocessing.startswith("shortest edge to 42, bicubic")


def as_a_transformers_folder(w, folder):
    """The names of the hub's ViT folders."""
    named = {
        "vit.embeddings.cls_token": w["class_token"],
        "vit.embeddings.position_embeddings": w["encoder.pos_embedding"],
        "vit.embeddings.patch_embeddings.projection.weight": w["conv_proj.weight"],
        "vit.embeddings.patch_embeddings.projection.bias": w["conv_proj.bias"],
        "vit.layernorm.weight": w["encoder.ln.weight"],
        "vit.layernorm.bias": w["encoder.ln.bias"],
        "classifier.weight": w["heads.head.weight"],
        "classifier.bias": w["heads.head.bias"],
    }
    parts = {
        "attention.output.dense": "self_attention.out_proj",
        "intermediate.dense": "mlp.0",
        "output.dense": "mlp.3",
        "layernorm_before": "ln_1",
        "layernorm_after": "ln_2",
    }
    for i in range(DEPTH):
        ours, theirs = f"encoder.layers.encoder_layer_{i}.", f"vit.encoder.layer.{i}."
        for kind in ("weight", "bias"):
            for name, part in parts.items():
                named[f"{theirs}{name}.{kind}"] = w[f"{ours}{part}.{kind}"]
            thirds = w[f"{ours}self_attention.in_proj_{kind}"].chunk(3)
            for name, third in zip(("query", "key", "value"), thirds, strict=True):
                named[f"{theirs}attention.attention.{name}.{kind}"] = third
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=NUM_HEADS,
        intermediate_size=HIDDEN,
        image_size=SIDE,
        patch_size=PATCH,
        num_labels=CLASSES,
        layer_norm_eps=1e-6,
    )
    config.architectures = ["ViTForImageClassification"]
    config.save_pretrained(folder)
    save_file(
        {k: v.contiguous() for k, v in named.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    about = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def test_equals_the_vit_of_transformers(weights, file, images, tmp_path):
    theirs = load_local_classifier(as_a_transformers_folder(weights, tmp_path), "cpu").features(images)
    ours = load_torchvision_vit(file, "cpu", num_heads=NUM_HEADS).features(images)
    for layer in ("pooled", "logits"):
        np.testing.assert_allclose(ours[layer], theirs[layer], atol=1e-4)


def test_files_with_the_old_names_are_the_same(weights, file, images, tmp_path):
    old = {
        n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v
        for n, v in weights.items()
    }
    torch.save(old, tmp_path / "old_swag.pth")
    judges = [load_torchvision_vit(p, "cpu", num_heads=NUM_HEADS) for p in (file, tmp_path / "old_swag.pth")]
    np.testing.assert_array_equal(judges[0].logits(images), judges[1].logits(images))


@pytest.mark.parametrize(
    "numbers, parameters",
    [
        # torchvision's own counts of parameters of vit_b_16, vit_l_16 (SWAG, 512 px) and vit_h_14 (SWAG, 518 px)
        ((224, 16, 768, 12, 12, 3072), 86_567_656),
        ((512, 16, 1024, 24, 16, 4096), 305_174_504),
        ((518, 14, 1280, 32, 16, 5120), 633_470_440),
    ],
)
def test_has_as_many_parameters_as_torchvisions(numbers, parameters):
    names = ("image_size", "patch", "width", "depth", "heads", "hidden")
    with torch.device("meta"):
        network = VisionTransformer(**dict(zip(names, numbers, strict=True)), classes=1000)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_pictures_are_prepared_as_torchvision_says():
    assert preprocessing_of("vit_h_14_swag-80465313.pth", 518, (1280, 14)) == Preprocessing(
        (518, 518), (518, 518), interpolation="bicubic"
    )
    assert preprocessing_of("vit_b_16-c867db91.pth", 224, (768, 16)) == Preprocessing((256, 256), (224, 224))
    assert preprocessing_of("vit_l_16-852ce7e3.pth", 224, (1024, 16)).size == (242, 242)
    assert preprocessing_of("vit_b_16_lc_swag-4e70ced5.pth", 224, (768, 16)).interpolation == "bicubic"


def test_other_files_are_one_sentence(file, tmp_path, weights):
    with pytest.raises(
        ArtifactError, match="ViT of width 24; the number of its attention heads is known for 768"
    ):
        load_classifier(str(file))
    torch.save({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ArtifactError, match=r"lacks conv_proj.weight"):
        load_local_classifier(tmp_path / "other.pth")
    short = {name: value for name, value in weights.items() if "layer_1.ln_2" not in name}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(
        ArtifactError, match=r"2 of 44 weights differ; the first, .*layer_1.ln_2.weight, is missing"
    ):
        load_torchvision_vit(tmp_path / "short.pth", num_heads=NUM_HEADS)


def test_imagenet_indices_mean_nothing_to_seven_classes(file):
    judge = load_torchvision_vit(file, "cpu", num_heads=NUM_HEADS)
    judge.check_classes(None)
    with pytest.raises(ConfigError, match=r"the 7 classes of the judge vit_t_14_swag-12345678 are not known"):
        judge.check_classes((1, 2))

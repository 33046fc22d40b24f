"""Image auto-encoders of facebook and transformers become folders that phase 2 opens, whatever their names are spelled like."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTMAEModel

from cadiff.attend.image_mae import load_image_mae
from cadiff.convert import describe, import_weights
from cadiff.errors import ArtifactError
from layouts import networks, weights
from tiny_networks import image_mae, seeded

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ENCODER = {"width": 128, "depth": 2, "patch": 4, "tokens": 16}
DECODER = {"width": 128, "decoder": 64, "depth": 3, "patch": 4, "tokens": 16}


@pytest.fixture
def facebook():
    return weights.fill({**weights.image_encoder(**ENCODER), **weights.image_decoder(**DECODER)})


@torch.no_grad()
def outputs(model, pictures, noise):
    model.config.mask_ratio = 0.5
    return model.eval()(pixel_values=pictures, noise=noise).logits


@torch.no_grad()
@pytest.mark.parametrize("older", [False, True])
def test_facebook_checkpoint_computes_what_the_original_does(facebook, tmp_path, older):
    arguments = argparse.Namespace(norm_pix_loss=True, model="mae_vit_base_patch16")
    source = weights.save(
        tmp_path / "full.pth", {"model": facebook, "args": arguments, "epoch": 799}, older=older
    )
    made = import_weights(source, tmp_path / "image_mae")
    assert (made.kind, made.complete) == ("image_mae", True)
    loaded = load_image_mae(tmp_path / "image_mae")
    generator = torch.Generator().manual_seed(0)
    pictures, noise = torch.randn(2, 3, 16, 16, generator=generator), torch.rand(2, 16, generator=generator)
    keep = noise.argsort(1)[:, :8]
    theirs = networks.mae(facebook, pictures, keep, heads=2, decoder_heads=16, eps=1e-6)
    torch.testing.assert_close(outputs(loaded.model, pictures, noise), theirs, **CLOSE)
    assert loaded.model.config.norm_pix_loss is True and loaded.model.config.layer_norm_eps == 1e-6
    assert loaded.mean == (0.485, 0.456, 0.406)


def hf_model(tmp_path):
    with seeded(0):
        model = image_mae(decoder_intermediate_size=20, layer_norm_eps=1e-9, norm_pix_loss=True)
    folder = tmp_path / "transformers"
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})
    )
    return model, folder


def as_current(model, saved):
    return model.state_dict()


def as_hybrid(model, saved):
    assert any("decoder_encoder" in name for name in saved)
    return saved


def as_legacy(model, saved):
    return {
        name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): value
        for name, value in saved.items()
    }


@pytest.mark.parametrize("spelling", [as_current, as_hybrid, as_legacy])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_transformers_folders_in_every_spelling(tmp_path, spelling, file):
    model, folder = hf_model(tmp_path)
    saved = spelling(model, load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    if file.endswith("bin"):
        torch.save(saved, folder / file)
    else:
        save_file({name: value.contiguous() for name, value in saved.items()}, folder / file)
    import_weights(folder, tmp_path / "image_mae")
    loaded = load_image_mae(tmp_path / "image_mae")
    config = loaded.model.config
    assert (config.num_attention_heads, config.layer_norm_eps, config.norm_pix_loss) == (3, 1e-9, True)
    assert loaded.mean == (0.1, 0.2, 0.3)
    generator = torch.Generator().manual_seed(0)
    pictures, noise = torch.randn(2, 3, 16, 16, generator=generator), torch.rand(2, 16, generator=generator)
    torch.testing.assert_close(
        outputs(loaded.model, pictures, noise), outputs(model, pictures, noise), atol=0, rtol=0
    )
    names = load_file(tmp_path / "image_mae" / "model.safetensors").keys()
    assert (
        "vit.encoder.layer.0.attention.attention.query.weight" in names
    )  # what every release of transformers reads
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in names


def test_encoder_alone_is_imported_described_and_refused_by_phase_2(facebook, tmp_path):
    state = {
        name: value for name, value in facebook.items() if not name.startswith(("decoder_", "mask_token"))
    }
    source = weights.save(tmp_path / "mae_pretrain_vit_base.pth", {"model": state})
    assert "phase 2" in dict(describe(source))["missing"]
    made = import_weights(source, tmp_path / "image_mae")
    assert not made.complete
    with pytest.raises(ArtifactError, match="phase 2 needs encoder and decoder"):
        load_image_mae(tmp_path / "image_mae")
    encoder = ViTMAEModel.from_pretrained(tmp_path / "image_mae").eval()
    pictures, noise = (
        torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.arange(16.0)[None],
    )
    encoder.config.mask_ratio = 0.0
    with torch.no_grad():
        ours = encoder(pixel_values=pictures, noise=noise).last_hidden_state
        tokens = networks.visible_tokens(state, pictures, torch.arange(16)[None])
        theirs = networks.layer_norm(
            state, "norm", networks.transformer(state, "blocks.", tokens, 2, 1e-6), 1e-6
        )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_a_transformers_encoder_alone(tmp_path):
    model, folder = hf_model(tmp_path)
    model.vit.save_pretrained(folder)
    assert "the decoder" in dict(describe(folder))["missing"]
    assert not import_weights(folder, tmp_path / "image_mae").complete


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "blocks.1.attn.qkv.weight",
            None,
            "weight vit.encoder.layer.1.attention.attention.key.weight is absent",
        ),
        ("decoder_pred.bias", (7,), r"weight decoder.decoder_pred.bias is \(7,\), expected \(48,\)"),
        ("blocks.0.attn.qkv.weight", (385, 128), "expected"),
        ("norm.weight", None, "weight vit.layernorm.weight is absent"),
        ("mystery", (3,), "weight mystery is .* expected no such weight"),
        ("pos_embed", (1, 20, 128), r"position_embeddings is \(1, 20, 128\), expected \(1, 17, 128\)"),
    ],
)
def test_what_is_incomplete_or_strange_is_one_sentence(facebook, tmp_path, name, shape, message):
    facebook.pop(name, None)
    if shape:
        facebook[name] = torch.zeros(shape)
    source = weights.save(tmp_path / "full.pth", {"model": facebook})
    with pytest.raises(ArtifactError, match=message) as error:
        import_weights(source, tmp_path / "image_mae")
    assert "\n" not in str(error.value) and not (tmp_path / "image_mae").exists()


def test_a_classifier_is_named(facebook, tmp_path):
    source = weights.save(
        tmp_path / "vit.pth", {"model": {**facebook, "head.weight": torch.zeros(1000, 128)}}
    )
    with pytest.raises(
        ArtifactError, match="a ViT classifier, which cannot be imported: phase 2 needs a masked"
    ):
        import_weights(source, tmp_path / "image_mae")

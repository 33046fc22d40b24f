"""MinD-Vis and CAD auto-encoders become encoder folders: the same weights, the same function."""

import json

import numpy as np
import pytest
import torch

from cadiff.contrast import FmriCross, FmriEncoder, FmriMae, load_encoder, preprocessor_for
from cadiff.contrast.masking import random_masking
from cadiff.convert import describe, import_weights
from cadiff.data.dataset import BrainDataset
from cadiff.errors import ArtifactError, ConfigError
from layouts import networks, weights

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SETTINGS = {"num_heads": 4, "decoder_num_heads": 2, "patch_size": 4, "seed": 2022}


def checkpoint(path, state, **more):
    return weights.save(
        path,
        {"model": state, "optimizer": weights.optimizer_state(state), "epoch": 140, "scaler": {}},
        **SETTINGS,
        **more,
    )


def betas(rows=3, length=16):
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
@pytest.mark.parametrize("older", [False, True])
def test_phase_1_computes_what_the_original_does(phase_1, tmp_path, older):
    made = import_weights(checkpoint(tmp_path / "checkpoint.pth", phase_1, older=older), tmp_path / "encoder")
    assert (made.kind, made.complete) == ("encoder", True)
    model, _ = load_encoder(tmp_path / "encoder")
    assert type(model) is FmriMae
    found = model.state_dict()
    assert found.keys() == phase_1.keys() and all(torch.equal(found[name], phase_1[name]) for name in found)
    x = betas()
    torch.testing.assert_close(model.tokens(x), networks.fmri_tokens(phase_1, x, heads=4), **CLOSE)
    masking = random_masking(3, 4, 0.5, generator=torch.Generator().manual_seed(1))
    ours = model.decode(model.norm(model.hidden(x, masking)), masking)
    torch.testing.assert_close(ours, networks.mae(phase_1, x, masking.keep, 4, 2).flatten(1), **CLOSE)


@torch.no_grad()
def test_phase_2_computes_what_the_original_does(phase_2, tmp_path):
    with weights.foreign_class("transformers.models.vit_mae.configuration_vit_mae", "ViTMAEConfig") as kind:
        image = kind()
        image.__dict__.update(num_attention_heads=3, layer_norm_eps=1e-6)
        content = {
            "model": phase_2,
            "epoch": 60,
            "config_merge": {"cross_img_encoder_config": image, "do_cross_residual": True},
        }
        source = weights.save(tmp_path / "mergconf.pth", content, **SETTINGS)
    import_weights(source, tmp_path / "encoder")
    model, _ = load_encoder(tmp_path / "encoder")
    assert type(model) is FmriCross
    assert (model.cross.num_heads, model.cross.layer_norm_eps, model.cross.depth) == (3, 1e-6, 2)
    x, image_support = betas(), torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(2))
    masking = random_masking(3, 4, 0.5, generator=torch.Generator().manual_seed(1))
    ours = model.decode(model.norm(model.guide(model.hidden(x, masking), image_support)), masking)
    hidden = networks.transformer(phase_2, "blocks.", networks.visible_tokens(phase_2, x, masking.keep), 4)
    guided = networks.cross_blocks(phase_2, hidden, image_support, heads=3, eps=1e-6)
    theirs = networks.mae_decode(phase_2, networks.layer_norm(phase_2, "norm", guided), masking.keep, 2, 1e-5)
    torch.testing.assert_close(ours, theirs.flatten(1), **CLOSE)
    torch.testing.assert_close(model.tokens(x), networks.fmri_tokens(phase_2, x, heads=4), **CLOSE)


def test_encoder_alone_and_prefix_of_parallel_training(phase_1, tmp_path):
    state = {f"module.{k}": v for k, v in phase_1.items() if not k.startswith(("decoder_", "mask_token"))}
    made = import_weights(
        weights.save(tmp_path / "c.pth", {"model": state}, **SETTINGS), tmp_path / "encoder"
    )
    assert not made.complete
    assert type(load_encoder(tmp_path / "encoder")[0]) is FmriEncoder
    assert any("the decoder" in text for label, text in describe(tmp_path / "c.pth") if label == "missing")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_encoders_are_stored_as_float32(phase_1, tmp_path, dtype):
    state = {name: value.to(dtype) if "attn" in name else value for name, value in phase_1.items()}
    source = checkpoint(tmp_path / "c.pth", state)
    assert f"{str(dtype).removeprefix('torch.')} (" in dict(describe(source))["precision"]
    import_weights(source, tmp_path / "encoder")
    model, _ = load_encoder(tmp_path / "encoder")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"].float())


def test_statistics_are_the_subjects_where_there_is_one(phase_1, subject, tmp_path):
    source, data = checkpoint(tmp_path / "c.pth", phase_1), BrainDataset.open(subject)
    import_weights(source, tmp_path / "with", dataset=subject)
    import_weights(source, tmp_path / "without")
    train = np.asarray(data.betas[data.rows("train")])
    model, own = load_encoder(tmp_path / "with")
    _, none = load_encoder(tmp_path / "without")
    ready = own(train)
    scaled = (train - train.mean(dtype=float)) / train.std(dtype=float)
    np.testing.assert_allclose(ready, np.pad(scaled, ((0, 0), (0, 2)), mode="wrap"), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        none(np.eye(16, dtype=np.float32)), np.eye(16)
    )  # takes what is z-scored already
    later = preprocessor_for(data, model, none.config)  # what the next stage does with either
    np.testing.assert_array_equal(later(train), ready)


def test_provenance_says_where_it_comes_from(phase_1, tmp_path):
    source = checkpoint(tmp_path / "checkpoint.pth", phase_1)
    import_weights(source, tmp_path / "encoder")
    facts = json.loads((tmp_path / "encoder" / "config.json").read_text())["provenance"]["source"]
    assert (facts["file"], facts["epoch"], facts["bytes"]) == ("checkpoint.pth", 140, source.stat().st_size)
    assert len(facts["sha256"]) == 64


def test_description_names_stage_sizes_and_what_lies_beside(phase_2, tmp_path):
    lines = describe(checkpoint(tmp_path / "c.pth", phase_2))
    said = dict(lines)
    assert "CAD phase 2" in said["is"] and said["epoch"] == "140"
    assert said["input"] == "16 values: 4 patches of 4"
    assert "2 blocks of width 32, 4 heads, MLP 32" in said["encoder"]
    assert "3 blocks of width 16, 2 heads" in said["decoder"]
    assert "an object of config.Config_MBM_fMRI, not run" in said["beside"] and "optimizer" in said["beside"]
    total = sum(
        int(said[part].split(": ")[1].split(" ")[0].replace(",", ""))
        for part in ("encoder", "decoder", "cross attention")
    )
    assert total == sum(value.numel() for value in phase_2.values())
    assert said["next"].startswith("cadiff weights import")


def test_weights_of_unused_variants_are_left_out_and_said(phase_1, tmp_path):
    phase_1["nature_img_decoder_pred.weight"] = torch.zeros(3, 3)
    source = checkpoint(tmp_path / "c.pth", phase_1)
    assert dict(describe(source))["left out"].startswith("1 weights of variants")
    import_weights(source, tmp_path / "encoder")


def remove(name):
    return lambda state: state.pop(name)


def reshape(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("blocks.1.mlp.fc2.bias"), "weight blocks.1.mlp.fc2.bias is absent"),
        (remove("decoder_pred.weight"), "weight decoder_pred.weight is absent"),
        (remove("norm.weight"), "weight norm.weight is absent"),
        (reshape("blocks.7.norm1.weight", 32), "weight blocks.2.attn.proj.bias is absent"),
        (reshape("pos_embed", 1, 5, 48), "adds positions of its own width"),
        (reshape("patch_embed.proj.weight", 32, 2, 4), "reads one channel"),
        (reshape("something.else", 3), r"weight something.else is \(3,\), .* has no such weight"),
    ],
)  # fmt: skip
def test_what_is_incomplete_or_strange_is_one_sentence(phase_1, tmp_path, damage, message):
    damage(phase_1)
    source = checkpoint(tmp_path / "c.pth", phase_1)
    with pytest.raises(ArtifactError, match=message) as error:
        import_weights(source, tmp_path / "encoder")
    assert "\n" not in str(error.value) and "folder mixes" not in str(error.value)
    assert not (tmp_path / "encoder").exists()
    said = dict(describe(source))
    assert "missing" in said and "complete" not in said and "next" not in said


def test_heads_that_do_not_divide_the_width_are_refused(phase_1, tmp_path):
    source = weights.save(tmp_path / "c.pth", {"model": phase_1}, num_heads=5)
    with pytest.raises(ArtifactError, match="embed_dim=32 must be even and a multiple of num_heads=5"):
        import_weights(source, tmp_path / "encoder")
    with pytest.raises(ConfigError, match="--ema is for latent diffusion models"):
        import_weights(source, tmp_path / "encoder", ema=True)

"""The auto-encoder: published sizes and names, invariances, independent position table."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cadiff.contrast import CrossConfig, FmriCross, FmriEncoder, FmriMae, FmriMaeConfig
from cadiff.contrast.mae import initialise, stretched
from cadiff.contrast.masking import Masking
from cadiff.contrast.transformer import Attention, sine_positions

BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def size(tensors) -> int:
    return sum(t.numel() for t in tensors)


def tiny_mae(tiny, generator, num_voxels=32) -> FmriMae:
    model = FmriMae(FmriMaeConfig(**tiny.model_dump(), num_voxels=num_voxels))
    initialise(model, generator)
    return model.eval()


def official_names(depth: int, decoder_depth: int) -> set[str]:
    """Keys of a released phase-1 checkpoint (its `model` entry)."""
    names = {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}
    layers = ["patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred"]
    layers += [f"blocks.{i}.{part}" for i in range(depth) for part in BLOCK]
    layers += [f"decoder_blocks.{i}.{part}" for i in range(decoder_depth) for part in BLOCK]
    return names | {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_published_parameter_counts_and_names():
    with torch.device("meta"):
        model = FmriMae(FmriMaeConfig(num_voxels=4656))
        encoder = FmriEncoder(FmriMaeConfig(num_voxels=4656))
    assert size(encoder.parameters()) == 151_560_192
    assert size(model.parameters()) - size(encoder.parameters()) == 13_307_920
    assert size(p for p in model.parameters() if p.requires_grad) == 164_419_600
    assert size(model.blocks[0].parameters()) == 6_301_696
    assert size(model.decoder_blocks[0].parameters()) == 1_577_984
    assert set(model.state_dict()) == official_names(24, 8)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (1024, 1, 16)
    assert shapes["blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert shapes["blocks.0.mlp.fc1.weight"] == (1024, 1024)
    assert shapes["decoder_pred.weight"] == (16, 512)
    assert shapes["pos_embed"] == (1, 292, 1024)


def test_published_phase_2_parameter_counts_and_names():
    with torch.device("meta"):
        model = FmriCross(FmriMaeConfig(num_voxels=4192, decoder_depth=6), CrossConfig())
    assert size(model.parameters()) == 191_592_976
    assert size(model.cross_blocks[0].parameters()) == 9_450_240
    assert size(model.cross_map_in.parameters()) == 787_200
    assert size(model.cross_map_out.parameters()) == 787_456
    cross = set(model.state_dict()) - official_names(24, 6)
    attention = [
        f"{a}.attention.{part}"
        for a in ("attention", "cross_attention")
        for part in ("query", "key", "value")
    ]
    parts = [*attention, "attention.output.dense", "cross_attention.output.dense", "intermediate.dense"]
    parts += ["output.dense", "layernorm_before", "layernorm_after"]
    layers = [
        "cross_map_in",
        "cross_map_out",
        *(f"cross_blocks.{i}.{part}" for i in range(3) for part in parts),
    ]
    assert cross == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_position_table_against_its_formula():
    table = sine_positions(300, 8)[0].numpy()
    assert np.abs(table[0]).max() == 0.0
    for p in (0, 1, 150, 299):
        for i in range(4):
            w = 10000 ** (-2 * i / 8)
            assert table[p + 1, i] == pytest.approx(math.sin(p * w), abs=1e-7)
            assert table[p + 1, 4 + i] == pytest.approx(math.cos(p * w), abs=1e-7)


def test_attention_against_a_naive_einsum(generator):
    layer = Attention(12, 3)
    x = torch.randn(2, 5, 12, generator=generator)
    q, k, v = (layer.qkv.weight @ x.mT + layer.qkv.bias[:, None]).mT.view(2, 5, 3, 3, 4).unbind(2)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(2.0).softmax(-1)  # sqrt(4) = 2
    expected = layer.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 5, 12))
    torch.testing.assert_close(layer(x), expected)


def test_unmasked_features_do_not_depend_on_token_order(tiny, generator):
    """The released code shuffles also at mask ratio 0; a permutation of the tokens permutes the result only."""
    model = tiny_mae(tiny, generator)
    betas = torch.randn(3, 32, generator=generator)
    order = torch.stack([torch.randperm(8, generator=generator) for _ in range(3)])
    shuffled = model.norm(model.hidden(betas, Masking(order, torch.zeros(3, 8, dtype=torch.bool))))
    plain = model.support(betas)
    assert plain.shape == (3, 9, 16)
    torch.testing.assert_close(shuffled[:, 0], plain[:, 0])
    torch.testing.assert_close(shuffled[:, 1:], plain[:, 1:].gather(1, order[..., None].expand(-1, -1, 16)))


def test_prediction_does_not_see_hidden_voxels(tiny, generator):
    model = tiny_mae(tiny, generator)
    betas = torch.randn(2, 32, generator=generator)
    prediction, mask = model(betas, 0.5, torch.Generator().manual_seed(3))
    assert prediction.shape == (2, 32) and mask.shape == (2, 8) and mask.sum(1).tolist() == [4, 4]
    hidden = mask.repeat_interleave(4, dim=1)
    same, _ = model(torch.where(hidden, 50.0, betas), 0.5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(same, prediction)
    other, _ = model(torch.where(hidden, betas, 50.0), 0.5, torch.Generator().manual_seed(3))
    assert (other - prediction).abs().max() > 1e-4


def test_two_views_as_one_batch_are_two_independent_maskings(tiny, generator):
    model = tiny_mae(tiny, generator)
    betas = torch.randn(6, 32, generator=generator)
    prediction, mask = model(betas.repeat(2, 1), 0.5, generator)
    first, second = mask.chunk(2)
    assert prediction.shape == (12, 32)
    assert not torch.equal(first, second)


def test_tokens_take_everything_and_prepend_no_cls(tiny, generator):
    model = tiny_mae(tiny, generator)
    betas = torch.randn(2, 32, generator=generator)
    tokens = model.tokens(betas)
    assert tokens.shape == (2, 8, 16)
    with torch.no_grad():
        model.cls_token.add_(1.0)
    assert torch.equal(model.tokens(betas), tokens)
    assert not torch.allclose(model.support(betas)[:, 1:], tokens)
    torch.testing.assert_close(
        tokens.mean(-1), torch.zeros(2, 8), atol=1e-5, rtol=0
    )  # the final norm was applied


def test_another_length_is_refused(tiny, generator):
    with pytest.raises(ValueError, match=r"takes betas \(batch, 32\), got \(2, 28\)"):
        tiny_mae(tiny, generator).tokens(torch.zeros(2, 28))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValidationError, match="take 4656"):
        FmriMaeConfig(num_voxels=4643)
    with pytest.raises(ValidationError, match="multiple of num_heads=5"):
        FmriMaeConfig(num_voxels=16, num_heads=5)


def test_initialisation_comes_from_the_generator_alone(tiny):
    torch.manual_seed(1)
    one = tiny_mae(tiny, torch.Generator().manual_seed(5)).state_dict()
    torch.manual_seed(2)
    two = tiny_mae(tiny, torch.Generator().manual_seed(5)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["cls_token"].abs().max() > 0 and one["mask_token"].abs().max() > 0
    assert torch.equal(one["pos_embed"], sine_positions(8, 16))


@pytest.mark.parametrize("num_tokens", [3, 8, 13, 20])
def test_a_stretched_encoder_reads_the_nearest_position(tiny, generator, num_tokens):
    """Everything else is the same weights; position k of n is the old floor(k * 8 / n), CLS keeps its own."""
    old = tiny_mae(tiny, generator)
    new = stretched(old, 4 * num_tokens)
    nearest = torch.tensor([k * 8 // num_tokens for k in range(num_tokens)])
    assert torch.equal(new.pos_embed[:, 1:], old.pos_embed[:, 1:][:, nearest])
    assert torch.equal(new.pos_embed[:, :1], old.pos_embed[:, :1])
    kept = {name: tensor for name, tensor in new.state_dict().items() if name != "pos_embed"}
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in kept.items())
    betas = torch.randn(2, 4 * num_tokens, generator=generator)
    assert new.tokens(betas).shape == (2, num_tokens, 16)
    if num_tokens == 8:
        assert torch.equal(new.tokens(betas), old.tokens(betas))
    new.norm.weight.data.zero_()  # a copy: what is tuned later does not reach back
    assert old.norm.weight.abs().min() > 0


def test_recomputing_blocks_changes_neither_prediction_nor_gradients(tiny, generator):
    model = FmriMae(FmriMaeConfig(**tiny.model_dump(), num_voxels=32))
    initialise(model, generator)
    betas = torch.randn(3, 32, generator=generator)

    def run(recompute):
        model.recompute = recompute
        model.zero_grad()
        prediction, _ = model(betas, 0.5, torch.Generator().manual_seed(1))
        prediction.square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return prediction.detach(), gradients

    (plain, expected), (again, found) = run(False), run(True)
    assert torch.equal(plain, again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)

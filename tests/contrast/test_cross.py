"""Cross-modality attention against a naive reference, and what it may see."""

import pytest
import torch
import torch.nn.functional as F

from cadiff.contrast import CrossBlock, CrossConfig, FmriCross, FmriMaeConfig
from cadiff.contrast.cross import initialise_cross
from cadiff.contrast.mae import initialise

SMALL = CrossConfig(width=12, depth=2, num_heads=3, mlp_dim=20)


def attend_by_hand(block: torch.nn.Module, name: str, queries, support):
    """softmax(q k^T / sqrt(d)) v per head, from the weights alone."""
    w = {k: v.double() for k, v in block.state_dict().items() if k.startswith(name)}
    q, k, v = (
        torch.einsum("bnc,dc->bnd", x, w[f"{name}.attention.{part}.weight"])
        + w[f"{name}.attention.{part}.bias"]
        for part, x in (("query", queries), ("key", support), ("value", support))
    )
    heads = []
    for h in range(3):
        cut = slice(4 * h, 4 * h + 4)
        scores = torch.einsum("bqd,bkd->bqk", q[..., cut], k[..., cut]) / 4**0.5
        heads.append(
            torch.einsum("bqk,bkd->bqd", scores.exp() / scores.exp().sum(-1, keepdim=True), v[..., cut])
        )
    dense = w[f"{name}.output.dense.weight"], w[f"{name}.output.dense.bias"]
    return F.linear(torch.cat(heads, -1), *dense)


def test_block_against_a_naive_reference(generator):
    block = CrossBlock(SMALL)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    hidden = torch.randn(2, 5, 12, generator=generator)
    support = torch.randn(2, 7, 12, generator=generator)
    w = {k: v.double() for k, v in block.state_dict().items()}
    h, s = hidden.double(), support.double()

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return (
            x / (x.square().mean(-1, keepdim=True) + 1e-12).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    own = attend_by_hand(block, "attention", norm(h, "layernorm_before"), norm(h, "layernorm_before"))
    h = h + attend_by_hand(block, "cross_attention", norm(own, "layernorm_before"), s)
    inner = norm(h, "layernorm_after") @ w["intermediate.dense.weight"].T + w["intermediate.dense.bias"]
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    expected = h + gelu @ w["output.dense.weight"].T + w["output.dense.bias"]
    torch.testing.assert_close(block(hidden, support).double(), expected, atol=2e-5, rtol=1e-4)


@pytest.fixture
def model(tiny, generator) -> FmriCross:
    model = FmriCross(FmriMaeConfig(**tiny.model_dump(), num_voxels=32), SMALL)
    initialise(model, generator)
    for part in (model.cross_map_in, model.cross_blocks, model.cross_map_out):
        initialise_cross(part, generator)
    return model.eval()


def test_tokens_and_support_leave_the_cross_blocks_out(model, generator):
    betas = torch.randn(2, 32, generator=generator)
    before = model.tokens(betas), model.support(betas)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("cross_"):
                parameter.add_(1.0)
    assert torch.equal(model.tokens(betas), before[0])
    assert torch.equal(model.support(betas), before[1])


def test_the_image_reaches_the_prediction(model, generator):
    betas = torch.randn(2, 32, generator=generator)
    images = torch.randn(2, 2, 5, 12, generator=generator) * 20
    first, second = (model(betas, 0.5, torch.Generator().manual_seed(1), image)[0] for image in images)
    assert (first - second).abs().max() > 1e-6


def test_image_tokens_have_no_order(model, generator):
    betas, image = torch.randn(2, 32, generator=generator), torch.randn(2, 5, 12, generator=generator)
    one, _ = model(betas, 0.5, torch.Generator().manual_seed(1), image)
    two, _ = model(betas, 0.5, torch.Generator().manual_seed(1), image.flip(1))
    torch.testing.assert_close(one, two)


def test_residual_is_inside_the_bottleneck(model, generator):
    hidden, image = torch.randn(2, 5, 16, generator=generator), torch.randn(2, 5, 12, generator=generator)
    narrow = model.cross_map_in(hidden)
    x = narrow
    for block in model.cross_blocks:
        x = block(x, image)
    torch.testing.assert_close(model.guide(hidden, image), model.cross_map_out(narrow + x))
    model.cross = model.cross.model_copy(update={"residual": False})
    torch.testing.assert_close(model.guide(hidden, image), model.cross_map_out(x))

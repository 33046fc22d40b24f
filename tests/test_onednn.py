"""Linear layers by oneDNN: the numbers of PyTorch's own, for every shape and use, and nothing left behind."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cadiff import onednn
from cadiff.contrast.mae import FmriMae, FmriMaeConfig, initialise
from cadiff.contrast.stage import ContrastConfig, phase_1_loss
from cadiff.onednn import linear, onednn_linears

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="PyTorch without oneDNN's linear operator")
SHAPES = [(7, 3, 5), (4, 33, 128, 48), (2, 3, 17, 48, 128), (640, 64, 64)]
"""Dimensions of the input before its last, that, and of the output."""


@pytest.fixture
def everywhere(monkeypatch):
    """oneDNN for every product, on this machine whatever it is."""
    monkeypatch.setattr(onednn, "_slow_mkl", lambda: True)
    monkeypatch.setattr(onednn, "LEAST", 1)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_values_and_gradients_are_those_of_pytorchs_linear(shape, biased, transposed):
    *rows, ins, outs = shape
    x = random(ins, *rows).movedim(0, -1) if transposed else random(*rows, ins)
    given = [x, random(outs, ins, seed=1), random(outs, seed=2) if biased else None]
    towards = random(*rows, outs, seed=3)
    found = []
    for way in (linear, F.linear):
        leaves: Any = [None if part is None else part.clone().requires_grad_() for part in given]
        result = way(*leaves)
        result.backward(towards)
        found.append([result.detach(), *(leaf.grad for leaf in leaves if leaf is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_only_gradients_that_are_asked_for_are_made():
    x, weight = random(64, 32).requires_grad_(), random(16, 32)
    linear(x, weight).sum().backward()
    assert x.grad is not None and weight.grad is None
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x))


def test_phase_1_learns_the_same(everywhere):
    """The loss over steps of AdamW, which would magnify a wrong gradient, and the first gradients themselves."""
    size = FmriMaeConfig(num_voxels=128, embed_dim=32, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1,
                         decoder_num_heads=2)  # fmt: skip
    start = FmriMae(size)
    initialise(start, torch.Generator().manual_seed(0))
    config, betas = ContrastConfig(mae=size), random(16, 128)

    def train(ours):
        model = deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses, first = [], {}
        with onednn_linears([model] if ours else []) as number:
            assert number == ours * sum(type(part) is nn.Linear for part in model.modules())
            for step in range(20):
                loss = phase_1_loss(model, betas, torch.Generator().manual_seed(step), config)["loss"]
                loss.backward()
                grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
                first = first or {name: grad.clone() for name, grad in grads.items()}
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses, first

    (ours, found), (theirs, expected) = train(True), train(False)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * largest)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0]


def test_half_precision_double_and_autocast_stay_with_pytorch(everywhere, monkeypatch):
    def refuse(*_):
        raise AssertionError("oneDNN was called")

    layer = nn.Linear(64, 64)
    with onednn_linears([layer]), monkeypatch.context() as patch:
        patch.setattr(onednn, "linear", refuse)
        with pytest.raises(AssertionError):
            layer(random(64, 64))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(random(64, 64)).dtype == torch.bfloat16
        for dtype in (torch.bfloat16, torch.float64):
            assert layer.to(dtype)(random(64, 64).to(dtype)).dtype == dtype


def test_small_products_stay_with_pytorch(monkeypatch):
    monkeypatch.setattr(onednn, "_slow_mkl", lambda: True)
    asked = []
    monkeypatch.setattr(onednn, "linear", lambda x, *_: asked.append(x.numel()))
    layer = nn.Linear(64, 64)
    with onednn_linears([layer]):
        layer(random(255, 64))
        layer(random(256, 64))
    assert asked == [256 * 64]


def test_layers_are_as_they_were_afterwards_and_a_hook_of_others_stays(everywhere):
    network: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network.append(network[0])  # shared

    def others(x):
        return 2 * x

    network[1].forward = others
    with pytest.raises(KeyboardInterrupt), onednn_linears([network, network]) as number:
        assert number == 2 and network[1].forward is others
        raise KeyboardInterrupt
    assert "forward" not in vars(network[0]) and network[1].forward is others


def test_where_it_does_not_pay_or_is_turned_off_nothing_changes(everywhere, monkeypatch):
    layer = nn.Linear(4, 4)
    torch.backends.mkldnn.set_flags(False)
    try:
        with onednn_linears([layer]) as number:
            assert number == 0 and "forward" not in vars(layer)
    finally:
        torch.backends.mkldnn.set_flags(True)
    monkeypatch.setattr(onednn, "_slow_mkl", lambda: False)
    with onednn_linears([layer]) as number:
        assert number == 0

"""Counted bytes: closed forms for a layer, nothing allocated, and a straight line in the batch for the real stages."""

import torch
from torch import nn

from cadiff.plan.memory import LiveBytes, count_step

N, D = 64, 1024


def test_a_tensor_counts_while_it_lives_and_a_view_not_at_all():
    with LiveBytes() as live:
        x = torch.zeros(N, D)
        assert live.now == 4 * N * D
        views = [x[:3], x.reshape(-1), x.T]
        assert live.now == 4 * N * D and len(views) == 3
        y = x + 1
        assert live.now == 8 * N * D
        del y
        assert live.now == 4 * N * D
        assert live.peak == 8 * N * D


def test_a_chain_of_layers_keeps_what_its_gradients_need():
    """Linear and GELU: each keeps its input; weights and their gradients are there at the end."""
    depth = 5

    def build():
        return nn.Sequential(*[nn.Sequential(nn.Linear(D, D, bias=False), nn.GELU()) for _ in range(depth)])

    def step(net):
        return net(torch.zeros(N, D)).sum()

    found = count_step(build, step, bf16=False)
    weights, activation = 4 * D * D, 4 * N * D
    assert found.parameters == found.trained == depth * D * D
    at_the_end = 2 * depth * weights
    # back at the first layer: every gradient, and of the activations few are left
    assert at_the_end <= found.peak <= at_the_end + 6 * activation

    def look(net):
        step(net)

    frozen = count_step(lambda: build().requires_grad_(False), look, bf16=False)
    assert frozen.trained == 0
    # without gradients only the caller's input, and a block's input and both its outputs
    assert frozen.peak == depth * weights + 4 * activation


def test_frozen_weights_have_neither_gradient_nor_kept_inputs():
    def build():
        net = nn.Sequential(nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False))
        net[0].requires_grad_(False)
        return net

    found = count_step(build, lambda net: net(torch.zeros(N, D)).square().sum(), bf16=False)
    assert found.trained == D * D
    assert found.peak < 4 * D * D * 3 + 6 * 4 * N * D


def test_the_count_takes_no_memory():
    """A layer of 4 TiB."""
    wide = 2**20
    found = count_step(
        lambda: nn.Linear(wide, wide, bias=False), lambda net: net(torch.zeros(1, wide)).sum(), bf16=False
    )
    assert found.peak >= 8 * wide**2

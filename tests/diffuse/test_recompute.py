"""Gradients that are computed again are the same, to the bit, and the random generators are read for dropout alone."""

from __future__ import annotations

import pytest
import torch

from cadiff.diffuse.recompute import has_dropout, recompute_blocks
from tiny_networks import seeded, unet


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_without_to_the_bit(monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    with seeded(0):
        network = unet(class_embed_type="identity", dropout=dropout).train()
        given = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 12), torch.randn(2, 32)
    read: list[int] = []
    state = torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: (read.append(1), state())[1])

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            read.clear()
            found = network(given[0], 5, encoder_hidden_states=given[1], class_labels=given[2])[0]
            found.square().sum().backward()
            reads.append(len(read))
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    reads: list[int] = []
    plain = gradients()
    recompute_blocks(network)
    again = gradients()
    assert len(plain) == len(again) > 50
    assert all(torch.equal(x, y) for x, y in zip(plain, again, strict=True))
    assert has_dropout(network) == (dropout > 0) == (reads[1] > 0)


def test_activations_are_kept_no_longer() -> None:
    kept = []
    for recompute in (False, True):
        with seeded(0):
            network = unet(class_embed_type="identity").train()
            given = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 12), torch.randn(2, 32)
        if recompute:
            recompute_blocks(network)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):  # noqa: B023
            network(given[0], 5, encoder_hidden_states=given[1], class_labels=given[2])
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]

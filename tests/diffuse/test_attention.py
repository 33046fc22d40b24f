"""Wide heads written out are the same function, and nothing else is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from cadiff.diffuse.attention import write_out_wide_heads
from cadiff.priors.published import published_sizes


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def processors(unet):
    return [type(m.processor) for m in unet.modules() if isinstance(m, Attention)]


def test_values_and_gradients_stay(prior, gpu):
    unet = copy.deepcopy(prior.unet).requires_grad_(True)
    shape, width = prior.latent_shape, unet.config["cross_attention_dim"]
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, *shape, generator=generator), torch.randn(2, 5, width, generator=generator)
    time = torch.randn(2, prior.time_dim, generator=generator)

    def run():
        unet.zero_grad()
        out = unet(x, 7, encoder_hidden_states=context, class_labels=time).sample
        out.square().sum().backward()
        return out.detach(), [p.grad.clone() for p in unet.parameters() if p.grad is not None]

    fused, before = run()
    assert write_out_wide_heads(unet, widest=0) == len(processors(unet)) > 0
    assert set(processors(unet)) == {AttnProcessor}
    plain, after = run()
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_narrow_heads_and_cpus_keep_theirs(prior, monkeypatch):
    unet = copy.deepcopy(prior.unet)
    assert write_out_wide_heads(unet, widest=0) > 0
    assert set(processors(unet)) == {AttnProcessor2_0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert write_out_wide_heads(unet) == 0
    assert set(processors(unet)) == {AttnProcessor2_0}


def test_every_head_of_the_published_network_is_wide():
    with torch.device("meta"):
        unet = published_sizes().unet
    layers = [m for m in unet.modules() if isinstance(m, Attention)]
    assert write_out_wide_heads(unet) == len(layers) == 32

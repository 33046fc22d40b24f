"""Keys and values of a picture: the same numbers from one projection a layer, whatever surrounds them."""

from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from cadiff.blocks import compiled_blocks
from cadiff.diffuse import sampling
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.sampling import denoise, make_scheduler
from cadiff.diffuse.static import static_context
from cadiff.priors.published import published_sizes

STEPS = 4


def draw(prior, *, guidance_scale=2.0, seed=0, **options):
    rng = torch.Generator().manual_seed(seed)
    condition, null = (
        Condition(
            torch.randn(3, 6, prior.context_dim, generator=rng),
            torch.randn(3, prior.time_dim, generator=rng),
        )
        for _ in range(2)
    )
    noise = torch.randn(3, *prior.latent_shape, generator=rng)
    scheduler = make_scheduler("ddim", prior.scheduler.config)
    options = {"num_inference_steps": STEPS, "guidance_scale": guidance_scale, "null": null, **options}
    return denoise(prior.unet, scheduler, noise, condition, **options)


@contextmanager
def recomputing(monkeypatch):
    """Within the block, every step projects the context."""
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "static_context", lambda *_: nullcontext())
        yield


def projections(unet):
    return [layer for name, layer in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pictures_are_those_of_projecting_in_every_step_bit_for_bit(
    prior, monkeypatch, guidance_scale, precision
):
    found = draw(prior, guidance_scale=guidance_scale, precision=precision)
    with recomputing(monkeypatch):
        expected = draw(prior, guidance_scale=guidance_scale, precision=precision)
    assert torch.equal(found, expected)
    assert not torch.equal(found, draw(prior, guidance_scale=guidance_scale, precision=precision, seed=1))


def test_each_layer_projects_once_a_picture(prior, monkeypatch):
    layers, calls = projections(prior.unet), []
    for layer in layers:  # as hooks that move weights do, in the layer's own dictionary

        def counted(tokens, layer=layer):
            calls.append(layer)
            return torch.nn.functional.linear(tokens, layer.weight, layer.bias)

        layer.forward = counted
    before = [vars(layer)["forward"] for layer in layers]
    draw(prior)
    assert len(calls) == len(layers) > 0
    assert set(calls) == set(layers)
    assert [vars(layer)["forward"] for layer in layers] == before
    with recomputing(monkeypatch):
        draw(prior)
    assert len(calls) == (1 + STEPS) * len(layers)


def test_the_network_is_left_as_it_was_also_when_drawing_stops(prior):
    def stop():
        raise KeyboardInterrupt

    layers = projections(prior.unet)
    before = [dict(vars(layer)) for layer in layers]
    with pytest.raises(KeyboardInterrupt):
        draw(prior, on_step=stop)
    assert [dict(vars(layer)) for layer in layers] == before


def test_another_context_is_projected_as_ever(prior):
    first, other = torch.randn(2, 1, 6, prior.context_dim, generator=torch.Generator().manual_seed(0))
    layer = projections(prior.unet)[0]
    expected = layer(first), layer(other)
    with static_context(prior.unet, first):
        assert layer(first) is layer(first)
        assert torch.equal(layer(first), expected[0])
        assert torch.equal(layer(other), expected[1])
        assert torch.equal(layer(first.clone()), expected[0])


def test_every_cross_attention_of_the_published_network_is_found():
    with torch.device("meta"):
        prior = published_sizes()
        context = torch.zeros(2, 77, prior.context_dim)
    unet = torch.nn.Module.to(prior.unet, "meta")
    with static_context(unet, context) as number:
        assert number == len(projections(unet)) == 32


def test_hooks_of_a_layer_act_once_a_step(prior, monkeypatch):
    layer = projections(prior.unet)[0]
    handles = [
        layer.register_forward_pre_hook(lambda _, given: (given[0] + 1,)),
        projections(prior.unet)[1].register_forward_hook(lambda *args: args[-1] * 2),
    ]
    found = draw(prior)
    with recomputing(monkeypatch):
        assert torch.equal(found, draw(prior))
    for handle in handles:
        handle.remove()
    assert not torch.equal(found, draw(prior))


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
def test_compiled_blocks_are_left_alone_and_compile_once_for_all_batches(prior, monkeypatch):
    with recomputing(monkeypatch):
        expected = [draw(prior, seed=seed) for seed in range(5)]
    torch.compiler.reset()
    counters.clear()
    with compiled_blocks([prior.unet], backend="eager"):
        with static_context(prior.unet, torch.zeros(3, 6, prior.context_dim)) as number:
            assert number == 0
        found = [draw(prior, seed=0)]
        compiled = counters["stats"]["unique_graphs"]
        found += [draw(prior, seed=seed) for seed in range(1, 5)]
        assert counters["stats"]["unique_graphs"] == compiled > 0
        assert not counters["graph_break"]
    torch.compiler.reset()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert not any(torch.equal(expected[0], other) for other in expected[1:])


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
def test_a_network_compiled_as_a_whole_is_left_alone(prior):
    context = torch.zeros(3, 6, prior.context_dim)
    compiled: Any = torch.compile(prior.unet, backend="eager")
    with static_context(compiled, context) as number:
        assert number == 0
    with static_context(prior.unet, context) as number:
        assert number == len(projections(prior.unet)) > 0
    torch.compiler.reset()

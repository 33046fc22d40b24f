import numpy as np
import pytest
import torch

from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.start import LabelStart, LatentStart
from cadiff.errors import DataError


@pytest.fixture
def started(encoder, preprocessor, prior, dataset, rng):
    """A conditioner with both starts, fitted on the training trials."""
    rows = dataset.rows("train")
    betas = torch.from_numpy(preprocessor(dataset.betas[rows]))
    labels = torch.arange(8).repeat_interleave(2) % 4
    groups = [str(i // 2) for i in range(16)]
    start, _, _ = LabelStart.fit(betas, labels, prior.label_embedding, groups)
    latents = torch.randn(16, *prior.latent_shape, generator=rng)
    latent_start, _ = LatentStart.fit(betas, latents, groups, num_components=4)
    return FmriConditioner.build(
        encoder, preprocessor, prior, context_length=6, start=start, latent_start=latent_start, generator=rng
    )


def test_shapes(conditioner, prior, rng):
    condition = conditioner(torch.randn(3, 32, generator=rng))
    assert condition.context.shape == (3, 6, prior.context_dim)
    assert condition.time.shape == (3, prior.time_dim)
    assert conditioner.null(2).context.shape == (2, 6, prior.context_dim)


def test_heads_are_the_published_maps(conditioner, encoder, rng):
    """Written out with matrix products instead of convolutions."""
    betas = torch.randn(3, 32, generator=rng)
    with torch.no_grad():
        tokens = encoder.tokens(betas)  # (B, N, D)
        for layer in conditioner.channel_mapper:
            tokens = torch.einsum("on,bnd->bod", layer.weight[..., 0], tokens) + layer.bias[:, None]
        context = tokens @ conditioner.dim_mapper.weight.T + conditioner.dim_mapper.bias
        x = context
        for layer in conditioner.time_head[:2]:
            x = torch.einsum("on,bnd->bod", layer.weight[..., 0], x) + layer.bias[:, None]
        time = x[:, 0] @ conditioner.time_head[2].weight.T + conditioner.time_head[2].bias
        found = conditioner(betas)
    torch.testing.assert_close(found.context, context)
    torch.testing.assert_close(found.time, time)


def test_with_a_start_the_denoiser_begins_as_the_ridge_conditioned_prior(started, prior, rng):
    """A repeated token, and a zero time vector, are the single token that the prior was trained with."""
    betas = torch.randn(3, 32, generator=rng)
    with torch.no_grad():
        condition = started(betas)
        token = started.start(betas)
        torch.testing.assert_close(token.norm(dim=1), started.start.norm.expand(3))
        assert torch.equal(condition.context, token[:, None].expand(-1, 6, -1))
        assert torch.equal(condition.time, torch.zeros_like(condition.time))
        x, t = torch.randn(3, 3, 8, 8, generator=rng), torch.tensor([1, 400, 999])
        zeros = torch.zeros(3, prior.time_dim)
        ours = prior.unet(x, t, encoder_hidden_states=condition.context, class_labels=condition.time).sample
        alone = prior.unet(x, t, encoder_hidden_states=token[:, None], class_labels=zeros).sample
    torch.testing.assert_close(ours, alone, atol=1e-5, rtol=1e-5)


def test_every_head_learns_from_a_start(started, rng):
    """Zero maps must not leave gradients at zero for good."""
    betas = torch.randn(3, 32, generator=rng)
    optimizer = torch.optim.SGD(started.parameters(), lr=1e-2)
    for _ in range(2):  # in the first step only the zero layers have a gradient
        optimizer.zero_grad()
        condition = started(betas)
        (condition.context.square().sum() + (condition.time - 1).square().sum()).backward()
        optimizer.step()
    for name, parameter in started.named_parameters():
        if name.startswith(("channel_mapper", "dim_mapper", "time_head", "encoder.blocks")):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_own_start_can_be_replaced(started, rng):
    betas = torch.randn(2, 32, generator=rng)
    other = torch.randn(2, 12, generator=rng)
    assert torch.equal(started(betas, start=other).context, other[:, None].expand(-1, 6, -1))


def test_round_trip(started, dataset, tmp_path):
    started.save_pretrained(tmp_path)
    again = FmriConditioner.from_pretrained(tmp_path)
    betas = np.array(dataset.betas)
    assert torch.equal(again.encode(betas).context, started.encode(betas).context)
    assert torch.equal(again.latent_start(again.prepare(betas)), started.latent_start(started.prepare(betas)))
    for name, array in started.preprocessor.to_tensors().items():
        assert np.array_equal(array, again.preprocessor.to_tensors()[name])
    assert again.label_rows(["cat", None, "bird"], [None, 207, None]) == [0, 1, None]
    assert again.preprocessor.config == started.preprocessor.config


def test_label_condition_is_the_row_of_the_table(conditioner, prior):
    condition = conditioner.label_condition([2, 0])
    assert torch.equal(condition.context[0], prior.label_embedding[2].expand(6, -1))
    assert not condition.time.any()
    assert torch.equal(conditioner.null(1).context[0], prior.label_embedding[4].expand(6, -1))


def test_initial_weights_come_from_the_generator(encoder, preprocessor, prior):
    def build(seed):
        return FmriConditioner.build(
            encoder, preprocessor, prior, generator=torch.Generator().manual_seed(seed)
        )

    one, same, other = build(0), build(0), build(1)
    assert torch.equal(one.dim_mapper.weight, same.dim_mapper.weight)
    assert not torch.equal(one.dim_mapper.weight, other.dim_mapper.weight)
    assert one.dim_mapper.weight.abs().max() <= encoder.config.embed_dim**-0.5
    assert one.config["context_length"] == 77


def test_raw_betas_are_checked(conditioner, dataset):
    with pytest.raises(DataError, match="voxels"):
        conditioner.encode(np.zeros((1, 7), np.float32))


def test_test_trials_may_be_left_raw(encoder, dataset, prior, rng):
    """`test_normalisation=raw` reaches the condition, for trials that are not said to be of training."""
    config = PreprocessConfig(test_normalisation="raw")
    preprocessor = Preprocessor.fit(dataset.betas[dataset.rows("train")], config, patch_size=8)
    model = FmriConditioner.build(encoder, preprocessor, prior, context_length=6, generator=rng)
    betas = np.array(dataset.betas)
    ready = torch.from_numpy(np.pad(betas, ((0, 0), (0, 2)), mode="wrap"))
    assert torch.equal(model.prepare(betas), ready)
    with torch.no_grad():
        assert torch.equal(model.encode(betas).context, model(ready).context)
    scaled = torch.from_numpy(preprocessor(betas))
    assert torch.equal(model.prepare(betas, split="train"), scaled)
    assert not torch.allclose(model.encode(betas, split="train").context, model.encode(betas).context)

import pytest
import torch
from diffusers import UNet2DConditionModel

from cadiff.contrast import FmriMaeConfig
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.trainable import gradients_on_the_way_up, mark_trainable, tuned_unet_parameters


def count(parameters):
    return sum(p.numel() for p in parameters)


@pytest.fixture(scope="module")
def full_size():
    """The published sizes, without memory: the latent diffusion model of Rombach et al. 2022 for ImageNet, GOD subject 3."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=3,
            out_channels=3,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            block_out_channels=(192, 384, 576, 960),
            layers_per_block=2,
            cross_attention_dim=512,
            attention_head_dim=1,
            class_embed_type="identity",
        )
        size = FmriMaeConfig(num_voxels=4656)
        conditioner = FmriConditioner(
            encoder_config=size.model_dump(), preprocess_config={}, context_dim=512, time_dim=768
        )
    return unet, conditioner


def test_parameter_counts_of_the_published_model(full_size):
    unet, conditioner = full_size
    assert (
        count(conditioner.channel_mapper.parameters()) + count(conditioner.dim_mapper.parameters()) == 578_382
    )
    time_head = list(conditioner.time_head.parameters())
    assert count(time_head) == 396_987
    assert count(unet.parameters()) == 400_920_579
    assert count(unet.parameters()) + count(time_head) == 401_317_566
    tuned = tuned_unet_parameters(unet)
    assert len(tuned) + len(time_head) == 118
    assert count(tuned.values()) + count(time_head) == 27_093_627
    assert sum(p.numel() for name, p in tuned.items() if ".norm2." in name) == 21_120
    assert not any(".resnets." in name for name in tuned)


def test_marks_exactly_what_it_lists(full_size):
    unet, conditioner = full_size
    tuned = mark_trainable(unet, conditioner)
    marked = {f"unet.{n}" for n, p in unet.named_parameters() if p.requires_grad}
    marked |= {f"conditioner.{n}" for n, p in conditioner.named_parameters() if p.requires_grad}
    assert marked == set(tuned)
    encoder = [p for n, p in tuned.items() if n.startswith("conditioner.encoder.")]
    assert count(encoder) == 151_560_192 - 292 * 1024 - 1024  # without position table and CLS token
    assert not any("null" in name or "pos_embed" in name for name in tuned)
    released = mark_trainable(unet, conditioner, train_positions=True)
    assert set(released) - set(tuned) == {"conditioner.encoder.pos_embed"}
    assert mark_trainable(unet, conditioner, train_encoder=False, train_positions=True).keys() <= tuned.keys()
    fewer = mark_trainable(unet, conditioner, train_encoder=False, train_null=True, blocks="up")
    assert not any(name.startswith(("conditioner.encoder", "unet.down", "unet.mid")) for name in fewer)
    assert "conditioner.null_time" in fewer


def test_way_up_only_keeps_values_and_cuts_the_other_gradients(prior, rng):
    unet = prior.unet
    unet.requires_grad_(False)
    for parameter in tuned_unet_parameters(unet, "up").values():
        parameter.requires_grad_(True)
    x = torch.randn(2, 3, 8, 8, generator=rng)
    context = torch.randn(2, 4, 12, generator=rng).requires_grad_()
    time = torch.randn(2, prior.time_dim, generator=rng).requires_grad_()

    def run():
        return unet(x, torch.tensor([5, 900]), encoder_hidden_states=context, class_labels=time).sample

    plain = run()
    with gradients_on_the_way_up(unet):
        cut = run()
        cut.square().sum().backward()
    assert torch.equal(plain, cut)
    for name, parameter in tuned_unet_parameters(unet).items():
        assert (parameter.grad is not None) == name.startswith("up_blocks."), name
    assert context.grad is not None and time.grad is not None
    some = context.grad.clone()
    context.grad = None
    run().square().sum().backward()
    assert not torch.allclose(some, context.grad)  # the hooks are gone

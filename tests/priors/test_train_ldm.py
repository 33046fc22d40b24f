import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from cadiff.config import load_config
from cadiff.errors import ConfigError
from cadiff.priors.train_ldm import (
    DiffusionConfig,
    LabelTable,
    build_scheduler,
    build_unet,
    diffusion_loss,
    draw_latents,
    snr_weights,
    train_diffusion,
)
from cadiff.runs import RunFolder

TINY = [
    "channels=[8,16]",
    "cross_attention=[true,true]",
    "norm_groups=4",
    "head_dim=8",
    "layers_per_block=1",
    "context_dim=8",
    "fit={steps: 80, batch_size: 16, learning_rate: 5.0e-3, ema_decay: 0.9}",
]


def tiny(*overrides):
    return load_config(DiffusionConfig, "diffusion", overrides=[*TINY, *overrides])


def parts(config, num_classes=2):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build_unet(config, (3, 4, 4)), LabelTable(num_classes, config.context_dim)


def batch(count=64, seed=0):
    """Latents that their label tells: all +1 or all -1."""
    labels = torch.arange(count) % 2
    noise = 0.1 * torch.randn(count, 1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return {"latents": noise + (2.0 * labels - 1).view(-1, 1, 1, 1, 1), "labels": labels}


def test_untrained_network_predicts_no_noise_so_its_error_is_the_noise_variance():
    config = tiny("min_snr=null")
    terms = diffusion_loss(config, *parts(config))(batch(256), torch.Generator().manual_seed(0))
    assert terms["mse"].item() == pytest.approx(1, abs=0.05)
    assert terms["loss"].item() == pytest.approx(terms["mse"].item())


def test_snr_weights_are_min_snr_over_snr():
    abar = build_scheduler().alphas_cumprod
    weights, snr = snr_weights(abar, 5.0), abar / (1 - abar)
    torch.testing.assert_close(weights * snr, snr.clamp(max=5.0))
    assert (weights[snr < 5] == 1).all() and (weights[snr > 5] < 1).all()
    assert (snr_weights(abar, None) == 1).all()


def test_noise_schedule_is_the_papers():
    betas = build_scheduler().betas
    assert len(betas) == 1000
    assert betas[0].item() == pytest.approx(0.0015) and betas[-1].item() == pytest.approx(0.0195)
    torch.testing.assert_close(
        betas.sqrt().diff(), betas.sqrt().diff().mean().expand(999), rtol=1e-2, atol=1e-6
    )


def attention_gradients(config):
    """Largest gradient of cross-attention's queries and keys, as a share of its values'."""
    unet, table = parts(config)
    torch.nn.init.normal_(unet.conv_out.weight, generator=torch.Generator().manual_seed(0))
    loss = diffusion_loss(config, unet, table)
    for seed in range(12):  # about half of the batches have the longer context
        loss(batch(), torch.Generator().manual_seed(seed))["loss"].backward()
    largest = {
        letter: max(
            p.grad.abs().max().item() for name, p in unet.named_parameters() if f"attn2.to_{letter}" in name
        )
        for letter in "qkv"
    }
    return [largest[letter] / largest["v"] for letter in "qk"]


def test_queries_and_keys_learn_only_from_a_second_token():
    assert max(attention_gradients(tiny("context_tokens=1"))) < 1e-6
    assert min(attention_gradients(tiny("context_tokens=2"))) > 1e-4


def test_context_ends_with_the_label_and_begins_with_no_label():
    table = LabelTable(3, 8)
    labels = torch.tensor([2, 0])
    context = table(labels, 2)
    assert context.shape == (2, 2, 8)
    torch.testing.assert_close(context[:, 1], table.embedding.weight[labels])
    torch.testing.assert_close(context[:, 0], table.embedding.weight[[3, 3]])
    torch.testing.assert_close(table(labels), context[:, 1:])


def test_full_dropout_hides_every_label():
    config = tiny("label_dropout=0.999999")
    unet, table = parts(config)
    torch.nn.init.normal_(unet.conv_out.weight, generator=torch.Generator().manual_seed(0))
    diffusion_loss(config, unet, table)(batch(), torch.Generator().manual_seed(0))["loss"].backward()
    gradient = table.embedding.weight.grad.abs().sum(dim=1)
    assert (gradient[:2] == 0).all() and gradient[2] > 0


def test_trained_denoiser_does_better_with_the_right_label(tmp_path):
    config, data = tiny("label_dropout=0"), batch(64)
    run = RunFolder.open(tmp_path / "diffusion", stage="test", config=config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        facts = train_diffusion(
            config, data["latents"].transpose(0, 1).half(), data["labels"].numpy(), 2, run=run
        )
    assert facts["last_loss"] < 0.5 * run.history()[0]["loss"]
    unet = UNet2DConditionModel.from_pretrained(run.path / "unet").eval()
    table = LabelTable(2, config.context_dim)
    table.embedding.weight.data.copy_(load_file(run.path / "label_embedding.safetensors")["weight"])
    fresh, loss = batch(512, seed=1), diffusion_loss(config, unet, table)
    with torch.no_grad():
        right = loss(fresh, torch.Generator().manual_seed(0))["mse"]
        swapped = loss({**fresh, "labels": 1 - fresh["labels"]}, torch.Generator().manual_seed(0))["mse"]
    assert right < 0.97 * swapped


def test_drawing_is_a_function_of_the_generator():
    config = tiny()
    unet, table = parts(config)
    torch.nn.init.normal_(unet.conv_out.weight, generator=torch.Generator().manual_seed(0))
    draws = [
        draw_latents(
            unet.eval(),
            table.embedding.weight.detach(),
            torch.tensor([0, 1]),
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=3,
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="cross_attention has 3 entries for 2 channels"):
        tiny("cross_attention=[true,true,false]")
    with pytest.raises(ConfigError, match="not a multiple of head_dim 5"):
        tiny("head_dim=5")

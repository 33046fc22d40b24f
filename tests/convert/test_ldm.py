"""CompVis label-to-image checkpoints become priors that compute what the original computes."""

import json

import pytest
import torch

from cadiff.convert import describe, import_weights
from cadiff.convert.ldm_settings import make_schedule
from cadiff.convert.recognise import recognise
from cadiff.errors import ArtifactError, ConfigError
from cadiff.eyes.labels import ANCHORS, are_imagenet
from cadiff.priors.load import load_prior
from layouts import compvis, networks, weights

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def inputs(batch=2, side=16, context=24, length=3):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(batch, 3, side, side, generator=generator)
    return noise, torch.tensor([7, 801])[:batch], torch.randn(batch, length, context, generator=generator)


@torch.no_grad()
def compare(prior, state, time=None):
    unet, vq = networks.sub(state, "model.diffusion_model."), networks.sub(state, "first_stage_model.")
    x, timesteps, context = inputs()
    zero = torch.zeros(len(x), prior.time_dim)
    ours = prior.unet(x, timesteps, encoder_hidden_states=context, class_labels=zero).sample
    torch.testing.assert_close(ours, networks.unet(unet, x, timesteps, context), **CLOSE)
    assert 0.1 < ours.std() < 100
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
    torch.testing.assert_close(prior.encode(images), networks.vq_encode(vq, images), **CLOSE)
    torch.testing.assert_close(prior.decode(x), networks.vq_decode(vq, x), **CLOSE)


@pytest.mark.parametrize("older", [False, True])
def test_prior_computes_what_the_original_does(label_ldm, config_yaml, tmp_path, older):
    source = weights.save(
        tmp_path / "model.ckpt",
        {"state_dict": label_ldm, "epoch": 3, "pytorch-lightning_version": "1.4"},
        older=older,
    )
    made = import_weights(source, tmp_path / "prior")
    assert made.kind == "prior" and made.made
    prior = load_prior(tmp_path / "prior")
    compare(prior, label_ldm)
    assert prior.latent_shape == (3, 16, 16) and prior.image_size == 32 and prior.scaling_factor == 1.0
    assert torch.equal(prior.label_embedding, label_ldm["cond_stage_model.embedding.weight"])
    torch.testing.assert_close(
        prior.scheduler.alphas_cumprod, label_ldm["alphas_cumprod"], rtol=1e-4, atol=1e-7
    )


def test_labels_are_imagenets_and_the_last_row_is_no_label(label_ldm, config_yaml, tmp_path):
    source = weights.save(tmp_path / "model.ckpt", {"state_dict": label_ldm})
    import_weights(source, tmp_path / "prior")
    prior = load_prior(tmp_path / "prior")
    assert (len(prior.classes), prior.null_label, prior.imagenet_index) == (1000, 1000, list(range(1000)))
    assert are_imagenet(prior.classes) and are_imagenet(prior.names)
    assert all(prior.label_rows([wnid]) == [index] for index, (_, wnid) in ANCHORS.items())
    assert prior.label_rows(["zebra"], [340]) == [340]
    shipped = load_prior("shipped")
    for name, index in zip(shipped.classes, shipped.imagenet_index, strict=True):
        assert prior.classes[index] == name
    facts = json.loads((tmp_path / "prior" / "prior.json").read_text())["provenance"]["source"]
    assert facts["file"] == "model.ckpt" and facts["bytes"] == source.stat().st_size


def test_averaged_weights_are_taken_where_asked(label_ldm, config_yaml, tmp_path):
    state = {**label_ldm, **compvis.averaged(label_ldm)}
    source = weights.save(tmp_path / "model.ckpt", {"state_dict": state})
    import_weights(source, tmp_path / "raw")
    import_weights(source, tmp_path / "ema", ema=True)
    raw, ema = load_prior(tmp_path / "raw").unet.state_dict(), load_prior(tmp_path / "ema").unet.state_dict()
    assert raw.keys() == ema.keys()
    assert all(torch.equal(0.5 * raw[name], ema[name]) for name in raw)
    assert ("averages", "kept: --ema takes them") in describe(source)
    del state["model_ema.diffusion_modelout2bias"]
    lost = weights.save(tmp_path / "lost.ckpt", {"state_dict": state})
    with pytest.raises(ArtifactError, match=r"lacks 1 of .* averaged weights"):
        import_weights(lost, tmp_path / "lost", ema=True)
    plain = weights.save(tmp_path / "plain.ckpt", {"state_dict": label_ldm})
    with pytest.raises(ArtifactError, match="keeps no averaged weights"):
        import_weights(plain, tmp_path / "plain", ema=True)


def test_flattened_names_of_averages_are_distinct():
    names = [name.replace(".", "") for name in compvis.unet()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_of_the_file_is_kept(label_ldm, config_yaml, tmp_path, dtype):
    half = {name: value.to(dtype) for name, value in label_ldm.items()}
    source = weights.save(tmp_path / "model.ckpt", {"state_dict": half})
    assert dict(describe(source))["precision"] == str(dtype).removeprefix("torch.")
    import_weights(source, tmp_path / "prior")
    prior = load_prior(tmp_path / "prior")
    assert prior.unet.dtype == torch.float32
    stored = (tmp_path / "prior" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert stored < 2.2 * sum(p.numel() for p in prior.unet.parameters())
    compare(prior, {name: value.float() for name, value in half.items()})


def test_mixed_precision_becomes_float32(label_ldm, config_yaml, tmp_path):
    mixed = {name: value.half() if "attn" in name else value for name, value in label_ldm.items()}
    source = weights.save(tmp_path / "model.ckpt", {"state_dict": mixed})
    assert "float16 (" in dict(describe(source))["precision"]
    import_weights(source, tmp_path / "prior")
    compare(load_prior(tmp_path / "prior"), {name: value.float() for name, value in mixed.items()})


def test_noise_schedule_of_the_file_wins_over_the_published_one(label_ldm, tmp_path):
    state = {name: value for name, value in label_ldm.items() if name not in ("betas", "alphas_cumprod")}
    published = make_schedule(recognise(weights.save(tmp_path / "without.ckpt", {"state_dict": state})))
    known = (published.config["beta_start"], published.config["beta_end"], published.config["beta_schedule"])
    assert known == (0.0015, 0.0195, "scaled_linear")
    assert (
        not published.config["set_alpha_to_one"] and published.config["steps_offset"] == 1
    )  # as PLMS is drawn
    assert published.alphas_cumprod[0].item() == pytest.approx(0.9985)
    assert published.alphas_cumprod[999].item() == pytest.approx(1.423e-4, rel=1e-3)
    curves = {
        "scaled_linear": compvis.noise_buffers(0.00085, 0.012)["betas"],
        "linear": torch.linspace(1e-4, 2e-2, 1000),
        "own": torch.linspace(0.01, 0.1, 500) ** 3,
    }
    for name, betas in curves.items():
        source = weights.save(tmp_path / f"{name}.ckpt", {"state_dict": {**state, "betas": betas}})
        scheduler = make_schedule(recognise(source))
        torch.testing.assert_close(scheduler.betas, betas, rtol=1e-4, atol=1e-9)
        assert (scheduler.config["trained_betas"] is None) == (name != "own")
        assert name == "own" or scheduler.config["beta_schedule"] == name


def test_settings_beside_the_file_are_followed(label_ldm, tmp_path):
    source = weights.save(tmp_path / "model.ckpt", {"state_dict": label_ldm})
    (tmp_path / "config.yaml").write_text(
        "model: {params: {unet_config: {params: {image_size: 16, num_heads: 2}}}}"
    )
    import_weights(source, tmp_path / "prior")
    prior, (x, timesteps, context) = load_prior(tmp_path / "prior"), inputs()
    unet = networks.sub(label_ldm, "model.diffusion_model.")
    with torch.no_grad():
        ours = prior.unet(
            x, timesteps, encoder_hidden_states=context, class_labels=torch.zeros(2, prior.time_dim)
        ).sample
    torch.testing.assert_close(ours, networks.unet(unet, x, timesteps, context, heads=2), **CLOSE)
    (tmp_path / "config.yaml").write_text("model: {params: {parameterization: v}}")
    with pytest.raises(ConfigError, match="the denoiser predicts 'v'; expected eps"):
        import_weights(source, tmp_path / "v")
    (tmp_path / "config.yaml").write_text("model: {params")
    with pytest.raises(ArtifactError, match=r"config\.yaml, beside the checkpoint, cannot be read"):
        import_weights(source, tmp_path / "broken")


def remove(name):
    return lambda state: state.pop(name)


def reshape(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("model.diffusion_model.input_blocks.4.1.proj_in.bias"), "attentions.0.proj_in.bias .* absent"),
        (remove("model.diffusion_model.out.2.weight"), "lacks the weight model.diffusion_model.out.2.weight"),
        (remove("first_stage_model.quantize.embedding.weight"), "lacks the weight first_stage_model.quantize"),
        (reshape("model.diffusion_model.time_embed.2.bias", 7), r"is \(7,\), expected \(128,\)"),
        (reshape("model.diffusion_model.label_emb.weight", 7, 7), "has .* weights, of which only .* are known"),
        (reshape("first_stage_model.encoder.down.0.attn.0.norm.weight", 32), "of its auto-encoder is .* expected no such weight"),
        (reshape("cond_stage_model.embedding.weight", 1001, 99), "labels have width 99, the denoiser attends to 24"),
        (reshape("model.diffusion_model.input_blocks.2.0.in_layers.2.weight", 96, 32, 3, 3), "differ within a level"),
        (reshape("model.diffusion_model.input_blocks.0.0.weight", 3), r"has the shape \(3,\), expected 4 dimensions"),
    ],
)  # fmt: skip
def test_what_is_incomplete_or_strange_is_one_sentence_and_nothing_is_written(
    label_ldm, config_yaml, tmp_path, damage, message
):
    damage(label_ldm)
    source = weights.save(tmp_path / "model.ckpt", {"state_dict": label_ldm})
    with pytest.raises(ArtifactError, match=message) as error:
        import_weights(source, tmp_path / "prior")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*prior*"))


def test_other_latent_diffusion_models_are_named(label_ldm, tmp_path):
    label_ldm.pop("cond_stage_model.embedding.weight")
    unconditional = weights.save(tmp_path / "a.ckpt", {"state_dict": label_ldm})
    with pytest.raises(
        ArtifactError, match="latent diffusion without a label table, which cannot be imported"
    ):
        import_weights(unconditional, tmp_path / "prior")
    label_ldm["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"] = torch.zeros(2, 2)
    text = weights.save(tmp_path / "b.ckpt", {"state_dict": label_ldm})
    with pytest.raises(ArtifactError, match="from_single_file"):
        import_weights(text, tmp_path / "prior")
    assert "not possible" in dict(describe(text))["import"]
    with pytest.raises(ConfigError, match="--dataset is for"):
        label_ldm["cond_stage_model.embedding.weight"] = torch.zeros(1001, 24)
        import_weights(
            weights.save(tmp_path / "c.ckpt", {"state_dict": label_ldm}), tmp_path / "prior", dataset=tmp_path
        )

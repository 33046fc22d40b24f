import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, VQModel

from cadiff.artifacts import read_json, write_json
from cadiff.errors import ArtifactError, ConfigError
from cadiff.priors.load import WEIGHTS, label_rows, load_prior, save_prior
from tiny_networks import AUTOENCODER, seeded
from tiny_networks import unet as tiny_unet


def tiny(kind="vq"):
    shape = {
        **AUTOENCODER,
        "block_out_channels": (4, 4),
        "norm_num_groups": 2,
        "sample_size": 8,
        "scaling_factor": 0.25,
    }
    with seeded(0):
        vae = (
            VQModel(**shape, num_vq_embeddings=16)
            if kind == "vq"
            else AutoencoderKL(**shape, latent_channels=3)
        )
        unet = tiny_unet(
            sample_size=4,
            block_out_channels=(4, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=6,
            norm_num_groups=2,
        )
    return vae.eval(), unet.eval()


ABOUT = {"classes": ["a", "b"], "null_label": 2, "imagenet_index": [7, 9]}


@pytest.fixture
def folder(tmp_path):
    vae, unet = tiny()
    table = torch.arange(18.0).view(3, 6)
    save_prior(
        tmp_path / "prior", vqvae=vae, unet=unet, scheduler=DDIMScheduler(), label_embedding=table, about=ABOUT,
        dtype=torch.float32,
    )  # fmt: skip
    return tmp_path / "prior"


@pytest.fixture
def images():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_round_trip(folder, images):
    prior = load_prior(folder)
    vae, _ = tiny()
    assert prior.classes == ["a", "b"]
    assert prior.null_label == 2
    assert (prior.latent_shape, prior.image_size, prior.context_dim, prior.time_dim) == ((3, 4, 4), 8, 6, 16)
    with torch.no_grad():
        latents = prior.encode(images, batch_size=2)
        torch.testing.assert_close(latents, vae.encode(images).latents * 0.25)
        torch.testing.assert_close(
            prior.decode(latents, batch_size=3), vae.decode(vae.encode(images).latents).sample
        )


def test_zero_time_vector_leaves_the_denoiser_as_it_was(folder):
    prior, (_, unet) = load_prior(folder), tiny()
    x, context = torch.randn(2, 3, 4, 4), torch.randn(2, 1, 6)
    with torch.no_grad():
        ours = prior.unet(x, 10, encoder_hidden_states=context, class_labels=torch.zeros(2, 16)).sample
        torch.testing.assert_close(ours, unet(x, 10, encoder_hidden_states=context).sample)


def test_kl_latents_are_the_scaled_mean(tmp_path, images):
    vae, unet = tiny("kl")
    save_prior(tmp_path / "kl", vqvae=vae, unet=unet, scheduler=DDIMScheduler(), dtype=torch.float32)
    prior = load_prior(tmp_path / "kl")
    assert prior.label_embedding is None
    with torch.no_grad():
        mean = vae.encode(images).latent_dist.mean
        torch.testing.assert_close(prior.encode(images), mean * 0.25)
        torch.testing.assert_close(prior.decode(mean * 0.25), vae.decode(mean).sample)


def test_half_precision_on_disk_is_float32_in_memory(tmp_path):
    vae, unet = tiny()
    save_prior(tmp_path / "half", vqvae=vae, unet=unet, scheduler=DDIMScheduler())
    prior = load_prior(tmp_path / "half")
    assert {p.dtype for part in (prior.vqvae, prior.unet) for p in part.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in prior.unet.parameters())


def test_reads_a_folder_saved_by_diffusers(tmp_path):
    vae, unet = tiny("kl")
    vae.save_pretrained(tmp_path / "sd" / "vae")
    unet.save_pretrained(tmp_path / "sd" / "unet")
    PNDMScheduler(beta_start=0.001, beta_end=0.01, skip_prk_steps=True).save_pretrained(
        tmp_path / "sd" / "scheduler"
    )
    prior = load_prior(tmp_path / "sd")
    assert prior.scaling_factor == 0.25
    assert prior.scheduler.config["beta_end"] == 0.01


@pytest.mark.parametrize("part", ["vqvae", "unet", "scheduler", "unet/config.json", f"unet/{WEIGHTS}"])
def test_a_missing_part_is_named(folder, part):
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=part.split("/")[0]):
        load_prior(folder)


@pytest.mark.parametrize("file", [f"unet/{WEIGHTS}", f"vqvae/{WEIGHTS}", "label_embedding.safetensors"])
@pytest.mark.parametrize("cut", [8, 200, 10**9])
def test_a_truncated_file_is_one_sentence(folder, file, cut):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: max(0, len(data) - cut)])
    with pytest.raises(ArtifactError, match=file.split("/")[0]) as caught:
        load_prior(folder)
    assert "\n" not in str(caught.value)


def test_wrong_folders(folder, tmp_path):
    with pytest.raises(ArtifactError, match="No prior at"):
        load_prior(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactError, match="not an image prior"):
        load_prior(tmp_path / "other")
    swapped = read_json(folder / "unet" / "config.json")
    write_json(folder / "unet" / "config.json", {**swapped, "_class_name": "UNet2DModel"})
    with pytest.raises(ConfigError, match="UNet2DModel, expected a UNet2DConditionModel"):
        load_prior(folder)


def test_parts_that_do_not_fit(folder):
    about = read_json(folder / "prior.json")
    write_json(folder / "prior.json", {**about, "classes": ["a"]})
    with pytest.raises(ConfigError, match="3 label embeddings"):
        load_prior(folder)
    write_json(folder / "prior.json", about)
    config = read_json(folder / "unet" / "config.json")
    write_json(folder / "unet" / "config.json", {**config, "layers_per_block": 2})
    with pytest.raises(ArtifactError, match=r"unet cannot be loaded .*expected shape"):
        load_prior(folder)


def test_a_denoiser_that_predicts_something_else_is_refused(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    write_json(path, {**read_json(path), "prediction_type": "v_prediction"})
    with pytest.raises(ConfigError, match="predicts 'v_prediction'; expected epsilon"):
        load_prior(folder)


@pytest.mark.parametrize("row", [0, 3, -1])
def test_the_null_label_is_the_row_after_the_classes(folder, row):
    about = read_json(folder / "prior.json")
    write_json(folder / "prior.json", {**about, "null_label": row})
    with pytest.raises(ConfigError, match=f"null_label is {row}; expected the last row, 2"):
        load_prior(folder)


def test_labels_are_found_by_index_then_by_name():
    index = pd.array([9, 7, pd.NA, 1, None], dtype="Int64")
    assert label_rows(["a", "b"], ["ay", "bee"], [7, 9], ["?", "b", "bee", "a", None], list(index)) == [
        1,
        0,
        1,
        0,
        None,
    ]
    assert label_rows(["a", "b"], [], None, ["b", np.nan], [7, 9]) == [1, None]


def test_shipped_prior():
    prior = load_prior()
    assert prior.image_size == 64
    assert prior.latent_shape == (3, 16, 16)
    assert (prior.context_dim, prior.time_dim, prior.null_label) == (512, 384, 200)
    assert prior.label_embedding is not None and prior.label_embedding.shape == (201, 512)
    assert prior.label_rows(["n02124075", "Egyptian cat", None], [None, None, 285]) == [0, 0, 0]
    assert prior.image_mae is not None and (prior.image_mae / "config.json").is_file()
    assert prior.folder is not None

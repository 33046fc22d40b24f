"""The published models at full width: names, shapes and counts, without memory; and once with values."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cadiff.contrast import CrossConfig, FmriCross, FmriMae, FmriMaeConfig
from cadiff.convert import fmri, ldm
from cadiff.convert.recognise import SYSTEMS, Found
from cadiff.convert.tensor_refs import StorageRef, TensorRef
from cadiff.convert.torch_files import Contents
from cadiff.convert.weight_file import WeightFile
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.trainable import mark_trainable
from layouts import compvis, networks, weights


def numel(parameters):
    return sum(p.numel() for p in parameters)


def found_in(shapes, tmp_path, about=None):
    """What `recognise` would say of a file with these weights."""
    refs = {}
    for name, shape in shapes.items():
        stride, step = [], 1
        for length in reversed(shape):
            stride.insert(0, step)
            step *= length
        refs[name] = TensorRef(StorageRef(name, "float32", step), 0, shape, tuple(stride))
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"")
    system = next(key for key, entry in SYSTEMS.items() if entry.fits(refs))
    return Found(WeightFile(path, Contents("none", refs, {}, {})), system, refs, about or {})


def test_label_to_image_model(tmp_path):
    found = found_in(compvis.label_ldm(), tmp_path)
    assert found.system == "label-ldm"
    ldm.check(found)  # every weight is there, and every weight is used
    unet, vqvae = ldm.make_unet(found, found.meta, ema=False), ldm.make_vqvae(found, found.meta)
    assert numel(unet.parameters()) == 400_920_579
    assert numel(vqvae.parameters()) == 55_322_782
    assert (
        unet.config["block_out_channels"] == (192, 384, 576, 960)
        and unet.config["class_embed_type"] == "identity"
    )
    assert sum(name.endswith("attn2.to_k.weight") for name in unet.state_dict()) == 16
    assert (unet.config["sample_size"], vqvae.config["sample_size"], vqvae.config["scaling_factor"]) == (
        64,
        256,
        1.0,
    )
    said = dict(ldm.facts(found))
    assert (
        "400,920,579" in said["denoiser"]
        and "55,322,782" in said["auto-encoder"]
        and "1,001" in said["labels"]
    )
    assert numel(weights.on_meta({**compvis.unet(), **compvis.time_head()}).values()) == 401_317_566


@pytest.mark.parametrize(
    ("tokens", "encoder", "decoder"), [(291, 151_560_192, 13_307_920), (262, 151_530_496, 13_293_072)]
)
def test_phase_1(tmp_path, tokens, encoder, decoder):
    found = found_in({**weights.fmri_encoder(tokens), **weights.fmri_decoder(tokens)}, tmp_path)
    config = fmri.sizes(found)
    assert found.system == "fmri-mae" and config == FmriMaeConfig(num_voxels=16 * tokens)
    fmri.check(found)
    said = dict(fmri.facts(found))
    assert f"{encoder:,}" in said["encoder"] and f"{decoder:,}" in said["decoder"]
    with torch.device("meta"):
        model = FmriMae(config)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        **weights.fmri_encoder(tokens),
        **weights.fmri_decoder(tokens),
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    assert numel(model.parameters()) == encoder + decoder
    assert tokens != 291 or numel(trained) == 164_419_600


def test_phase_2(tmp_path):
    shapes = {**weights.fmri_encoder(262), **weights.fmri_decoder(262, depth=6), **weights.cross_part()}
    found = found_in(shapes, tmp_path)
    assert found.system == "fmri-cross"
    fmri.check(found)
    config, cross = fmri.sizes(found), fmri.cross_sizes(found)
    assert (config.num_voxels, config.decoder_depth, cross) == (4192, 6, CrossConfig())
    with torch.device("meta"):
        model = FmriCross(config, cross)
    assert numel(model.parameters()) == 191_592_976
    assert numel(model.cross_blocks.parameters()) == 28_350_720


@pytest.mark.parametrize(("depth", "decoder"), [(8, 26_109_184), (6, 19_804_416)])
def test_image_auto_encoder_of_base_size(tmp_path, depth, decoder):
    from cadiff.convert import image_mae

    found = found_in({**weights.image_encoder(), **weights.image_decoder(depth=depth)}, tmp_path)
    assert found.system == "facebook-mae"
    image_mae.check(found)
    said = dict(image_mae.facts(found))
    assert (
        "85,798,656" in said["encoder"]
        and f"{decoder:,}" in said["decoder"]
        and "12 heads" in said["encoder"]
    )
    large = image_mae.mae_config(found_in(weights.image_encoder(1024, 24), tmp_path))
    huge = image_mae.mae_config(found_in(weights.image_encoder(1280, 32, 14, 256), tmp_path))
    assert (large.num_attention_heads, huge.num_attention_heads, huge.image_size) == (16, 16, 224)


def test_tuned_model_and_what_tuning_trains(tmp_path):
    from cadiff.convert import brain_ldm

    found = found_in(compvis.brain_ldm(), tmp_path)
    assert found.system == "brain-ldm"
    brain_ldm.check(found)
    size = fmri.sizes(found, brain_ldm.MAE)
    heads = brain_ldm.head_weights(found, size)
    parts = {
        part: sum(ref.numel for name, ref in heads.items() if name.startswith(part))
        for part in ("time_head", "")
    }
    assert parts == {"time_head": 396_987, "": 396_987 + 578_382}
    unet, vqvae = ldm.make_unet(found, found.meta, ema=False), ldm.make_vqvae(found, found.meta)
    with torch.device("meta"):
        conditioner = FmriConditioner(
            encoder_config=size.model_dump(), preprocess_config={}, context_dim=512, time_dim=768
        )  # fmt: skip
    tuned = mark_trainable(unet, conditioner)
    denoiser = {name: p for name, p in tuned.items() if name.startswith(("unet.", "conditioner.time_head."))}
    assert (len(denoiser), numel(denoiser.values())) == (118, 27_093_627)
    rest = numel(p for name, p in tuned.items() if name not in denoiser)
    assert (
        rest == 578_382 + 151_560_192 - 292 * 1024 - 1024
    )  # mappers, encoder without positions and CLS token
    assert numel(p for p in unet.parameters() if p.requires_grad) == 27_093_627 - 396_987
    assert numel(p for p in vqvae.parameters() if p.requires_grad) == 0


IMPORT = """
import resource, sys
from pathlib import Path
from cadiff.convert import import_weights
source, out, dataset = sys.argv[1:4]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import torch, diffusers.loaders.single_file_utils, cadiff.convert.importing
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_weights(Path(source), Path(out), dataset=Path(dataset) if dataset else None)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def import_and_measure(source: Path, out: Path, dataset: Path | str = "") -> int:
    """Imports in a process of its own; bytes of memory that it took at most, beyond the libraries."""
    command = [sys.executable, "-c", IMPORT, str(source), str(out), str(dataset)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@torch.no_grad()
def test_label_to_image_model_at_full_width_with_values(tmp_path):
    from cadiff.priors.load import load_prior

    state = {**compvis.noise_buffers(), **weights.fill(compvis.label_ldm())}
    source = weights.save(tmp_path / "model.ckpt", {"state_dict": state})
    size = source.stat().st_size
    assert size > 1.8e9
    assert import_and_measure(source, tmp_path / "prior") < 2 * size
    prior = load_prior(tmp_path / "prior")
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 3, 16, 16, generator=generator), torch.randn(1, 77, 512, generator=generator)
    timesteps = torch.tensor([501])
    ours = prior.unet(x, timesteps, encoder_hidden_states=context, class_labels=torch.zeros(1, 768)).sample
    theirs = networks.unet(networks.sub(state, "model.diffusion_model."), x, timesteps, context)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    pictures = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    first_stage = networks.sub(state, "first_stage_model.")
    torch.testing.assert_close(
        prior.encode(pictures), networks.vq_encode(first_stage, pictures), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(prior.decode(x), networks.vq_decode(first_stage, x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_phase_2_at_full_width_with_values(tmp_path):
    from cadiff.contrast import load_encoder

    state = weights.fill(
        {**weights.fmri_encoder(291), **weights.fmri_decoder(291, depth=6), **weights.cross_part()}
    )
    source = weights.save(
        tmp_path / "c.pth", {"model": state, "epoch": 60}, num_heads=16, decoder_num_heads=16
    )
    assert import_and_measure(source, tmp_path / "encoder") < 2 * source.stat().st_size
    model, _ = load_encoder(tmp_path / "encoder")
    x = torch.randn(2, 4656, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        model.tokens(x), networks.fmri_tokens(state, x, heads=16), atol=1e-5, rtol=1e-5
    )

"""The encoder folder: bit-for-bit round trips, and refusals that say why."""

import json

import numpy as np
import pytest
import torch

from cadiff.artifacts import save_artifact
from cadiff.contrast import (
    CrossConfig,
    FmriCross,
    FmriEncoder,
    FmriMae,
    FmriMaeConfig,
    load_encoder,
    save_encoder,
)
from cadiff.contrast.encoder_folder import fit_preprocessor, preprocessor_for
from cadiff.contrast.mae import initialise
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig
from cadiff.errors import ArtifactError

CROSS = CrossConfig(width=12, depth=1, num_heads=3, mlp_dim=20)


def build(name, config):
    return (
        FmriCross(config, CROSS)
        if name == "FmriCross"
        else {"FmriEncoder": FmriEncoder, "FmriMae": FmriMae}[name](config)
    )


@pytest.mark.parametrize("name", ["FmriEncoder", "FmriMae", "FmriCross"])
def test_round_trip_is_bit_for_bit(name, tiny, generator, make_subject, tmp_path):
    data = BrainDataset.open(make_subject())
    preprocessor = fit_preprocessor(data, PreprocessConfig(normalise="voxel"), patch_size=4)
    model = build(name, FmriMaeConfig(**tiny.model_dump(), num_voxels=preprocessor.num_voxels))
    initialise(model, generator)
    folder = save_encoder(tmp_path / "encoder", model, preprocessor, {})
    loaded, again = load_encoder(folder)
    assert type(loaded) is type(model) and not loaded.training
    old, new = model.state_dict(), loaded.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    assert not loaded.pos_embed.requires_grad and loaded.cls_token.requires_grad
    betas = np.asarray(data.betas[:5])
    assert np.array_equal(preprocessor(betas), again(betas))
    inputs = torch.from_numpy(again(betas))
    assert torch.equal(loaded.tokens(inputs), model.eval().tokens(inputs))


def test_statistics_are_those_of_the_subject_at_hand(tiny, generator, make_subject, tmp_path):
    own, other = (BrainDataset.open(make_subject(n, v, s)) for n, v, s in (("own", 30, 0), ("other", 21, 1)))
    stored = fit_preprocessor(own, PreprocessConfig(), patch_size=4)
    encoder = FmriEncoder(FmriMaeConfig(**tiny.model_dump(), num_voxels=stored.num_voxels))
    same = preprocessor_for(own, encoder, stored.config)
    assert all(np.array_equal(a, same.to_tensors()[key]) for key, a in stored.to_tensors().items())
    with pytest.warns(
        UserWarning, match="other has 21 voxels and the encoder reads 32: its last 11 places repeat"
    ):
        fitted = preprocessor_for(other, encoder, stored.config)
    train = fitted(np.asarray(other.betas[other.rows("train")]))
    assert train.shape == (24, 32)  # the encoder's length, not the subject's 24
    np.testing.assert_allclose(train[:, :21].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(train[:, :21].std(0), 1, atol=1e-3)
    np.testing.assert_array_equal(train[:, 21:], train[:, :11])  # wrapped


def test_voxels_that_an_encoder_of_another_length_cannot_read_are_counted(tiny, make_subject):
    data, config = BrainDataset.open(make_subject(num_voxels=40)), PreprocessConfig()
    encoder = FmriEncoder(FmriMaeConfig(**tiny.model_dump(), num_voxels=32))
    with pytest.warns(
        UserWarning, match="subject has 40 voxels and the encoder reads 32: the last 8 are left out"
    ):
        fitted = preprocessor_for(data, encoder, config)
    changed = np.array(data.betas[:4])
    changed[:, 32:] += 100
    np.testing.assert_array_equal(fitted(changed), fitted(data.betas[:4]))
    chosen = config.model_copy(update={"rois": ["V1"]})
    with pytest.warns(UserWarning, match="40 voxels in V1 and"):
        preprocessor_for(data, encoder, chosen)
    assert preprocessor_for(data, encoder, config, own_length=True).num_voxels == 40  # and not a word


def test_weights_of_other_sizes_are_refused_by_name(tiny, make_subject, tmp_path):
    data = BrainDataset.open(make_subject())
    preprocessor = fit_preprocessor(data, PreprocessConfig(), patch_size=4)
    model = FmriEncoder(FmriMaeConfig(**tiny.model_dump(), num_voxels=32))
    folder = save_encoder(tmp_path / "good", model, preprocessor, {})
    about = json.loads((folder / "config.json").read_text())["config"]
    tensors = {
        **model.state_dict(),
        **{f"preprocess.{k}": torch.from_numpy(v) for k, v in preprocessor.to_tensors().items()},
    }
    save_artifact(
        tmp_path / "bad",
        kind="fmri-encoder",
        config={**about, "class": "FmriMae"},
        tensors=tensors,
        provenance={},
    )
    with pytest.raises(ArtifactError, match=r"weight decoder_blocks.0.attn.proj.bias is absent"):
        load_encoder(tmp_path / "bad")
    save_artifact(
        tmp_path / "new",
        kind="fmri-encoder",
        config={**about, "class": "Next"},
        tensors=tensors,
        provenance={},
    )
    with pytest.raises(ArtifactError, match="does not know"):
        load_encoder(tmp_path / "new")

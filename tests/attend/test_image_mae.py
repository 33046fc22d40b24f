"""Loading image auto-encoders: precision, decoder depth, normalisation, refusals."""

import json

import pytest
import torch

from cadiff.attend.image_mae import find_image_mae, load_image_mae
from cadiff.errors import ArtifactError


def test_half_precision_folder_is_loaded_in_float32(image_mae):
    loaded = load_image_mae(image_mae)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert (loaded.mean, loaded.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_decoder_keeps_its_first_blocks(image_mae):
    whole, cut = load_image_mae(image_mae).model, load_image_mae(image_mae, decoder_depth=2).model
    assert len(cut.decoder.decoder_layers) == 2
    for kept, first in zip(cut.decoder.decoder_layers, whole.decoder.decoder_layers, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), first.parameters(), strict=True))
    assert len(load_image_mae(image_mae, decoder_depth=9).model.decoder.decoder_layers) == 3


def test_normalisation_falls_back_to_what_the_folder_knows(image_mae):
    (image_mae / "input.json").unlink()
    assert load_image_mae(image_mae).mean == (0.485, 0.456, 0.406)
    about = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0]}
    (image_mae / "preprocessor_config.json").write_text(json.dumps(about))
    assert load_image_mae(image_mae).std == (1.0, 2.0, 3.0)


def test_shipped_model_and_prior_folders_are_found(image_mae, tmp_path):
    assert find_image_mae(tmp_path) == image_mae  # a folder that holds image_mae/
    shipped = load_image_mae("shipped").model
    assert (shipped.config.image_size, shipped.config.hidden_size) == (64, 256)


def test_what_is_not_an_image_mae_is_refused(image_mae, tmp_path):
    with pytest.raises(ArtifactError, match="holds no image auto-encoder"):
        load_image_mae(tmp_path / "nothing")
    (image_mae / "model.safetensors").rename(image_mae / "elsewhere")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_image_mae(image_mae)
    about = json.loads((image_mae / "config.json").read_text())
    (image_mae / "config.json").write_text(json.dumps({**about, "model_type": "vit"}))
    with pytest.raises(ArtifactError, match="holds a vit, expected a vit_mae"):
        load_image_mae(image_mae)


def test_an_encoder_without_decoder_is_refused(image_mae):
    model = load_image_mae(image_mae).model
    model.vit.save_pretrained(image_mae)
    with pytest.raises(ArtifactError, match="encoder and decoder"):
        load_image_mae(image_mae)

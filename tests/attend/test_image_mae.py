"""Loading image auto-encoders: precision, decoder depth, normalisation, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    adapted = tmp_path / "adapted"
    adapted.mkdir()
    (adapted / "prior.json").write_text(json.dumps({"base": str(tmp_path)}))
    assert find_image_mae(adapted) == image_mae  # that of the prior it was made of
    shipped = load_image_mae("shipped").model
    assert (shipped.config.image_size, shipped.config.hidden_size) == (64, 256)


def test_position_tables_are_those_of_the_folder_or_the_published_sines(image_mae):
    weights = load_file(image_mae / "model.safetensors")
    names = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
    stored = load_image_mae(image_mae).model.state_dict()
    assert all(torch.equal(stored[name], weights[name].float()) for name in names)
    rest = {name: value for name, value in weights.items() if name not in names}
    save_file(rest, image_mae / "model.safetensors", metadata={"format": "pt"})
    model = load_image_mae(image_mae).model
    for name in names:
        table = model.get_parameter(name)
        assert not table.requires_grad
        assert table.isfinite().all() and (table[0, 0] == 0).all()
        dim = table.shape[2]
        for row in range(4):
            for column in range(4):
                w = 10000.0 ** -(
                    torch.arange(dim // 4) / (dim // 4)
                )  # columns first, then rows: sines, cosines
                parts = [(column * w).sin(), (column * w).cos(), (row * w).sin(), (row * w).cos()]
                torch.testing.assert_close(table[0, 1 + 4 * row + column], torch.cat(parts))


@pytest.mark.parametrize("cut", [8, 10**9])
def test_a_truncated_file_is_one_sentence(image_mae, cut):
    data = (image_mae / "model.safetensors").read_bytes()
    (image_mae / "model.safetensors").write_bytes(data[: max(0, len(data) - cut)])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_image_mae(image_mae)


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

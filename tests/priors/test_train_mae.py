import pytest
import torch
from transformers import ViTMAEForPreTraining

from cadiff.artifacts import read_json
from cadiff.config import load_config
from cadiff.errors import ConfigError
from cadiff.priors.train_mae import (
    ImageMaeConfig,
    build_image_mae,
    image_mae_loss,
    normalise,
    random_crop,
    sine_positions,
    train_image_mae,
)
from cadiff.runs import RunFolder

TINY = [
    "patch_size=4",
    "embed_dim=16",
    "depth=1",
    "num_heads=2",
    "decoder_embed_dim=16",
    "decoder_depth=1",
    "decoder_num_heads=2",
    "fit={steps: 30, batch_size: 16, learning_rate: 5.0e-3, ema_decay: 0.8}",
]


def tiny(*overrides):
    return load_config(ImageMaeConfig, "image_mae", overrides=[*TINY, *overrides])


def test_normalising_matches_its_inverse(shapes):
    config = tiny()
    x = normalise(torch.from_numpy(shapes[0]), config)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.pixel_mean, config.pixel_std))
    back = ((x * std + mean) * 255).round().byte().permute(0, 2, 3, 1)
    assert torch.equal(back, torch.from_numpy(shapes[0]))


def test_whole_crops_are_the_picture_or_its_mirror_image(shapes):
    x = normalise(torch.from_numpy(shapes[0]), tiny())
    same = random_crop(x, 1, flip=False, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, x, atol=1e-4, rtol=0)
    flipped = random_crop(x, 1, flip=True, generator=torch.Generator().manual_seed(0))
    close = [(flipped - y).abs().amax(dim=(1, 2, 3)) < 1e-4 for y in (x, x.flip(3))]
    assert (close[0] | close[1]).all() and close[1].any() and not close[1].all()


def test_crops_stay_inside_the_picture():
    ramp = torch.linspace(-1, 1, 16).expand(64, 3, 16, 16).contiguous()
    crop = random_crop(ramp, 0.35, flip=False, generator=torch.Generator().manual_seed(0))
    assert crop.abs().max() <= 1 + 1e-5
    steps = crop.diff(dim=3)[:, :, :, 2:-2]
    assert (steps > 0).all()  # order is kept
    assert (steps.mean(dim=(1, 2, 3)) <= ramp.diff(dim=3).mean() * 1.01).all()  # magnified, never shrunk


def test_autocast_moves_no_pixel():
    x = torch.rand(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    plain = random_crop(x, 0.35, flip=True, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = random_crop(x, 0.35, flip=True, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, plain)


def test_positions_of_the_stored_model_tell_every_patch_apart(tmp_path):
    build_image_mae(tiny(), 16).half().save_pretrained(tmp_path / "mae")
    model = ViTMAEForPreTraining.from_pretrained(tmp_path / "mae", dtype=torch.float32)
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert (table[0, 0] == 0).all()
        distances = torch.cdist(table[0, 1:], table[0, 1:]) + 9 * torch.eye(16)
        assert distances.min() > 0.5


def test_products_of_positions_depend_on_the_displacement_only():
    table = sine_positions(5, 16).reshape(5, 5, 16)  # (row, column, dim)
    products = torch.einsum("rcd,sed->rcse", table, table)
    torch.testing.assert_close(products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1])
    torch.testing.assert_close(table.square().sum(dim=2), torch.full((5, 5), 8.0))


def test_loss_is_a_function_of_batch_and_generator(shapes):
    config = tiny()
    loss, batch = image_mae_loss(config, build_image_mae(config, 16)), torch.from_numpy(shapes[0])
    values = [loss(batch, torch.Generator().manual_seed(seed))["loss"].item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_training_lowers_the_loss_and_stores_a_transformers_model(tmp_path, shapes):
    config = tiny()
    run = RunFolder.open(tmp_path / "image_mae", stage="test", config=config)
    facts = train_image_mae(config, shapes[0][:40], shapes[0][40:], run=run)
    losses = [record["loss"] for record in run.history()]
    assert losses[-1] < losses[0] and facts["heldout_loss"] < losses[0]
    model = ViTMAEForPreTraining.from_pretrained(run.path / "image_mae")
    assert model.config.image_size == 16 and model.config.norm_pix_loss
    about = read_json(run.path / "image_mae" / "input.json")
    assert about["mean"] == list(config.pixel_mean) and about["std"] == list(config.pixel_std)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="embed_dim 16 is not a multiple of num_heads 3"):
        tiny("num_heads=3")

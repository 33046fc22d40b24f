from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from cadiff.errors import ArtifactError, DataError
from cadiff.eyes.pixels import Preprocessing, from_timm, from_transformers

PROCESSORS = {
    "vit": "ViT",
    "deit": "DeiT",
    "beit": "Beit",
    "siglip": "Siglip",
    "clip": "CLIP",
    "bit": "Bit",
    "convnext": "ConvNext",
    "efficientnet": "EfficientNet",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
}


@pytest.fixture
def photos(rng):
    small = rng.integers(0, 256, (2, 9, 12, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((320, 290), Image.Resampling.BICUBIC)) for x in small]
    )


@pytest.mark.parametrize("module, kind", PROCESSORS.items())
@pytest.mark.parametrize("settings", [{}, {"resample": 3}, {"size": 1}, {"rescale_factor": 1 / 127.5}])
def test_prepares_as_transformers_does(photos, module, kind, settings):
    pytest.importorskip(f"transformers.models.{module}.image_processing_pil_{module}")
    library = import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    if "size" in settings:
        settings = {
            "size": {"shortest_edge": 200} if kind in ("CLIP", "ConvNext") else {"height": 90, "width": 70}
        }
    theirs = getattr(library, f"{kind}ImageProcessorPil")(**settings)
    ours = from_transformers(theirs.to_dict(), "here")
    expected = theirs(images=list(photos), return_tensors="pt")["pixel_values"].numpy()
    found = ours(photos).numpy()
    assert found.shape == expected.shape
    # PIL rounds to whole grey levels twice, once an axis.
    assert np.abs(found - expected).max() * min(ours.std) * 255 < 1.3


def test_old_files_without_a_type_are_vits_and_sizes_may_be_numbers():
    old = {
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": 224,
    }
    assert from_transformers(old, "here") == Preprocessing(
        (224, 224), None, "stretch", "bilinear", (0.5,) * 3, (0.5,) * 3
    )
    clip = {**old, "feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 200, "resample": 3}
    assert from_transformers(clip, "here") == Preprocessing(
        (224, 224), (200, 200), "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3
    )


@pytest.mark.parametrize(
    "change, says",
    [
        ({"image_processor_type": "Sam2ImageProcessor"}, "asks for a Sam2ImageProcessor; known are"),
        ({"size": None}, "does not state 'size'"),
        ({"image_mean": None}, "does not state 'image_mean'"),
        ({"size": {"longest_edge": 5}}, "expected height and width, or shortest_edge"),
        ({"resample": 1}, "resampling 1; known are"),
    ],
)
def test_what_is_not_known_is_refused(change, says):
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224, **change}
    with pytest.raises(ArtifactError, match=says):
        from_transformers(config, "folder/preprocessor_config.json")


def test_timm_resizes_by_its_crop_share():
    config = {
        "input_size": [3, 224, 224],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.4] * 3,
        "std": [0.2] * 3,
    }
    found = from_timm(config, "here")
    assert found == Preprocessing((248, 248), (224, 224), "shortest", "bicubic", (0.4,) * 3, (0.2,) * 3)
    squashed = from_timm({**config, "crop_mode": "squash", "crop_pct": 1.0}, "here")
    assert (squashed.size, squashed.fit) == ((224, 224), "stretch")
    for change in ({"crop_mode": "border"}, {"interpolation": "random"}, {"input_size": [3, 224, 192]}):
        with pytest.raises(ArtifactError, match="squares with crop mode center"):
            from_timm({**config, **change}, "here")


def test_grey_stays_grey_and_the_centre_is_kept():
    prepare = Preprocessing((20, 20), (20, 20), mean=(0.5,) * 3, std=(0.25,) * 3)
    flat = np.full((1, 40, 60, 3), 204, np.uint8)
    flat[:, :, :9], flat[:, :, 51:] = 0, 255  # left and right of what is kept
    found = prepare(flat)
    assert found.shape == (1, 3, 20, 20)
    np.testing.assert_allclose(found.numpy(), (0.8 - 0.5) / 0.25, atol=1e-5)


def test_a_crop_larger_than_the_picture_is_filled_with_black():
    found = Preprocessing(None, (5, 8), mean=(0.0,) * 3, std=(1.0,) * 3)(
        np.full((1, 4, 4, 3), 255, np.uint8)
    )[0, 0]
    assert found.shape == (5, 8)
    assert found.sum() == 16 and found[:4, 2:6].min() == 1


def test_says_in_words_what_it_does_and_refuses_other_arrays():
    words = str(Preprocessing((256, 256), (224, 224), interpolation="bicubic"))
    assert words.startswith("shortest edge to 256, bicubic, antialiased; central 224 x 224; (x - [0.485")
    for wrong in (np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((2, 3, 4, 4), np.uint8)):
        with pytest.raises(DataError, match="uint8 RGB"):
            Preprocessing(None)(wrong)

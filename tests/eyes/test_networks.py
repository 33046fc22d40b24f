"""The convolutional eyes against forwards written from the papers' tables, and against torchvision where it is installed."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from cadiff.errors import ArtifactError, ConfigError
from cadiff.eyes import EYES, MINDEYE, load_eye
from cadiff.eyes.efficientnet import EfficientNetB1
from cadiff.eyes.inception import InceptionV3
from cadiff.eyes.resnet import ResNet50
from cadiff.eyes.weights import fill, read_weights


def randomised(network, seed=0):
    """Weights that keep values in range, and normalisations that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
            ):
                value.uniform_(low, high, generator=generator)
    return network.eval()


@pytest.fixture
def pictures():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def normalise(w, name, x, eps=1e-5):
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    scale = w[f"{name}.weight"] / torch.sqrt(var + eps)
    return x * scale[:, None, None] + (w[f"{name}.bias"] - mean * scale)[:, None, None]


def resnet50(w, x):
    """He et al. 2016, Table 1, 50 layers; the stride in the 3 x 3 convolution."""
    x = F.relu(normalise(w, "bn1", F.conv2d(x, w["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            y = F.relu(normalise(w, name + "bn1", F.conv2d(x, w[name + "conv1.weight"])))
            y = F.conv2d(y, w[name + "conv2.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(normalise(w, name + "bn2", y)), w[name + "conv3.weight"])
            y = normalise(w, name + "bn3", y)
            if block == 0:
                short = F.conv2d(x, w[name + "downsample.0.weight"], stride=stride)
                x = normalise(w, name + "downsample.1", short)
            x = F.relu(x + y)
    return x.mean((2, 3))


def efficientnet_b1(w, x):
    """Tan & Le 2019, Table 1, depths times 1.1 and rounded up."""

    def conv(name, x, stride=1, groups=1, act=True):
        kernel = w[f"{name}.0.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        x = normalise(w, f"{name}.1", x)
        return x * torch.sigmoid(x) if act else x

    x = conv("features.0", x, 2)
    depths, strides = (2, 3, 3, 4, 4, 5, 2), (1, 2, 2, 2, 1, 2, 1)
    for stage, (depth, stride) in enumerate(zip(depths, strides, strict=True), start=1):
        for block in range(depth):
            name, y, place = f"features.{stage}.{block}.block.", x, 0
            if stage > 1:
                y, place = conv(f"{name}0", y), 1
            y = conv(f"{name}{place}", y, stride if block == 0 else 1, groups=y.shape[1])
            s = y.mean((2, 3), keepdim=True)
            s = F.conv2d(s, w[f"{name}{place + 1}.fc1.weight"], w[f"{name}{place + 1}.fc1.bias"])
            s = F.conv2d(
                s * torch.sigmoid(s), w[f"{name}{place + 1}.fc2.weight"], w[f"{name}{place + 1}.fc2.bias"]
            )
            y = conv(f"{name}{place + 2}", y * torch.sigmoid(s), act=False)
            x = x + y if block else y
    return conv("features.8", x).mean((2, 3))


def inception_v3(w, x):
    """Szegedy et al. 2016, Table 1, with the modules of Figures 5 to 7 and 10."""

    def conv(name, x, stride=1, padding=(0, 0)):
        x = F.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
        return F.relu(normalise(w, f"{name}.bn", x, 1e-3))

    def pooled(name, x):
        return conv(f"{name}.branch_pool", F.avg_pool2d(x, 3, 1, 1))

    x = conv("Conv2d_1a_3x3", x, 2)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x), padding=1)
    x = conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2)))
    x = F.max_pool2d(x, 3, 2)
    for m in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = conv(f"{m}.branch5x5_2", conv(f"{m}.branch5x5_1", x), padding=2)
        three = conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), padding=1)
        three = conv(f"{m}.branch3x3dbl_3", three, padding=1)
        x = torch.cat([conv(f"{m}.branch1x1", x), five, three, pooled(m, x)], 1)
    three = conv("Mixed_6a.branch3x3dbl_2", conv("Mixed_6a.branch3x3dbl_1", x), padding=1)
    three = conv("Mixed_6a.branch3x3dbl_3", three, 2)
    x = torch.cat([conv("Mixed_6a.branch3x3", x, 2), three, F.max_pool2d(x, 3, 2)], 1)
    for m in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        seven = conv(f"{m}.branch7x7_2", conv(f"{m}.branch7x7_1", x), padding=(0, 3))
        seven = conv(f"{m}.branch7x7_3", seven, padding=(3, 0))
        twice = conv(f"{m}.branch7x7dbl_1", x)
        for i, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            twice = conv(f"{m}.branch7x7dbl_{i}", twice, padding=padding)
        x = torch.cat([conv(f"{m}.branch1x1", x), seven, twice, pooled(m, x)], 1)
    three = conv("Mixed_7a.branch3x3_2", conv("Mixed_7a.branch3x3_1", x), 2)
    seven = conv("Mixed_7a.branch7x7x3_2", conv("Mixed_7a.branch7x7x3_1", x), padding=(0, 3))
    seven = conv("Mixed_7a.branch7x7x3_4", conv("Mixed_7a.branch7x7x3_3", seven, padding=(3, 0)), 2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    for m in ("Mixed_7b", "Mixed_7c"):
        parts = [conv(f"{m}.branch1x1", x)]
        deep = conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), padding=1)
        for name, y in (("branch3x3_2", conv(f"{m}.branch3x3_1", x)), ("branch3x3dbl_3", deep)):
            parts += [conv(f"{m}.{name}a", y, padding=(0, 1)), conv(f"{m}.{name}b", y, padding=(1, 0))]
        x = torch.cat([*parts, pooled(m, x)], 1)
    return x.mean((2, 3))


# With the parameters that torchvision counts for the whole network, less its classes (and Inception's side branch).
NETWORKS = {
    "swav": (ResNet50, resnet50, 25_557_032 - 2_049_000),
    "efficientnet-b1": (EfficientNetB1, efficientnet_b1, 7_794_184 - 1_281_000),
    "inception": (InceptionV3, inception_v3, 27_161_264 - 2_049_000 - 3_326_696),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_papers_table(name, pictures):
    build, forward, parameters = NETWORKS[name]
    network = randomised(build())
    assert sum(p.numel() for p in network.parameters()) == parameters
    with torch.inference_mode():
        expected = forward(network.state_dict(), pictures)
        found = network(pictures)["avgpool"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    "name, model",
    [("swav", "resnet50"), ("efficientnet-b1", "efficientnet_b1"), ("inception", "inception_v3")],
)
def test_equals_torchvision(name, model, pictures):
    try:
        import torchvision
    except (ImportError, RuntimeError):  # RuntimeError: it was built for another torch
        pytest.skip("torchvision is not installed, or not for this torch")
    theirs = randomised(getattr(torchvision.models, model)(weights=None))
    ours = NETWORKS[name][0]()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    seen = []
    theirs.avgpool.register_forward_hook(lambda _, __, output: seen.append(output.flatten(1)))
    with torch.inference_mode():
        theirs(pictures)
        torch.testing.assert_close(ours.eval()(pictures)["avgpool"], seen[0], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def swav_file(tmp_path_factory):
    """As its authors give it out: the names of parallel training, and heads that are not needed."""
    state = {f"module.{name}": value for name, value in randomised(ResNet50()).state_dict().items()}
    state |= {
        "module.projection_head.0.weight": torch.zeros(4, 4),
        "module.prototypes.weight": torch.zeros(4, 4),
    }
    path = tmp_path_factory.mktemp("swav") / "swav_800ep_pretrain.pth.tar"
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, path)
    return path


def test_an_eye_gives_rows_of_features_and_says_where_they_come_from(swav_file, rng):
    eye = load_eye("swav", swav_file, "cpu")
    images = rng.integers(0, 256, (3, 50, 50, 3), dtype=np.uint8)
    found = eye.features(images, batch_size=2)
    assert {layer: value.shape for layer, value in found.items()} == {"avgpool": (3, 2048)}
    np.testing.assert_allclose(found["avgpool"][2:], eye.features(images[2:])["avgpool"], rtol=1e-4)
    pieces = [batch["avgpool"] for batch in eye.batches(images, batch_size=2)]
    assert [len(piece) for piece in pieces] == [2, 1]
    np.testing.assert_array_equal(np.concatenate(pieces), found["avgpool"])
    assert list(eye.digest()) == ["swav_800ep_pretrain.pth.tar"]
    with pytest.raises(ConfigError, match="swav has avgpool"):
        eye.features(images, ("relu2",))


def test_every_row_of_mindeye_has_its_eye_and_layer():
    assert all(row.layer in EYES[row.eye].layers for row in MINDEYE)
    assert [row.label for row in MINDEYE] == [
        "AlexNet(2)",
        "AlexNet(5)",
        "Inception",
        "CLIP",
        "EffNet-B",
        "SwAV",
    ]
    assert all((row.chance == 0.5) == row.higher_is_better == (row.kind == "two_way") for row in MINDEYE)


def test_wrong_files_are_one_sentence(tmp_path, swav_file):
    with pytest.raises(
        ArtifactError, match=r"not at .*nowhere.pth: expected a file of torchvision's inception_v3"
    ):
        load_eye("inception", tmp_path / "nowhere.pth")
    with pytest.raises(
        ArtifactError, match=r"does not fit torchvision's inception_v3: .* the first, .* is missing"
    ):
        load_eye("inception", swav_file)
    with pytest.raises(ConfigError, match="Unknown eye 'vgg19'"):
        load_eye("vgg19", "vgg19")
    network = nn.Linear(2, 2)
    state = network.state_dict()
    with pytest.raises(ArtifactError, match=r"weight, has shape \(3, 2\), expected \(2, 2\)"):
        fill(network, {**state, "weight": torch.zeros(3, 2)}, source="file", layout="a layer")
    with pytest.raises(
        ArtifactError, match=r"holds 1 weights that this network does not have \(first: other\)"
    ):
        fill(network, {**state, "other": torch.zeros(1)}, source="file", layout="a layer")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_are_read_from_all_layouts_and_nothing_in_a_file_is_run(tmp_path):
    weights = {"a": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        found = read_weights(tmp_path / name)
        assert found["a"].dtype == torch.float32 and found["n"] == 3
    torch.save({"a": torch.ones(2), "evil": Touch(tmp_path / "touched")}, tmp_path / "evil.pth")
    for name, content in (("cut.safetensors", b"1234567890"), ("cut.pth", b"12"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="cannot be read as weights"):
            read_weights(tmp_path / name)
    with pytest.raises(ArtifactError, match="cannot be read as weights"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match="holds a list"):
        read_weights(tmp_path / "list.pth")

"""Released instance-conditioned generators become folders that draw what the original draws."""

import pytest
import torch

from cadiff.convert import describe, import_weights
from cadiff.errors import ArtifactError
from cadiff.priors.icgan.folder import load_generator
from layouts import icgan, weights

SMALL = {"size": 64, "ch": 4, "chunk": 3, "embed": 6, "attention": (32,)}


@pytest.fixture
def released():
    return icgan.fill(icgan.generator(**SMALL))


def drawn(folder, noise, features):
    with torch.no_grad():
        return load_generator(folder, "cpu").generator(noise, features)


def conditions(noise_dim, count=2):
    rng = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(count, 2048, generator=rng))
    return torch.randn(count, noise_dim, generator=rng), features


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("options", "prefix"), [({}, ""), ({"hier": False}, "module."), ({"attention": (16, 32)}, "")]
)
def test_the_imported_generator_draws_what_the_equations_say(tmp_path, options, prefix, older):
    state = icgan.fill(icgan.generator(**{**SMALL, **options}))
    source = weights.save(tmp_path / "G_ema_best0.pth", weights.prefixed(prefix, state), older=older)
    made = import_weights(source, tmp_path / "generator")
    assert (made.kind, made.made) == ("generator", True)
    hier = options.get("hier", True)
    noise, features = conditions(15 if hier else 3)
    theirs = icgan.draw(state, noise, features, hier=hier)
    assert theirs.std() > 0.1
    torch.testing.assert_close(drawn(made.folder, noise, features), theirs, atol=2e-5, rtol=1e-4)


def test_its_picture_depends_on_every_weight_that_is_kept(released, tmp_path):
    """Nothing of the file is ignored, but sv0, which only logs, and the table of labels."""
    noise, features = conditions(15)
    before = icgan.draw(released, noise, features)
    for name in released:
        rng = torch.Generator().manual_seed(3)  # u0: another direction, not another length
        other = torch.randn(released[name].shape, generator=rng) + released[name]
        changed = {**released, name: other.abs() if name.endswith("stored_var") else other}
        same = torch.equal(icgan.draw(changed, noise, features), before)
        assert same == (name.endswith(".sv0") or name.startswith("shared.")), name


def test_describe_says_what_it_is_and_what_to_do(released, tmp_path):
    source = weights.save(tmp_path / "G_ema_best0.pth", released)
    lines = dict(describe(source))
    assert "Casanova et al. 2021" in lines["is"]
    assert "64 pixels" in lines["pictures"] and "attention at 32" in lines["pictures"]
    assert lines["noise"] == "15 numbers in 5 chunks; dense vectors of 1024"
    assert "class labels" in lines["unused"] and "weights import" in lines["next"]
    folder = import_weights(source, tmp_path / "out").folder
    assert "kind generator" in dict(describe(folder))["is"]
    assert not import_weights(folder, tmp_path / "again").made


def test_the_released_size_is_that_of_the_paper():
    """Ozcelik et al. 2022: 119 noise numbers, 2,048 features, dense vectors of 1536 x 4 x 4."""
    from cadiff.priors.icgan.networks import Generator, GeneratorConfig

    config = GeneratorConfig()
    assert (config.noise_dim, config.chunk_dim, config.num_chunks, config.dense_dim) == (
        119,
        17,
        7,
        1536 * 16,
    )
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in Generator(config).state_dict().items()}
    theirs = icgan.generator()
    del theirs["shared.weight"]
    assert ours == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.2.0.bn1.stored_var"), "blocks.2.0.bn1.stored_var is absent"),
        (lambda s: s.update({"linear.bias": torch.zeros(7)}), r"linear.bias is \(7,\), expected \(1024,\)"),
        (lambda s: s.update({"blocks.0.0.extra": torch.zeros(7)}), "expected no such weight"),
        (lambda s: s.update(icgan.fill(icgan.generator(**SMALL, label_dim=5))), "class labels too"),
        (
            lambda s: s.update(icgan.fill(icgan.generator(**SMALL, features=100))),
            "100 features, expected the 2048",
        ),
        (lambda s: s.update({"output_layer.0.gain": torch.ones(9)}), "no generator of the released widths"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(released, tmp_path, change, message):
    change(released)
    source = weights.save(tmp_path / "G_ema_best0.pth", released)
    with pytest.raises(ArtifactError, match=message):
        import_weights(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "missing" in dict(describe(source))


def test_the_discriminator_is_told_apart(tmp_path):
    state = icgan.fill({**icgan.spectral("linear", 1, 8), **icgan.spectral("linear_feat", 8, 2048)})
    source = weights.save(tmp_path / "D_best0.pth", state)
    assert "not possible" in dict(describe(source))["import"]
    with pytest.raises(ArtifactError, match="G_ema_best0"):
        import_weights(source, tmp_path / "out")


def test_a_generator_folder_that_was_changed_is_refused(released, tmp_path):
    folder = import_weights(weights.save(tmp_path / "G.pth", released), tmp_path / "out").folder
    about = (folder / "config.json").read_text()
    (folder / "config.json").write_text(about.replace('"channels": 4', '"channels": 8'))
    with pytest.raises(ArtifactError, match="damaged or was changed"):
        load_generator(folder, "cpu")

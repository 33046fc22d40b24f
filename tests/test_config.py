"""Presets: merging, overrides, and the sentences that wrong keys give."""

import pytest
from pydantic import Field

from cadiff.config import Config, load_config, load_preset
from cadiff.errors import ConfigError


class Inner(Config):
    depth: int = Field(2, ge=1)
    """Layers."""
    width: int = 8


class Toy(Config):
    name: str = "toy"
    inner: Inner = Inner()


@pytest.fixture
def presets(tmp_path):
    (tmp_path / "base.yaml").write_text("title: base\ncontrast: {name: base, inner: {depth: 3, width: 4}}\n")
    (tmp_path / "child.yaml").write_text(
        f"extends: {tmp_path / 'base.yaml'}\ncontrast: {{inner: {{width: 5}}}}\n"
    )
    return tmp_path


def test_defaults_then_base_then_child_then_overrides(presets):
    assert load_config(Toy, "contrast") == Toy()
    child = load_config(Toy, "contrast", presets / "child.yaml", ["inner.depth=7"])
    assert child == Toy(name="base", inner=Inner(depth=7, width=5))


def test_a_wrong_key_names_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown key 'inner.dept', did you mean 'depth'\?"):
        load_config(Toy, "contrast", None, ["inner.dept=3"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("inner.depth=0", "greater than or equal to 1"),
        ("inner.depth=many", "valid integer"),
        ("inner.depth", "not of the form"),
        ("name.depth=1", "unknown key|valid string"),
    ],
)
def test_wrong_values_are_one_sentence(override, says):
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(Toy, "contrast", None, [override])
    assert "\n" not in str(caught.value)


def test_unknown_presets_sections_and_circles_are_refused(presets):
    with pytest.raises(ConfigError, match="No preset 'dmo'"):
        load_preset("dmo")
    with pytest.raises(ConfigError, match="No preset file"):
        load_preset(presets / "none.yaml")
    (presets / "odd.yaml").write_text("contrst: {}\n")
    with pytest.raises(ConfigError, match="did you mean 'contrast'"):
        load_preset(presets / "odd.yaml")
    (presets / "a.yaml").write_text(f"extends: {presets / 'b.yaml'}\n")
    (presets / "b.yaml").write_text(f"extends: {presets / 'a.yaml'}\n")
    with pytest.raises(ConfigError, match="circle"):
        load_preset(presets / "a.yaml")
    (presets / "broken.yaml").write_text("contrast: [\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_preset(presets / "broken.yaml")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Toy().name = "other"

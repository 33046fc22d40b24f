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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            b"contrast: {name: a}\ntitle: b\ncontrast: {name: c}\n",
            "line 3: 'contrast' is there already, on line 1",
        ),
        (b"contrast:\n  inner: {depth: 3,\n    depth: 4}\n", "line 3: 'depth' is there already, on line 2"),
        (b"extends: [demo]\n", r"extends is \['demo'\], expected the name of one preset"),
        (b"extends: 5\n", "extends is 5, expected the name of one preset"),
        ("title: b\nsource: café\n".encode("latin-1"), "line 2, is not UTF-8 text"),
        (b"1: 2\n", "unknown section 1"),
        (b"contrast: {1: 2}\n", "contrast: .*1"),
        (b"protocols: {1: {}}\n", "unknown 1"),
        (b"protocol: 5\n", "No protocol 5"),
        (b"title: 2026-13-45\n", "not valid YAML"),
        (b"contrast: &x {name: *x}\n", "an anchor .* contains itself"),
        (b"contrast: {name: {}, inner: 3}\n", "such as inner.depth"),
    ],
)
def test_a_wrong_preset_file_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "odd.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(Toy, "contrast", path)
    assert "\n" not in str(caught.value)


def test_a_group_without_a_model_of_its_own_is_explained_too():
    class Several(Config):
        people: dict[str, Inner] | tuple[str, ...] = ()

    with pytest.raises(ConfigError, match="is a group of settings, set one of them"):
        load_config(Several, "contrast", None, ["people={a: }"])


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Toy().name = "other"

"""Presets and protocols: all of them load, say what the paper says, and have the sizes of the published networks."""

from pathlib import Path

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from cadiff.attend.image_mae import IMAGENET_MEAN, IMAGENET_STD, ImageMae
from cadiff.attend.model import ImageCross
from cadiff.attend.stage import cross_config
from cadiff.config import PROTOCOLS, load_config, load_preset, load_protocol, preset_names, protocol_of
from cadiff.contrast import CrossConfig, FmriCross, FmriMae, FmriMaeConfig
from cadiff.contrast.stage import ContrastConfig
from cadiff.data.preprocess import PreprocessConfig
from cadiff.errors import ConfigError
from cadiff.experiments import STAGES, stage_config

# gamma_c, mask ratio of phase 1 (gamma_s is 1), voxels, published 50-way top-1 (Sun et al. 2023, 4.2.1, Figs. 3 and 4, Table A.1)
PAPER = {
    "paper/god-sub-01": (1, 0.5, 4656, None),
    "paper/god-sub-02": (0.5, 0.75, 4656, None),
    "paper/god-sub-03": (0.5, 0.75, 4656, "25.080 %"),
    "paper/god-sub-04": (1, 0.5, 4656, None),
    "paper/god-sub-05": (1, 0.5, 4656, None),
    "paper/bold5000-csi1": (1, 0.5, 4192, "25 %"),
    "paper/bold5000-csi2": (1, 0.5, 4192, "18.69 %"),
    "paper/bold5000-csi3": (0.5, 0.75, 4192, "16.14 %"),
    "paper/bold5000-csi4": (0.5, 0.75, 4192, "18.98 %"),
}
ROOT = Path(__file__).parents[1]
TRAINED = ("contrast", "attend", "diffuse")


@pytest.mark.parametrize("protocol", [None, *PROTOCOLS])
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_its_stages_under_every_protocol(name, protocol):
    assert load_preset(name, protocol)["title"]
    configs = {section: stage_config(section, name, protocol=protocol) for section in STAGES}
    phase_1 = configs["contrast"]
    assert phase_1.gamma_c + phase_1.gamma_s + phase_1.masked_error_weight > 0  # or nothing is learnt
    rival = name.startswith("rivals/")  # other methods follow no reading of this one
    for section in () if rival else TRAINED:
        assert protocol_of(section, configs[section], before=protocol or "default") == (protocol or "default")
    if protocol in ("paper", "official") and not rival:
        assert protocol_of("reconstruct", configs["reconstruct"], before=protocol) == protocol


def test_the_presets_of_the_paper_are_all_there():
    assert {name for name in preset_names() if name.startswith("paper/")} == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_presets_say_what_the_paper_says_of_this_subject(name):
    gamma_c, mask_ratio, num_voxels, published = PAPER[name]
    about = load_preset(name)
    assert about["published"].startswith(published or "bars only, no number printed")
    assert ("Table A.1" if "bold" in name else "Fig.") in about["source"]
    phase_1, phase_2, tuning = (stage_config(section, name) for section in TRAINED)
    assert (phase_1.gamma_c, phase_1.gamma_s, phase_1.mask_ratio) == (gamma_c, 1, mask_ratio)
    assert (phase_1.fit.epochs, phase_1.fit.warmup_epochs, phase_1.fit.batch_size) == (140, 20, 250)
    assert phase_1.num_voxels == num_voxels and phase_1.preprocess.normalise == "scalar"
    assert (phase_2.gamma_f, phase_2.gamma_i, phase_2.mask_ratio, phase_2.image_mask_ratio) == (
        0.25,
        1.5,
        0.75,
        0.5,
    )
    assert (phase_2.decoder_depth, phase_2.image_decoder_depth, phase_2.fit.epochs) == (6, 6, 60)
    assert (tuning.fit.epochs, tuning.fit.batch_size, tuning.fit.learning_rate) == (500, 5, 5.3e-5)
    assert stage_config("diffuse", name, protocol="paper").fit.learning_rate == 5.5e-5
    official = stage_config("contrast", name, protocol="official")
    assert official.fit.warmup_epochs == 40
    assert official.preprocess.test_normalisation == ("pooled" if "bold" in name else "raw")
    assert stage_config("attend", name, protocol="official").raw_betas == ("bold" in name)
    assert stage_config("corpus", name).include_studied == ("god" in name)


def counts(module):
    """All parameters, and those that learn."""
    each = list(module.parameters())
    return sum(p.numel() for p in each), sum(p.numel() for p in each if p.requires_grad)


@pytest.mark.parametrize(
    ("num_voxels", "encoder", "decoder", "trained"),
    [(4656, 151_560_192, 13_307_920, 164_419_600), (4192, 151_530_496, 13_293_072, None)],
)
def test_phase_1_has_the_published_size(num_voxels, encoder, decoder, trained):
    presets = [name for name, row in PAPER.items() if row[2] == num_voxels]
    sizes = {stage_config("contrast", name).mae for name in presets}
    assert len(sizes) == 1
    with torch.device("meta"):
        model = FmriMae(FmriMaeConfig(**sizes.pop().model_dump(), num_voxels=num_voxels))
    in_decoder = sum(
        p.numel() for name, p in model.named_parameters() if name.startswith(("decoder", "mask_token"))
    )
    assert (counts(model)[0] - in_decoder, in_decoder) == (encoder, decoder)
    assert trained is None or counts(model)[1] == trained


def test_phase_2_has_the_published_size():
    phase_2 = stage_config("attend", "paper/bold5000-csi1")
    with torch.device("meta"):
        base = ViTMAEForPreTraining(ViTMAEConfig(decoder_num_hidden_layers=phase_2.image_decoder_depth))
        cross = cross_config(base.config, phase_2)
        fmri = FmriCross(FmriMaeConfig(num_voxels=4192, decoder_depth=phase_2.decoder_depth), cross)
        image = ImageCross(ImageMae(base, IMAGENET_MEAN, IMAGENET_STD, None), 1024, cross)
    assert cross == CrossConfig()  # the defaults are those of ViT-MAE base
    assert counts(fmri)[0] == 191_592_976
    added = 3 * 9_450_240 + 787_200
    assert counts(fmri.cross_blocks)[0] == 28_350_720
    assert counts(image)[0] == 85_798_656 + 19_804_416 + added
    image.set_trainable("code")
    positions = 197 * 512
    assert counts(image)[1] == 19_804_416 - positions + added
    image.set_trainable("code", decoder_positions=True)
    assert counts(image)[1] == 19_804_416 + added


def test_a_protocol_comes_between_preset_and_set(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("contrast: {sparsify_rate: 0.1, gamma_c: 0.7, preprocess: {length_policy: pad}}\n")

    def load(protocol=None, *overrides):
        return load_config(ContrastConfig, "contrast", preset, overrides, protocol)

    assert load().sparsify_rate == 0.1 and load("default") == load()
    official = load("official")
    assert (official.sparsify_rate, official.gamma_c, official.legacy_scaling) == (0, 0.7, True)
    assert official.preprocess == PreprocessConfig(
        normalise="scalar", test_normalisation="raw", length_policy="official"
    )
    assert (
        load("paper").preprocess.length_policy == "pad"
    )  # the paper does not say: one of the alternatives stays
    assert load("official", "sparsify_rate=0.3").sparsify_rate == 0.3
    preset.write_text(preset.read_text() + "protocol: official\n")
    assert load() == official and load("default").sparsify_rate == 0.1  # the command line has the last word


def test_a_preset_says_what_a_protocol_means_for_its_data(tmp_path):
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text(
        "protocols: {official: {contrast: {fit: {warmup_epochs: 7}, preprocess: {test_normalisation: pooled}}}}\n"
    )
    child.write_text(
        f"extends: {base}\nprotocols: {{official: {{contrast: {{fit: {{warmup_epochs: 9}}}}}}}}\n"
    )
    settings = load_config(ContrastConfig, "contrast", child, protocol="official")
    assert settings.fit.warmup_epochs == 9 and settings.preprocess.test_normalisation == "pooled"
    assert protocol_of("contrast", settings) == "official"
    assert load_config(ContrastConfig, "contrast", child).fit.warmup_epochs is None


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_alone_is_followed_and_one_change_is_told(name):
    for section in TRAINED:
        assert protocol_of(section, stage_config(section, None, protocol=name), before=name) == name
    assert protocol_of("contrast", stage_config("contrast", None, protocol=name)) == name
    assert protocol_of("contrast", stage_config("contrast", None, ["sparsify_rate=0.3"], name)) == "mixed"
    assert (
        protocol_of("contrast", stage_config("contrast", None, ["mae.depth=2"], name)) == name
    )  # a size is no reading


def test_a_chain_of_stages_has_a_protocol_only_where_all_agree():
    paper, default = (stage_config("attend", None, protocol=name) for name in ("paper", "default"))
    assert protocol_of("attend", paper) == protocol_of("attend", paper, before="paper") == "paper"
    assert protocol_of("attend", default, before="paper") == "mixed"
    assert protocol_of("attend", paper, before="mixed") == "mixed"


@pytest.mark.parametrize("section", TRAINED)
def test_the_default_protocol_is_the_defaults_and_knows_every_quirk(section):
    """What `official` switches on, `default` says it is off; but for what is ours, which is off by default anyway."""
    default, official = (load_protocol(name).get(section, {}) for name in ("default", "official"))
    ours = {
        "train_encoder",
        "unet_blocks",
        "condition_dropout",
        "label_start",
        "image_start",
        "latent_start",
        "min_snr_gamma",
    }
    assert set(official) - set(default) <= ours
    assert protocol_of(section, stage_config(section, None)) == "default"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("protocol: oficial\n", "did you mean 'official'"),
        ("protocols: {oficial: {}}\n", "did you mean 'official'"),
        ("protocols: {official: {contrst: {}}}\n", "did you mean 'contrast'"),
        ("protocols: official\n", "protocols is 'official', expected a group"),
        ("protocols: {official: 3}\n", "protocols, official is 3, expected a group"),
        ("contrast: 3\n", "contrast is 3, expected a group"),
    ],
)
def test_wrong_presets_are_one_sentence(tmp_path, text, says):
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(ContrastConfig, "contrast", preset)
    assert "\n" not in str(caught.value)


def test_a_combination_that_a_protocol_rules_out_names_it():
    with pytest.raises(
        ConfigError, match=r"preset demo, protocol official, section diffuse: .*null=learned needs"
    ):
        stage_config("diffuse", "demo", ["null=learned"], "official")


def leaves(values, prefix=""):
    for key, value in values.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def test_the_table_in_the_docs_names_every_setting_and_test():
    page = (ROOT / "docs" / "protocols.md").read_text()
    for section in TRAINED:
        by_protocol = [dict(leaves(load_protocol(name).get(section, {}))) for name in PROTOCOLS]
        for key in set().union(*by_protocol):
            values = [str(known.get(key)) for known in by_protocol]
            ours = by_protocol[0].get(key) is None and key != "preprocess.normalise"
            if len(set(values)) > 1 and not ours:
                assert f"`{section}.{key}`" in page or (key == "sparsify_rate" and f"`{section}." in page), (
                    key
                )
    for cell in (row.split("|")[-2] for row in page.splitlines() if row.count("|") == 7):
        folder = ""
        for name in cell.split(","):
            folder, _, file = name.strip().rpartition("/") if "/" in name else (folder, "", name.strip())
            if file.startswith("test_"):
                assert (ROOT / "tests" / folder / f"{file}.py").is_file(), cell


def test_the_preset_in_the_docs_loads(tmp_path):
    text = (ROOT / "docs" / "protocols.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    settings = stage_config("contrast", preset)
    assert settings.preprocess.test_normalisation == "pooled" and settings.num_voxels == 4656

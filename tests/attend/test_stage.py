"""Phase 2 end to end on a tiny subject."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cadiff.artifacts import load_artifact
from cadiff.attend import AttendConfig, attend
from cadiff.attend.image_mae import load_image_mae
from cadiff.attend.model import ImageCross
from cadiff.attend.stage import AttendFit, _support, join, trial_batches
from cadiff.contrast import FmriCross, FmriEncoder, load_encoder, save_encoder
from cadiff.contrast.encoder_folder import encoder_protocol, fit_preprocessor, preprocessor_for
from cadiff.contrast.trials import TrialPool
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig
from cadiff.errors import ArtifactError, ConfigError, DataError


def config(**changes) -> AttendConfig:
    fit = {"steps": 40, "batch_size": 8, "learning_rate": 3e-3, "log_every": 10, "checkpoint_every": 4}
    return AttendConfig(fit=AttendFit(**{**fit, **changes.pop("fit", {})}), **{"cross_depth": 1, **changes})


def weights(folder):
    return load_encoder(folder)[0].state_dict()


def test_training_lowers_the_loss_and_keeps_the_fmri_side(subject, encoder, image_mae, tmp_path):
    settings = config(decoder_depth=2)
    out = attend(settings, subject, encoder, tmp_path / "run", image_mae=image_mae)
    history = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"loss", "fmri_error", "image_error"} <= history[0].keys()
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    about, _ = load_artifact(out, "fmri-encoder")  # the kind that phase 1 writes
    assert (
        about["class"] == "FmriCross" and about["cross"]["width"] == 24 and about["cross"]["num_heads"] == 3
    )
    model, preprocessor = load_encoder(out)
    assert isinstance(model, FmriCross) and len(model.decoder_blocks) == 2
    assert not any("mae." in name or "vit" in name for name in model.state_dict())
    betas = torch.from_numpy(preprocessor(np.asarray(BrainDataset.open(subject).betas[:2])))
    assert model.tokens(betas).shape == (2, 8, 16)
    start, end = weights(encoder), weights(out)
    assert torch.equal(start["pos_embed"], end["pos_embed"])
    assert not torch.equal(start["blocks.0.attn.qkv.weight"], end["blocks.0.attn.qkv.weight"])


def test_it_starts_from_phase_1(subject, encoder, image_mae, tmp_path):
    """At a learning rate of next to nothing the known weights are those of phase 1, the first decoder blocks too."""
    settings = config(decoder_depth=2, fit={"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0})
    end = weights(attend(settings, subject, encoder, tmp_path / "run", image_mae=image_mae))
    start = weights(encoder)
    assert not any(name.startswith("decoder_blocks.2") for name in end)
    for name, tensor in end.items():
        if not name.startswith("cross_"):
            torch.testing.assert_close(tensor, start[name], atol=1e-9, rtol=0)
    again = attend(settings, subject, tmp_path / "run" / "encoder", tmp_path / "again", image_mae=image_mae)
    torch.testing.assert_close(weights(again), end, atol=1e-9, rtol=0)  # cross blocks are kept as well


def test_test_trials_and_test_pictures_are_never_touched(subject, encoder, image_mae, tmp_path):
    settings = config(fit={"steps": 4})
    clean = weights(attend(settings, subject, encoder, tmp_path / "clean", image_mae=image_mae))
    betas = np.load(subject / "betas.npy")
    betas[24:] = np.nan
    np.save(subject / "betas.npy", betas)
    for name in ("s12", "s13"):
        (subject / "stimuli" / f"{name}.png").write_bytes(b"not a picture")
    poisoned = weights(attend(settings, subject, encoder, tmp_path / "poisoned", image_mae=image_mae))
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)


def test_every_trial_comes_with_its_own_picture(subject, encoder, image_mae, generator):
    data = BrainDataset.open(subject)
    start, preprocessor = load_encoder(encoder)
    _, image = join(start, load_image_mae(image_mae), config(), generator, encoder)
    batch = trial_batches(TrialPool([data], [preprocessor], [data.rows("train")]), image, config(), 24, 0)(0)
    expected = preprocessor(np.asarray(data.betas[:24]))
    rows = [int(np.abs(expected - betas).max(1).argmin()) for betas in batch["betas"].numpy()]
    assert sorted(rows) == list(range(24))
    ids = data.trials["stimulus_id"].to_numpy()[rows]
    assert np.array_equal(batch["images"].numpy(), data.images(list(ids), 16))
    torch.testing.assert_close(batch["support"], image.support(image.normalise(batch["images"])))


@pytest.mark.filterwarnings("ignore:.*places repeat")
def test_trials_of_several_subjects_come_with_their_own_pictures(
    subject, other_subject, encoder, image_mae, generator
):
    opened = [BrainDataset.open(folder) for folder in (subject, other_subject)]
    start, stored = load_encoder(encoder)
    prepared = [preprocessor_for(data, start, stored.config) for data in opened]
    _, image = join(start, load_image_mae(image_mae), config(), generator, encoder)
    pool = TrialPool(opened, prepared, [data.rows("train") for data in opened])
    batch = trial_batches(pool, image, config(), 40, 0)(0)
    seen = 0
    for data, preprocessor, count in zip(opened, prepared, (24, 16), strict=True):
        expected = preprocessor(np.asarray(data.betas[:count]))
        near = np.abs(batch["betas"].numpy()[:, None] - expected).max(2)  # (40, count)
        mine = np.flatnonzero(near.min(1) < 1e-6)
        ids = data.trials["stimulus_id"].to_numpy()[near[mine].argmin(1)]
        assert np.array_equal(batch["images"].numpy()[mine], data.images(list(ids), 16))
        seen += len(mine)
    assert seen == 40


def test_an_encoder_of_two_subjects_says_so_and_keeps_the_preprocessing_of_the_first(
    subject, other_subject, encoder, image_mae, tmp_path
):
    settings = config(fit={"steps": 4})
    with pytest.warns(
        UserWarning, match="places repeat them"
    ):  # the second has fewer voxels than the encoder reads
        both = attend(settings, [subject, other_subject], encoder, tmp_path / "both", image_mae=image_mae)
    about = json.loads((both / "config.json").read_text())["provenance"]
    assert about["subjects"] == ["tiny one", "tiny two"]
    assert about["trials"] == 40
    assert {"dataset", "dataset_2"} <= about["inputs"].keys()
    alone = attend(settings, subject, encoder, tmp_path / "alone", image_mae=image_mae)
    betas = np.asarray(BrainDataset.open(subject).betas[:3])
    np.testing.assert_array_equal(load_encoder(both)[1](betas), load_encoder(alone)[1](betas))
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(weights(both)[name], weights(alone)[name])
    listed = attend(settings, [subject], encoder, tmp_path / "listed", image_mae=image_mae)
    assert all(torch.equal(weights(listed)[key], value) for key, value in weights(alone).items())


def test_a_picture_that_another_subject_is_tested_on_is_refused(
    subject, other_subject, encoder, image_mae, tmp_path
):
    (other_subject / "stimuli" / "s3.png").write_bytes((subject / "stimuli" / "s13.png").read_bytes())
    table = (other_subject / "stimuli.tsv").read_text()
    of = {d: BrainDataset.open(d).stimuli["sha256"] for d in (subject, other_subject)}
    (other_subject / "stimuli.tsv").write_text(table.replace(of[other_subject]["s3"], of[subject]["s13"]))
    with pytest.raises(
        DataError, match=r"Test stimulus 's13' of .*subject is training stimulus 's3' of .*other"
    ):
        attend(config(), [subject, other_subject], encoder, tmp_path / "run", image_mae=image_mae)
    assert not (tmp_path / "run").exists()


def test_kept_features_change_nothing(subject, encoder, image_mae, tmp_path):
    runs = []
    for keep in (True, False):
        settings = config(cache_support=keep, fit={"steps": 4})
        runs.append(weights(attend(settings, subject, encoder, tmp_path / f"{keep}", image_mae=image_mae)))
    torch.testing.assert_close(*runs, atol=1e-5, rtol=1e-4)


def test_features_on_disk_change_no_bit(subject, encoder, image_mae, tmp_path, monkeypatch):
    encoded, support = [], ImageCross.support

    def counted(self, pixels):
        encoded.append(len(pixels))
        return support(self, pixels)

    monkeypatch.setattr(ImageCross, "support", counted)
    runs = []
    for name in ("off", "made", "read"):
        monkeypatch.setenv("CADIFF_CACHE", "off" if name == "off" else str(tmp_path / "cache"))
        encoded.clear()
        out = attend(config(fit={"steps": 2}), subject, encoder, tmp_path / name, image_mae=image_mae)
        runs.append(weights(out))
        assert sum(encoded) == (0 if name == "read" else 12)
    assert all(
        torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*map(dict.values, runs), strict=True)
    )


@pytest.mark.parametrize("what", ["picture", "weight", "scale", "rest"])
def test_features_of_another_picture_network_or_scale_are_made_anew(
    subject, encoder, image_mae, tmp_path, monkeypatch, what
):
    """The pictures, the encoder and their normalisation count; the decoder, which learns, does not."""
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    pictures = torch.from_numpy(BrainDataset.open(subject).images(["s0", "s1"], 16))
    _, image = join(
        load_encoder(encoder)[0],
        load_image_mae(image_mae),
        config(),
        torch.Generator().manual_seed(0),
        encoder,
    )
    before = _support(image, pictures)
    if what == "picture":
        pictures = pictures.clone()
        pictures[0, 0, 0, 0] ^= 1
    elif what == "weight":
        image.mae.vit.layernorm.bias.data += 1e-3
    elif what == "scale":
        image.scale = 1.0
    else:
        image.mae.decoder.decoder_norm.bias.data += 1e-3
        image.cross_map_in.bias.data += 1e-3
    assert torch.equal(_support(image, pictures), before) == (what == "rest")
    assert len(list((tmp_path / "cache" / "frozen").iterdir())) == (1 if what == "rest" else 2)


@pytest.mark.parametrize("trainable", ["code", "paper"])
def test_the_pictures_matter(subject, encoder, image_mae, tmp_path, trainable):
    settings = config(trainable=trainable, fit={"steps": 2})
    first = weights(attend(settings, subject, encoder, tmp_path / "first", image_mae=image_mae))
    Image.new("RGB", (20, 20), (255, 0, 0)).save(subject / "stimuli" / "s0.png")
    second = weights(attend(settings, subject, encoder, tmp_path / "second", image_mae=image_mae))
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], second[name])


def test_interrupted_run_ends_with_the_same_weights(subject, encoder, image_mae, tmp_path, monkeypatch):
    from cadiff.attend.model import phase_2_loss

    settings = config(fit={"steps": 8})
    whole = weights(attend(settings, subject, encoder, tmp_path / "whole", image_mae=image_mae))
    calls = []

    def dies(*args, **options):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return phase_2_loss(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("cadiff.attend.stage.phase_2_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            attend(settings, subject, encoder, tmp_path / "cut", image_mae=image_mae)
    resumed = weights(attend(settings, subject, encoder, tmp_path / "cut", image_mae=image_mae, resume=True))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_quirks_of_the_released_code_change_the_training(subject, encoder, image_mae, tmp_path):
    def run(name, **changes):
        settings = config(fit={"steps": 3}, **changes)
        return weights(attend(settings, subject, encoder, tmp_path / name, image_mae=image_mae))

    plain = run("plain")
    for quirk in ("rescale_twice", "train_decoder_positions"):
        changed = run(quirk, **{quirk: True})
        assert any(not torch.equal(plain[name], changed[name]) for name in plain), quirk
    rate = {"sparsify_rate": 0.0}
    assert any(not torch.equal(plain[name], tensor) for name, tensor in run("full", **rate).items())


def test_raw_betas_are_read_in_this_phase_alone(subject, encoder, image_mae, tmp_path):
    """The same training as by an encoder without normalisation; what is handed on normalises as before."""
    model, stored = load_encoder(encoder)
    bare = stored.config.model_copy(update={"normalise": "none"})
    unscaled = fit_preprocessor(BrainDataset.open(subject), bare, patch_size=4)
    twin = save_encoder(tmp_path / "twin", model, unscaled, {})
    run = {"fit": {"steps": 3}}
    expected = attend(config(**run), subject, twin, tmp_path / "expected", image_mae=image_mae)
    raw = attend(config(raw_betas=True, **run), subject, encoder, tmp_path / "raw", image_mae=image_mae)
    usual = attend(config(**run), subject, encoder, tmp_path / "usual", image_mae=image_mae)
    assert all(torch.equal(tensor, weights(expected)[name]) for name, tensor in weights(raw).items())
    assert any(not torch.equal(tensor, weights(usual)[name]) for name, tensor in weights(raw).items())
    handed_on, before = load_encoder(raw)[1], load_encoder(usual)[1]
    assert handed_on.config == before.config == stored.config
    assert all(np.array_equal(a, before.to_tensors()[key]) for key, a in handed_on.to_tensors().items())


def test_an_imported_encoder_takes_the_preprocessing_of_the_settings(subject, encoder, image_mae, tmp_path):
    wanted = PreprocessConfig(normalise="scalar", test_normalisation="raw", length_policy="pad")
    settings = config(preprocess=wanted, fit={"steps": 1})
    made = attend(settings, subject, encoder, tmp_path / "run", image_mae=image_mae)
    _, preprocessor = load_encoder(made)
    assert preprocessor.config == wanted and preprocessor.mean.shape == (1,)
    assert load_encoder(encoder)[1].config == PreprocessConfig()


def test_the_protocol_is_that_of_both_phases(subject, encoder, image_mae, tmp_path):
    def protocol(start, name, **changes):
        settings = config(fit={"steps": 1}, **changes)
        made = attend(settings, subject, start, tmp_path / name, image_mae=image_mae)
        return made, encoder_protocol(made)

    assert encoder_protocol(encoder) is None  # it does not say
    paper, found = protocol(encoder, "paper", trainable="paper")
    assert found == "paper"
    assert protocol(paper, "both", trainable="paper")[1] == "paper"
    assert protocol(paper, "mixed")[1] == "mixed"
    assert protocol(encoder, "odd", rescale_twice=True)[1] == "mixed"


def test_refusals(subject, encoder, image_mae, tmp_path):
    model, preprocessor = load_encoder(encoder)
    bare = FmriEncoder(model.config)
    folder = save_encoder(tmp_path / "bare", bare, preprocessor, {})
    with pytest.raises(ArtifactError, match="without decoder"):
        attend(config(), subject, folder, tmp_path / "run", image_mae=image_mae)
    with pytest.raises(ConfigError, match="hides all of the 8 tokens"):
        attend(config(mask_ratio=0.95), subject, encoder, tmp_path / "run", image_mae=image_mae)
    assert not (tmp_path / "run").exists()  # a refused run leaves no folder in the way
    once = attend(config(fit={"steps": 1}), subject, encoder, tmp_path / "once", image_mae=image_mae)
    with pytest.raises(ConfigError, match="cross blocks of another size"):
        attend(config(cross_depth=2), subject, once, tmp_path / "deeper", image_mae=image_mae)
    table = (subject / "trials.tsv").read_text()
    (subject / "trials.tsv").write_text(table.replace("\ttrain\t", "\tunlabelled\t"))
    with pytest.raises(DataError, match="no training trials with pictures"):
        attend(config(), subject, encoder, tmp_path / "empty", image_mae=image_mae)


def test_defaults_are_the_published_ones():
    defaults = AttendConfig()
    assert (defaults.gamma_f, defaults.gamma_i, defaults.mask_ratio, defaults.image_mask_ratio) == (
        0.25,
        1.5,
        0.75,
        0.5,
    )
    assert (defaults.decoder_depth, defaults.image_decoder_depth, defaults.cross_depth) == (6, 6, 3)
    assert (defaults.fit.batch_size, defaults.fit.learning_rate, defaults.trainable) == (16, 5.3e-5, "code")

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cadiff.artifacts import write_json
from cadiff.config import validate
from cadiff.contrast import (
    ContrastConfig,
    FmriMae,
    FmriMaeConfig,
    contrast,
    load_encoder,
    preprocessor_for,
    save_encoder,
)
from cadiff.contrast.mae import FmriMaeSize
from cadiff.contrast.stage import ContrastFit
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.preprocess import Preprocessor
from cadiff.data.splits import resplit
from cadiff.diffuse.pipeline import open_pipeline, pipeline_protocol
from cadiff.diffuse.reconstruct import reconstruct
from cadiff.diffuse.settings import ReconstructConfig
from cadiff.diffuse.stage import DiffuseConfig, DiffuseFit, diffuse
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.priors.load import load_prior
from tiny_networks import fmri_mae_config


def config(*, steps=3, **options):
    fit = DiffuseFit(
        epochs=None, steps=steps, batch_size=4, learning_rate=1e-2, log_every=1, checkpoint_every=2
    )
    return DiffuseConfig(context_length=6, num_crops=1, fit=fit, **options)


def phase_1():
    sizes = {
        key: value
        for key, value in fmri_mae_config(patch_size=8, depth=1, decoder_depth=1)
        if key != "num_voxels"
    }
    return ContrastConfig(mae=FmriMaeSize(**sizes), mask_ratio=0.5, fit=ContrastFit(steps=1, batch_size=4))


@pytest.fixture
def run(dataset_folder, encoder_folder, prior_folder, tmp_path):
    def tune(settings, name="run", **options):
        return diffuse(
            settings, dataset_folder, encoder_folder, tmp_path / name, prior=prior_folder, **options
        )

    return tune


def test_makes_a_pipeline_that_tells_where_it_comes_from(run, dataset):
    folder = run(config())
    pipe = open_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    betas = np.array(dataset.betas[dataset.rows("test")])
    assert pipe(betas, num_inference_steps=2, num_images_per_trial=1).shape == (8, 1, 16, 16, 3)
    about = json.loads((folder / "provenance.json").read_text())
    assert set(about["inputs"]) == {"dataset", "encoder", "prior"}
    assert (about["trials"], about["stimuli"]) == (16, 8)
    assert json.loads((folder.parent / "run.json").read_text())["status"] == "complete"
    assert not (folder.parent / "trainer").exists()


@pytest.mark.parametrize("train_encoder", [True, False])
@pytest.mark.parametrize("blocks", ["all", "up"])
def test_changes_exactly_what_it_says(run, prior_folder, encoder, blocks, train_encoder):
    pipe = open_pipeline(run(config(unet_blocks=blocks, train_encoder=train_encoder)))
    before = load_prior(prior_folder)
    changed = {
        k for k, v in pipe.unet.state_dict().items() if not torch.equal(v, before.unet.state_dict()[k])
    }
    assert changed
    for key in changed:
        assert ".attn2." in key or ".transformer_blocks.0.norm2." in key
        assert blocks == "all" or key.startswith("up_blocks.")
    assert any(key.startswith("down_blocks.") for key in changed) == (blocks == "all")
    for key, value in pipe.vqvae.state_dict().items():
        assert torch.equal(value, before.vqvae.state_dict()[key])
    old, new = encoder.state_dict(), pipe.conditioner.encoder.state_dict()
    tuned = {key for key in new if not torch.equal(old[key], new[key])}
    assert ("blocks.0.attn.qkv.weight" in tuned) == train_encoder
    assert "pos_embed" not in tuned
    if not train_encoder:
        assert not tuned


def test_the_position_table_learns_where_it_is_told_to(run, encoder):
    pipe = open_pipeline(run(config(train_positions=True)))
    old, new = encoder.state_dict()["pos_embed"], pipe.conditioner.encoder.state_dict()["pos_embed"]
    assert (
        old[:, 1:] != new[:, 1:]
    ).any()  # the CLS row is not read here: it has no gradient, and weight decay keeps its 0
    assert torch.equal(old[:, :1], new[:, :1])


def test_own_length_stretches_the_positions_instead_of_wrapping_the_voxels(
    encoder, dataset, dataset_folder, prior_folder, tmp_path
):
    """An encoder for 64 voxels and a subject with 30, which make 32 in whole patches of 8."""
    size = FmriMaeConfig(**{**encoder.config.model_dump(), "num_voxels": 64})
    preprocessor = Preprocessor.fit(dataset.betas[dataset.rows("train")], patch_size=8, num_voxels=64)
    long = save_encoder(tmp_path / "long", FmriMae(size), preprocessor, {})

    def tune(own_length):
        settings = config(steps=1, own_length=own_length, train_encoder=False)
        return open_pipeline(
            diffuse(settings, dataset_folder, long, tmp_path / f"{own_length}", prior=prior_folder)
        ).conditioner

    with pytest.warns(
        UserWarning, match="has 30 voxels and the encoder reads 64: its last 34 places repeat them"
    ):
        wrapped = tune(False)
    own = tune(True)
    assert (wrapped.encoder.config.num_tokens, own.encoder.config.num_tokens) == (8, 4)
    assert wrapped.preprocessor.num_voxels == 64 and own.preprocessor.num_voxels == 32
    assert torch.equal(wrapped.encoder.pos_embed[:, 1::2], own.encoder.pos_embed[:, 1:])
    assert own.channel_mapper[0].weight.shape[1] == 4
    betas = np.array(dataset.betas[:3])
    assert own.encode(betas).context.shape == wrapped.encode(betas).context.shape
    np.testing.assert_array_equal(own.prepare(betas), wrapped.prepare(betas)[:, :32])


def test_the_pipeline_knows_its_protocol(encoder_folder, dataset_folder, prior_folder, tmp_path):
    def protocol(name, start=encoder_folder, **changes):
        settings, out = config(steps=1, **changes), tmp_path / f"{name}-run"
        return pipeline_protocol(diffuse(settings, dataset_folder, start, out, prior=prior_folder))

    assert protocol("default") == "default"  # of an encoder that does not say
    model, preprocessor = load_encoder(encoder_folder)
    official = save_encoder(tmp_path / "official", model, preprocessor, {"protocol": "official"})
    quirks = {"own_length": True, "train_positions": True, "sparsify_rate": 0}
    assert protocol("same", official, **quirks) == "official"
    assert protocol("other", official) == "mixed"


def test_resumed_run_ends_with_the_same_weights(run, monkeypatch):
    whole = open_pipeline(run(config(steps=4, condition_dropout=0.5, label_start=True), "whole"))

    import cadiff.diffuse.stage as stage

    original, calls = stage.EpsilonLoss.__call__, []

    def failing(self, batch, generator):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, batch, generator)

    monkeypatch.setattr(stage.EpsilonLoss, "__call__", failing)
    settings = config(steps=4, condition_dropout=0.5, label_start=True)
    with pytest.raises(KeyboardInterrupt):
        run(settings, "cut")
    resumed = open_pipeline(run(settings, "cut", resume=True))
    for part in ("unet", "conditioner"):
        old, new = getattr(whole, part).state_dict(), getattr(resumed, part).state_dict()
        for key, value in old.items():
            assert torch.equal(value, new[key]), key


def test_a_kill_between_saving_and_finishing_loses_nothing(run, tmp_path, monkeypatch):
    def dies(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cadiff.runs.RunFolder.finish", dies)
        with pytest.raises(KeyboardInterrupt):
            run(config())
    log = (tmp_path / "run" / "log.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(
            "cadiff.diffuse.stage.fit", None
        )  # the pipeline is there, whole: nothing is trained again
        assert (run(config(), resume=True) / "model_index.json").is_file()
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


def test_label_start_is_the_ridge_condition_until_training_moves_it(run, dataset):
    pipe = open_pipeline(run(config(steps=1, label_start=True)))  # one step of Adam, from zero
    fresh = pipe.conditioner
    assert fresh.start is not None
    betas = fresh.prepare(np.array(dataset.betas[dataset.rows("test")]))
    moved = fresh(betas).context - fresh.start(betas)[:, None]
    assert 0 < moved.abs().max() < 0.2 * fresh.start.norm


def test_null_variants(run, prior_folder, dataset, dataset_folder, encoder_folder, tmp_path):
    learned = open_pipeline(run(config(null="learned", condition_dropout=0.5), "learned")).conditioner
    table = load_prior(prior_folder).label_embedding
    assert table is not None
    assert not torch.allclose(learned.null_context, table[4].expand(6, -1))
    mean = open_pipeline(run(config(null="mean"), "mean")).conditioner
    condition = mean.encode(np.array(dataset.betas[dataset.rows("train")]))
    torch.testing.assert_close(mean.null_context.data, condition.context.mean(0))
    raw = load_encoder(encoder_folder)[1].config.model_copy(update={"test_normalisation": "raw"})
    model = load_encoder(encoder_folder)[0]
    unscaled = save_encoder(tmp_path / "raw", model, preprocessor_for(dataset, model, raw), {})
    settings = config(null="mean")
    same = open_pipeline(diffuse(settings, dataset_folder, unscaled, tmp_path / "m", prior=prior_folder))
    torch.testing.assert_close(same.conditioner.null_context, mean.null_context)  # of training trials, scaled
    label = open_pipeline(run(config(condition_dropout=0.5), "label")).conditioner
    assert torch.equal(label.null_context.data, table[4].expand(6, -1))


def test_latent_start_lets_sampling_begin_at_a_guess(run, dataset):
    pipe = open_pipeline(run(config(latent_start=3, min_snr_gamma=5.0)))
    pipe.set_progress_bar_config(disable=True)
    betas = np.array(dataset.betas[dataset.rows("test")])
    _, guess = pipe.condition(betas)
    assert guess is not None
    assert guess.shape == (8, *pipe.latent_shape)
    pictures = pipe(betas, num_inference_steps=4, num_images_per_trial=1, strength=0.5)
    assert pictures.shape == (8, 1, 16, 16, 3)


def test_refuses_a_test_stimulus_among_the_training_trials(dataset, encoder_folder, prior_folder, tmp_path):
    rows = dataset.trials.drop(columns="trial").copy()
    rows.loc[0, "split"] = "test"  # train0 is shown twice; one showing is now a test trial
    images = {name: dataset.image(name) for name in dataset.stimuli.index}
    leaky = write_dataset(
        tmp_path / "leaky",
        name="leaky",
        subject="sub-01",
        betas=np.array(dataset.betas),
        trials=rows,
        voxels=dataset.voxels[["rois"]],
        stimuli=dataset.stimuli.reset_index()[["stimulus_id", "label"]],
        images=images,
    )
    with pytest.raises(DataError, match="train0"):
        diffuse(config(), leaky, encoder_folder, tmp_path / "run", prior=prior_folder)
    assert not (tmp_path / "run").exists()


def test_refuses_what_does_not_fit(run, dataset_folder, encoder_folder, prior_folder, tmp_path):
    bare = shutil.copytree(prior_folder, tmp_path / "bare")
    (bare / "label_embedding.safetensors").unlink()
    write_json(bare / "prior.json", {"scaling_factor": 0.5})
    with pytest.raises(ConfigError, match="label table"):
        diffuse(
            config(label_start=True, null="mean"), dataset_folder, encoder_folder, tmp_path / "a", prior=bare
        )
    with pytest.raises(ConfigError, match="no null label"):
        diffuse(config(), dataset_folder, encoder_folder, tmp_path / "b", prior=bare)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    assert diffuse(config(null="mean"), dataset_folder, encoder_folder, tmp_path / "c", prior=bare).is_dir()
    with pytest.raises(ConfigError, match="condition_dropout"):
        validate(DiffuseConfig, {"null": "learned"}, where="test")
    run(config())
    with pytest.raises(ArtifactError, match="already exists"):
        run(config())


def test_label_start_needs_labels_that_the_prior_knows(dataset, encoder_folder, prior_folder, tmp_path):
    unknown = write_dataset(
        tmp_path / "unknown",
        name="unknown",
        subject="sub-01",
        betas=np.array(dataset.betas),
        trials=dataset.trials.drop(columns="trial"),
        voxels=dataset.voxels[["rois"]],
        stimuli=pd.DataFrame({"stimulus_id": dataset.stimuli.index, "label": "unheard of"}),
        images={name: dataset.image(name) for name in dataset.stimuli.index},
    )
    assert len(BrainDataset.open(unknown).rows("train")) == 16
    with pytest.raises(DataError, match="at least two of the prior's 4 classes"):
        diffuse(config(label_start=True), unknown, encoder_folder, tmp_path / "run", prior=prior_folder)


def test_an_unreadable_picture_leaves_no_run_behind(dataset_folder, encoder_folder, prior_folder, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(dataset_folder, copy)
    for picture in (copy / "stimuli").iterdir():
        picture.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="cannot be read"):
        diffuse(config(), copy, encoder_folder, tmp_path / "run", prior=prior_folder)
    assert not (tmp_path / "run").exists()


def test_a_damaged_pipeline_without_checksums_is_one_sentence(run):
    folder = run(config(steps=1))
    (folder / "checksums.json").unlink()
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(ArtifactError, match="incomplete or damaged"):
        open_pipeline(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(ArtifactError, match="incomplete or damaged"):
        open_pipeline(folder)


def test_a_new_model_card_is_still_the_same_prior(dataset_folder, encoder_folder, prior_folder, tmp_path):
    prior = tmp_path / "prior"
    shutil.copytree(prior_folder, prior)
    where = (config(steps=1), dataset_folder, encoder_folder, tmp_path / "run")
    folder = diffuse(*where, prior=prior)
    (prior / "MODEL_CARD.md").write_text("other words")
    assert diffuse(*where, prior=prior, resume=True) == folder


def test_a_pipeline_never_decodes_what_it_or_its_encoder_was_trained_on(
    run, dataset, encoder_folder, prior_folder, tmp_path
):
    pipeline = run(config())
    anew = resplit(dataset, tmp_path / "anew", ["train0", "train1"])
    drawing = ReconstructConfig(num_inference_steps=2, num_images_per_trial=1, controls=(), importance=False)
    with pytest.raises(DataError, match="pipeline was trained \\(diffuse\\) on test stimulus 'train0'"):
        reconstruct(drawing, pipeline, anew, tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()
    training = drawing.model_copy(update={"split": "train", "max_stimuli": 1})
    reconstruct(training, pipeline, anew, tmp_path / "of-training")  # asked for: those are training pictures
    encoder = contrast(phase_1(), [dataset.folder], tmp_path / "phase-1")
    with pytest.raises(DataError, match="was trained \\(contrast\\) on test stimulus 'train0'"):
        diffuse(config(), anew, encoder, tmp_path / "tuned", prior=prior_folder)
    record = json.loads(
        (
            diffuse(config(), dataset.folder, encoder, tmp_path / "fine", prior=prior_folder)
            / "provenance.json"
        ).read_text()
    )
    assert [entry["stage"] for entry in record["trained_on"]] == ["contrast", "diffuse"]

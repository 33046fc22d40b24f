"""Phase 1 end to end on a tiny subject: it learns, resumes exactly, and never reads a test trial."""

import json

import numpy as np
import pytest
import torch

from cadiff.config import load_config
from cadiff.contrast import ContrastConfig, FmriMae, FmriMaeConfig, contrast, load_encoder
from cadiff.contrast.mae import initialise
from cadiff.contrast.stage import ContrastFit, phase_1_loss
from cadiff.contrast.trials import EpochFit
from cadiff.errors import ArtifactError, ConfigError, DataError


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(tiny, **changes) -> ContrastConfig:
    values = {"steps": 60, "batch_size": 16, "learning_rate": 3e-3, "log_every": 10, "checkpoint_every": 10}
    fit = ContrastFit(**{**values, **changes.pop("fit", {})})
    return ContrastConfig(mae=tiny, fit=fit, **{"mask_ratio": 0.5, **changes})


def weights(folder):
    return load_encoder(folder)[0].state_dict()


def poison(folder, split):
    """Overwrite the betas of one split with NaN, behind the back of the dataset."""
    rows = [line.split("\t") for line in (folder / "trials.tsv").read_text().splitlines()]
    betas = np.load(folder / "betas.npy")
    betas[[k for k, row in enumerate(rows[1:]) if row[rows[0].index("split")] == split]] = np.nan
    np.save(folder / "betas.npy", betas)


def test_training_lowers_the_loss_and_saves_the_encoder(tiny, make_subject, tmp_path):
    encoder = contrast(config(tiny), [make_subject()], tmp_path / "run")
    history = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"loss", "cross", "self", "step"} <= history[0].keys()
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    model, preprocessor = load_encoder(encoder)
    assert encoder == tmp_path / "run" / "encoder" and type(model) is FmriMae
    assert model.config.num_voxels == preprocessor.num_voxels == 32
    about = json.loads((encoder / "config.json").read_text())["provenance"]
    assert about["subjects"] == ["tiny subject"] and about["trials"] == 32
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


def test_test_trials_are_never_touched(tiny, make_subject, tmp_path):
    folder = make_subject()
    settings = config(tiny, fit={"steps": 5})
    clean = weights(contrast(settings, [folder], tmp_path / "clean"))
    poison(folder, "test")
    poisoned = weights(contrast(settings, [folder], tmp_path / "poisoned"))
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)
    poison(folder, "unlabelled")
    with pytest.raises(DataError, match="NaN"):  # the poison works: unlabelled trials are read
        contrast(settings, [folder], tmp_path / "refused")


def test_subjects_of_different_size_share_the_longest_length(tiny, make_subject, tmp_path):
    folders = [make_subject("a", 21, 0), make_subject("b", 38, 1)]
    settings = config(tiny, fit={"steps": 3})
    model, preprocessor = load_encoder(contrast(settings, folders, tmp_path / "run"))
    assert model.config.num_voxels == 40
    assert preprocessor.num_input_voxels == 21 and preprocessor.num_voxels == 40
    longer = settings.model_copy(update={"num_voxels": 48})
    assert load_encoder(contrast(longer, folders, tmp_path / "longer"))[0].config.num_voxels == 48


def test_voxels_that_a_given_length_leaves_out_are_counted(tiny, make_subject, tmp_path, recwarn):
    """One sentence for each dataset that loses some; not a word of one that is filled up."""
    folders = [make_subject("short", 21, 0), make_subject("long", 38, 1)]
    settings = config(tiny, fit={"steps": 1}, num_voxels=32)
    assert load_encoder(contrast(settings, folders, tmp_path / "run"))[0].config.num_voxels == 32
    (warning,) = recwarn.list
    assert str(warning.message) == (
        f"{folders[1]} has 38 voxels and the encoder reads 32: the last 6 are left out. "
        "Choose voxels by preprocess.rois, or set num_voxels to 40 or more, or to null."
    )


def test_interrupted_run_ends_with_the_same_weights(tiny, make_subject, tmp_path, monkeypatch):
    folder, settings = make_subject(), config(tiny, fit={"steps": 12, "checkpoint_every": 5})
    whole = weights(contrast(settings, [folder], tmp_path / "whole"))
    calls = []

    def dies(*args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return phase_1_loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr("cadiff.contrast.stage.phase_1_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            contrast(settings, [folder], tmp_path / "cut")
    with pytest.raises(ArtifactError, match="already exists"):
        contrast(settings, [folder], tmp_path / "cut")
    resumed = weights(contrast(settings, [folder], tmp_path / "cut", resume=True))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    contrast(settings, [folder], tmp_path / "cut", resume=True)  # complete: nothing left to do


def test_a_kill_between_saving_and_finishing_loses_nothing(tiny, make_subject, tmp_path, monkeypatch):
    folder, settings = make_subject(), config(tiny, fit={"steps": 7, "checkpoint_every": 5, "log_every": 2})

    def dies(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cadiff.runs.RunFolder.finish", dies)
        with pytest.raises(KeyboardInterrupt):
            contrast(settings, [folder], tmp_path / "run")
    log = (tmp_path / "run" / "log.jsonl").read_text()
    encoder = contrast(settings, [folder], tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "log.jsonl").read_text() == log  # the steps after the last checkpoint too
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"
    assert not (tmp_path / "run" / "trainer").exists()
    assert encoder.is_dir()


@pytest.mark.parametrize(("row", "name"), [(3, "train3"), (25, "unlabelled25")])
def test_a_beta_that_is_not_finite_names_its_trial_and_its_voxel(tiny, make_subject, tmp_path, row, name):
    """Training trials are read for the statistics, unlabelled ones not before their batch."""
    folder = make_subject()
    betas = np.lib.format.open_memmap(folder / "betas.npy", mode="r+")
    betas[row, 7] = np.nan
    betas.flush()
    with pytest.raises(DataError, match=rf"trial {row + 1}, stimulus {name}\).*voxel 8\)"):
        contrast(config(tiny), [folder], tmp_path / "run")


def test_loss_options_reach_the_loss(tiny, generator):
    model = FmriMae(FmriMaeConfig(**tiny.model_dump(), num_voxels=32))
    initialise(model, generator)
    betas = torch.randn(8, 32, generator=generator)

    def loss(**changes):
        return phase_1_loss(model, betas, torch.Generator().manual_seed(4), config(tiny, **changes))

    plain = loss(gamma_c=0.7, gamma_s=0.4)
    assert plain["loss"].item() == pytest.approx(0.7 * plain["cross"].item() + 0.4 * plain["self"].item())
    legacy = loss(gamma_c=0.7, gamma_s=0.4, legacy_scaling=True)
    assert legacy["loss"].item() == pytest.approx(0.35 * plain["cross"].item() + 0.1 * plain["self"].item())
    same = loss(cross_negatives="same_view")
    assert same["self"].item() == plain["self"].item() and same["cross"].item() != plain["cross"].item()
    predictions = loss(self_negatives="predictions")
    assert predictions["cross"].item() == plain["cross"].item()
    assert predictions["self"].item() != plain["self"].item()
    clean = loss(sparsify_target="clean")
    assert clean["cross"].item() == plain["cross"].item() and clean["self"].item() != plain["self"].item()
    extra = loss(masked_error_weight=2.0)
    expected = 0.5 * extra["cross"] + extra["self"] + 2.0 * extra["masked_error"]
    assert extra["loss"].item() == pytest.approx(expected.item())
    assert (
        loss(sparsify_rate=0.0)["self"].item()
        == loss(sparsify_rate=0.0, sparsify_target="clean")["self"].item()
    )


def test_a_batch_larger_than_the_data_is_refused(tiny, make_subject, tmp_path):
    with pytest.raises(ConfigError, match="larger than the 32 trials"):
        contrast(config(tiny, fit={"batch_size": 33}), [make_subject()], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mask_that_hides_everything_is_refused_before_the_run_starts(tiny, make_subject, tmp_path):
    with pytest.raises(ConfigError, match="hides all of the 8 tokens"):
        contrast(config(tiny, mask_ratio=0.95), [make_subject()], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bfloat16_reaches_the_network_but_not_the_loss(tiny, generator):
    model = FmriMae(FmriMaeConfig(**tiny.model_dump(), num_voxels=32))
    initialise(model, generator)
    betas = torch.randn(8, 32, generator=generator)
    settings = config(tiny, masked_error_weight=0.1)
    exact = phase_1_loss(model, betas, torch.Generator().manual_seed(4), settings)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = phase_1_loss(model, betas, torch.Generator().manual_seed(4), settings)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05) and loss.item() != exact.item()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_epochs_count_passes_over_the_trials():
    fit = EpochFit(batch_size=250, epochs=140, warmup_epochs=20).for_trials(6000)
    assert (fit.steps, fit.warmup_steps) == (3360, 480)
    assert EpochFit(steps=7).for_trials(100).steps == 7 and EpochFit().for_trials(100).steps == 1000
    assert EpochFit(batch_size=5, epochs=60).for_trials(161).steps == 1932  # 161 / 5 has no exact float
    with pytest.raises(ConfigError, match="set epochs=null"):
        load_config(ContrastConfig, "contrast", overrides=["fit.epochs=3", "fit.steps=50"])


@pytest.mark.parametrize("given", ["steps=1000", "warmup_steps=0"])
def test_a_length_that_is_given_beside_epochs_is_refused_whatever_it_is(given):
    passes = {"steps=1000": "epochs", "warmup_steps=0": "warmup_epochs"}[given]
    with pytest.raises(ConfigError, match=f"set {passes}=null"):
        load_config(ContrastConfig, "contrast", overrides=[f"fit.{passes}=3", f"fit.{given}"])
    fit = load_config(ContrastConfig, "contrast", overrides=[f"fit.{passes}=null", f"fit.{given}"]).fit
    assert fit.for_trials(50) == EpochFit.model_validate(fit.model_dump()).for_trials(50)


def test_defaults_are_the_published_ones():
    defaults = ContrastConfig()
    assert (defaults.fit.batch_size, defaults.fit.learning_rate, defaults.fit.weight_decay) == (
        250,
        2.5e-4,
        0.05,
    )
    assert (defaults.temperature, defaults.sparsify_rate, defaults.mae.depth) == (0.1, 0.2, 24)
    assert (defaults.cross_negatives, defaults.self_negatives, defaults.self_views) == (
        "cross_view",
        "inputs",
        "first",
    )


def test_phase_1_with_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="nothing to learn"):
        ContrastConfig(gamma_c=0, gamma_s=0)
    ContrastConfig(gamma_c=0, gamma_s=0, masked_error_weight=1)

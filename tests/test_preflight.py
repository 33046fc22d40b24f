"""An experiment from weights: what is found in a folder, what is refused before anything is made, and what is recorded."""

import json
import shutil

import pytest
import torch

from cadiff.artifacts import folder_digest
from cadiff.contrast import load_encoder
from cadiff.data.dataset import BrainDataset
from cadiff.data.splits import resplit
from cadiff.errors import ArtifactError, ConfigError, DataError, UserError
from cadiff.experiments import run_experiment
from cadiff.preflight import find_sources
from layouts.starts import PRESET, make_encoder, make_image_mae, make_prior, make_start


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return make_start(tmp_path_factory.mktemp("weights") / "weights")


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(PRESET)
    return path


@pytest.fixture
def other(linear_brain, tmp_path):
    """Another subject of the same voxel count, in a folder of datasets."""
    data = BrainDataset.open(linear_brain)
    return resplit(data, tmp_path / "others" / "sub-02", [], data.rows("train")[:12])


@pytest.fixture
def without_phase_1(weights, tmp_path):
    """The same weights, but for phase 1, which is to be run."""
    folder = tmp_path / "priors"
    for name in ("prior", "image_mae"):
        shutil.copytree(weights / name, folder / name)
    return folder


def test_phase_1_of_the_weights_is_taken_and_this_is_said(preset, linear_brain, weights, tmp_path):
    out, said = tmp_path / "run", []
    page = run_experiment(preset, out, dataset=linear_brain, weights=weights, announce=said.append)
    assert page.is_file() and not (out / "contrast").exists()
    assert [line for line in said if "skipped" in line] == [
        f"contrast: skipped, phase 1 is the encoder in {weights / 'phase1'}"
    ]
    inputs = {
        name: json.loads((out / name / "run.json").read_text())["inputs"] for name in ("attend", "diffuse")
    }
    assert inputs["attend"]["encoder"] == folder_digest(weights / "phase1")
    assert inputs["attend"]["image_mae"] == folder_digest(weights / "image_mae")
    pipeline = json.loads((out / "diffuse" / "pipeline" / "unet" / "config.json").read_text())
    assert pipeline["block_out_channels"] == [8, 16]  # not the shipped prior's
    record = json.loads((out / "experiment.json").read_text())
    assert record["protocol"] == "default" and record["sources"]["encoder"] == str(weights / "phase1")


class Stop(Exception):
    """Ends an experiment before the stage that it names."""


def before(stage):
    def announce(line):
        if line.startswith(stage):
            raise Stop

    return announce


def test_an_interrupted_run_ends_with_the_same_pictures(
    preset, linear_brain, without_phase_1, other, tmp_path
):
    def run(out, stage="evaluate", **options):
        sources = {"dataset": linear_brain, "corpus": [other], "weights": without_phase_1}
        return run_experiment(preset, out, announce=before(stage), **sources, **options)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with pytest.raises(Stop):
        run(whole)
    with pytest.raises(Stop):
        run(cut, "diffuse")
    encoder = cut / "attend" / "encoder" / "model.safetensors"
    made = encoder.stat().st_mtime_ns
    with pytest.raises(ArtifactError, match="add --resume"):
        run(cut)
    with pytest.raises(ArtifactError, match="was started with other settings"):
        run(cut, resume=True, protocol="official")
    with pytest.raises(Stop):
        run(cut, resume=True)
    assert encoder.stat().st_mtime_ns == made  # finished stages are skipped
    pictures = sorted((whole / "reconstructions" / "images").rglob("*.png"))
    assert pictures
    for path in pictures:
        assert (cut / path.relative_to(whole)).read_bytes() == path.read_bytes()


@pytest.mark.filterwarnings("ignore:.*places repeat")
def test_a_protocol_reaches_every_stage(preset, linear_brain, without_phase_1, tmp_path):
    out = tmp_path / "run"
    overrides = [
        "reconstruct.num_inference_steps=2",
        "reconstruct.num_images_per_trial=1",
        "contrast.num_voxels=64",
    ]
    run_experiment(
        preset, out, dataset=linear_brain, weights=without_phase_1, overrides=overrides, protocol="official"
    )
    phase_1 = json.loads((out / "contrast" / "encoder" / "config.json").read_text())
    phase_2 = json.loads((out / "attend" / "encoder" / "config.json").read_text())
    tuning = json.loads((out / "diffuse" / "pipeline" / "provenance.json").read_text())
    assert [about["protocol"] for about in (phase_1["provenance"], phase_2["provenance"], tuning)] == [
        "official"
    ] * 3
    assert json.loads((out / "experiment.json").read_text())["protocol"] == "official"
    conditioner = json.loads((out / "diffuse" / "pipeline" / "conditioner" / "config.json").read_text())
    assert (
        conditioner["encoder_config"]["num_voxels"] == 48
    )  # 40 voxels and a patch too many, not phase 1's 64
    assert conditioner["preprocess_config"]["test_normalisation"] == "raw"


@pytest.mark.filterwarnings("ignore:.*places repeat")
def test_the_preprocessing_is_the_presets_also_for_an_encoder_that_was_given(
    preset, linear_brain, weights, tmp_path
):
    out, settings = tmp_path / "run", ["contrast.preprocess={rois: [V1], normalise: scalar}"]
    with pytest.raises(Stop):
        run_experiment(
            preset, out, dataset=linear_brain, weights=weights, overrides=settings, announce=before("diffuse")
        )
    _, preprocessor = load_encoder(out / "attend" / "encoder")
    assert preprocessor.config.rois == ["V1"] and preprocessor.config.normalise == "scalar"
    assert len(preprocessor.voxel_index) == 20


@pytest.mark.parametrize("attend", [True, False])
def test_voxels_that_the_given_encoder_cannot_read_are_said(attend, preset, linear_brain, weights, tmp_path):
    folder = broken(weights, tmp_path, phase1=lambda f: make_encoder(f, num_voxels=32))
    overrides = ["contrast.num_voxels=null", f"stages.attend={str(attend).lower()}"]
    with pytest.warns(UserWarning, match="40 voxels and the encoder reads 32: the last 8 are left out"):  # noqa: SIM117
        with pytest.raises(Stop):
            run_experiment(
                preset,
                tmp_path / "run",
                dataset=linear_brain,
                weights=folder,
                overrides=overrides,
                announce=before("diffuse"),
            )


def test_what_a_folder_of_weights_may_hold(weights, linear_brain, tmp_path):
    def found(folder, prior="shipped"):
        sources = find_sources(linear_brain, [], prior, folder)
        return sources.prior, sources.image_mae, sources.encoder

    assert found(weights) == (weights / "prior", weights / "image_mae", weights / "phase1")
    assert found(weights / "prior") == (weights / "prior", weights / "prior", None)
    assert found(weights, prior=tmp_path)[0] == tmp_path  # what is named wins
    for part, expected in (
        ("prior", lambda f: (f, f, None)),  # its image auto-encoder is looked for inside
        ("image_mae", lambda f: ("shipped", f, None)),
        ("phase1", lambda f: ("shipped", "shipped", f)),
    ):
        folder = tmp_path / f"only-{part}"
        shutil.copytree(weights / part, folder / part)
        assert found(folder) == expected(folder / part)
    run_folder = tmp_path / "run-folder"
    shutil.copytree(weights / "phase1", run_folder / "phase1" / "encoder")
    assert found(run_folder)[2] == run_folder / "phase1" / "encoder"
    with pytest.raises(ArtifactError, match="holds no weights to start from"):
        found(linear_brain)


def test_the_corpus_counts_every_subject_once(linear_brain, other, tmp_path):
    def phase_1(corpus, include_studied=True):
        return find_sources(linear_brain, corpus, "shipped", None, include_studied).phase_1

    assert phase_1([]) == [linear_brain]
    assert phase_1([other.parent]) == phase_1([other, linear_brain]) == [other, linear_brain]
    assert phase_1([other, linear_brain], include_studied=False) == [other]
    with pytest.raises(DataError, match="give them with --corpus"):
        phase_1([], include_studied=False)
    with pytest.raises(DataError, match="not a cadiff dataset"):
        phase_1([tmp_path / "nowhere"])


@pytest.mark.parametrize("include", [True, False])
def test_a_corpus_joins_simulated_subjects_too(preset, linear_brain, other, tmp_path, monkeypatch, include):
    preset.write_text(f"{PRESET}simulate: {{}}\ncorpus: {{include_studied: {include}}}\n")
    monkeypatch.setattr("cadiff.data.simulate.simulate", lambda _, out: shutil.copytree(linear_brain, out))
    learnt = []

    def phase_1(config, datasets, out, resume):
        learnt.extend(datasets)
        raise Stop

    monkeypatch.setattr("cadiff.contrast.stage.contrast", phase_1)
    with pytest.raises(Stop):
        run_experiment(preset, tmp_path / "run", corpus=[other])
    run = tmp_path / "run"
    assert learnt == [other, run / "corpus-02", *([run / "subject"] if include else [])]


def broken(weights, tmp_path, **parts):
    """A copy of the weights with parts in other versions."""
    folder = tmp_path / "broken"
    shutil.copytree(weights, folder)
    with torch.random.fork_rng():
        for name, make in parts.items():
            shutil.rmtree(folder / name)
            make(folder / name)
    return folder


def without_decoder(folder):
    from transformers import ViTMAEModel

    vit = ViTMAEModel.from_pretrained(make_image_mae(folder.with_name("whole")))
    vit.save_pretrained(folder)


UNFIT = {
    "length": (
        {"phase1": lambda f: make_encoder(f, num_voxels=64)},
        [],
        "num_voxels=64, but this preset is for 48",
    ),
    "depth": ({"phase1": lambda f: make_encoder(f, depth=2)}, [], "mae.depth=2, but this preset is for 1"),
    "encoder": ({"phase1": lambda f: make_encoder(f, decoder=False)}, [], "encoder without decoder"),
    "image_mae": ({"image_mae": without_decoder}, [], "needs encoder and decoder"),
    "prior": ({"prior": lambda f: make_prior(f, null_label=False)}, [], "no null label"),
    "label_start": (
        {"prior": lambda f: make_prior(f, null_label=False)},
        ["diffuse.null=mean", "diffuse.label_start=true"],
        None,
    ),
    "image_mask": ({}, ["attend.image_mask_ratio=0.99"], "hides all of the 16 tokens"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit_are_refused_before_anything_is_made(
    case, preset, linear_brain, weights, tmp_path
):
    parts, overrides, says = UNFIT[case]
    folder, out = broken(weights, tmp_path, **parts), tmp_path / "run"

    with pytest.raises(UserError if says else Stop, match=says):
        run_experiment(
            preset, out, dataset=linear_brain, weights=folder, overrides=overrides, announce=before("")
        )
    assert out.exists() == (says is None)


CHOOSING = ["reconstruct.rerank=encoding", "reconstruct.num_images_per_trial=2"]


@pytest.mark.parametrize(
    "choosing", [CHOOSING, ["reconstruct.class_start=true"]], ids=["rerank", "class_start"]
)
@pytest.mark.parametrize("judge", ["efficientnet-lite0", "efficientnet-lite2"])
def test_a_judge_that_will_have_chosen_the_pictures_is_refused_before_anything_is_made(
    choosing, judge, preset, linear_brain, weights, tmp_path
):
    overrides = [
        *choosing,
        "reconstruct.rerank_features=[gabor,efficientnet-lite0]",
        f"evaluate.judge={judge}",
    ]
    sources = {"dataset": linear_brain, "weights": weights, "announce": before("")}
    circular = judge == "efficientnet-lite0"
    with pytest.raises(ConfigError if circular else Stop, match="circular" if circular else None):
        run_experiment(preset, tmp_path / "run", overrides=overrides, **sources)
    assert (tmp_path / "run").exists() == (not circular)
    by_default = [*choosing, "evaluate.judge=efficientnet-lite0"]  # pictures of 16 px suit gabor alone
    with pytest.raises(Stop):
        run_experiment(preset, tmp_path / "small", overrides=by_default, **sources)


def test_features_that_there_are_not_are_refused_before_anything_is_opened(preset, tmp_path):
    """The weights are never looked at: they are not there either."""
    overrides = [*CHOOSING, "reconstruct.rerank_features=[gabr]"]
    with pytest.raises(ConfigError, match=r"reconstruct.*no feature space 'gabr'"):
        run_experiment(
            preset, tmp_path / "run", dataset=tmp_path, weights=tmp_path / "none", overrides=overrides
        )
    assert not (tmp_path / "run").exists()


def test_a_prior_that_does_not_fit_is_refused_before_a_subject_is_simulated(preset, weights, tmp_path):
    preset.write_text(f"{PRESET}simulate: {{}}\n")
    folder = broken(weights, tmp_path, prior=lambda f: make_prior(f, null_label=False))
    with pytest.raises(ConfigError, match="no null label"):
        run_experiment(preset, tmp_path / "run", weights=folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["contrast.fit.batch_size=99"], "larger than the 30 trials"),
        (["contrast.mask_ratio=0.95"], "hides all of the 6 tokens"),
        (["contrast.preprocess.rois=[VC]"], "dataset: ROI VC has no voxel here"),
        (["contrast.num_voxels=50"], "not a multiple"),
        (["corpus.include_studied=false"], "give them with --corpus"),
    ],
)
def test_phase_1_settings_that_do_not_fit_are_refused_before_anything_is_made(
    overrides, says, preset, linear_brain, without_phase_1, tmp_path
):
    with pytest.raises(UserError, match=says):
        run_experiment(
            preset, tmp_path / "run", dataset=linear_brain, weights=without_phase_1, overrides=overrides
        )
    assert not (tmp_path / "run").exists()


def test_data_that_do_not_suffice_are_refused_before_anything_is_made(
    preset, linear_brain, weights, tmp_path
):
    data = BrainDataset.open(linear_brain)
    untested = resplit(data, tmp_path / "untested", [], data.rows("train"))
    with pytest.raises(DataError, match="has no test trials"):
        run_experiment(preset, tmp_path / "run", dataset=untested, weights=weights)
    unseen = shutil.copytree(linear_brain, tmp_path / "unseen")
    (unseen / "stimuli" / "train-3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="train-3"):
        run_experiment(preset, tmp_path / "run", dataset=unseen, weights=weights)
    with pytest.raises(ConfigError, match="is about real data"):
        run_experiment("paper/god-sub-03", tmp_path / "run")
    assert not (tmp_path / "run").exists()

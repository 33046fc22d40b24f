"""A trace of a whole small run: what is written, what is counted, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from cadiff import cli
from cadiff.artifacts import folder_digest, read_json, write_json
from cadiff.data.dataset import BrainDataset
from cadiff.diffuse.pipeline import open_pipeline
from cadiff.diffuse.stage import DiffuseConfig, diffuse
from cadiff.encoding.ridge import fit_ridge
from cadiff.experiments import run_experiment
from cadiff.looks import NAME, read_ledger
from cadiff.trace import find_run, trace
from cadiff.trace.starts import held_out_start, tuning_settings
from cadiff.trace.stations import Inputs, random_encoder, stations
from tiny_networks import seeded, write_adapted

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
ENCODED = ["betas", "random_encoder", "phase_1_tokens", "phase_2_tokens", "tuned_tokens"]
CONDITIONED = ["mapped_tokens", "start", "context", "time_vector"]
DRAWN = ["picture", "label_oracle", "prior_only"]


def cadiff(*arguments: object):
    return runner.invoke(cli.app, [str(a) for a in arguments])


def refused(*arguments: object) -> str:
    """The one sentence that a command ends in."""
    result = cadiff(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_a_run_folder_is_traced_by_one_word(run, judge):
    result = cadiff("trace", run)
    assert result.exit_code == 0, result.output
    assert str(run / "trace" / "trace.html") in result.output
    record = read_json(run / "trace" / "trace.json")
    drawn = [name + part for name in DRAWN for part in ("", "_averaged")]
    assert list(record["stations"]) == [*ENCODED, *CONDITIONED, *drawn]
    assert record["kind"] == "trace" and record["stimuli"] == 6
    table = pd.read_csv(run / "trace" / "trace.tsv", sep="\t")
    assert list(table.columns) == ["station", "target", "stimulus_id", "two_way", "correlation"]
    means = table.groupby(["target", "station"])["two_way"].mean()
    for target, scores in record["scores"].items():
        assert len(table[table["target"] == target]) == 6 * len(record["stations"])
        for station, score in scores.items():
            assert score["two_way"]["mean"] == pytest.approx(means[target, station])
    # betas of this subject are a linear map of the four levels of its pictures
    assert record["targets"]["pixels"]["components"] == 4
    assert record["scores"]["pixels"]["betas"]["two_way"]["mean"] > 0.95
    shares = {
        name: about["probe"]["held_out_explained"]["pixels"]
        for name, about in record["stations"].items()
        if about["probe"]
    }
    assert shares["betas"] > 0.9
    assert [name for name, share in shares.items() if share is None] == ["start", "context", "time_vector"]
    asked = record["differences"]["judge"]["two_way"]
    assert [(row["second"], row["first"]) for row in asked["steps"]] == [
        ("betas", "tuned_tokens"),
        ("tuned_tokens", "mapped_tokens"),
        ("mapped_tokens", "context"),
        ("context", "picture"),
    ]
    assert [row["first"] for row in asked["over_random"]] == [
        "phase_1_tokens",
        "phase_2_tokens",
        "tuned_tokens",
    ]
    assert [row["first"] for row in asked["over_start"]] == ["context"]
    assert len(asked["over_betas"]) == len(record["stations"]) - 1
    looks, intact = read_ledger(run / "subject" / NAME)
    assert intact and len(looks) == 1
    assert looks[0]["systems"] == {"brain": folder_digest(run / "reconstructions")}
    assert record["integrity"]["stamp"].startswith("First look")
    assert record["remarks"] == []


def test_a_way_from_the_betas_past_the_context_is_pointed_out(run, judge):
    config = read_json(run / "reconstructions" / "config.json")
    config["config"] |= {"likelihood": 0.5, "rerank": "encoding", "class_start": False}
    write_json(run / "reconstructions" / "config.json", config)
    places = find_run(run)
    made = trace(
        places.dataset,
        places.pipeline,
        run / "trace",
        reconstructions=places.reconstructions,
        num_bootstrap=100,
    )
    (remark,) = read_json(made / "trace.json")["remarks"]
    assert "drawn with likelihood and rerank, by which betas reach them directly" in remark
    assert remark in (made / "trace.html").read_text()


def test_the_page_stands_alone_and_says_the_verdict(run, judge):
    cadiff("trace", run)
    page = (run / "trace" / "trace.html").read_text()
    record = read_json(run / "trace" / "trace.json")
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    assert record["verdict"].replace("'", "&#39;") in page
    for about in record["stations"].values():
        assert page.count(about["label"]) >= 3  # chart, chart, table
    assert page.count("<section") == page.count("</section>") == 6


def test_training_trials_are_traced_without_a_look(run, judge):
    result = cadiff("trace", run, "--split", "train", "--out", run / "trained")
    assert result.exit_code == 0, result.output
    record = read_json(run / "trained" / "trace.json")
    assert list(record["stations"]) == [*ENCODED, *CONDITIONED]
    assert record["stimuli"] == 30 and record["integrity"] is None
    assert not (run / "subject" / NAME).exists()
    assert record["scores"]["pixels"]["betas"]["two_way"]["mean"] > 0.9


def test_a_pipeline_without_a_start_is_traced_alone(run, made_run, judge, tmp_path):
    settings = {
        "context_length": 4,
        "num_crops": 0,
        "crop_probability": 0,
        "fit": {"epochs": None, "steps": 1},
    }
    encoder = run / "attend" / "encoder"
    made = diffuse(
        DiffuseConfig.model_validate(settings),
        run / "subject",
        encoder,
        tmp_path / "d",
        prior=made_run.parent / "prior",
    )
    alone = made.rename(tmp_path / "alone")  # out of its run, as when a pipeline is handed on
    result = cadiff("trace", run / "subject", "--pipeline", alone, "--out", tmp_path / "trace")
    assert result.exit_code == 0, result.output
    record = read_json(tmp_path / "trace" / "trace.json")
    assert list(record["stations"]) == ["betas", "random_encoder", "tuned_tokens", "context", "time_vector"]
    assert (
        "the tuned tokens are" in record["verdict"]
        and record["differences"]["judge"]["two_way"]["over_start"] == []
    )


def test_the_same_command_gives_the_same_numbers(run, judge):
    places = find_run(run)
    made = [
        trace(places.dataset, places.pipeline, run / name, split="train", num_bootstrap=200)
        for name in ("a", "b")
    ]
    assert (made[0] / "trace.tsv").read_bytes() == (made[1] / "trace.tsv").read_bytes()


def test_starts_of_training_trials_never_saw_their_stimulus(run):
    pipe, data = open_pipeline(run / "diffuse"), BrainDataset.open(run / "subject")
    betas = pipe.conditioner.prepare(np.asarray(data.betas[data.rows("train")]), split="train")
    settings = tuning_settings(run / "diffuse" / "pipeline")
    start, remark = held_out_start(pipe, data, betas, settings)
    assert remark is None and start is not None
    labels = pipe.conditioner.label_rows(list(data.stimuli.loc[data.stimulus_ids("train"), "label"]))
    groups = [str(name) for name in data.trials["stimulus_id"].to_numpy()[data.rows("train")]]
    by_hand = fit_ridge(
        betas, pipe.conditioner.get_buffer("label_embedding")[labels], groups, score="cosine"
    ).held_out
    torch.testing.assert_close(
        start / start.norm(dim=1, keepdim=True), by_hand / by_hand.norm(dim=1, keepdim=True)
    )
    own = pipe.conditioner.start
    assert own is not None and not torch.allclose(start, own(betas), atol=1e-3)
    pipe.conditioner.get_buffer("start_weight").add_(1.0)
    assert "not the pipeline's" in (held_out_start(pipe, data, betas, settings)[1] or "")


def test_an_image_start_is_held_out_too_and_its_eye_must_not_judge(
    run, made_run, tmp_path, monkeypatch, judge
):
    def see(prior, images, *, eye, eye_size):
        latents = prior.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
        return torch.from_numpy(images.reshape(len(images), -1)[:, :7]).float() / 255, latents

    monkeypatch.setattr("cadiff.priors.seeing.see", see)
    with seeded(3):
        prior = write_adapted(tmp_path / "adapted", made_run.parent / "prior")
    fit = {"epochs": None, "steps": 1, "batch_size": 4}
    settings = {"context_length": 6, "num_crops": 0, "crop_probability": 0, "image_start": True, "fit": fit}
    encoder = run / "attend" / "encoder"
    diffuse(DiffuseConfig.model_validate(settings), run / "subject", encoder, tmp_path / "image", prior=prior)
    pipe, data = open_pipeline(tmp_path / "image"), BrainDataset.open(run / "subject")
    betas = pipe.conditioner.prepare(np.asarray(data.betas[data.rows("train")]), split="train")
    start, remark = held_out_start(pipe, data, betas, {})
    own = pipe.conditioner.image_start
    assert remark is None and start is not None and own is not None and start.shape == (30, 5)
    assert not torch.allclose(start, own(betas), atol=1e-4)
    found = {s.name: s for s in stations(pipe.conditioner, [Inputs(betas, start)])}
    assert found["start"].label == "Image start"
    context = pipe.conditioner.image_context
    assert context is not None
    with torch.no_grad():
        tokens, _ = context(start)
    added = found["mapped_tokens"].values[0] + tokens.flatten(1)
    torch.testing.assert_close(found["context"].values[0], added, atol=1e-5, rtol=1e-4)
    command = ["trace", run / "subject", "--pipeline", tmp_path / "image", "--judge", "efficientnet-lite0"]
    assert "circular" in refused(*command)


def test_stations_are_what_the_pipeline_computes(run):
    pipe = open_pipeline(run / "diffuse")
    conditioner = pipe.conditioner
    betas = torch.randn(70, 40, generator=torch.Generator().manual_seed(0))  # more than one batch
    start = torch.randn(70, 12, generator=torch.Generator().manual_seed(1))
    found = {
        s.name: s for s in stations(conditioner, [Inputs(betas, start), Inputs(betas[:3], start[:3])], seed=4)
    }
    with torch.no_grad():
        whole = conditioner(betas, start=start)
    torch.testing.assert_close(found["context"].values[0], whole.context.flatten(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["time_vector"].values[1], whole.time[:3], atol=1e-5, rtol=1e-4)
    added = found["mapped_tokens"].values[0].view(70, 4, 12) + start[:, None]
    torch.testing.assert_close(added.flatten(1), found["context"].values[0], atol=1e-5, rtol=1e-4)
    assert found["tuned_tokens"].shape == (5, 16) and found["tuned_tokens"].num_numbers == 80
    again = random_encoder(conditioner.encoder, 4).tokens(betas).flatten(1)
    torch.testing.assert_close(found["random_encoder"].values[0], again.detach(), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(
        again, random_encoder(conditioner.encoder, 5).tokens(betas).flatten(1), atol=1e-2
    )


def test_encoders_of_any_name_are_stations_of_their_own(run):
    conditioner = open_pipeline(run / "diffuse").conditioner
    betas, start = torch.zeros(2, 40), torch.zeros(2, 12)
    encoders = dict.fromkeys(("tuned", "mapped", "Phase 1", "phase 1"), conditioner.encoder)
    names = [s.name for s in stations(conditioner, [Inputs(betas, start)], encoders=encoders)]
    assert len(set(names)) == len(names) == 11
    assert {"tuned_tokens", "mapped_tokens", "tuned+_tokens", "mapped+_tokens"} <= set(names)


def test_what_does_not_belong_together_is_refused_in_one_sentence(run, linear_brain, tmp_path, judge):
    pipeline = run / "diffuse"
    assert "neither the folder of a run nor a dataset" in refused("trace", tmp_path / "nowhere")
    assert "name the pipeline" in refused("trace", run / "subject")
    assert "--encoder goes with --pipeline" in refused("trace", run, "--encoder", run / "attend")
    assert "holds no pipeline" in refused("trace", run / "subject", "--pipeline", tmp_path / "nowhere")
    assert "no fmri-encoder" in refused(
        "trace", run / "subject", "--pipeline", pipeline, "--encoder", tmp_path / "gone"
    )
    assert "no reconstructions" in refused(
        "trace", run / "subject", "--pipeline", pipeline, "--reconstructions", tmp_path / "gone"
    )
    other = Path(shutil.copytree(linear_brain, tmp_path / "other"))
    about = read_json(other / "dataset_description.json")
    write_json(other / "dataset_description.json", {**about, "sha256": {}})
    assert "tuned on other data" in refused("trace", other, "--pipeline", pipeline)
    drawn = Path(shutil.copytree(run / "reconstructions", tmp_path / "drawn"))
    config = read_json(drawn / "config.json")
    write_json(drawn / "config.json", {**config, "config": {**config["config"], "split": "train"}})
    command = ["trace", run / "subject", "--pipeline", pipeline, "--reconstructions", drawn]
    assert "shows the train stimuli" in refused(*command)
    config["provenance"]["inputs"]["pipeline"] = "another"
    write_json(drawn / "config.json", config)
    assert "not drawn by this pipeline" in refused(*command)
    config["provenance"]["inputs"]["pipeline"] = folder_digest(pipeline / "pipeline")
    config["provenance"]["encoding"] = {"features": ["efficientnet-lite2"]}
    write_json(drawn / "config.json", config)
    assert "circular" in refused(*command)
    assert not (run / "trace").exists() and not (run / "subject" / NAME).exists()


def test_a_picture_that_is_the_stimulus_is_always_identified(run, judge):
    """Whatever the order of the table."""
    folder = run / "reconstructions"
    table = pd.read_csv(folder / "samples.tsv", sep="\t")
    files = BrainDataset.open(run / "subject").stimuli["file"]
    for row in table[table["condition"] == "brain"].itertuples():
        shutil.copy(run / "subject" / "stimuli" / files[row.stimulus_id], folder / str(row.file))
    table.iloc[::-1].to_csv(folder / "samples.tsv", sep="\t", index=False)
    assert cadiff("trace", run).exit_code == 0
    scores = read_json(run / "trace" / "trace.json")["scores"]
    for target in ("judge", "pixels"):
        for station in ("picture", "picture_averaged"):
            assert scores[target][station]["two_way"]["mean"] == 1.0
            assert scores[target][station]["correlation"]["mean"] == pytest.approx(1.0, abs=1e-5)
        assert scores[target]["prior_only"]["two_way"]["mean"] < 1.0


def test_only_the_stimuli_that_were_drawn_are_scored(run, judge):
    table = pd.read_csv(run / "reconstructions" / "samples.tsv", sep="\t")
    some = table[table["stimulus_id"].isin(["test-1", "test-4", "test-5"])]
    some.to_csv(run / "reconstructions" / "samples.tsv", sep="\t", index=False)
    assert cadiff("trace", run).exit_code == 0
    assert set(pd.read_csv(run / "trace" / "trace.tsv", sep="\t")["stimulus_id"]) == {
        "test-1",
        "test-4",
        "test-5",
    }
    some.assign(stimulus_id="elsewhere-" + some["stimulus_id"]).to_csv(
        run / "reconstructions" / "samples.tsv", sep="\t", index=False
    )
    assert "shows 3 stimuli that no test trial" in refused("trace", run, "--out", run / "second")


def test_an_encoder_of_another_length_is_refused(run, tmp_path, judge):
    from layouts.starts import make_encoder

    made = make_encoder(tmp_path / "encoder", num_voxels=48)
    said = refused("trace", run / "subject", "--pipeline", run / "diffuse", "--encoder", made)
    assert "reads 48 voxels, the pipeline's 40" in said


def test_results_are_never_overwritten(run, judge):
    (run / "trace").mkdir()
    (run / "trace" / "thesis.txt").write_text("mine")
    assert "never overwritten" in refused("trace", run)


def test_the_dataset_of_a_run_is_found_by_its_record(run, tmp_path):
    (run / "subject").rename(tmp_path / "elsewhere")
    write_json(run / "experiment.json", {"sources": {"dataset": str(tmp_path / "elsewhere")}})
    assert find_run(run).dataset == tmp_path / "elsewhere"
    write_json(run / "experiment.json", {"sources": {"dataset": str(tmp_path / "gone")}})
    assert "its record names" in refused("trace", run)


@pytest.mark.slow
def test_a_whole_experiment_in_miniature_can_be_traced(tmp_path, judge):
    from test_experiments import TINY

    (tmp_path / "tiny.yaml").write_text(TINY)
    run_experiment(tmp_path / "tiny.yaml", tmp_path / "run", overrides=["evaluate.judge=null"])
    result = cadiff("trace", tmp_path / "run")
    assert result.exit_code == 0, result.output
    record = read_json(tmp_path / "run" / "trace" / "trace.json")
    assert {"phase_1_tokens", "phase_2_tokens", "tuned_tokens", "context", "picture"} <= set(
        record["stations"]
    )
    assert [row["first"] for row in record["differences"]["judge"]["two_way"]["steps"]][-1] == "picture"

"""Ranking samples by the likelihood of the betas: never by the stimulus, and alike in every condition."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cadiff.config import load_config
from cadiff.diffuse.controls import Rows, derangement
from cadiff.diffuse.drawing import Drawing, Pick
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct
from cadiff.diffuse.rerank import Reranker, open_encoding
from cadiff.encoding import EncodingModel
from cadiff.errors import ArtifactError, ConfigError, DataError


class Brightness:
    """Stands in for an encoding model: betas are the mean of the picture."""

    def log_likelihood(self, betas: np.ndarray, images: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        return -repeats[:, None] * np.abs(betas - images.mean(axis=(1, 2, 3)))

    def weights(self, likelihood: np.ndarray, of_mean: bool = False) -> np.ndarray:
        found = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
        return found / found.sum(axis=1, keepdims=True)


LEVELS = {"brain": [[10, 20, 30], [40, 50, 60]], "prior_only": [[1, 2, 3], [4, 5, 6]]}


class Levels:
    """Stands in for a drawing: a latent is the brightness of its picture, and children move up by their strength."""

    rows: ClassVar = LEVELS
    num_trials, total = 2, 12

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def calls(self, strength: float) -> int:
        return 1

    def compiled(self, network_calls: int):
        return nullcontext()

    def latents(self, picks, bar, *, parents=None, strength=None, generation=0):
        start = [LEVELS[p.condition][p.trial][p.sample] for p in picks] if parents is None else parents
        self.seen.append((generation, strength, {p.condition for p in picks}, len(picks)))
        moved = 0.0 if parents is None else 10 * strength
        return torch.as_tensor(start, dtype=torch.float32).view(-1, 1, 1, 1) + moved

    def decoded(self, latents):
        return np.broadcast_to(latents.numpy().astype(np.uint8), (len(latents), 2, 2, 3))


def run(mode: Any, repeats: int = 1, betas: Any = ((21.0,), (60.0,)), **options: Any):
    model: Any = Brightness()
    config = ReconstructConfig(num_images_per_trial=3, rerank="encoding", rerank_mode=mode, **options)
    reranker, drawing = Reranker(model, config), Levels()
    reranker.read("brain", np.array(betas), np.full(2, repeats))
    kept: dict[str, dict[int, int]] = {}
    for name, number, picture in reranker.kept(cast(Any, drawing)):
        kept.setdefault(name, {})[number] = int(picture[0, 0, 0])
    return reranker, kept, drawing


def test_pick_keeps_the_likeliest_and_the_first_where_no_betas_are_read():
    reranker, kept, _ = run("pick")
    assert reranker.num_kept == 1
    assert kept == {"brain": {0: 20, 1: 60}, "prior_only": {0: 1, 1: 4}}


def test_order_keeps_all_the_likeliest_first():
    _, kept, _ = run("order")
    assert kept["brain"] == {0: 20, 1: 30, 2: 10, 3: 60, 4: 50, 5: 40}
    assert list(kept["prior_only"].values()) == [1, 2, 3, 4, 5, 6]


def test_mean_weighs_by_the_posterior():
    weights = Brightness().weights(-np.abs(21.0 - np.array([[10.0, 20.0, 30.0]])))[0]
    _, kept, _ = run("mean")
    assert kept["brain"][0] == round(float(weights @ [10, 20, 30]))
    assert kept["prior_only"] == {0: 2, 1: 5}


def test_the_table_has_every_sample_of_what_was_ranked():
    reranker, _, _ = run("pick", repeats=2)
    table = reranker.table(["a", "b"])
    assert list(table["condition"].unique()) == ["brain"]
    assert list(table["log_likelihood"]) == [-22, -2, -18, -40, -20, 0]
    np.testing.assert_allclose(table.groupby("stimulus_id")["weight"].sum(), 1.0)


def test_generations_are_drawn_around_the_likeliest_and_only_where_betas_are_read():
    """Three samples have one parent, and children are brighter by 10 times their strength: 30, 37, 42; and 40, 47, not 52."""
    reranker, kept, drawing = run(
        "order", betas=((44.0,), (44.0,)), rerank_rounds=3, rerank_strength=0.5, batch_size=64
    )
    assert [(g, s) for g, s, *_ in drawing.seen] == [(0, 1.0), (1, 0.75), (2, 0.5), (0, 1.0)]
    assert [names for *_, names, _ in drawing.seen] == [{"brain"}, {"brain"}, {"brain"}, {"prior_only"}]
    assert [kept["brain"][i] for i in range(3)] == [42, 42, 42]
    assert [kept["brain"][i] for i in range(3, 6)] == [47, 47, 47]
    assert kept["prior_only"] == {i: level for i, level in enumerate((1, 2, 3, 4, 5, 6))}
    table = reranker.table(["a", "b"])
    assert len(table) == 2 * 9
    # only the first three are draws of one distribution, whose weights are those of a run without a search
    first = reranker.model.weights(table["log_likelihood"].to_numpy().reshape(2, 9)[:, :3])
    weights = table["weight"].to_numpy().reshape(2, 9)
    np.testing.assert_array_equal(weights[:, :3], first)
    assert np.isnan(weights[:, 3:]).all()


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_batches_change_nothing(batch):
    betas = ((44.0,), (58.0,))
    _, kept, drawing = run("order", betas=betas, rerank_rounds=4, batch_size=batch)
    assert kept == run("order", betas=betas, rerank_rounds=4)[1]
    assert max(count for *_, count in drawing.seen) <= max(batch, 3)


def settings(**options: Any) -> ReconstructConfig:
    plain = {"num_inference_steps": 2, "num_images_per_trial": 4, "importance": False}
    return ReconstructConfig(**{**plain, **options})


@pytest.fixture
def pipeline_folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_a_generation_has_noise_of_its_own_and_stays_near_its_parents(pipeline):
    rows = {"brain": Rows(pipeline.conditioner.null(1), None, np.zeros(2, np.int64))}
    drawing = Drawing(settings(num_inference_steps=10), pipeline, rows, 2)
    picks, step = [Pick(0, "brain", 0), Pick(1, "brain", 3)], lambda: None
    first = drawing.latents(picks, step)
    assert torch.equal(drawing.latents(picks, step), first)
    other = drawing.latents(picks, step, parents=first, strength=0.5, generation=1)
    again = drawing.latents(picks, step, parents=first, strength=0.5, generation=2)
    assert not torch.allclose(other, again)
    elsewhere = drawing.latents(picks, step, parents=first + 1.0, strength=0.5, generation=1)
    assert not torch.allclose(other, elsewhere)
    near = drawing.latents(picks, step, parents=first, strength=0.1, generation=1)
    assert (near - first).abs().mean() < 0.5 * (other - first).abs().mean()
    alone = drawing.latents(picks[1:], step, parents=first[1:], strength=0.5, generation=1)
    torch.testing.assert_close(alone, other[1:])


def test_the_bar_ends_at_its_total(pipeline_folder, dataset_folder, tmp_path, capfd):
    for batch in (3, 8, 32):
        config = settings(
            rerank="encoding", rerank_rounds=3, batch_size=batch, controls=("prior_only", "shuffled")
        )
        reconstruct(config, pipeline_folder, dataset_folder, tmp_path / str(batch))
        (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("pictures")]
        done, total = re.search(r" (\d+)/(\d+) ", line).groups()
        assert done == total


def pictures(folder):
    table = pd.read_csv(folder / "samples.tsv", sep="\t")
    found: dict[Any, list[bytes]] = {}
    for row in table.itertuples():
        found.setdefault((row.condition, row.stimulus_id), []).append(
            np.asarray(Image.open(folder / str(row.file))).tobytes()
        )
    return found


def test_ranking_changes_the_order_and_no_picture_and_each_condition_has_its_own_betas(
    pipeline_folder, dataset, dataset_folder, tmp_path
):
    plain = reconstruct(settings(), pipeline_folder, dataset_folder, tmp_path / "plain")
    ordered = reconstruct(
        settings(rerank="encoding", rerank_mode="order"),
        pipeline_folder,
        dataset_folder,
        tmp_path / "ordered",
    )
    before, after = pictures(plain), pictures(ordered)
    assert before.keys() == after.keys()
    table = pd.read_csv(ordered / "rerank.tsv", sep="\t")
    assert set(table["condition"]) == {"brain", "shuffled"}
    for key, drawn in before.items():
        rows = table.query("condition == @key[0] and stimulus_id == @key[1]")
        order = np.argsort(-rows["log_likelihood"].to_numpy(), kind="stable") if len(rows) else range(4)
        assert [drawn[i] for i in order] == after[key]
    model = EncodingModel.load(ordered / "encoding")
    ids = [f"test{i}" for i in range(4)]
    betas = np.stack([np.asarray(dataset.betas[16 + 2 * i : 18 + 2 * i]).mean(0) for i in range(4)])
    other = derangement(ids, 0)
    for i, name in enumerate(ids):
        for condition, read in (("brain", betas[i]), ("shuffled", betas[other[i]])):
            flat = np.frombuffer(b"".join(before[condition, name]), np.uint8)
            likelihood = model.log_likelihood(read[None], flat.reshape(4, 16, 16, 3), 2)[0]
            rows = table.query("condition == @condition and stimulus_id == @name")
            np.testing.assert_allclose(rows["log_likelihood"], likelihood, rtol=1e-5)
    about = json.loads((ordered / "config.json").read_text())
    assert about["provenance"]["encoding"]["held_out_identification"]
    assert not (plain / "rerank.tsv").exists() and not (plain / "encoding").exists()


def test_one_picture_is_picked_and_a_saved_model_picks_the_same(pipeline_folder, dataset_folder, tmp_path):
    picked = reconstruct(settings(rerank="encoding"), pipeline_folder, dataset_folder, tmp_path / "picked")
    found = pictures(picked)
    assert all(len(kept) == 1 for kept in found.values())
    again = settings(rerank=str(picked))
    assert pictures(reconstruct(again, pipeline_folder, dataset_folder, tmp_path / "again")) == found


def test_the_stimulus_never_chooses(pipeline_folder, dataset_folder, tmp_path):
    """Other test pictures under the same betas change nothing."""
    import shutil

    other = tmp_path / "other"
    shutil.copytree(dataset_folder, other)
    for file in other.glob("stimuli/test*.png"):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file)
    config = settings(rerank="encoding")
    seen = reconstruct(config, pipeline_folder, dataset_folder, tmp_path / "seen")
    assert pictures(reconstruct(config, pipeline_folder, other, tmp_path / "unseen")) == pictures(seen)


def test_what_cannot_be_ranked_is_refused(dataset, dataset_folder, pipeline_folder, tmp_path):
    for overrides, message in (
        (["rerank=encoding", "num_images_per_trial=1"], "2 or more"),
        (["rerank=encoding", "only_rois=V1"], "silenced voxels"),
        (["rerank_rounds=2"], "set rerank=encoding"),
        (["rerank=encoding", "rerank_rounds=2", "rerank_mode=mean"], "equally probable beforehand"),
        (["rerank=encoding", "rerank_rounds=2", "strength=0.3"], r"at most strength \(0.3\)"),
        (["rerank=encoding", "rerank_features=[gabr]"], r"no feature space 'gabr'; there are pixels, gabor"),
        (["class_start=true", "rerank_features=[gabor,gabor]"], "at least one feature space, each once"),
        (["rerank_features=[]"], "at least one feature space"),
        (["rerank_features=efficientnet-lite2"], "what scores must not choose"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(ReconstructConfig, "reconstruct", None, overrides)
    with pytest.raises(ArtifactError, match="encoding-model"):
        open_encoding(str(tmp_path / "nowhere"), dataset, None, 16, 0)
    everything = np.arange(len(dataset.trials))
    leaky = EncodingModel.fit(dataset, everything, features=["pixels"]).save(tmp_path / "leaky")
    with pytest.raises(DataError, match="was fitted on test stimulus 'test0'"):
        reconstruct(settings(rerank=str(leaky)), pipeline_folder, dataset_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="has its own"):
        open_encoding(str(leaky), dataset, ["pixels"], 16, 0)

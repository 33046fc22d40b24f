"""The start at the class that the betas name: what it changes, what it leaves, and for whom; and the baseline that draws it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cadiff.baselines import run_baseline
from cadiff.baselines.bayes_label import BayesLabel
from cadiff.diffuse.conditioner import FmriConditioner
from cadiff.diffuse.pipeline import FmriToImagePipeline
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct
from cadiff.diffuse.sampling import make_scheduler
from cadiff.diffuse.start import LabelStart
from cadiff.encoding.classes import ClassPosterior
from cadiff.encoding.pictures import pictures_of_classes
from cadiff.errors import ConfigError, DataError

SETTINGS: dict[str, Any] = {
    "num_inference_steps": 2,
    "num_images_per_trial": 2,
    "importance": False,
    "class_pictures": 3,
    "controls": ("prior_only", "shuffled", "label_oracle"),
}


@pytest.fixture
def started(encoder, preprocessor, prior, dataset, rng):
    """A pipeline with a label start."""
    rows = dataset.rows("train")
    ids = list(dataset.trials["stimulus_id"].iloc[rows])
    labels = torch.tensor([prior.classes.index(dataset.stimuli.at[name, "label"]) for name in ids])
    betas = torch.from_numpy(preprocessor(dataset.betas[rows]))
    start, _, _ = LabelStart.fit(betas, labels, prior.label_embedding, ids)
    conditioner = FmriConditioner.build(
        encoder, preprocessor, prior, context_length=6, start=start, generator=rng
    )
    with torch.no_grad():  # as if tuned: the encoder has something to add
        conditioner.dim_mapper.weight.normal_(0, 0.1, generator=rng)
    pipe = FmriToImagePipeline(
        prior.vqvae, prior.unet, make_scheduler("pndm", prior.scheduler.config), conditioner
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(folder):
    table = pd.read_csv(folder / "samples.tsv", sep="\t")
    return {
        (row.condition, row.stimulus_id, row.sample): np.asarray(Image.open(folder / str(row.file)))
        for row in table.itertuples()
    }


def test_a_given_start_takes_the_place_of_the_ridge_start_and_nothing_else(started, dataset):
    betas = np.asarray(dataset.betas[16:24])
    start = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))
    conditioner = started.conditioner
    got, _ = started.condition(betas, start=start)
    plain, _ = started.condition(betas)
    own = conditioner.start(conditioner.prepare(betas))
    torch.testing.assert_close(got.context - plain.context, (start - own)[:, None].expand(-1, 6, -1))
    torch.testing.assert_close(got.time, conditioner.time_head(got.context).squeeze(1))


def test_controls_that_read_no_betas_stay_and_each_brain_gets_its_own_class(
    started, dataset_folder, tmp_path, monkeypatch
):
    started.save_pretrained(tmp_path / "pipeline")
    named = {}

    def most_likely(self: ClassPosterior, betas: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        found = self.classes[self.log_likelihood(betas, repeats).argmax(axis=1)]
        named.update(zip(betas[:, 0].tolist(), found.tolist(), strict=True))
        return found

    monkeypatch.setattr(ClassPosterior, "most_likely", most_likely)
    folder = tmp_path / "pipeline"
    plain = pictures(reconstruct(ReconstructConfig(**SETTINGS), folder, dataset_folder, tmp_path / "plain"))
    config = ReconstructConfig(**SETTINGS, class_start=True, rerank_features="pixels")
    ours = pictures(reconstruct(config, folder, dataset_folder, tmp_path / "ours"))
    assert plain.keys() == ours.keys()
    for key in plain:
        same = np.array_equal(plain[key], ours[key])
        assert same == (key[0] in ("prior_only", "label_oracle")), key
    assert len(named) == 4  # the test stimuli alone were named, each once
    again = pictures(reconstruct(config, folder, dataset_folder, tmp_path / "again"))
    assert all(np.array_equal(ours[key], again[key]) for key in ours)


def test_a_pipeline_without_label_start_is_refused(pipeline, dataset_folder, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    config = ReconstructConfig(**SETTINGS, class_start=True, rerank_features="pixels")
    with pytest.raises(ConfigError, match="tune one with label_start=true"):
        reconstruct(config, tmp_path / "pipeline", dataset_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bayes_label_draws_the_most_likely_class_and_survives_a_round_trip(
    dataset, dataset_folder, prior_folder, tmp_path
):
    options: dict[str, Any] = {
        "prior": prior_folder,
        "features": "pixels",
        "pictures_per_class": 3,
        "num_inference_steps": 2,
        "num_images_per_trial": 2,
    }
    fitted = BayesLabel.fit(dataset, dataset.rows("train"), **options)
    betas, repeats = np.asarray(dataset.betas[16:24]), np.ones(8, dtype=int)
    drawn = fitted.reconstruct(betas, stimulus_ids=["?"] * 8, repeats=repeats)
    assert drawn.shape == (8, 2, 16, 16, 3)
    rows = fitted.posterior.most_likely(betas, repeats)
    table = fitted.drawing.prior.label_embedding
    assert table is not None
    np.testing.assert_array_equal(drawn, fitted.drawing(table.float()[torch.from_numpy(rows)]))
    first = run_baseline("bayes-label", dataset_folder, tmp_path / "first", **options)
    again = run_baseline("bayes-label", dataset_folder, tmp_path / "again", fitted=first / "model")
    before, after = pictures(first), pictures(again)
    assert before.keys() == after.keys()
    assert {condition for condition, _, _ in before} == {"brain", "shuffled"}
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_labelled_pictures_stand_in_for_drawn_ones_and_test_stimuli_are_refused_among_them(
    dataset, prior, tmp_path
):
    rng = np.random.default_rng(0)
    for name in ("cup", "dog", "zebra"):  # the prior has no zebra
        (tmp_path / "bank" / name).mkdir(parents=True)
        for k in range(3):
            picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            picture.save(tmp_path / "bank" / name / f"{k}.png")
    images, rows = pictures_of_classes(tmp_path / "bank", prior.classes, dataset, 16)
    assert images.shape == (6, 16, 16, 3)
    assert sorted(rows) == [1, 1, 1, 3, 3, 3]
    stimulus = dataset.images(["test2"], 16)[0]
    Image.fromarray(stimulus).save(tmp_path / "bank" / "cup" / "x.png")
    with pytest.raises(DataError, match="is test stimulus 'test2'"):
        pictures_of_classes(tmp_path / "bank", prior.classes, dataset, 16)
    with pytest.raises(DataError, match="none of its 3 classes"):
        pictures_of_classes(tmp_path / "bank", ["tree"], dataset, 16)

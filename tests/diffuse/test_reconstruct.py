import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cadiff.diffuse.pipeline import to_uint8
from cadiff.diffuse.reconstruct import ReconstructConfig, derangement, reconstruct, save_pictures
from cadiff.diffuse.sampling import trial_noise
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.priors.load import decode


def settings(**options):
    return ReconstructConfig(num_inference_steps=2, num_images_per_trial=2, **options)


@pytest.fixture
def pipeline_folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def read(folder, condition, stimulus_id, sample):
    table = pd.read_csv(folder / "samples.tsv", sep="\t")
    row = table.query("condition == @condition and stimulus_id == @stimulus_id and sample == @sample")
    return np.asarray(Image.open(folder / row["file"].item()))


def test_folder_has_every_condition_stimulus_and_sample(pipeline_folder, dataset_folder, tmp_path):
    controls = ["prior_only", "shuffled", "label_oracle"]
    out = reconstruct(settings(controls=controls), pipeline_folder, dataset_folder, tmp_path / "out")
    table = pd.read_csv(out / "samples.tsv", sep="\t")
    assert list(table.columns) == ["condition", "stimulus_id", "sample", "file"]
    assert len(table) == 4 * 4 * 2
    assert sorted(table["condition"].unique()) == sorted(["brain", *controls])
    assert sorted(table["stimulus_id"].unique()) == ["test0", "test1", "test2", "test3"]
    for file in table["file"]:
        assert np.asarray(Image.open(out / file)).shape == (16, 16, 3)
    about = json.loads((out / "config.json").read_text())
    assert about["kind"] == "reconstructions"
    assert about["config"]["controls"] == controls


def test_conditions_share_the_noise_of_a_sample_and_nothing_else(
    pipeline, pipeline_folder, dataset, dataset_folder, tmp_path
):
    """Each picture equals one drawn by hand from its own condition and the common noise, one at a time."""
    out = reconstruct(settings(seed=3, batch_size=5), pipeline_folder, dataset_folder, tmp_path / "out")
    betas = np.stack([np.asarray(dataset.betas[16 + 2 * i : 18 + 2 * i]).mean(0) for i in range(4)])
    brain, _ = pipeline.condition(betas)
    other = derangement([f"test{i}" for i in range(4)], 3)
    noise = trial_noise(4, 2, pipeline.latent_shape, 3)
    by_hand = {"brain": brain, "shuffled": brain.rows(other), "prior_only": pipeline.conditioner.null(4)}
    for name, condition in by_hand.items():
        for trial in range(4):
            latents = pipeline(
                condition=condition.rows([trial]),
                noise=noise[trial : trial + 1],
                num_inference_steps=2,
                batch_size=1,
                output_type="latent",
            )
            with torch.no_grad():
                pictures = to_uint8(decode(pipeline.vqvae, latents[0], 0.5))
            for sample in range(2):
                drawn = read(out, name, f"test{trial}", sample).astype(int)
                # the nearest code of a latent can flip with the order of float sums; nearly all pixels agree
                assert np.mean(np.abs(drawn - pictures[sample]) <= 1) > 0.9, (name, trial, sample)


def test_every_trial_on_its_own(pipeline_folder, dataset_folder, tmp_path):
    out = reconstruct(
        settings(average_repeats=False, controls=[], max_stimuli=3),
        pipeline_folder,
        dataset_folder,
        tmp_path / "out",
    )
    table = pd.read_csv(out / "samples.tsv", sep="\t")
    assert table["stimulus_id"].tolist() == ["test0"] * 4 + ["test1"] * 2
    assert table["sample"].tolist() == [0, 1, 2, 3, 0, 1]


def test_refuses_before_sampling(pipeline_folder, dataset_folder, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(ArtifactError, match="already exists"):
        reconstruct(settings(), pipeline_folder, dataset_folder, tmp_path / "there")
    with pytest.raises(ConfigError, match="latent_start"):
        reconstruct(settings(strength=0.5), pipeline_folder, dataset_folder, tmp_path / "out")
    with pytest.raises(DataError, match="shuffled"):
        reconstruct(settings(max_stimuli=1), pipeline_folder, dataset_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_pipeline_is_refused(pipeline_folder, dataset_folder, tmp_path):
    from cadiff.artifacts import folder_checksums, write_json

    write_json(pipeline_folder / "checksums.json", folder_checksums(pipeline_folder))
    weights = pipeline_folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="damaged"):
        reconstruct(settings(), pipeline_folder, dataset_folder, tmp_path / "out")


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=12), st.integers(0, 99))
def test_derangement_gives_every_row_another_group(groups, seed):
    if 2 * max(groups.count(g) for g in groups) > len(groups):
        with pytest.raises(DataError):
            derangement(groups, seed)
        return
    order = derangement(groups, seed)
    assert sorted(order) == list(range(len(groups)))
    assert all(groups[i] != groups[j] for i, j in enumerate(order))
    assert np.array_equal(order, derangement(groups, seed))


def test_file_names_stay_apart_when_ids_are_not_file_names(tmp_path):
    pictures = {"brain": np.zeros((2, 1, 4, 4, 3), np.uint8)}
    table = save_pictures(tmp_path, pictures, ["a/b", "a b"])
    assert table["stimulus_id"].tolist() == ["a/b", "a b"]
    assert table["file"].nunique() == 2
    assert all((tmp_path / file).is_file() for file in table["file"])


def test_noise_depends_on_seed_trial_and_sample_alone():
    small, large = trial_noise(2, 1, (3, 4, 4), 7), trial_noise(3, 4, (3, 4, 4), 7)
    assert torch.equal(small[:, 0], large[:2, 0])
    assert not torch.equal(large[0, 0], large[0, 1])
    assert not torch.equal(large[0, 0], trial_noise(1, 1, (3, 4, 4), 8)[0, 0])
    assert abs(large.std().item() - 1) < 0.1

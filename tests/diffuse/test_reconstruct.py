import json
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cadiff.data.simulate import NOISE_FREE
from cadiff.data.splits import average_repeats
from cadiff.diffuse.controls import derangement
from cadiff.diffuse.pictures import save_pictures
from cadiff.diffuse.pipeline import FmriToImagePipeline, to_uint8
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct
from cadiff.diffuse.sampling import sample_noise, trial_noise
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


def files_of(folder, *but):
    """Name -> bytes of the pictures of all conditions but some."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.png")}
    return {name: path.read_bytes() for name, path in found.items() if name.split("/")[1] not in but}


def test_pictures_are_written_as_they_are_drawn(pipeline_folder, dataset_folder, tmp_path, monkeypatch):
    """Before every batch all earlier ones are on disk; what a batch holds does not depend on how many there are."""
    drawn, shapes, draw = [], set(), FmriToImagePipeline.__call__

    def spy(self, **options):
        drawn.append(len(list(tmp_path.rglob("*.png"))))
        shapes.add((len(options["condition"].context), len(options["noise"])))
        return draw(self, **options)

    monkeypatch.setattr(FmriToImagePipeline, "__call__", spy)
    reconstruct(settings(batch_size=5, guidance_scale=2), pipeline_folder, dataset_folder, tmp_path / "out")
    assert drawn == [0, 5, 10, 15, 20] and shapes == {(5, 5), (4, 4)}  # 4 stimuli x 3 conditions x 2 samples


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError("no space is left")])
def test_stopped_half_way_it_leaves_nothing_behind(
    problem, pipeline_folder, dataset_folder, tmp_path, monkeypatch
):
    calls, draw = [], FmriToImagePipeline.__call__

    def stop(self, **options):
        calls.append(1)
        if len(calls) == 3:
            raise problem
        return draw(self, **options)

    monkeypatch.setattr(FmriToImagePipeline, "__call__", stop)
    (tmp_path / "results").mkdir()
    with pytest.raises(problem if isinstance(problem, type) else type(problem)):
        reconstruct(settings(batch_size=2), pipeline_folder, dataset_folder, tmp_path / "results" / "out")
    assert list((tmp_path / "results").iterdir()) == []


def test_the_autoencoder_shows_the_stimulus_and_changes_nothing_else(
    pipeline, pipeline_folder, prior, dataset, dataset_folder, tmp_path
):
    plain = reconstruct(settings(), pipeline_folder, dataset_folder, tmp_path / "plain")
    controls = ["prior_only", "autoencoded", "shuffled"]
    out = reconstruct(settings(controls=controls), pipeline_folder, dataset_folder, tmp_path / "out")
    assert files_of(out, "autoencoded") == files_of(plain)
    table = pd.read_csv(out / "samples.tsv", sep="\t")
    assert table["condition"].value_counts()["autoencoded"] == 4  # one a stimulus: there is nothing to draw
    for stimulus_id in ("test0", "test3"):
        seen = torch.from_numpy(dataset.image(stimulus_id).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        wanted = to_uint8(prior.decode(prior.encode(seen)))[0].astype(int)
        assert np.mean(np.abs(read(out, "autoencoded", stimulus_id, 0).astype(int) - wanted) <= 1) > 0.9


def test_pictures_that_were_seen_are_read_for_the_autoencoder_alone(
    pipeline_folder, dataset_folder, tmp_path
):
    blind = shutil.copytree(dataset_folder, tmp_path / "blind")
    shutil.rmtree(blind / "stimuli")
    controls = ["prior_only", "shuffled", "label_oracle"]
    out = reconstruct(settings(controls=controls), pipeline_folder, blind, tmp_path / "out")
    seeing = reconstruct(settings(controls=controls), pipeline_folder, dataset_folder, tmp_path / "seeing")
    assert files_of(out) == files_of(seeing)
    with pytest.raises(DataError, match="picture of stimulus 'test0'"):
        reconstruct(settings(controls=["autoencoded"]), pipeline_folder, blind, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_noise_free_responses_are_read_as_the_brain_is(pipeline_folder, dataset, dataset_folder, tmp_path):
    """Where the noise-free responses are the averages themselves, the pictures are the brain's."""
    simulated = shutil.copytree(dataset_folder, tmp_path / "simulated")
    np.save(simulated / NOISE_FREE, average_repeats(dataset)[0])
    options = settings(controls=["noise_free", "shuffled"], guidance_scale=5)
    out = reconstruct(options, pipeline_folder, simulated, tmp_path / "out")
    brain, free = (
        {name.rpartition("/")[2]: value for name, value in files_of(out, *others).items()}
        for others in (("noise_free", "shuffled"), ("brain", "shuffled"))
    )
    assert brain == free
    with pytest.raises(DataError, match="real data have none"):
        reconstruct(options, pipeline_folder, dataset_folder, tmp_path / "real")
    assert not (tmp_path / "real").exists()


def test_what_the_pipeline_learnt_from_is_passed_on(pipeline_folder, dataset_folder, tmp_path):
    def provenance(name):
        out = reconstruct(settings(controls=[]), pipeline_folder, dataset_folder, tmp_path / name)
        return json.loads((out / "config.json").read_text())["provenance"]

    assert not any(
        "trials" in key or "stimuli" in key for key in provenance("a")
    )  # nothing known, nothing claimed
    (pipeline_folder / "provenance.json").write_text('{"trials": 16, "stimuli": 8, "seed": 0}')
    assert (found := provenance("b"))["training_trials"] == 16 and found["training_stimuli"] == 8


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


def test_no_two_pictures_have_the_same_noise():
    """Also seeds that differ by 7,919, by which generations were once told apart, or in what 32 bits do not hold."""

    def fingerprints(seeds, generations, trials, samples):
        return [
            sample_noise(trial, sample, (1, 1, 4), seed, generation).numpy().tobytes()
            for seed in seeds
            for generation in generations
            for trial in range(trials)
            for sample in range(samples)
        ]

    seeds = [0, 1, 2, 7919, 2 * 7919, 7920]
    found = fingerprints(seeds, range(4), 20, 16) + fingerprints([2**32, 2**32 + 1], range(1, 4), 20, 16)
    found += fingerprints(range(3, 13), [0], 200, 16)
    assert len(set(found)) == len(found)


def test_noise_without_a_search_is_that_of_published_figures():
    seed, trial, sample = 3, 41, 7
    one_number = torch.Generator().manual_seed((seed * 1_000_003 + trial) * 10_007 + sample)
    expected = torch.randn((3, 8, 8), generator=one_number)
    assert torch.equal(sample_noise(trial, sample, (3, 8, 8), seed), expected)


def test_noise_of_later_generations_is_standard_normal():
    noise = torch.stack([sample_noise(trial, 0, (3, 32, 32), -1, 2) for trial in range(20)])
    assert noise.dtype == torch.float32 and noise.shape == (20, 3, 32, 32)
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert scipy.stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_noise_depends_on_seed_trial_and_sample_alone():
    small, large = trial_noise(2, 1, (3, 4, 4), 7), trial_noise(3, 4, (3, 4, 4), 7)
    assert torch.equal(small[:, 0], large[:2, 0])
    assert not torch.equal(large[0, 0], large[0, 1])
    assert not torch.equal(large[0, 0], trial_noise(1, 1, (3, 4, 4), 8)[0, 0])
    assert abs(large.std().item() - 1) < 0.1

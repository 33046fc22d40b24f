"""Ridge baselines against scikit-learn, on a brain that we know, and their place in the tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from cadiff.baselines.labels import Drawing
from cadiff.baselines.ridge import RidgePixels
from cadiff.baselines.stage import run_baseline
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.splits import average_repeats
from cadiff.errors import DataError


@pytest.fixture(scope="module")
def data(linear_brain):
    return BrainDataset.open(linear_brain)


@pytest.fixture(scope="module")
def fitted(data):
    return RidgePixels.fit(data, data.rows("train"))


def test_pixels_equal_those_of_scikit_learn_with_the_same_penalty(data, fitted):
    rows = data.rows("train")
    x = fitted.preprocessor(data.betas[rows])
    y = data.images(data.trials["stimulus_id"].iloc[rows]).reshape(len(rows), -1) / 255.0
    centred = x - x.mean(axis=0)
    squares = np.linalg.svd(centred.astype(np.float64), compute_uv=False) ** 2
    alpha = fitted.ridge["penalty"] * squares[squares > squares[0] * 1e-12].mean()
    test = data.betas[data.rows("test")]
    expected = Ridge(alpha=alpha).fit(x, y).predict(fitted.preprocessor(test))
    found = fitted.predict(test).reshape(len(test), -1)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_linear_brain_is_read_almost_without_error(data, fitted):
    betas, ids, repeats = average_repeats(data)
    pictures = fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)
    assert pictures.shape == (6, 1, 16, 16, 3)
    assert pictures.dtype == np.uint8
    assert np.abs(pictures[:, 0].astype(int) - data.images(ids)).mean() < 2.0
    assert fitted.ridge["held_out_score"] > 0.99


def test_shuffled_brains_are_read_worse(data, fitted):
    betas, ids, repeats = average_repeats(data)
    truth = data.images(ids).astype(int)
    good, bad = (
        np.abs(fitted.reconstruct(b, stimulus_ids=ids, repeats=repeats)[:, 0] - truth).mean()
        for b in (betas, np.roll(betas, 1, axis=0))
    )
    assert bad > 5 * good


def test_values_outside_the_range_are_clipped_not_wrapped(data, fitted):
    extreme = fitted.preprocessor.mean + 100 * (data.betas[data.rows("test")] - fitted.preprocessor.mean)
    raw = fitted.predict(extreme)
    pictures = fitted.reconstruct(extreme, stimulus_ids=[], repeats=np.ones(len(extreme)))[:, 0]
    assert (raw > 1.5).any()
    assert (raw < -0.5).any()
    assert (pictures[raw > 1] == 255).all()
    assert (pictures[raw < 0] == 0).all()


def test_a_penalty_a_target_follows_the_noise_of_each_and_equals_scikit_learn(rng):
    from cadiff.encoding.ridge import RidgePath, fit_ridge

    x = rng.normal(size=(80, 20))
    y = np.stack([x @ rng.normal(size=20), rng.normal(size=80)], axis=1)
    groups = [str(i) for i in range(80)]
    found = fit_ridge(torch.from_numpy(x), torch.from_numpy(y), groups, score="r2", per_target=True)
    assert found.penalties is not None
    clear, noise = found.penalties.tolist()
    assert clear < 0.1 * noise
    unit = RidgePath(torch.from_numpy(x), torch.from_numpy(y)).mean_square.item()
    for target, penalty in enumerate((clear, noise)):
        expected = Ridge(alpha=penalty * unit).fit(x, y[:, target])
        np.testing.assert_allclose(found.weight[:, target], expected.coef_, atol=1e-5)
        alone = fit_ridge(torch.from_numpy(x), torch.from_numpy(y[:, [target]]), groups, score="r2")
        assert alone.penalty == penalty
        np.testing.assert_allclose(found.held_out[:, target], alone.held_out[:, 0], atol=1e-6)
    assert sum(found.facts()["targets_of_penalty"].values()) == 2


def test_a_penalty_a_component_reads_a_linear_brain_as_well(data):
    fitted = RidgePixels.fit(data, data.rows("train"), per_target=True)
    betas, ids, repeats = average_repeats(data)
    pictures = fitted.reconstruct(betas, stimulus_ids=ids, repeats=repeats)[:, 0]
    assert np.abs(pictures.astype(int) - data.images(ids)).mean() < 2.0


def test_a_single_training_stimulus_is_one_sentence(rng, tmp_path):
    ids = ["only", "test-0", "test-1"]
    write_dataset(
        tmp_path / "data",
        name="one",
        subject="sub-01",
        betas=rng.normal(size=(3, 4)),
        trials=pd.DataFrame(
            {"stimulus_id": ids, "split": ["train", "test", "test"], "session": 1, "run": 1, "repeat": 1}
        ),
        voxels=pd.DataFrame({"rois": ["V1"] * 4}),
        stimuli=pd.DataFrame({"stimulus_id": ids}),
        images={name: rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) for name in ids},
    )
    assert BrainDataset.open(tmp_path / "data").stimulus_ids("train") == ["only"]
    with pytest.raises(
        DataError, match=r"one training stimulus or class \(only\), and ridge regression needs two or more"
    ):
        run_baseline("ridge-pixels", tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_features_retrieve_each_training_picture_from_its_own_betas(data):
    from cadiff.baselines.ridge import RidgeRetrieval

    rows = data.rows("train")
    ids = [str(s) for s in data.trials["stimulus_id"].to_numpy()[rows]]
    fitted = RidgeRetrieval.fit(data, rows, features="pixels")
    ones = np.ones(len(rows), dtype=int)
    drawn = fitted.reconstruct(data.betas[rows], stimulus_ids=ids, repeats=ones)
    np.testing.assert_array_equal(drawn[:, 0], data.images(ids))
    assert fitted.facts()["features"] == ["pixels"]


class TinyPrior:
    """Stands in for an image prior whose denoiser predicts the sign of the context: enough to test the drawing."""

    latent_shape = (3, 4, 4)
    time_dim = 8
    null_label = 2

    def __init__(self) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            sample_size=4, in_channels=3, out_channels=3, block_out_channels=(8,), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), mid_block_type=None,
            cross_attention_dim=6, norm_num_groups=2, attention_head_dim=4, class_embed_type="identity",
        )  # fmt: skip
        self.time_dim = 32
        self.vqvae = torch.nn.Identity()
        self.scheduler = DDIMScheduler()
        self.label_embedding = torch.randn(3, 6)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.tanh()


def test_a_drawing_depends_on_its_own_row_alone_and_not_on_batches():
    prior = TinyPrior()
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    options = {"num_images_per_trial": 2, "num_inference_steps": 3, "seed": 4}
    together = Drawing(prior, batch_size=16, **options)(rows)  # type: ignore[arg-type]
    apart = Drawing(prior, batch_size=1, **options)(rows)  # type: ignore[arg-type]
    assert together.shape == (3, 2, 4, 4, 3)
    assert np.abs(together.astype(int) - apart).max() <= 1  # rounding of sums in another order
    changed = rows.clone()
    changed[2] += 3.0
    np.testing.assert_array_equal(Drawing(prior, **options)(changed)[:2], together[:2])  # type: ignore[arg-type]
    assert (Drawing(prior, **options)(changed)[2] != together[2]).any()  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_ridge_to_labels_draws_what_the_true_label_draws_when_the_brain_is_a_label(tmp_path):
    """Betas are a rotation of the label embedding: the ridge must find it, and the pictures must agree."""
    import pandas as pd

    from cadiff.baselines.labels import RidgeLabel, TrueLabel
    from cadiff.data.dataset import write_dataset
    from cadiff.priors.load import load_prior

    prior = load_prior("shipped")
    rng = np.random.default_rng(0)
    classes = list(range(0, 200, 10))
    table = prior.label_embedding.float().numpy()[classes]
    ids = [f"train-{i}" for i in range(120)] + ["test-0", "test-1"]
    which = [i % len(classes) for i in range(120)] + [3, 11]
    blank = np.zeros((8, 8, 3), np.uint8)
    blank_of = {name: blank + i for i, name in enumerate(ids)}
    folder = write_dataset(
        tmp_path / "data",
        name="labels",
        subject="sub-01",
        betas=table[which] + 0.01 * rng.normal(size=(len(ids), table.shape[1])),
        trials=pd.DataFrame(
            {"stimulus_id": ids, "split": ["train"] * 120 + ["test"] * 2, "session": 1, "run": 1, "repeat": 1}
        ),
        voxels=pd.DataFrame({"rois": ["V1"] * table.shape[1]}),
        stimuli=pd.DataFrame({"stimulus_id": ids, "label": [prior.classes[classes[k]] for k in which]}),
        images=blank_of,
    )
    data = BrainDataset.open(folder)
    betas, test_ids, repeats = average_repeats(data)
    options = {"num_images_per_trial": 1, "num_inference_steps": 5, "guidance_scale": 1.0}
    rows = data.rows("train")
    read = RidgeLabel.fit(data, rows, **options).reconstruct(betas, stimulus_ids=test_ids, repeats=repeats)
    told = TrueLabel.fit(data, rows, **options).reconstruct(betas, stimulus_ids=test_ids, repeats=repeats)
    assert np.abs(read.astype(int) - told).mean() < 8

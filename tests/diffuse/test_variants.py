import json
import re
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cadiff.config import load_config
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.data.splits import average_repeats
from cadiff.diffuse.conditioner import Condition, FmriConditioner
from cadiff.diffuse.controls import derangement
from cadiff.diffuse.importance import condition_importance
from cadiff.diffuse.pipeline import open_pipeline
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct
from cadiff.diffuse.sampling import trial_noise
from cadiff.diffuse.start import LatentStart
from cadiff.diffuse.variants import (
    condition_names,
    repeat_variants,
    roi_members,
    roi_variants,
    training_means,
)
from cadiff.errors import ConfigError, DataError

NUM_VOXELS = 30
ROIS = ["V1,VC"] * 8 + ["lh V2,VC"] * 8 + ["V1,lh V2,VC"] * 2 + ["FFA"] * 6 + [""] * 6
SHOWN = {"a": 4, "b": 3, "c": 5, "d": 3}
"""Test stimuli and how often each is shown."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trials of the stimuli mixed, unequal numbers of repeats, overlapping ROIs, coordinates."""
    rng = np.random.default_rng(1)
    train = [f"train{i}" for i in range(6)]
    order = rng.permutation([name for name, count in SHOWN.items() for _ in range(count)]).tolist()
    shown = train + order
    trials = pd.DataFrame(
        {
            "stimulus_id": shown,
            "split": ["train"] * len(train) + ["test"] * len(order),
            "session": 1,
            "run": 1,
            "repeat": 1,
        }
    )
    names = [*train, *SHOWN]
    return write_dataset(
        tmp_path_factory.mktemp("data") / "regions",
        name="regions",
        subject="sub-01",
        betas=3 + rng.normal(size=(len(shown), NUM_VOXELS)),
        trials=trials,
        voxels=pd.DataFrame({"rois": ROIS, "noise_ceiling": 0.3, "x": 1.5, "y": 2, "z": range(NUM_VOXELS)}),
        stimuli=pd.DataFrame({"stimulus_id": names, "label": "cat"}),
        images={name: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for name in names},
    )


@pytest.fixture(scope="module")
def data(folder):
    return BrainDataset.open(folder)


@pytest.fixture(scope="module")
def preprocessor(data):
    """What the pipeline of these tests is fitted with: it looks at the number of repeats."""
    return preprocess(data, match_repeat_spread=True)


@pytest.fixture
def pipeline_folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def preprocess(data, **options):
    return Preprocessor.fit(
        data.betas[data.rows("train")],
        PreprocessConfig(**options),
        patch_size=8,
        voxels=data.voxels,
        noise_ceiling=data.voxels["noise_ceiling"].to_numpy(),
    )


def trials_of(data, stimulus_id):
    return np.flatnonzero((data.trials["stimulus_id"] == stimulus_id).to_numpy())


def subset(data, stimulus_id, row, count):
    """Which `count` trials of a stimulus `row` is the average of."""
    found = [
        set(some)
        for some in combinations(trials_of(data, stimulus_id), count)
        if np.allclose(np.asarray(data.betas)[list(some)].mean(0), row, atol=1e-6)
    ]
    assert len(found) == 1
    return found[0]


def test_averages_of_so_many_presentations_drawn_without_replacement(data):
    _, ids, _ = average_repeats(data)
    found = dict(repeat_variants(data, "test", ids, [1, 2, 3], seed=4))
    assert list(found) == ["repeats_1", "repeats_2", "repeats_3"]
    drawn = []
    for count, variant in zip((1, 2, 3), found.values(), strict=True):
        assert variant.as_json() == {"kind": "repeats", "value": count}
        assert variant.repeats.tolist() == [count] * len(ids)
        assert variant.betas.dtype == np.float32
        drawn.append([subset(data, name, row, count) for name, row in zip(ids, variant.betas, strict=True)])
    for fewer, more in pairwise(drawn):
        assert all(a < b for a, b in zip(fewer, more, strict=True))


def test_all_presentations_are_the_brain_itself(data):
    """Bit for bit where a stimulus has no more than those; d and b have 3."""
    betas, ids, repeats = average_repeats(data)
    ((_, variant),) = repeat_variants(data, "test", ids, [3], seed=0)
    whole = repeats == 3
    assert whole.sum() == 2
    assert np.array_equal(variant.betas[whole], betas[whole])
    assert not np.array_equal(variant.betas[~whole], betas[~whole])


def test_a_draw_depends_on_its_seed_and_not_on_the_others_asked_for(data):
    _, ids, _ = average_repeats(data)
    ((_, alone),) = repeat_variants(data, "test", ids, [2], seed=4)
    beside = dict(repeat_variants(data, "test", ids[:2], [3, 2, 2], seed=4))
    assert list(beside) == ["repeats_3", "repeats_2"]
    assert np.array_equal(beside["repeats_2"].betas, alone.betas[:2])
    seeds = [dict(repeat_variants(data, "test", ids, [2], seed=s))["repeats_2"].betas for s in range(-2, 6)]
    assert len({betas.tobytes() for betas in seeds}) > 4


def test_every_presentation_is_drawn_equally_often(data):
    _, ids, _ = average_repeats(data)
    place = ids.index("a")
    counts = dict.fromkeys(trials_of(data, "a"), 0)
    for seed in range(200):
        ((_, variant),) = repeat_variants(data, "test", ids, [2], seed=seed)
        for trial in subset(data, "a", variant.betas[place], 2):
            counts[trial] += 1
    # 200 draws of 2 from 4: 100 each, standard deviation 7.1
    assert max(abs(count - 100) for count in counts.values()) < 4 * 7.1


def test_too_few_presentations(data):
    _, ids, _ = average_repeats(data)
    with pytest.raises(DataError, match=r"average of 5 .*3 of 4 stimuli have too few.*at most 3"):
        list(repeat_variants(data, "test", ids, [2, 5], seed=0))


@pytest.mark.parametrize("normalise", ["voxel", "scalar", "none"])
@pytest.mark.parametrize("policy", ["wrap", "pad", "stretch", "truncate"])
def test_silent_voxels_read_as_their_training_mean(data, normalise, policy):
    preprocessor = preprocess(data, normalise=normalise, length_policy=policy, match_repeat_spread=True)
    betas, _, repeats = average_repeats(data)
    means = np.asarray(data.betas[data.rows("train")]).mean(0, dtype=np.float64)
    np.testing.assert_allclose(training_means(preprocessor), means, rtol=1e-5)
    members = {roi: [roi in entry.split(",") for entry in ROIS] for roi in ("V1", "lh V2", "VC", "FFA")}
    found = dict(roi_variants(data, preprocessor, betas, repeats, only=["all"], without=["FFA", "V1"]))
    expected = [*(f"only_{roi}" for roi in ("V1", "VC", "lh_V2", "FFA")), "without_FFA", "without_V1"]
    assert list(found) == expected
    for name, variant in found.items():
        assert isinstance(variant.value, str)
        inside = np.array(members[variant.value])
        kept = inside if name.startswith("only") else ~inside
        by_hand = np.where(kept, betas, means.astype(np.float32))
        np.testing.assert_allclose(
            preprocessor(variant.betas, variant.repeats), preprocessor(by_hand, repeats), atol=1e-4
        )
        assert np.array_equal(variant.betas[:, kept], betas[:, kept])
        read = 24 if policy == "truncate" else NUM_VOXELS
        assert variant.num_voxels == kept[:read].sum()
        assert variant.repeats is repeats


def test_voxel_wise_z_scores_of_silent_voxels_are_exactly_zero(data):
    preprocessor = preprocess(data, match_repeat_spread=True, length_policy="pad")
    betas, _, repeats = average_repeats(data)
    ((_, variant),) = roi_variants(data, preprocessor, betas, repeats, only=["FFA"])
    ready = preprocessor(variant.betas, repeats)
    assert np.flatnonzero(ready.any(0)).tolist() == list(range(18, 24))
    assert np.array_equal(ready[:, 18:24], preprocessor(betas, repeats)[:, 18:24])


def test_unknown_and_unread_rois_are_named(data):
    betas, _, repeats = average_repeats(data)
    with pytest.raises(DataError, match=r"without_rois names the ROI 'V9'.*there are: V1, VC, lh V2, FFA"):
        list(roi_variants(data, preprocess(data), betas, repeats, without=["V1", "V9"]))
    narrow = preprocess(data, rois=["FFA"])
    with pytest.raises(DataError, match=r"only_rois names the ROI 'V1'.*reads no voxel; it reads: FFA"):
        list(roi_variants(data, narrow, betas, repeats, only=["V1"]))
    found = dict(roi_variants(data, narrow, betas, repeats, only=["all"], without=["all"]))
    assert list(found) == ["only_FFA", "without_FFA"]
    assert [variant.num_voxels for variant in found.values()] == [6, 0]
    assert all(np.isfinite(variant.betas).all() for variant in found.values())
    assert np.array_equal(narrow(found["only_FFA"].betas), narrow(betas))


def test_rois_of_a_table(data):
    members = roi_members(pd.DataFrame({"rois": ["b, a", "", "n/a", "a"]}))
    assert {roi: where.tolist() for roi, where in members.items()} == {
        "a": [True, False, False, True],
        "b": [True, False, False, False],
    }
    betas, _, repeats = average_repeats(data)
    nameless = BrainDataset(
        data.folder, data.description, data.trials, data.voxels.assign(rois=""), data.stimuli
    )
    with pytest.raises(DataError, match="in none"):
        list(roi_variants(nameless, preprocess(data), betas, repeats, only=["all"]))


@given(st.sets(st.text(alphabet="aAbB-_ ./\\é2", min_size=1, max_size=4), max_size=12))
def test_names_of_conditions_are_safe_and_apart(rois):
    names = condition_names(rois)
    assert set(names) == rois
    assert len({name.casefold() for name in names.values()}) == len(rois)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names.values())
    assert names == condition_names(sorted(rois, reverse=True))


def test_safe_names_are_kept_and_long_ones_cut():
    assert condition_names(["V 1", "V_1", "V1"]) == {"V1": "V1", "V_1": "V_1", "V 1": "V_1-2"}
    long = condition_names(["x" * 300 + "a", "x" * 300 + "b"])
    assert sorted(map(len, long.values())) == [60, 62]


def test_settings(tmp_path):
    assert ReconstructConfig(only_rois="all", repeats=4).repeats == (4,)
    chosen = load_config(ReconstructConfig, "reconstruct", None, ["only_rois=V1", "without_rois=[V1, V2]"])
    assert (chosen.only_rois, chosen.without_rois) == (("V1",), ("V1", "V2"))
    with pytest.raises(ConfigError, match="average_repeats=false"):
        load_config(ReconstructConfig, "reconstruct", None, ["repeats=[2]", "average_repeats=false"])
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        load_config(ReconstructConfig, "reconstruct", None, ["repeats=[0]"])


def read(folder, condition, stimulus_ids, samples):
    """uint8 (stimuli, samples, H, W, 3)."""
    table = pd.read_csv(folder / "samples.tsv", sep="\t").set_index(["condition", "stimulus_id", "sample"])
    files = [[table.at[(condition, s, k), "file"] for k in range(samples)] for s in stimulus_ids]
    return np.stack([[np.asarray(Image.open(folder / file)) for file in row] for row in files])


def draw_by_hand(pipeline, conditions, count, seed, **options):
    """Pictures (stimuli, conditions, samples, ...) of conditions drawn together, a stimulus's conditions side by side."""
    together = Condition(
        torch.stack([c.context for c in conditions], 1).flatten(0, 1),
        torch.stack([c.time for c in conditions], 1).flatten(0, 1),
    )
    noise = trial_noise(count, 2, pipeline.latent_shape, seed).repeat_interleave(len(conditions), 0)
    pictures = pipeline(condition=together, noise=noise, num_inference_steps=2, batch_size=5, **options)
    return pictures.reshape(count, len(conditions), *pictures.shape[1:])


def test_variants_are_drawn_with_the_noise_and_in_the_batches_of_the_brain(
    pipeline_folder, folder, data, tmp_path
):
    pipeline = open_pipeline(pipeline_folder)
    config = ReconstructConfig(
        num_inference_steps=2,
        num_images_per_trial=2,
        batch_size=5,
        seed=3,
        guidance_scale=30,  # the tiny network hardly listens otherwise
        controls=["shuffled"],
        repeats=[2],
        only_rois=["lh V2"],
        without_rois=["FFA"],
    )
    out = reconstruct(config, pipeline_folder, folder, tmp_path / "out")
    names = ["brain", "shuffled", "repeats_2", "only_lh_V2", "without_FFA"]
    assert list(dict.fromkeys(pd.read_csv(out / "samples.tsv", sep="\t")["condition"])) == names
    assert json.loads((out / "config.json").read_text())["variants"] == {
        "repeats_2": {"kind": "repeats", "value": 2},
        "only_lh_V2": {"kind": "only_roi", "value": "lh V2", "num_voxels": 10},
        "without_FFA": {"kind": "without_roi", "value": "FFA", "num_voxels": 24},
    }
    betas, ids, repeats = average_repeats(data)
    variants = dict(repeat_variants(data, "test", ids, [2], seed=3))
    means = pipeline.conditioner.preprocessor.mean
    second = np.array(["lh V2" in entry for entry in ROIS])
    face = np.array([entry == "FFA" for entry in ROIS])
    brain = pipeline.condition(betas, repeats)[0]
    conditions = [
        brain,
        brain.rows(torch.from_numpy(derangement(ids, 3))),
        pipeline.condition(variants["repeats_2"].betas, np.full(4, 2))[0],
        pipeline.condition(np.where(second, betas, means), repeats)[0],
        pipeline.condition(np.where(face, means, betas), repeats)[0],
    ]
    expected = draw_by_hand(pipeline, conditions, 4, 3, guidance_scale=30)
    for k, name in enumerate(names):
        assert np.array_equal(read(out, name, ids, 2), expected[:, k]), name
    table = pd.read_csv(out / "voxel_importance.tsv", sep="\t", keep_default_na=False)
    assert list(table.columns) == ["voxel", "rois", "importance", "x", "y", "z"]
    assert table["rois"].tolist() == ROIS
    assert table["importance"].sum() == pytest.approx(1)


def test_pictures_are_bit_identical_without_the_new_options(pipeline_folder, folder, data, tmp_path):
    """The pictures are those of brain and controls drawn together, whether or not importance is written."""
    settings = {"num_inference_steps": 2, "num_images_per_trial": 2, "batch_size": 5}
    with_map = reconstruct(ReconstructConfig(**settings), pipeline_folder, folder, tmp_path / "with")
    without = reconstruct(
        ReconstructConfig(importance=False, **settings), pipeline_folder, folder, tmp_path / "without"
    )
    files = {
        out: {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (with_map, without)
    }
    for found in files.values():
        about = json.loads(found.pop("config.json"))
        assert set(about) == {"kind", "format", "config", "provenance"}
    assert files[with_map].pop("voxel_importance.tsv")
    assert files[with_map] == files[without]
    pipeline = open_pipeline(pipeline_folder)
    betas, ids, repeats = average_repeats(data)
    brain = pipeline.condition(betas, repeats)[0]
    null = pipeline.conditioner.null(4)
    expected = draw_by_hand(pipeline, [brain, null, brain.rows(torch.from_numpy(derangement(ids, 0)))], 4, 0)
    for k, name in enumerate(["brain", "prior_only", "shuffled"]):
        assert np.array_equal(read(without, name, ids, 2), expected[:, k]), name


def test_variants_have_their_own_start_below_full_strength(
    encoder, preprocessor, prior, rng, pipeline, folder, data, tmp_path
):
    draw = np.random.default_rng(0).normal
    weight, components = (torch.from_numpy(0.2 * draw(size=size)).float() for size in ((32, 5), (5, 192)))
    start = LatentStart(weight, components, torch.zeros(192), torch.full((192,), 0.1))
    pipeline.register_modules(
        conditioner=FmriConditioner.build(
            encoder, preprocessor, prior, context_length=6, latent_start=start, generator=rng
        )
    )
    pipeline.save_pretrained(tmp_path / "pipeline")
    config = ReconstructConfig(
        num_inference_steps=2,
        num_images_per_trial=2,
        batch_size=5,
        strength=0.5,
        controls=["prior_only"],
        repeats=[2],
        without_rois=["VC"],
    )
    out = reconstruct(config, tmp_path / "pipeline", folder, tmp_path / "out")
    pipeline = open_pipeline(tmp_path / "pipeline")
    betas, ids, repeats = average_repeats(data)
    fewer = dict(repeat_variants(data, "test", ids, [2], seed=0))["repeats_2"]
    seeing = np.array(["VC" in entry for entry in ROIS])
    silent = np.where(seeing, pipeline.conditioner.preprocessor.mean, betas)
    brain, fewer, silent = (
        pipeline.condition(*some)
        for some in ((betas, repeats), (fewer.betas, fewer.repeats), (silent, repeats))
    )
    null = (pipeline.conditioner.null(4), torch.full_like(brain[1], 0.1))
    conditions, guesses = zip(brain, null, fewer, silent, strict=True)
    guess = torch.stack(guesses, 1).flatten(0, 1)
    expected = draw_by_hand(pipeline, conditions, 4, 0, guess=guess, strength=0.5)
    for k, name in enumerate(["brain", "prior_only", "repeats_2", "without_VC"]):
        assert np.array_equal(read(out, name, ids, 2), expected[:, k]), name
    written = pd.read_csv(out / "voxel_importance.tsv", sep="\t")["importance"]
    own = condition_importance(pipeline.conditioner, betas, repeats, with_guess=True)
    np.testing.assert_allclose(written, own, rtol=1e-6)


def test_refused_before_sampling(pipeline_folder, folder, tmp_path):
    for options, message in (({"repeats": [9]}, "presentations"), ({"only_rois": ["V9"]}, "'V9'")):
        with pytest.raises(DataError, match=message):
            reconstruct(ReconstructConfig(**options), pipeline_folder, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.artifacts import read_json
from cadiff.data.dataset import BrainDataset
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.evaluate import EvaluateConfig, evaluate, pixel

PIXELS = EvaluateConfig(judge=None, num_bootstrap=500)


def test_the_stimuli_themselves_score_the_maximum(write_reconstructions, linear_brain, tmp_path):
    folder = write_reconstructions(brain=0.0, prior_only=1.0)
    config = EvaluateConfig(judge="efficientnet-lite0", num_bootstrap=500, monte_carlo_trials=20)
    found = read_json(evaluate(config, folder, linear_brain, tmp_path / "e") / "evaluation.json")
    brain = {name: score["mean"] for name, score in found["conditions"]["brain"]["metrics"].items()}
    # Flat pictures may look alike to the judge, so its identification is perfect only up to ties.
    assert brain.pop("two_way_features") > 0.9
    assert brain.pop("retrieval_6") > 0.9 and brain.pop("retrieval_back_6") > 0.9
    perfect = {
        "n_way_top1": 1,
        "n_way_top5": 1,
        "two_way_pixels": 1,
        "pcc": 1,
        "ssim": 1,
        "mse": 0,
        "psnr": 100,
    }
    assert brain == pytest.approx(perfect, abs=1e-9)
    assert found["conditions"]["brain"]["monte_carlo"] == {"n_way_top1": 1.0, "n_way_top5": 1.0}
    assert found["headline"] == {"metric": "n_way_top1", "condition": "brain"}
    assert found["judge"]["calibration"]["num_labelled"] == 0
    assert (
        "/50-way/top-1/exact/efficientnet-lite0/repeats-averaged/mean-of-2/6-images/16px"
        in (found["conditions"]["brain"]["metrics"]["n_way_top1"]["protocol"])
    )


def test_json_and_tables_agree_with_each_other_and_with_the_pure_functions(
    write_reconstructions, linear_brain, tmp_path
):
    folder = write_reconstructions(brain=0.3, prior_only=1.0, shuffled=0.3)
    out = evaluate(PIXELS, folder, linear_brain, tmp_path / "e")
    found = read_json(out / "evaluation.json")
    images, samples = (pd.read_csv(out / name, sep="\t") for name in ("per_image.tsv", "per_sample.tsv"))
    drawn = images[images["num_samples"] > 0]
    assert len(drawn) == 3 * 6 and len(samples) == 3 * 6 * 2
    assert set(images["condition"]) - set(drawn["condition"]) >= {"mean_image", "random_train"}
    data = BrainDataset.open(linear_brain)
    for row in samples.head(4).itertuples():
        picture = np.asarray(Image.open(folder / str(row.file)))[None]
        stimulus = data.image(str(row.stimulus_id))[None]
        for name in ("pcc", "mse", "ssim"):
            assert getattr(row, name) == pytest.approx(getattr(pixel, name)(picture, stimulus)[0], rel=1e-4)
    for condition, rows in samples.groupby("condition"):
        scores = found["conditions"][condition]["metrics"]
        for name, score in scores.items():
            per_image = rows.groupby("stimulus_id")[name].mean()
            assert score["mean"] == pytest.approx(per_image.mean(), abs=1e-5)
            assert score["ci95"][0] <= score["mean"] <= score["ci95"][1]
            best = (
                rows.groupby("stimulus_id")[name]
                .agg("max" if score["direction"] == "higher" else "min")
                .mean()
            )
            assert score["best_of"]["mean"] == pytest.approx(best, abs=1e-5)
            assert "best-of-2-per-image" in score["best_of"]["protocol"]


def test_the_brain_is_told_from_its_controls(write_reconstructions, linear_brain, tmp_path):
    folder = write_reconstructions(brain=0.2, prior_only=1.0, shuffled=0.2, label_oracle=0.0)
    found = read_json(evaluate(PIXELS, folder, linear_brain, tmp_path / "e") / "evaluation.json")
    pictures = {
        "mean_image",
        "random_train",
        "constant_train",
        "constant_test",
        "nearest_train",
        "class_mean",
    }
    assert {r["control"] for r in found["comparisons"]} == {
        "prior_only",
        "shuffled",
        "label_oracle",
        "permutation",
    } | pictures
    controls = {"prior_only", "shuffled", "permutation", "mean_image", "random_train", "constant_train"}
    for name, row in found["from_the_brain"].items():
        assert row["control"] in controls
        others = [r["gain"] for r in found["comparisons"] if r["metric"] == name and r["control"] in controls]
        assert row["gain"] == min(others) > 0
        assert row["exact"] and row["p"] >= 2 / 2**6  # six images: no p can be smaller
        assert row["p_holm"] >= row["p"]
    assert found["from_the_brain"]["mse"]["difference"] < 0


def test_unrelated_pictures_score_chance(write_reconstructions, linear_brain, tmp_path):
    folder = write_reconstructions(samples=40, brain=1.0)
    found = read_json(evaluate(PIXELS, folder, linear_brain, tmp_path / "e") / "evaluation.json")
    score = found["conditions"]["brain"]["metrics"]["two_way_pixels"]
    assert score["mean"] == pytest.approx(0.5, abs=0.1)
    assert score["chance"] == 0.5 == pytest.approx(score["mispaired"], abs=0.1)


def test_the_same_settings_give_the_same_numbers(write_reconstructions, linear_brain, tmp_path):
    folder = write_reconstructions(brain=0.4, prior_only=1.0)
    first, second = (
        read_json(evaluate(PIXELS, folder, linear_brain, tmp_path / name) / "evaluation.json")
        for name in "ab"
    )
    for found in (first, second):
        found.pop("provenance")
        found.pop("integrity")  # the second look is the second
    assert first == second


def test_json_is_strict_json(write_reconstructions, linear_brain, tmp_path):
    folder = write_reconstructions(brain=0.0, prior_only=0.0)
    text = (evaluate(PIXELS, folder, linear_brain, tmp_path / "e") / "evaluation.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def break_duplicate(folder):
    text = (folder / "samples.tsv").read_text()
    (folder / "samples.tsv").write_text(text + text.splitlines()[1] + "\n")


def break_uneven(folder):
    lines = (folder / "samples.tsv").read_text().splitlines()
    (folder / "samples.tsv").write_text("\n".join(lines[:-1]) + "\n")


def break_missing(folder):
    next(folder.glob("images/brain/*.png")).unlink()


def break_unreadable(folder):
    next(folder.glob("images/brain/*.png")).write_bytes(b"not a picture")


def break_alpha(folder):
    Image.new("RGBA", (16, 16)).save(next(folder.glob("images/brain/*.png")))


def break_size(folder):
    Image.new("RGB", (20, 20)).save(next(folder.glob("images/brain/*.png")))


def break_table(folder):
    (folder / "samples.tsv").write_text("")


def break_stimulus(folder):
    text = (folder / "samples.tsv").read_text()
    (folder / "samples.tsv").write_text(
        text.replace("\ttest-30\t", "\tmoon\t").replace("\ttest-0\t", "\tmoon\t")
    )


@pytest.mark.parametrize(
    "break_it, sentence",
    [
        (break_duplicate, "twice"),
        (break_uneven, "2 samples of some stimuli but 1"),
        (break_missing, "is missing"),
        (break_unreadable, "cannot be read"),
        (break_alpha, "mode RGBA"),
        (break_size, "differ in size"),
        (break_stimulus, "moon"),
        (break_table, "not a table of samples"),
    ],
)
def test_damaged_folders_are_one_clear_sentence(
    write_reconstructions, linear_brain, tmp_path, break_it, sentence
):
    folder = write_reconstructions(brain=0.5)
    break_it(folder)
    with pytest.raises(DataError, match=sentence):
        evaluate(PIXELS, folder, linear_brain, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_wrong_folders_and_settings_are_refused(write_reconstructions, linear_brain, tmp_path):
    folder = write_reconstructions(brain=0.5)
    with pytest.raises(ArtifactError, match="no such folder"):
        evaluate(PIXELS, tmp_path / "nowhere", linear_brain, tmp_path / "e")
    with pytest.raises(ArtifactError, match="no reconstructions"):
        evaluate(PIXELS, linear_brain, linear_brain, tmp_path / "e")
    with pytest.raises(ArtifactError, match="not a cadiff dataset"):
        evaluate(PIXELS, folder, folder, tmp_path / "e")
    with pytest.raises(ConfigError, match="two_way_pixels"):
        evaluate(EvaluateConfig(judge=None, headline="n_way_top1"), folder, linear_brain, tmp_path / "e")
    made = evaluate(PIXELS, folder, linear_brain, tmp_path / "e")
    with pytest.raises(ArtifactError, match="already exists"):
        evaluate(PIXELS, folder, linear_brain, made)


@pytest.mark.parametrize("headline", ["ssim", "psnr", "two_way_pixels", "mse"])
def test_any_metric_may_be_the_headline(write_reconstructions, linear_brain, tmp_path, headline):
    config = EvaluateConfig(judge=None, num_bootstrap=100, headline=headline)
    folder = write_reconstructions(brain=0.3, prior_only=1.0)
    found = read_json(evaluate(config, folder, linear_brain, tmp_path / "e") / "evaluation.json")
    means = {name: c["metrics"][headline]["mean"] for name, c in found["conditions"].items()}
    assert {"constant_train", "constant_test"} <= set(means)
    if headline != "ssim":  # which is too slow to choose by
        sign = -1 if headline == "mse" else 1
        assert sign * means["constant_test"] >= sign * means["constant_train"]


def test_retrieval_among_more_stimuli_than_training_pictures(write_reconstructions, linear_brain, tmp_path):
    config = EvaluateConfig(judge="efficientnet-lite0", num_bootstrap=100, train_pictures=3)
    folder = write_reconstructions(brain=0.3)
    found = read_json(evaluate(config, folder, linear_brain, tmp_path / "e") / "evaluation.json")
    assert "retrieval_6" in found["conditions"]["constant_train"]["metrics"]

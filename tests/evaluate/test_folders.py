"""Anyone's folder of pictures: three ways to name files give the same, and what does not fit is refused by name."""

from __future__ import annotations

from time import process_time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cadiff.artifacts import read_json, write_json
from cadiff.data.dataset import BrainDataset
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.folders import open_pictures
from cadiff.evaluate.pictures import open_stimuli, stimulus_images
from cadiff.evaluate.systems import System
from cadiff.framing import framed

IDS = ["n01_12", "n01_1", "cat"]
PIXELS = EvaluateConfig(judge=None, num_bootstrap=200)


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


def values(found, condition="brain"):
    return found.images(condition)[..., 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["n01_12_{}.png", "n01_1_{}.png", "cat_{}.png"], None),
        (["n01_12 sample{}.jpg", "n01_1-{}.jpg", "deep/er/cat.{}.jpg"], None),
        (["n01_12/{}.png", "x/n01_1/v{}.png", "cat/{}.png"], None),
        (["run{}/r_n01_12.png", "run{}/r_n01_1.png", "run{}/r_cat.png"], "run{sample}/r_{stimulus_id}"),
        (["a{}/n01_12.png", "a{}/n01_1.png", "a{}/cat.png"], "*/{stimulus_id}.png"),
    ],
)
def test_every_way_of_naming_files_is_understood(tmp_path, names, pattern):
    for i, name in enumerate(names):
        for sample in (1, 2):
            save(tmp_path / name.format(sample), 100 * i + 10 * sample)
    found = open_pictures(tmp_path, IDS, pattern=pattern)
    assert found.stimulus_ids == IDS and found.conditions == ["brain"]
    np.testing.assert_allclose(values(found), [[10, 20], [110, 120], [210, 220]], atol=2)


def test_a_table_may_name_conditions(tmp_path):
    rows = []
    for condition in ("brain", "control"):
        for i, name in enumerate(IDS):
            save(tmp_path / condition / f"{i}.png", i)
            rows.append((condition, name, f"{condition}/{i}.png"))
    pd.DataFrame(rows, columns=["condition", "stimulus_id", "file"]).to_csv(
        tmp_path / "t.tsv", sep="\t", index=False
    )
    found = open_pictures(tmp_path, IDS, table=tmp_path / "t.tsv")
    assert found.conditions == ["brain", "control"] and values(found, "control") == [[0], [1], [2]]


def test_the_number_of_images_is_never_another_than_it_seems(tmp_path):
    for name in IDS[:2]:
        save(tmp_path / f"{name}.png", 0)
    with pytest.raises(DataError, match=r"no picture of 1 of 3 stimuli \(first: 'cat'\)"):
        open_pictures(tmp_path, IDS)
    assert open_pictures(tmp_path, IDS, subset=True).stimulus_ids == IDS[:2]
    save(tmp_path / "cat_1.png", 0)
    save(tmp_path / "cat_2.png", 0)
    with pytest.raises(DataError, match="2 samples of some stimuli but 1 of"):
        open_pictures(tmp_path, IDS)
    save(tmp_path / "dog.png", 0)
    with pytest.raises(DataError, match=r"named after no stimulus \(first: 'dog.png'"):
        open_pictures(tmp_path, IDS)


def test_mistaken_patterns_tables_and_folders_are_refused(tmp_path):
    save(tmp_path / "p" / "cat.png", 0)
    with pytest.raises(ConfigError, match=r"must hold \{stimulus_id\} once"):
        open_pictures(tmp_path / "p", IDS, pattern="{id}.png")
    with pytest.raises(ConfigError, match=r"\{sample\} once"):
        open_pictures(tmp_path / "p", IDS, pattern="{stimulus_id}_{sample}_{sample}.png")
    with pytest.raises(DataError, match="do not fit the pattern"):
        open_pictures(tmp_path / "p", IDS, pattern="x_{stimulus_id}")
    (tmp_path / "t.tsv").write_text("stimulus_id\tfile\ncat\t../p/cat.png\n")
    with pytest.raises(DataError, match="must lie inside"):
        open_pictures(tmp_path / "p", IDS, table=tmp_path / "t.tsv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no pictures"):
        open_pictures(tmp_path / "empty", IDS)
    with pytest.raises(ArtifactError, match="not a folder"):
        open_pictures(tmp_path / "absent", IDS)


@pytest.mark.parametrize(
    ("samples", "bad"),
    [
        (["x", "1", "2"], "row 1 is 'x'"),
        (["0", "", "0"], "row 2 is ''"),
        (["0", "0", "1.5"], "row 3 is '1.5'"),
    ],
)
def test_sample_numbers_are_whole_or_refused_by_row(tmp_path, samples, bad):
    for name in IDS:
        save(tmp_path / "p" / f"{name}.png", 0)
    rows = pd.DataFrame({"stimulus_id": IDS, "file": [f"{name}.png" for name in IDS], "sample": samples})
    rows.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match=f"sample in {bad}; expected a whole number"):
        open_pictures(tmp_path / "p", IDS, table=tmp_path / "t.tsv")
    write_json(tmp_path / "p" / "config.json", {"kind": "reconstructions"})
    rows.assign(condition="brain").to_csv(tmp_path / "p" / "samples.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match=f"sample in {bad}; expected a whole number"):
        open_pictures(tmp_path / "p", IDS)


def test_whole_numbers_with_a_decimal_point_are_samples(tmp_path):
    for i in (0, 1):
        save(tmp_path / f"{i}.png", i)
    (tmp_path / "t.tsv").write_text("stimulus_id\tfile\tsample\ncat\t1.png\t1.0\ncat\t0.png\t0.0\n")
    found = open_pictures(tmp_path, ["cat"], table=tmp_path / "t.tsv")
    assert found.table["sample"].tolist() == [0, 1] and values(found) == [[0, 1]]


@pytest.mark.parametrize("about", ["[]", '"reconstructions"', "3"])
def test_a_config_that_is_no_table_of_settings_is_refused(tmp_path, about):
    (tmp_path / "config.json").write_text(about)
    (tmp_path / "samples.tsv").write_text("condition\tstimulus_id\tsample\tfile\nbrain\tcat\t0\tcat.png\n")
    with pytest.raises(ArtifactError, match=r"config.json holds a \w+, expected names and values"):
        open_pictures(tmp_path, ["cat"])


def test_two_pictures_of_one_name_are_found_among_thousands(tmp_path):
    for i in range(20_000):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "7.jpg").touch()
    start = process_time()
    with pytest.raises(DataError, match="two pictures called '7'"):
        open_stimuli(tmp_path)
    assert process_time() - start < 2.0  # counting each name anew took seconds


def test_a_plain_folder_scores_like_the_same_pictures_in_ours(write_reconstructions, linear_brain, tmp_path):
    ours = write_reconstructions(brain=0.4)
    stimuli, plain = tmp_path / "stimuli", tmp_path / "plain"
    stimuli.mkdir()
    data = BrainDataset.open(linear_brain)
    for name in data.stimulus_ids("test"):
        Image.fromarray(data.image(name)).save(stimuli / f"{name}.png")
    (ours / "images" / "brain").rename(plain)
    first = read_json(evaluate(PIXELS, plain, stimuli, tmp_path / "a") / "evaluation.json")
    plain.rename(ours / "images" / "brain")
    second = read_json(evaluate(PIXELS, ours, linear_brain, tmp_path / "b") / "evaluation.json")
    for name, score in second["conditions"]["brain"]["metrics"].items():
        assert first["conditions"]["brain"]["metrics"][name]["mean"] == score["mean"]


def test_rivals_are_compared_image_by_image(write_reconstructions, linear_brain, tmp_path):
    good = write_reconstructions(brain=0.2)
    good = good.rename(tmp_path / "good")
    bad = write_reconstructions(brain=0.9)
    found = read_json(
        evaluate(PIXELS, good, linear_brain, tmp_path / "e", against={"bad": bad}) / "evaluation.json"
    )
    row = next(r for r in found["comparisons"] if r["metric"] == "mse")
    assert (row["condition"], row["control"]) == ("brain", "bad") and row["gain"] > 0 and row["p"] < 0.05
    with pytest.raises(ConfigError, match="'brain' is taken"):
        evaluate(PIXELS, good, linear_brain, tmp_path / "f", against={"brain": bad})


def test_systems_of_other_sizes_are_resized_only_when_asked(write_reconstructions, linear_brain, tmp_path):
    ours = write_reconstructions(brain=0.2)
    big = tmp_path / "big"
    for path in (ours / "images" / "brain").iterdir():
        big.mkdir(exist_ok=True)
        Image.open(path).resize((32, 32)).save(big / path.name)
    with pytest.raises(DataError, match="give the side in pixels: --set size="):
        evaluate(PIXELS, ours, linear_brain, tmp_path / "e", against={"big": big})
    found = evaluate(
        EvaluateConfig(judge=None, num_bootstrap=200, size=16),
        ours,
        linear_brain,
        tmp_path / "e",
        against={"big": big},
    )
    assert "16px" in read_json(found / "evaluation.json")["conditions"]["big"]["metrics"]["mse"]["protocol"]


def test_pictures_of_several_sizes_in_one_folder_are_brought_to_the_size_asked_for(tmp_path, rng):
    shown = {
        name: rng.integers(0, 256, (side, side, 3), np.uint8)
        for name, side in zip(IDS, (16, 20, 16), strict=True)
    }
    for name, picture in shown.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    found = open_pictures(tmp_path, IDS)
    with pytest.raises(DataError, match=r"differ in size .* --set size="):
        found.images("brain")
    expected = [framed(shown[name], (16, 16)) for name in IDS]
    np.testing.assert_array_equal(found.images("brain", 16)[:, 0], expected)
    np.testing.assert_array_equal(System("brain", found, "brain", "").images(16)[:, 0], expected)


def test_stimuli_without_a_picture_and_stimuli_listed_twice_are_named(tmp_path):
    head = "stimulus_id\tfile\tlabel\n"
    (tmp_path / "stimuli.tsv").write_text(head + "cat\tn/a\ta\ndog\tdog.png\tb\n")
    with pytest.raises(DataError, match=r"Of 1 of 2 stimuli only the label is known \(first: 'cat'"):
        stimulus_images(open_stimuli(tmp_path), ["dog", "cat"], (8, 8))
    (tmp_path / "stimuli.tsv").write_text(head + "cat\tcat.png\ta\n" * 2)
    with pytest.raises(DataError, match="lists 'cat' twice"):
        open_stimuli(tmp_path)

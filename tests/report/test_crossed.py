"""Systems x subjects x seeds on one page: its statistics against a direct computation, and what it says of gaps."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cadiff.artifacts import read_json, write_json
from cadiff.errors import ArtifactError, ConfigError
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.hierarchy import ScoreTable
from cadiff.evaluate.statistics import compare, holm
from cadiff.report.crossed import Measured, System, cross
from cadiff.report.crossed_order import order_p, resampled_means, spearman
from cadiff.report.crossed_page import write_crossed
from cadiff.report.inputs import open_evaluated

PIXELS = EvaluateConfig(judge=None, num_bootstrap=400, train_pictures=0)


@pytest.fixture
def score(write_reconstructions, linear_brain, tmp_path):
    """score("a", "sub-01", 0, brain=.2) -> Measured; subjects saw the same pictures."""

    def make(row, subject, seed, config=PIXELS, **noise):
        data = tmp_path / f"{subject}-data"
        if not data.is_dir():
            shutil.copytree(linear_brain, data)
            about = read_json(data / "dataset_description.json")
            write_json(data / "dataset_description.json", {**about, "subject": subject})
        number = sum(map(ord, row + subject)) + seed
        pictures = write_reconstructions(seed=number, **{"shuffled": 0.3, **noise})
        pictures = pictures.rename(tmp_path / f"{row}-{subject}-{seed}-pictures")
        made = evaluate(config, pictures, data, tmp_path / f"{row}-{subject}-{seed}", progress=False)
        return Measured(subject, seed, open_evaluated(made))

    return make


def values(one, metric="pcc"):
    return one.evaluated.values("brain", metric).sort_index()


def test_one_subject_and_several_seeds_by_hand(score):
    a = [score("a", "s1", seed, brain=0.3) for seed in (0, 1, 2)]
    b = [score("b", "s1", seed, brain=0.6) for seed in (0, 1)]
    c = [score("c", "s1", 0, brain=0.5)]
    found = cross([System("a", a), System("b", b), System("c", c)], reference="b")
    means = {
        name: np.mean([values(one) for one in members], axis=0)
        for name, members in (("a", a), ("b", b), ("c", c))
    }
    own = found["systems"][0]["metrics"]["pcc"]
    assert own["mean"] == pytest.approx(means["a"].mean())
    by_seed = [values(one).mean() for one in a]
    assert list(own["seed_means"].values()) == pytest.approx(by_seed)
    assert own["sd_over_seeds"] == pytest.approx(np.std(by_seed, ddof=1))
    half = stats.t.ppf(0.975, 5) * means["a"].std(ddof=1) / np.sqrt(6)
    assert own["ci95_t"] == pytest.approx([means["a"].mean() - half, means["a"].mean() + half])

    rows = {row["first"]: row for row in found["comparisons"] if row["metric"] == "pcc"}
    assert set(rows) == {"a", "c"} and {row["second"] for row in rows.values()} == {"b"}
    direct = {name: compare(means[name], means["b"], num_draws=400) for name in rows}
    for name, row in rows.items():
        assert row["difference"] == pytest.approx(direct[name].difference)
        # images are drawn in another order, so the ends differ by what 400 draws leave open
        assert row["ci95"] == pytest.approx([direct[name].low, direct[name].high], abs=0.03)
        assert (row["p"], row["exact"]) == (pytest.approx(direct[name].p), True)
    expected = holm(np.array([direct[name].p for name in rows]))
    assert [row["p_holm"] for row in rows.values()] == pytest.approx(list(expected))
    assert rows["a"]["seed_differences"] == pytest.approx(
        {str(seed): values(a[seed]).mean() - values(b[seed]).mean() for seed in (0, 1)}
    )


def test_several_subjects_by_hand(score):
    systems = [
        System(
            row, [score(row, subject, seed, brain=noise) for subject in ("s1", "s2", "s3") for seed in (0, 1)]
        )
        for row, noise in (("a", 0.3), ("b", 0.6))
    ]
    found = cross(systems)
    grid = {
        system.name: np.array(
            [
                np.mean([values(m) for m in system.measured if m.subject == s], axis=0)
                for s in ("s1", "s2", "s3")
            ]
        )
        for system in systems
    }
    for system in found["systems"]:
        assert system["metrics"]["pcc"]["mean"] == pytest.approx(grid[system["name"]].mean())
        assert list(system["metrics"]["pcc"]["subject_means"].values()) == pytest.approx(
            list(grid[system["name"]].mean(axis=1))
        )
    (row,) = (row for row in found["comparisons"] if row["metric"] == "pcc")
    d = grid["a"] - grid["b"]
    assert row["difference"] == pytest.approx(d.mean()) and row["num_images"] == 6
    # all saw the same images, which change sign together: 64 flips of the images' sums
    flips = 1 - 2 * ((np.arange(64)[:, None] >> np.arange(6)) & 1)
    p = (np.abs(flips @ d.sum(axis=0)) >= abs(d.sum()) - 1e-12).mean()
    assert row["p"] == pytest.approx(p) == row["p_holm"]
    lower = [row["gain"] for row in found["comparisons"] if row["metric"] == "mse"]
    assert lower[0] > 0  # a has the smaller error: a gain for the first


def test_rows_with_other_subjects_are_compared_on_those_that_both_have(score):
    a = System("a", [score("a", subject, 0, brain=0.3) for subject in ("s1", "s2")])
    b = System("b", [score("b", "s2", 0, brain=0.5)], failures=["s1, seed 0: it broke"])
    found = cross([a, b, System("c", failures=["s1, seed 0: it broke too"])])
    (row,) = (row for row in found["comparisons"] if row["metric"] == "pcc")
    assert row["difference"] == pytest.approx((values(a.measured[1]) - values(b.measured[0])).mean())
    assert list(row["subject_differences"]) == ["s2"]
    assert found["systems"][2]["metrics"] == {} and found["systems"][2]["failures"]


def test_other_rules_are_left_out_and_said_so(score):
    other = EvaluateConfig(judge=None, num_bootstrap=400, train_pictures=0, size=12)
    systems = [
        System("a", [score("a", "s1", 0, brain=0.3)]),
        System("b", [score("b", "s1", 0, config=other, brain=0.3)]),
    ]
    found = cross(systems)
    assert found["systems"][1]["num_cells"] == 0 and "not comparable" in found["systems"][1]["failures"][0]
    with pytest.raises(ConfigError, match="nothing to compare"):
        cross([System("a", failures=["no"])])


def test_the_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    published, measured = rng.normal(size=8), rng.normal(size=(20, 8)).round(1)
    expected = [stats.spearmanr(published, row).statistic for row in measured]
    assert spearman(published, measured) == pytest.approx(expected)
    few = published[:5]
    draws = stats.permutation_test(
        (few,),
        lambda x: stats.spearmanr(x, measured[0, :5]).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
    )
    assert order_p(few, measured[0, :5], num_draws=1000, seed=0) == pytest.approx(draws.pvalue)
    assert 0 < order_p(published, published, num_draws=1000, seed=0) < 0.01


def test_resampled_means_are_those_of_a_bootstrap():
    rng = np.random.default_rng(1)
    images = np.array([f"i{k}" for k in range(40)])
    scores = rng.normal(size=(2, 40))
    tables = [ScoreTable(row, np.full(40, "s"), images) for row in scores]
    means = resampled_means(tables, 20_000, 0)
    assert means.mean(axis=0) == pytest.approx(scores.mean(axis=1), abs=0.01)
    assert means.std(axis=0) == pytest.approx(scores.std(axis=1) / np.sqrt(40), rel=0.03)
    # the same images are drawn for all: what two systems have in common moves together
    assert np.corrcoef(means.T)[0, 1] == pytest.approx(np.corrcoef(scores)[0, 1], abs=0.03)
    two = [
        ScoreTable(np.concatenate([row, row + 1]), np.repeat(["s", "t"], 40), np.tile(images, 2))
        for row in scores
    ]
    spread = resampled_means(two, 20_000, 0).std(axis=0)
    assert spread == pytest.approx(
        np.sqrt(scores.var(axis=1) / 40 + 0.25 / 2), rel=0.03
    )  # images, and who is drawn


def test_what_a_perfect_order_would_reach_is_what_it_reaches(score):
    """With the published numbers in the measured order, the attainable correlation is the mean of the drawn ones."""
    noises = {"a": 0.2, "b": 0.5, "c": 0.55, "d": 0.6}
    measured = {name: [score(name, "s1", 0, brain=noise)] for name, noise in noises.items()}
    plain = cross(
        [System(name, runs, published={"": 1.0 + k}) for k, (name, runs) in enumerate(measured.items())]
    )
    ranks = {point["system"]: point["measured"] for point in plain["order"]["points"]}
    order = cross([System(name, runs, published={"": ranks[name]}) for name, runs in measured.items()])[
        "order"
    ]
    assert order["rho"] == pytest.approx(1)
    low, high = order["resampled"]
    assert low <= order["attainable"] <= high <= 1
    assert order["attainable"] < 0.999  # rows this close change places from draw to draw


def test_the_published_order_by_row_and_by_subject(score):
    rows = [("a", 0.2, 3.0), ("b", 0.5, 2.0), ("c", 0.9, 1.0)]
    systems = [
        System(name, [score(name, "s1", 0, brain=noise)], published={"": n}) for name, noise, n in rows
    ]
    order = cross(systems)["order"]
    assert order["rho"] == pytest.approx(1) and order["num"] == 3 and order["resampled"][0] <= 1
    upside_down = [
        System(s.name, s.measured, published={"": n}) for s, n in zip(systems, (1.0, 2.0, 3.0), strict=True)
    ]
    reverse = cross(upside_down)["order"]
    assert reverse["rho"] == pytest.approx(-1)
    # what these scores could reach does not depend on how they lie now, but for what rows have in common
    assert reverse["attainable"] == pytest.approx(order["attainable"], abs=0.1)
    assert cross(systems[:2])["order"] is None
    people = [
        score("d", subject, 0, brain=noise) for subject, noise in (("s1", 0.2), ("s2", 0.9), ("s3", 0.5))
    ]
    by_subject = System("d", people, published={"s1": 1, "s2": 3, "s3": 2})
    assert cross([by_subject])["order"]["rho"] == pytest.approx(-1)


def test_the_page_shows_all_rows_on_the_same_stimuli(score, tmp_path, open_page):
    systems = [
        System(
            name,
            [score(name, s, seed, brain=noise) for s in ("s1", "s2") for seed in (0, 1)],
            name[0],
            x,
            {"": noise},
        )
        for name, noise, x in (("k 1", 0.3, 10), ("k 2", 0.5, 100), ("other", 0.8, None))
    ]
    systems.append(System("broken", failures=["s1, seed 0: attend: it broke"]))
    found = cross(systems, reference="k 1")
    page = open_page(
        write_crossed(found, systems, tmp_path / "page.html", title="a table", x_label="pictures")
    )
    assert set(page.ids) >= {"compared", "order", "curve", "numbers", "pairs", "gallery", "run-card"}
    assert page.images == 2 * 6 * (3 + 1)
    assert "attend: it broke" in page.text and "Runs are missing in broken" in page.text
    assert "2 subjects: the bootstrap (bars) is too narrow" in page.text
    assert f"{found['systems'][0]['metrics']['pcc']['mean']:.3f}" in page.text
    assert "against pictures" in page.text and "ahead in 0 of 2 subjects" in page.text
    json.dumps(found)  # plain values all through
    with pytest.raises(ArtifactError, match="already exists"):
        write_crossed(found, systems, tmp_path / "page.html", title="a table")


def test_a_difference_that_nothing_shows_is_not_called_one(score, tmp_path, open_page):
    systems = [System(name, [score(name, "s1", 0, brain=1.0)]) for name in ("a", "b")]
    systems[1].measured[0].evaluated.scores["warnings"] = {"brain": "TRAINED ON TEST"}
    page = open_page(write_crossed(cross(systems), systems, tmp_path / "page.html", title=""))
    assert "is not shown to be ahead of" in page.text and "One seed a row" in page.text
    assert "b: TRAINED ON TEST." in page.text and "a: TRAINED" not in page.text
    assert pd.notna(values(systems[0].measured[0])).all()


def test_a_row_that_is_told_the_stimulus_leads_nothing_and_says_so(score, tmp_path, open_page):
    told = score("told", "s1", 0, label_oracle=0.01)
    told.evaluated.scores["headline"]["condition"] = "label_oracle"  # as of a folder that holds nothing else
    brain = [score(name, "s1", 0, brain=noise) for name, noise in (("a", 0.2), ("b", 0.9))]
    systems = [System("told", [told]), System("a", brain[:1]), System("b", brain[1:])]
    found = cross(systems, reference="b")
    assert [row["told"] for row in found["systems"]] == [True, False, False]
    means = [row["metrics"]["pcc"]["mean"] for row in found["systems"]]
    assert means[0] > means[1] > means[2]
    page = open_page(write_crossed(found, systems, tmp_path / "page.html", title="")).text
    assert "a has the best score, but is not shown to be ahead of b" in page
    assert "told about the stimulus" in page


def test_images_that_most_subjects_saw_are_drawn_once_for_all_of_them(rng):
    """More subjects do not average away what an image brings, though one of them lacks an image."""
    subjects, images = np.repeat([*"abcdef"], 20), np.tile(np.arange(20), 6)
    scores = np.tile(rng.normal(size=20), 6)
    spread = []
    for kept in (np.ones(120, bool), np.arange(120) != 3):
        table = ScoreTable(scores[kept], subjects[kept], images[kept])
        spread.append(resampled_means([table], 2000, seed=1).std())
    assert spread[0] == pytest.approx(scores[:20].std() / np.sqrt(20), rel=0.06)
    assert spread[1] == pytest.approx(spread[0], rel=0.06)

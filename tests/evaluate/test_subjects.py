"""Pooling over subjects: the statistics are those of the tables, and what does not fit together is refused."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.hierarchy import (
    ScoreTable,
    hierarchical_bootstrap,
    hierarchical_comparison,
    spread_factors,
)
from cadiff.evaluate.several import are_subjects, find_pictures, subject_names
from cadiff.evaluate.statistics import holm, permutation_p
from cadiff.evaluate.subjects import pool_subjects

METRICS = {"top1": ("higher", True), "mse": ("lower", False)}
ROLES = {"brain": "brain", "prior_only": "control", "shuffled": "control", "oracle": "ceiling"}


@dataclass(frozen=True)
class Part:
    folder: Path
    scores: dict[str, Any]
    images: pd.DataFrame
    samples: pd.DataFrame
    stimuli: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)


def part(name, ids, seed=0, shift=0.0, subject=None, dataset="data", conditions=ROLES, samples=2, **changes):
    """An evaluation with known scores (images, samples) of every condition; a stimulus's digest is its id."""
    rng, tables = np.random.default_rng(seed), []
    for number, condition in enumerate(conditions):
        scores = rng.normal(size=(len(ids), samples)) + shift
        scores += 2.0 if condition == "brain" else 0.1 * number
        rows = {"condition": condition, "stimulus_id": np.repeat(ids, samples)}
        rows |= {"sample": np.tile(np.arange(samples), len(ids)), "top1": scores.ravel()}
        tables.append(pd.DataFrame(rows).assign(mse=-scores.ravel() + rng.normal(size=scores.size)))
    table = pd.concat(tables)
    images = table.groupby(["condition", "stimulus_id"], sort=False)[list(METRICS)].mean().reset_index()
    about = {
        name: {
            "protocol": f"{name}/judge",
            "direction": direction,
            "percent": percent,
            "label": name.upper(),
        }
        for name, (direction, percent) in METRICS.items()
    }
    summaries = {
        name: {
            "protocol": f"data/{subject}/{about[name]['protocol']}/averaged/mean-of-{samples}/{len(ids)}-images/64px",
            "direction": about[name]["direction"],
            "chance_kind": "nominal",
            "chance": 0.02,
        }
        for name in METRICS
    }
    scores = {
        "dataset": {"name": dataset, "subject": subject},
        "headline": {"metric": "top1", "condition": "brain"},
        "metrics": about,
        "conditions": {
            c: {
                "label": c.capitalize(),
                "role": ROLES.get(c, "other"),
                "num_samples": samples,
                "metrics": summaries,
            }
            for c in conditions
        },
        "judge": {"name": "judge", "weights_sha256": {}},
        "pictures": {"height": 64, "width": 64},
        "stimuli": {"split": "test"},
        "config": {"num_bootstrap": 500, "seed": 3, "classes": None, "train_pictures": 200},
        "inputs": {"reconstructions_sha256": name},
        **changes,
    }
    stimuli = pd.DataFrame({"sha256": [f"digest of {i}" for i in ids]}, index=ids)
    return Part(Path(name), scores, images, table, stimuli)


def subjects(count=4, images=12, shared=False):
    return [
        part(
            f"e{s}",
            [f"{'' if shared else s}-{i}" for i in range(images)],
            seed=s,
            shift=0.3 * s,
            subject=f"sub-{s:02d}",
        )
        for s in range(count)
    ]


def by_hand(parts, condition, metric, shared):
    """The table of scores, put together from the images one by one."""
    rows = [
        (
            row[metric],
            p.scores["dataset"]["subject"],
            row["stimulus_id"] if shared else f"{k}/{row['stimulus_id']}",
        )
        for k, p in enumerate(parts)
        for _, row in p.images.iterrows()
        if row["condition"] == condition
    ]
    values, names, images = (np.array(column) for column in zip(*rows, strict=True))
    return ScoreTable(values.astype(float), names, images)


@pytest.mark.parametrize("shared", [True, False])
def test_numbers_are_those_of_the_hierarchical_statistics(shared):
    parts = subjects(shared=shared)
    found = pool_subjects(parts)
    json.dumps(found, allow_nan=False)
    assert (found["num_subjects"], found["num_images"]) == (4, 12 if shared else 48)
    assert found["shared_images"] is shared
    for metric in METRICS:
        tables = {condition: by_hand(parts, condition, metric, shared) for condition in ROLES}
        for condition, table in tables.items():
            got = found["conditions"][condition]["metrics"][metric]
            wanted = hierarchical_bootstrap(table, num_draws=500, seed=3)
            assert got["mean"] == pytest.approx(wanted.mean)
            assert got["ci95_t"] == pytest.approx([wanted.low_t, wanted.high_t])
            assert got["ci95"] == pytest.approx([wanted.low, wanted.high], abs=0.1)  # other draws of images
            means = [p.images.groupby("condition")[metric].mean()[condition] for p in parts]
            assert got["mean"] == pytest.approx(np.mean(means))
            assert list(got["subject_means"].values()) == pytest.approx(means)
        rows = {row["control"]: row for row in found["comparisons"] if row["metric"] == metric}
        assert set(rows) == set(ROLES) - {"brain"}
        for control, row in rows.items():
            wanted = hierarchical_comparison(tables["brain"], tables[control], num_draws=500, seed=3)
            assert row["difference"] == pytest.approx(wanted.interval.mean)
            assert row["p"] == pytest.approx(wanted.p, abs=0.05)
            assert row["gain"] == pytest.approx(row["difference"] * (1 if metric == "top1" else -1))
        family = [rows["prior_only"], rows["shuffled"]]
        assert [row["p_holm"] for row in family] == pytest.approx(
            holm(np.array([row["p"] for row in family]))
        )
        assert rows["oracle"]["p_holm"] == rows["oracle"]["p"]  # a family of its own
    strongest = found["from_the_brain"]["top1"]
    assert strongest["control"] == "shuffled" and strongest["gain"] > 0  # 0.2 above, prior_only 0.1


def test_the_order_of_evaluations_does_not_matter():
    parts = subjects(shared=True)
    one, other = pool_subjects(parts), pool_subjects(parts[::-1])
    for condition in ROLES:
        for metric in METRICS:
            a, b = (found["conditions"][condition]["metrics"][metric] for found in (one, other))
            assert (a["ci95"], a["subject_means"]) == (b["ci95"], b["subject_means"])
    assert [row["p"] for row in one["comparisons"]] == [row["p"] for row in other["comparisons"]]


def test_the_protocol_names_subjects_samples_and_images():
    parts = subjects()
    found = pool_subjects([*parts[:3], part("e3", ["x", "y", "z"], subject="sub-03", samples=3)])
    protocol = found["conditions"]["brain"]["metrics"]["top1"]["protocol"]
    assert protocol == "data/4-subjects-weighed-alike/top1/judge/averaged/mean-of-2-or-3/39-images/64px"
    assert any("unequal numbers of samples" in remark for remark in found["remarks"])
    assert found["variance"] is None and pool_subjects(parts)["variance"]["levels"]["subject"] == 4


def test_controls_of_unequal_numbers_of_training_pictures_are_remarked_on():
    """However many were asked for, which is 200 in all of them."""
    parts = [
        part(
            f"e{i}",
            [f"{i}-{j}" for j in range(8)],
            subject=f"sub-{i}",
            stimuli={"split": "test", "training_pictures": n},
        )
        for i, n in enumerate((200, 200, 30))
    ]
    remark = "Controls made of training pictures are made of unequal numbers of them."
    assert remark in pool_subjects(parts)["remarks"]
    assert remark not in pool_subjects(parts[:2])["remarks"]


def test_pictures_are_the_same_by_their_content_not_by_their_name():
    one = part("a", ["x", "y"], subject="s1")
    renamed = replace(
        part("b", ["p", "q"], subject="s2"), stimuli=one.stimuli.set_index(pd.Index(["p", "q"]))
    )
    namesake = replace(
        part("c", ["x", "y"], subject="s3"), stimuli=pd.DataFrame({"sha256": ["1", "2"]}, index=["x", "y"])
    )
    assert find_pictures([one, renamed], ["s1", "s2"]).shared
    assert not find_pictures([one, namesake], ["s1", "s3"]).shared
    three = find_pictures([one, renamed, namesake], ["s1", "s2", "s3"])
    assert (three.shared, three.num_partly, three.num) == (False, 2, 4)
    twins = replace(one, stimuli=pd.DataFrame({"sha256": ["1", "1"]}, index=["x", "y"]))
    assert len(set(find_pictures([twins], ["s1"]).names[0].values())) == 2
    found = pool_subjects([one, renamed, namesake])
    assert "2 of 4 images were seen by several subjects, who did not all see the same" in found["remarks"][0]


def test_a_picture_that_one_subject_lacks_leaves_the_pooled_numbers_where_they_were():
    """Differences that pictures carry: the p value is that of flipping whole pictures, and the interval stays as wide."""
    ids = [f"{i}" for i in range(12)]
    carried = dict(zip(ids, np.random.default_rng(4).normal(size=12), strict=True))

    def subject(number, ids):
        made = part(f"e{number}", ids, seed=number, subject=f"s{number}", conditions=["brain", "prior_only"])
        for table in (made.images, made.samples):
            is_brain = table["condition"] == "brain"
            table.loc[is_brain, "top1"] = 0.1 + table.loc[is_brain, "stimulus_id"].map(carried)
            table.loc[~is_brain, "top1"] = 0.0
        return made

    whole = pool_subjects([subject(k, ids) for k in range(4)])
    some = pool_subjects([subject(k, ids if k else ids[1:]) for k in range(4)])
    assert (whole["shared_images"], whole["num_shared"]) == (True, 12)
    assert (some["shared_images"], some["num_shared"], some["variance"]) == (False, 12, None)
    first, second = (
        next(row for row in found["comparisons"] if row["metric"] == "top1") for found in (whole, some)
    )
    d = np.array([0.1 + carried[i] for i in ids])
    assert first["p"] == pytest.approx(permutation_p(d, num_draws=500, seed=3)[0])
    assert second["p"] == pytest.approx(first["p"], abs=0.15) and second["p"] > 0.3
    for name in ("ci95", "ci95_t"):
        assert np.diff(second[name]) == pytest.approx(np.diff(first[name]), rel=0.15)


def test_pictures_without_recorded_digests_are_read(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    folders = [
        replace(part(name, ["x"]), stimuli=pd.DataFrame({"path": [str(tmp_path / name)]}, index=["x"]))
        for name in "abc"
    ]
    assert find_pictures(folders[:2], ["1", "2"]).shared and not find_pictures(folders[1:], ["1", "2"]).shared


def test_folds_of_one_subject_are_one_subject():
    folds = [part(f"fold{k}", [f"{k}-{i}" for i in range(5)], seed=k, subject="sub-01") for k in range(3)]
    found = pool_subjects(folds)
    assert (found["num_subjects"], found["num_images"], found["spread"]) == (1, 15, None)
    means = np.concatenate([f.images.query("condition == 'brain'")["top1"] for f in folds])
    assert found["conditions"]["brain"]["metrics"]["top1"]["mean"] == pytest.approx(means.mean())
    with_others = pool_subjects([*folds, part("other", ["x", "y"], subject="sub-02", seed=9)])
    assert with_others["num_subjects"] == 2 and len(with_others["subjects"]) == 4
    pooled = with_others["conditions"]["brain"]["metrics"]["top1"]["subject_means"]
    assert list(pooled) == ["sub-01", "sub-02"] and pooled["sub-01"] == pytest.approx(means.mean())


def test_which_evaluations_belong_pooled():
    one, two = subjects(2)
    again = part("again", one.images["stimulus_id"].unique().tolist(), subject="sub-00")
    nobody = part("nobody", one.images["stimulus_id"].unique().tolist())
    assert are_subjects([one, two]) and not are_subjects([one]) and not are_subjects([one, again])
    assert are_subjects(subjects(2, shared=True)) and not are_subjects([one, nobody])
    louder = part("snr", one.images["stimulus_id"].unique().tolist(), subject="sub-00", dataset="other SNR")
    assert not are_subjects([one, louder])  # the same pictures and the same brain, recorded in another way
    with pytest.raises(
        DataError, match=r"e0 and again are both about sub-00 and share 12 stimuli.*--against"
    ):
        pool_subjects([one, again, two])


def test_names_of_subjects_are_as_short_as_tells_them_apart():
    same = [part("a", ["x"], subject="s1", dataset="GOD"), part("b", ["y"], subject="s1", dataset="NSD")]
    assert subject_names(same) == ["GOD/s1", "NSD/s1"]
    assert subject_names([same[0], part("c", ["z"], dataset="theirs")]) == ["s1", "theirs"]
    found = pool_subjects(same, names=["Anna", "Bert"])
    assert list(found["conditions"]["brain"]["metrics"]["top1"]["subject_means"]) == ["Anna", "Bert"]
    assert any("several datasets" in remark for remark in found["remarks"])
    same[1].scores["warnings"] = {"brain": "Trained on test."}
    assert pool_subjects(same)["remarks"][-1] == "brain: Trained on test."
    with pytest.raises(ConfigError, match="2 evaluations take as many names; 1 were given"):
        pool_subjects(same, names=["Anna"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"judge": {"name": "judge", "weights_sha256": {"model": "other"}}}, "the judge's weights are"),
        ({"pictures": {"height": 32, "width": 32}}, "pictures are compared at 64 x 64 in one and 32 x 32"),
        ({"stimuli": {"split": "train"}}, "the split is test in one and train"),
        ({"metrics": {"mse": {"protocol": "mse/judge"}}}, "leads with top1, which .* does not have"),
        (
            {"metrics": {"top1": {"protocol": "100-way"}}},
            "top1 is top1/judge in one and 100-way in the other",
        ),
    ],
)
def test_what_does_not_mean_the_same_is_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        pool_subjects([part("a", ["x"], subject="s1"), part("b", ["y"], subject="s2", **change)])


def test_what_an_evaluation_does_not_tell_is_no_difference():
    old = part("a", ["x", "y"], subject="s1", judge={"name": "judge"})
    single = replace(part("b", ["z", "u"], subject="s2"), about={"config": {"average_repeats": False}})
    assert pool_subjects([old, single])["num_subjects"] == 2
    averaged = replace(old, about={"config": {"average_repeats": True}})
    with pytest.raises(ConfigError, match="averaged before decoding: True in one and False"):
        pool_subjects([averaged, single])


def test_conditions_that_some_lack_are_left_out_and_named():
    more = part("b", ["z", "u"], subject="s2", conditions=[*ROLES, "ridge"])
    fewer = part("a", ["x", "y"], subject="s1", conditions=["brain", "prior_only", "shuffled"])
    found = pool_subjects([fewer, more])
    assert set(found["conditions"]) == {"brain", "prior_only", "shuffled"}
    assert found["left_out"] == ["oracle", "ridge"]
    gap = fewer.images.assign(mse=fewer.images["mse"].where(fewer.images["condition"] != "shuffled"))
    found = pool_subjects([replace(fewer, images=gap), more])
    assert set(found["conditions"]["shuffled"]["metrics"]) == {"top1"} and "mse" in found["metrics"]
    assert not any(row["control"] == "shuffled" for row in found["comparisons"] if row["metric"] == "mse")


def test_how_little_few_subjects_tell_about_people(rng):
    """The interval of a deviation: 95 % of samples of n hold the truth, and the factors are those of chi-square."""
    for count in (2, 5, 8):
        low, high = spread_factors(count)
        seen = rng.normal(size=(20_000, count)).std(axis=1, ddof=1)
        assert np.mean((low * seen <= 1) & (high * seen >= 1)) == pytest.approx(0.95, abs=0.006)
        assert stats.chi2.cdf((count - 1) / high**2, count - 1) == pytest.approx(0.025)
    assert [round(spread_factors(n)[1], 1) for n in (2, 5, 8)] == [31.9, 2.9, 2.0]
    with pytest.raises(DataError, match="One subject"):
        spread_factors(1)

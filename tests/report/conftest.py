"""Pages under test: evaluations of small known worlds, and a parser that sees what a browser would load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cadiff.artifacts import read_json, write_json
from cadiff.evaluate import EvaluateConfig, evaluate
from cadiff.evaluate.categories import CategoryScore, category_bias

PIXELS = EvaluateConfig(judge=None, num_bootstrap=200, train_pictures=6)
VARIANTS = {
    "repeats_1": {"kind": "repeats", "value": 1},
    "repeats_2": {"kind": "repeats", "value": 2},
    "only_V1": {"kind": "only_roi", "value": "V1", "num_voxels": 20},
    "without_V1": {"kind": "without_roi", "value": "V1", "num_voxels": 20},
}
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Checks nesting and gathers what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.loads, self.images, self.targets = [], [], [], 0, []
        self.text = ""
        self.feed(text)
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)
        assert {target.removeprefix("#") for target in self.targets} <= set(self.ids)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.images += tag == "img"
        for key in ("src", "href", "xlink:href", "data", "srcset"):
            if given.get(key):
                (self.targets if given[key].startswith("#") else self.loads).append(given[key])
        assert tag not in {"script", "link", "iframe", "object"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


@pytest.fixture
def open_page() -> Callable[[Path], Page]:
    """A written page, parsed; it must stand alone."""

    def read(path: Path) -> Page:
        page = Page(path.read_text(encoding="utf-8"))
        assert all(
            value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for value in page.loads
        )
        return page

    return read


@pytest.fixture
def evaluation(write_reconstructions, linear_brain, tmp_path) -> Path:
    """Brain, two drawn controls, and the controls made of training pictures; no judge."""
    folder = write_reconstructions(brain=0.3, prior_only=1.0, shuffled=0.3)
    return evaluate(PIXELS, folder, linear_brain, tmp_path / "evaluation")


@pytest.fixture
def old_evaluation(write_reconstructions, linear_brain, tmp_path) -> Path:
    """As evaluations were before there were ledgers, rivals, variants and controls made of training pictures."""
    folder = write_reconstructions(brain=0.3, prior_only=1.0, shuffled=0.3)
    made = evaluate(
        PIXELS.model_copy(update={"train_pictures": 0}), folder, linear_brain, tmp_path / "evaluation"
    )
    scores = read_json(made / "evaluation.json")
    for key in ("integrity", "variants", "variance", "required_images", "sets", "absent"):
        scores.pop(key)
    scores["conditions"].pop("permutation")
    for condition in scores["conditions"].values():
        condition.pop("categories"), condition.pop("diversity")
    for about in scores["metrics"].values():
        about.pop("meaning")
    scores["comparisons"] = [row for row in scores["comparisons"] if row["control"] != "permutation"]
    rows = [row for row in scores["comparisons"] if row["control"] == "prior_only"]
    scores["from_the_brain"] = {row["metric"]: row for row in rows}
    scores["inputs"].pop("against")
    scores["config"].pop("train_pictures")
    write_json(made / "evaluation.json", scores)
    table = pd.read_csv(made / "per_sample.tsv", sep="\t").drop(columns="origin")
    table.to_csv(made / "per_sample.tsv", sep="\t", index=False)
    return made


@pytest.fixture
def rich_evaluation(write_reconstructions, linear_brain, tmp_path) -> Path:
    """Everything that a page can show: variants, voxels, a rival, categories, variance, required images."""
    rival = write_reconstructions(brain=0.6, seed=3).rename(tmp_path / "rival")
    folder = write_reconstructions(
        brain=0.3, prior_only=1.0, shuffled=0.3, repeats_1=0.7, repeats_2=0.5, only_V1=0.6, without_V1=0.4
    )
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"voxel": range(1, 41), "rois": ["V1,VC", "V2,VC"] * 20})
    table["importance"] = rng.dirichlet(np.ones(40))
    table[["x", "y", "z"]] = rng.normal(size=(40, 3)) * 20
    table.to_csv(folder / "voxel_importance.tsv", sep="\t", index=False)
    made = evaluate(PIXELS, folder, linear_brain, tmp_path / "evaluation", against={"ridge": rival})
    scores = read_json(made / "evaluation.json")
    truth = np.array([1, 2, 3, 1, 2, 3])
    bias = category_bias(np.stack([truth, truth], axis=1), truth)
    rows = [CategoryScore("fish", 5, 0.9, 0.8, 0.95), CategoryScore("food", 1, 0.4, None, None)]
    scores["conditions"]["brain"]["categories"] = {
        "bias": asdict(bias),
        "scores": [asdict(row) for row in rows],
    }
    scores["variants"] = VARIANTS
    write_json(made / "evaluation.json", scores)
    return made

"""What a sceptic should know before quoting a number from the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cadiff.data.dataset import BrainDataset
from cadiff.data.stimulus_sets import SHIPPED_SOURCE
from cadiff.report.facts import gain_interval, interval, number, plural, points, shipped_names

REAL_SNR = 0.35
"""Single-trial SNR above this is taken to be better than what scanners give: .35 is a noise ceiling of 26 % for one trial."""


@dataclass(frozen=True)
class Note:
    """One thing to keep in mind; `serious` ones qualify the headline itself."""

    title: str
    text: str
    serious: bool = False


def notes(evaluation: Mapping[str, Any], dataset: BrainDataset | None) -> list[Note]:
    """All notes that apply, serious ones first; `dataset` is None where only pictures are known."""
    found = [*_about_selection(evaluation), *_about_scores(evaluation), *_about_rough_ideas(evaluation)]
    if dataset is not None:
        found = [*_about_data(dataset, evaluation), *_about_categories(dataset), *found]
    found = [*_about_folders(evaluation), *found]
    found.append(
        Note(
            "One training run, one subject",
            "Intervals and tests cover the choice of images. They do not cover retraining with other seeds, or other subjects.",
        )
    )
    return sorted(found, key=lambda note: not note.serious)


def _about_folders(evaluation: Mapping[str, Any]) -> Iterator[Note]:
    primary = evaluation["headline"]["condition"]
    for name, warning in (evaluation.get("warnings") or {}).items():
        whose = "these pictures" if name == primary else f"the pictures of {name}"
        yield Note(f"A warning comes with {whose}", f"{warning.rstrip('.')}.", serious=True)


def _about_selection(evaluation: Mapping[str, Any]) -> Iterator[Note]:
    integrity = evaluation.get("integrity")
    if integrity is None:
        return
    if integrity["selected_on"] == "test":
        yield Note(
            "Selected on test",
            "The system was chosen by this very test set, as its makers declare, so its score is the best of several and "
            "flatters it. Compare only with systems chosen in the same way.",
            serious=True,
        )
    overlap = integrity.get("overlap")
    if overlap and overlap["affected"]:
        yield Note(
            "Test pictures look like training pictures"
            if overlap["may_be_chance"]
            else "Test pictures were met in training",
            f"{overlap['sentence']} What was met in training can be remembered instead of decoded.",
            serious=not overlap["may_be_chance"],
        )
    if not integrity["intact"]:
        yield Note(
            "The ledger was changed",
            "Lines of the list of looks at this test split were changed, cut off or removed: the number of looks is not known.",
            serious=True,
        )
    if integrity["systems_before"] and integrity["selected_on"] in (None, "nothing"):
        yield Note(
            "Not the first system on this test split",
            f"{plural(integrity['systems_before'], 'other')} had been scored on it before. If the best of them is reported, the "
            "score is a maximum and its p value too small.",
        )


def _about_rough_ideas(evaluation: Mapping[str, Any]) -> Iterator[Note]:
    """What the headline does not show, though it beats the controls."""
    metric, primary = evaluation["headline"]["metric"], evaluation["headline"]["condition"]
    percent = evaluation["metrics"][metric]["percent"]
    rows = {row["control"]: row for row in evaluation["comparisons"] if row["metric"] == metric}

    def unbeaten(name: str) -> str | None:
        """The score and the difference in words, where the brain is not clearly ahead of a condition."""
        if name not in rows or name not in evaluation["conditions"] or name == primary:
            return None
        low, high = gain_interval(rows[name])
        if low > 0:
            return None
        score = number(evaluation["conditions"][name]["metrics"][metric]["mean"], percent)
        gain = points(number(rows[name]["gain"], percent, signed=True))
        return f"{score} (the brain: {gain}, 95 % interval {points(interval((low, high), percent, signed=True))})"

    if words := unbeaten("coarse_category"):
        yield Note(
            "Not shown to beat a rough idea",
            f"Showing any training picture of the right one among nine coarse categories scores {words}. The headline does "
            "not show that more than such a rough idea was decoded.",
        )
    if words := unbeaten("nearest_train"):
        yield Note(
            "Not shown that drawing beats retrieval",
            f"Replacing every reconstruction by the training picture most like it scores {words}.",
        )
    if words := unbeaten("constant_test"):
        yield Note(
            "Not shown to beat one picture for all",
            f"The best single training picture, chosen on the test set and shown for every stimulus, scores {words}. A "
            "metric that a constant can win says little at this level.",
            serious=True,
        )


def _about_data(dataset: BrainDataset, evaluation: Mapping[str, Any]) -> Iterator[Note]:
    about, judge = dataset.description, evaluation.get("judge")
    if about.get("simulated"):
        yield Note(
            "The brain is simulated",
            "The responses come from a model of visual cortex, not from a person. This shows that the method works end to "
            "end and can be checked; it says little about how well real scans would decode.",
            serious=True,
        )
        snr = float(about.get("snr") or 0)
        if snr > REAL_SNR:
            ceiling = f"{100 * snr / (1 + snr):.0f} %"
            yield Note(
                "The signal is stronger than in real data",
                f"The single-trial signal-to-noise ratio is {snr:g}: the stimulus explains {ceiling} of the variance "
                "of one trial, more than in most recordings.",
                serious=True,
            )
    if about.get("stimuli") == SHIPPED_SOURCE:
        yield Note(
            "The stimuli were drawn from the prior",
            "The pictures that were “seen” were themselves made by the image prior that reconstructs them, so it can reach "
            "them more easily than photographs. This flatters every score.",
            serious=True,
        )
    if judge and about.get("classifier") == judge["name"]:
        yield Note(
            "The judge made the brain",
            f"The judge, {judge['name']}, also drove the simulated voxels, so its verdict is circular. Use another judge.",
            serious=True,
        )


def _about_categories(dataset: BrainDataset) -> Iterator[Note]:
    test, train = (_labels(dataset, split) for split in ("test", "train"))
    if not test or not train:
        return
    if seen := len(test & train):
        yield Note(
            "Test categories were seen in training",
            f"{seen} of {len(test)} test categories also occur in training (with other pictures), so a decoder that only "
            "tells categories apart can score well.",
            serious=True,
        )
    else:
        yield Note(
            "Test categories are new to the decoder",
            f"None of the {len(test)} test categories occurs among the {len(train)} training categories.",
        )
    if known := len(test & set(shipped_names())):
        yield Note(
            "The prior knows the test categories",
            f"{known} of the {len(test)} test categories are among those that the shipped image prior learned from "
            "photographs, without any fMRI: it can draw them, and the brain has to choose. The control “prior only” measures "
            "what it draws unasked.",
        )


def _about_scores(evaluation: Mapping[str, Any]) -> Iterator[Note]:
    stimuli, metric = evaluation["stimuli"], evaluation["headline"]["metric"]
    percent = evaluation["metrics"][metric]["percent"]
    score = evaluation["conditions"][evaluation["headline"]["condition"]]["metrics"][metric]
    if stimuli.get("split", "test") != "test":
        yield Note(
            "These are not test images",
            f"The reconstructed stimuli belong to the {stimuli['split']} split: the decoder was fitted to them, so the scores "
            "say nothing about new images.",
            serious=True,
        )
    elif stimuli.get("in_test_split") and stimuli["evaluated"] < stimuli["in_test_split"]:
        yield Note(
            "Not the whole test set",
            f"{stimuli['evaluated']} of {stimuli['in_test_split']} test stimuli were reconstructed; the scores are about "
            "those only.",
            serious=True,
        )
    if (
        score["chance_kind"] == "nominal"
        and abs(score["mispaired"] - score["chance"]) > 0.25 * score["chance"]
    ):
        yield Note(
            "Chance is not 1 in n",
            f"Scored against the wrong stimuli, the same pictures reach {number(score['mispaired'], percent)}, where "
            f"arithmetic says {number(score['chance'], percent)}: classes of one test set resemble each other, and some "
            "outputs fit many. Compare with the controls, not with nominal chance.",
        )
    judge = evaluation.get("judge")
    if judge and judge["calibration"]["num_labelled"]:
        right, labelled = judge["calibration"]["num_right"], judge["calibration"]["num_labelled"]
        yield Note(
            "How well the judge sees",
            f"Shown the stimuli themselves at {evaluation['pictures']['width']} pixels, {judge['name']} names {right} of "
            f"{labelled} correctly. Truth in n-way scores is what the judge sees in the stimulus, right or wrong.",
        )
    if stimuli["evaluated"] < 50:
        yield Note(
            "Few test images",
            f"With {stimuli['evaluated']} test images the intervals are wide, and only large differences show.",
        )


def _labels(dataset: BrainDataset, split: str) -> set[str]:
    labels = dataset.stimuli.loc[dataset.stimulus_ids(split), "label"].dropna()
    return {str(label) for label in labels}

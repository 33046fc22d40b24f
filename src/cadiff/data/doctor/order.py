"""Does the list of stimuli belong to the betas: an encoding model's sanity check.

If pictures predict the responses of held-out stimuli no better than shuffled pictures do, while repeats show that voxels
respond to something, then the list is in the wrong order. If it predicts better when it is moved by some trials inside
every run, it is shifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cadiff.data.doctor import encoding, features
from cadiff.data.doctor.classes import check_by_classes
from cadiff.data.doctor.findings import Check, Finding
from cadiff.data.doctor.folder import Folder
from cadiff.data.doctor.material import (
    CHANCE,
    CLEAR,
    FEWEST,
    LAGS,
    SURE,
    Material,
    average,
    gather,
    in_words,
    moved,
    p_text,
    shift,
)
from cadiff.data.doctor.repeats import Repeats, run_numbers
from cadiff.data.doctor.scan import Scan
from cadiff.data.doctor.transfer import check_runs, check_test_trials

EXPLAINED = 0.4  # share of what repeats reproduce that simple features explain, at a low guess
LIKELY = 2.0  # z that a right order should reach, from which on its absence deserves a look; from `CLEAR` on it is wrong
TYPICAL_CEILING = 0.05  # of single trials, where no repeats tell: an SNR of .23
MANY = 50  # stimuli without repeats that show nothing at all are worth a look
NETWORK_STIMULI = 300
BLOCKED = 0.15  # likeness of stimuli inside runs, from which on a design counts as blocked
SHRINK = 2 / 3  # the best voxels were chosen by the same ceilings, which therefore promise too much
MEND = "Compare trials.tsv with the presentation lists of the source, trial by trial, and import again."
TITLES = {
    "order": "Stimulus order",
    "run-order": "Order in single runs",
    "test-order": "Order of test trials",
}


@dataclass(frozen=True, eq=False)
class Fit:
    """An encoding model of training trials and how well their order fits."""

    material: Material
    ids: list[str]
    """(m,) stimuli with a picture."""
    described: Mapping[str, np.ndarray]
    """Features (m, F) of their pictures."""
    kernels: Mapping[str, np.ndarray]
    """(m, m), of these features and of classes."""
    folds: list[np.ndarray]
    models: list[encoding.Predictor]
    responses: np.ndarray
    """(m, v) averages over the trials of each stimulus."""
    outcome: encoding.Outcome

    @property
    def model(self) -> encoding.Predictor:
        """The best predictor."""
        return self.models[self.outcome.chosen]


def check_order(
    folder: Folder, scan: Scan, repeats: Repeats, readable: set[str], *, seed: int = 0, progress: bool = True
) -> list[Finding]:
    """Findings about the order of training trials, of each run, and of test trials.

    readable: ids of the stimuli whose pictures can be read.
    """
    check, runs, tests = (Check(key, title) for key, title in TITLES.items())
    unknown = [
        other("not applicable", "Asked when training trials fit their list.") for other in (runs, tests)
    ]
    rng = np.random.default_rng([seed, 5])
    split = "train" if len(folder.rows("train")) else "test"
    material = gather(folder, scan, repeats, split, rng)
    if material is None:
        return [check("not applicable", "There are no labelled trials, or no voxel changes."), *unknown]
    check.sample = runs.sample = material.sample
    ids = [name for name in dict.fromkeys(material.names) if name in readable]
    if len(ids) < FEWEST:
        return [check_by_classes(check, folder, material, rng, MEND), *unknown]
    fit = _fit(folder, material, ids, rng)
    found = _judge(check, folder, fit, repeats, rng, progress)
    if found.verdict != "ok" or fit.outcome.p > SURE:
        return [found, *unknown]
    predicted = fit.model.hat @ fit.responses
    of_runs = check_runs(runs, folder, material, ids, predicted, rng, MEND)
    if split == "test":
        return [found, of_runs, tests("not applicable", "There are no training trials to learn from.")]
    of_test = check_test_trials(
        tests,
        folder,
        scan,
        fit.described,
        fit.responses,
        fit.model,
        material.voxels,
        readable,
        repeats,
        rng,
        MEND,
    )
    return [found, of_runs, of_test]


def _fit(folder: Folder, material: Material, ids: list[str], rng: np.random.Generator) -> Fit:
    known = np.isin(material.names, ids)
    pictures = features.load_field(folder, ids)
    labels = list(folder.stimuli["label"].reindex(ids))
    described = features.picture_features(pictures)
    kernels = {name: encoding.kernel(values) for name, values in described.items()} | features.label_kernel(
        labels
    )
    folds = encoding.folds(len(ids), rng)
    alike = kernels.get("classes", kernels[features.SIMPLE[0]])
    if (
        _alike_in_runs(
            alike, run_numbers(folder.trials.iloc[material.rows])[known], material.names[known], ids
        )
        > BLOCKED
    ):
        # Runs that show one kind of picture: with the mean of the run, what tells it from other kinds is gone.
        material = replace(material, patterns=material.raw)
    responses = average(material.patterns[known], material.names[known], ids)
    models = encoding.predictors(kernels, folds)
    outcome = encoding.order_outcome(models, responses, rng, 499 if len(ids) <= 300 else 199)
    return Fit(material, ids, described, kernels, folds, models, responses, outcome)


def _alike_in_runs(matrix: np.ndarray, runs: np.ndarray, names: np.ndarray, ids: list[str]) -> float:
    """Mean kernel between different stimuli of the same run; about 0 when runs mix all kinds, 1 is a stimulus with itself."""
    row_of = {name: row for row, name in enumerate(ids)}
    rows = np.array([row_of[name] for name in names])
    same = (runs[:, None] == runs[None]) & (rows[:, None] != rows[None])
    return float(matrix[rows][:, rows][same].mean()) if same.any() and len(np.unique(runs)) > 1 else 0.0


def _judge(
    check: Check, folder: Folder, fit: Fit, repeats: Repeats, rng: np.random.Generator, progress: bool
) -> Finding:
    outcome = fit.outcome
    lags = _lags(folder, fit, rng)
    check.details |= {
        "stimuli": len(fit.ids),
        "voxels": len(fit.material.voxels),
        "features": outcome.best,
        "r": outcome.r,
        "z": outcome.z,
        "p": outcome.p,
        "z_of_moved_lists": {str(lag): z for lag, z in lags.items()},
    }
    best = shift(lags, outcome.z)
    if best is not None:
        check.details["shift"] = best
        found = f"The list is shifted: {in_words(best, lags[best], outcome.z)}."
        return check("wrong", found, MEND + " A first row dropped or read twice shifts a list.")
    shown = f"(r {outcome.r:.2f}, {p_text(outcome.p)})"
    if outcome.p <= SURE:
        told = f"Models of {outcome.best} predict the betas of {len(fit.ids):,} held-out stimuli, shuffled ones do not {shown}."
        return check("ok", told)
    if outcome.p <= CHANCE:
        told = f"Models of {outcome.best} predict betas of held-out stimuli a little better than shuffled ones do {shown}."
        return check("note", told)
    found = _at_chance(check, fit, repeats, rng)
    if found.verdict == "note":
        return found
    # Before the alarm, a look with other eyes: voxels of higher areas may follow nothing simple.
    second = _with_network(folder, fit, rng, progress)
    if second is not None and second.p <= SURE:
        check.details |= {"features": second.best, "r": second.r, "z": second.z, "p": second.p}
        told = f"Models of {second.best} predict betas of held-out stimuli, shuffled ones do not (r {second.r:.2f})."
        return check("ok", told)
    return found


def _lags(folder: Folder, fit: Fit, rng: np.random.Generator) -> dict[int, float]:
    """z of the list moved by each lag inside the runs; kernels are averaged, folds are halved, the penalty is 1."""
    row_of = {name: row for row, name in enumerate(fit.ids)}
    mean = np.mean(list(fit.kernels.values()), axis=0)
    folds = [np.concatenate(fit.folds[start : start + 2]) for start in range(0, len(fit.folds), 2)]
    found = {}
    for lag in LAGS:
        positions, names = moved(folder, fit.material.rows, lag)
        keep = np.isin(names, fit.ids)
        there = set(names[keep])
        present = [name for name in fit.ids if name in there]
        if len(present) < max(FEWEST, len(fit.ids) // 2):
            continue
        chosen = np.array([row_of[name] for name in present])
        parts = [np.flatnonzero(np.isin(chosen, part)) for part in folds]
        models = encoding.predictors(
            {"all": mean[np.ix_(chosen, chosen)]}, [p for p in parts if len(p)], (1.0,)
        )
        responses = average(fit.material.patterns[positions[keep]], names[keep], present)
        found[lag] = encoding.order_outcome(models, responses, rng, 49).z
    return found


def _with_network(
    folder: Folder, fit: Fit, rng: np.random.Generator, progress: bool
) -> encoding.Outcome | None:
    """The outcome with a network's features, over some of the stimuli; None where no network is installed."""
    chosen = np.sort(rng.permutation(len(fit.ids))[:NETWORK_STIMULI])
    pictures = features.load_field(folder, [fit.ids[row] for row in chosen])
    kernels = features.network_kernels(pictures, progress)
    if not kernels:
        return None
    models = encoding.predictors(kernels, encoding.folds(len(chosen), rng))
    return encoding.order_outcome(models, fit.responses[chosen], rng, 499)


def _at_chance(check: Check, fit: Fit, repeats: Repeats, rng: np.random.Generator) -> Finding:
    """Wrong order, or noise: told by the z that a right order would reach with voxels as reliable as repeats say."""
    outcome, voxels = fit.outcome, fit.material.voxels
    agree = repeats.alike is not None and repeats.alike.p <= SURE
    single = np.full(len(voxels), TYPICAL_CEILING)
    if agree and repeats.ceilings is not None:
        single = repeats.ceilings[voxels] * SHRINK
    each = len(fit.material.rows) / len(fit.ids)
    averaged = single * each / (1 + (each - 1) * single)
    nulls = zip(fit.models, outcome.null_mean, outcome.null_sd, strict=True)
    expected = max(
        encoding.expected_z(model, fit.kernels[model.name], EXPLAINED * averaged, mean, sd, rng)
        for model, mean, sd in nulls
        if model.name in features.SIMPLE  # classes may explain nothing at all
    )
    check.details |= {"expected_z": expected, "repeats_agree": agree}
    told = f"Pictures predict the betas of held-out stimuli no better than shuffled ones do ({p_text(outcome.p)})"
    if agree and expected >= CLEAR:
        why = "although repeats agree, so voxels do respond: the list is not in the order of the betas."
        return check("wrong", f"{told}, {why}", MEND)
    if agree and expected >= LIKELY:
        return check(
            "warning", f"{told}, although repeats agree: the list may not be in the order of the betas.", MEND
        )
    if repeats.ceilings is None and (expected >= CLEAR or len(fit.ids) >= MANY):
        return check("warning", f"{told}; without repeats a wrong order cannot be told from noise.", MEND)
    return check("note", f"{told}; with so few or noisy trials a right order might not either.")

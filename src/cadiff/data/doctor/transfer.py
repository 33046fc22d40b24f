"""With a model of training trials at hand: does every run, and do the test trials, follow their list."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cadiff.data.doctor import encoding, features
from cadiff.data.doctor.findings import Check, Finding, count
from cadiff.data.doctor.folder import Folder, blocks_of
from cadiff.data.doctor.material import (
    CHANCE,
    CLEAR,
    FEWEST,
    LAGS,
    MAX_TRIALS,
    SURE,
    Material,
    average,
    in_words,
    load,
    moved,
    p_text,
)
from cadiff.data.doctor.repeats import Repeats
from cadiff.data.doctor.scan import Scan

RUN_TRIALS = 10  # trials a run needs to be asked by itself
USUAL = 5.0  # z that the middle run must reach before one at chance means anything


def check_runs(
    check: Check,
    folder: Folder,
    material: Material,
    ids: list[str],
    predicted: np.ndarray,
    rng: np.random.Generator,
    mend: str,
) -> Finding:
    """Whether single runs are shifted or out of order while the others are right.

    predicted: held-out predictions (m, v) of the stimuli `ids`.
    """
    row_of = {name: row for row, name in enumerate(ids)}
    scores: dict[tuple[int, int], dict[int, float]] = {}
    for lag in (0, *LAGS):
        positions, names = moved(folder, material.rows, lag)
        keep = np.isin(names, ids)
        positions, wanted = positions[keep], np.array([row_of[name] for name in names[keep]], int)
        rows = material.rows[positions]
        for run, members in blocks_of(folder.trials.iloc[rows], "session", "run").items():
            if len(members) >= RUN_TRIALS:
                guess, betas = predicted[wanted[members]], material.patterns[positions[members]]
                scores.setdefault(run, {})[lag] = encoding.transfer_outcome(guess, betas, rng, 99).z
    own = {run: found[0] for run, found in scores.items() if 0 in found}
    if len(own) < 3:
        return check(
            "not applicable",
            f"There are {len(own)} runs of {RUN_TRIALS} trials or more; 3 are needed to compare.",
        )
    usual = float(np.median(list(own.values())))
    check.details |= {"z": {f"{s}.{r}": z for (s, r), z in own.items()}, "median_z": usual}
    shifted = {}
    for run, found in scores.items():
        lag = max(found, key=found.__getitem__)
        if lag and found[lag] >= CLEAR and found[lag] - max(own.get(run, 0.0), 0.0) >= CLEAR:
            shifted[run] = lag
    check.details["shifted"] = {f"{s}.{r}": lag for (s, r), lag in shifted.items()}
    if shifted:
        (session, run), lag = next(iter(shifted.items()))
        more = f", and {count(len(shifted) - 1, 'more run', 'is')} shifted" if len(shifted) > 1 else ""
        told = in_words(lag, scores[session, run][lag], own[session, run])
        return check("wrong", f"In run {run} of session {session} {told}{more}.", mend)
    low = [run for run, z in own.items() if z < 1.0]
    check.details["at_chance"] = [f"{s}.{r}" for s, r in low]
    if low and usual >= USUAL:
        session, run = low[0]
        more = f", and {count(len(low) - 1, 'more run')} as well" if len(low) > 1 else ""
        found = f"Run {run} of session {session} does not follow its list (z {own[low[0]]:.1f}, usual {usual:.1f}){more}."
        return check("warning", found, mend + " A run in which the subject slept looks the same.")
    return check("ok", f"{count(len(own), 'run')} looked at, none is out of order.")


def check_test_trials(
    check: Check,
    folder: Folder,
    scan: Scan,
    described: Mapping[str, np.ndarray],
    responses: np.ndarray,
    model: encoding.Predictor,
    voxels: np.ndarray,
    readable: set[str],
    repeats: Repeats,
    rng: np.random.Generator,
    mend: str,
) -> Finding:
    """Whether predictions by the model of training trials fit the test trials better than shuffled ones.

    described: features (m, F) of training stimuli, by name; responses: their averages (m, v) in these voxels (v,).
    """
    test, tested = _test_material(folder, scan, voxels, readable)
    if test is None or len(tested) < FEWEST:
        return check(
            "not applicable", f"There are {len(tested)} test stimuli with pictures; {FEWEST} are needed."
        )
    name = model.name if model.name in described else features.SIMPLE[1]  # test classes may be new ones
    more = features.picture_features(features.load_field(folder, tested))[name]
    matrix = encoding.kernel(np.concatenate([described[name], more]))
    m = len(responses)
    predicted = encoding.weights(matrix[:m, :m], matrix[m:, :m], model.penalty) @ responses
    known = np.isin(test.names, tested)
    found = average(test.patterns[known], test.names[known], tested)
    outcome = encoding.transfer_outcome(predicted, found, rng, 499)
    usual = _usual_z(model, responses, len(tested), rng)
    check.details |= {"stimuli": len(tested), "z": outcome.z, "p": outcome.p, "expected_z": usual}
    for lag in LAGS if outcome.p > SURE else ():
        z = _moved_z(folder, test, tested, predicted, lag, rng)
        if z >= CLEAR and z - max(outcome.z, 0.0) >= CLEAR:
            check.details["shift"] = lag
            return check("wrong", f"The list of test trials is shifted: {in_words(lag, z, outcome.z)}.", mend)
    if outcome.p <= CHANCE:
        return check(
            "ok",
            f"The model of training trials predicts {len(tested):,} test stimuli as well ({p_text(outcome.p)}).",
        )
    told = f"The model of training trials does not fit the order of {len(tested):,} test stimuli ({p_text(outcome.p)})"
    agree = repeats.split == "test" and repeats.alike is not None and repeats.alike.p <= SURE
    if agree and usual >= CLEAR:
        return check("wrong", f"{told}, though repeats of test stimuli agree.", mend)
    return check("note", f"{told}; so few or noisy trials leave that open.")


def _test_material(
    folder: Folder, scan: Scan, voxels: np.ndarray, readable: set[str]
) -> tuple[Material | None, list[str]]:
    rows = np.intersect1d(folder.rows("test"), scan.rows)
    names = folder.trials["stimulus_id"].to_numpy(dtype=object)[rows]
    rows = rows[np.array([name in readable for name in names], bool)][: 4 * MAX_TRIALS]
    if not len(rows):
        return None, []
    test = load(folder, rows, voxels)
    return test, list(dict.fromkeys(test.names))[:MAX_TRIALS]


def _moved_z(
    folder: Folder,
    test: Material,
    tested: list[str],
    predicted: np.ndarray,
    lag: int,
    rng: np.random.Generator,
) -> float:
    positions, names = moved(folder, test.rows, lag)
    keep = np.isin(names, tested)
    there = set(names[keep])
    present = [row for row, name in enumerate(tested) if name in there]
    if len(present) < FEWEST:
        return 0.0
    found = average(test.patterns[positions[keep]], names[keep], [tested[row] for row in present])
    return encoding.transfer_outcome(predicted[present], found, rng, 199).z


def _usual_z(
    model: encoding.Predictor, responses: np.ndarray, number: int, rng: np.random.Generator
) -> float:
    """The z that this number of training stimuli reaches in 9 of 10 draws, predicted from other training stimuli."""
    predicted = model.hat @ responses
    if number >= len(responses):
        return encoding.transfer_outcome(predicted, responses, rng, 99).z
    draws = [rng.permutation(len(responses))[:number] for _ in range(30)]
    return float(
        np.quantile([encoding.transfer_outcome(predicted[d], responses[d], rng, 99).z for d in draws], 0.1)
    )

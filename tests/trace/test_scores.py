"""Scores have a known chance level, and the sentence says what the tests say and no more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cadiff.trace.scores import Difference, differences, score
from cadiff.trace.stations import Station
from cadiff.trace.table import Table
from cadiff.trace.verdict import verdict

LABELS = {
    "betas": "Betas",
    "random_encoder": "Random encoder",
    "phase_1_tokens": "Phase 1 tokens",
    "tuned_tokens": "Tuned tokens",
    "context": "Context",
    "picture": "Picture",
}
MEANS = {"betas": 0.964, "tuned_tokens": 0.958, "context": 0.961, "picture": 0.703}


def row(first: str, second: str, difference: float, *, sure: bool) -> Difference:
    half = abs(difference) / 2 if sure else abs(difference) * 2
    p = 0.0002 if sure else 0.6
    return Difference(first, second, difference, (difference - half, difference + half), p, p)


def test_perfect_predictions_score_one_and_pairing_by_chance_a_half(rng):
    truth = rng.normal(size=(9, 6))
    assert score(truth, truth)["two_way"].tolist() == [1.0] * 9
    np.testing.assert_allclose(score(truth, truth)["correlation"], 1.0, atol=1e-6)
    predicted = rng.normal(size=(9, 6))
    shifted = [score(np.roll(predicted, k, axis=0), truth)["two_way"].mean() for k in range(9)]
    assert np.mean(shifted) == pytest.approx(0.5, abs=1e-12)  # every pairing once: exactly chance


def test_samples_of_a_stimulus_are_averaged(rng):
    truth, samples = rng.normal(size=(5, 6)), rng.normal(size=(5, 3, 6))
    together = score(samples.reshape(15, 6), truth)["correlation"]
    apart = np.mean([score(samples[:, k], truth)["correlation"] for k in range(3)], axis=0)
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_holm_counts_the_pairs_of_one_question(rng):
    values = {"a": rng.normal(size=20), "b": rng.normal(size=20), "c": rng.normal(size=20) + 5}
    one = differences(values, [("c", "a")], num_draws=500, seed=0)[0]
    two = differences(values, [("c", "a"), ("b", "a")], num_draws=500, seed=0)[0]
    assert two.p == one.p and two.p_holm == pytest.approx(2 * one.p_holm)
    assert one.shown == 1 and differences(values, [("a", "c")], num_draws=500, seed=0)[0].shown == -1


def traced(
    stations: dict[str, np.ndarray], truth: np.ndarray, num_train: int
) -> dict[str, dict[str, np.ndarray]]:
    """Scores of stations (n, D) of which the first `num_train` rows are training trials; the components are known."""
    target = SimpleNamespace(name="judge", label="Features", explained=1.0, about={})
    ids = [f"s{i}" for i in range(len(truth))]
    table = Table(
        targets=[target],  # type: ignore[list-item]
        components=[truth[:num_train]],
        truth=[truth[num_train:]],
        shown=ids[:num_train],
        rows=np.arange(num_train),
        stimulus_ids=ids[num_train:],
        split="test",
        num_bootstrap=200,
        seed=0,
    )
    for name, values in stations.items():
        parts = tuple(torch.from_numpy(part).float() for part in (values[:num_train], values[num_train:]))
        table.read(Station(name, name, "", values.shape[1:], parts))
    return table.values["judge"]


def test_what_keeps_everything_keeps_the_score_and_what_drops_all_but_one_direction_loses(rng):
    truth = rng.normal(size=(90, 8))
    betas = truth @ rng.normal(size=(8, 12)) + 0.3 * rng.normal(size=(90, 12))
    basis, _ = np.linalg.qr(rng.normal(size=(40, 12)))
    found = traced(
        {
            "betas": betas,
            "same": 2 * betas @ basis.T + 1,
            "one": betas @ rng.normal(size=(12, 1)),
            "none": betas[:, :1] * 0,
        },
        truth,
        70,
    )
    np.testing.assert_allclose(found["same"]["two_way"], found["betas"]["two_way"], atol=1e-9)
    np.testing.assert_allclose(found["same"]["correlation"], found["betas"]["correlation"], atol=1e-4)
    assert found["betas"]["two_way"].mean() > 0.95
    assert found["one"]["two_way"].mean() < found["betas"]["two_way"].mean() - 0.1
    assert found["none"]["correlation"].tolist() == pytest.approx(
        [found["none"]["correlation"][0]] * 20, abs=2.0
    )
    assert 0.3 < found["none"]["two_way"].mean() < 0.7


def test_the_sentence_names_the_largest_loss_that_is_shown():
    steps = [
        row("tuned_tokens", "betas", -0.006, sure=False),
        row("context", "tuned_tokens", 0.003, sure=False),
        row("picture", "context", -0.258, sure=True),
    ]
    over = [row(name, "random_encoder", 0.002, sure=False) for name in ("phase_1_tokens", "tuned_tokens")]
    betas = [row(name, "betas", 0.002, sure=False) for name in ("phase_1_tokens", "tuned_tokens")]
    said = verdict(LABELS, MEANS, steps, over, betas)
    assert said.startswith(
        "The largest loss is from context to picture: −25.8 points of two-way identification, 96.1 % to 70.3 %"
    )
    assert said.endswith("none of the trained tokens is shown to be above a random encoder's or the betas.")


def test_a_step_that_is_not_shown_is_no_loss_and_a_gain_is_said():
    steps = [row("tuned_tokens", "betas", -0.02, sure=False), row("context", "tuned_tokens", 0.3, sure=True)]
    over = [
        row("phase_1_tokens", "random_encoder", 0.2, sure=True),
        row("tuned_tokens", "random_encoder", 0.1, sure=False),
    ]
    betas = [row("phase_1_tokens", "betas", 0.1, sure=False), row("tuned_tokens", "betas", -0.1, sure=True)]
    said = verdict(LABELS, MEANS, steps, over, betas)
    assert said.startswith(
        "No step on the way is shown to lose anything (the lowest, from betas to tuned tokens: −2.0 points"
    )
    assert "phase 1 tokens are shown to be above a random encoder's, none of the trained tokens is" in said
    assert "shown to be above the betas" in said and "tuned tokens are shown to be below the betas" in said

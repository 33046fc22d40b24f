"""The penalty that cross-validation chooses, against held-out predictions of every penalty in one table."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cadiff.data.splits import k_folds
from cadiff.encoding.ridge import PENALTIES, RidgePath, fit_ridge
from cadiff.errors import DataError
from largest_tensor import LargestTensor


def table(x, y, groups, seed):
    """(P, n, C)."""
    found = x.new_empty(len(PENALTIES), len(x), y.shape[1])
    for inside, outside in k_folds(groups, 5, seed):
        weights = [RidgePath(x[inside], y[inside]).solve(float(p)) for p in PENALTIES]
        found[:, outside] = torch.stack([x[outside] @ weight + bias for weight, bias in weights])
    return found


@pytest.fixture(params=[(60, 20), (30, 50)], ids=["more trials", "more voxels"])
def trials(request):
    n, voxels = request.param
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, voxels, generator=draw, dtype=torch.float64)
    weight = torch.randn(voxels, 8, generator=draw, dtype=torch.float64) * torch.logspace(1, -1, 8)
    y = x @ weight + 4 * torch.randn(n, 8, generator=draw, dtype=torch.float64)
    return x, y, [str(i // 3) for i in range(n)]


@pytest.mark.parametrize("score", ["r2", "cosine"])
def test_one_penalty_for_all_is_the_best_of_the_table(trials, score):
    x, y, groups = trials
    guesses = table(x, y, groups, 2)
    if score == "r2":
        quality = 1 - (guesses - y).square().sum((1, 2)) / (y - y.mean(0)).square().sum()
    else:
        quality = torch.stack([cosine_similarity(guess, y, dim=1).mean() for guess in guesses])
    found = fit_ridge(x, y, groups, score=score, seed=2)
    best = int(quality.argmax())
    assert quality[best] > quality.min() + 0.01  # or the comparison would be of nothing
    assert found.penalty == float(PENALTIES[best])
    assert found.score == pytest.approx(float(quality[best]), abs=1e-9)
    torch.testing.assert_close(found.held_out.double(), guesses[best], atol=1e-5, rtol=1e-5)


def test_a_penalty_a_target_is_the_best_of_each_column_of_the_table(trials):
    x, y, groups = trials
    guesses = table(x, y, groups, 2)
    best = (guesses - y).square().sum(1).argmin(0)
    found = fit_ridge(x, y, groups, score="r2", seed=2, per_target=True)
    assert found.penalties is not None and len(best.unique()) > 1
    torch.testing.assert_close(found.penalties, PENALTIES[best])
    expected = guesses.gather(0, best.expand(1, *y.shape))[0]
    torch.testing.assert_close(found.held_out.double(), expected, atol=1e-5, rtol=1e-5)


def test_predictions_of_all_penalties_are_never_in_memory_together():
    x, y = torch.randn(60, 8), torch.randn(60, 60)
    with LargestTensor() as peak:
        fit_ridge(x, y, [str(i) for i in range(60)], score="r2")
    assert peak.largest < 3 * 60 * 60 * 8  # all 19 would be 19 of these


def test_one_group_is_one_sentence():
    with pytest.raises(
        DataError, match=r"one training stimulus or class \(dog\), and ridge regression needs two"
    ):
        fit_ridge(torch.eye(3), torch.eye(3), ["dog"] * 3, score="r2")

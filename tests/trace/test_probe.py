"""The read-out is ridge regression and nothing else, however wide the representation is."""

from __future__ import annotations

import pytest
import torch

from cadiff.encoding.ridge import fit_ridge
from cadiff.trace.probe import CHUNK, probe, rotate

GROUPS = [f"s{i // 2}" for i in range(30)]


def world(width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(30, width) and (7, width) of a representation with a mean, and (30, 5) targets that partly follow it."""
    draw = torch.Generator().manual_seed(seed)
    x = 3 + torch.randn(37, width, generator=draw, dtype=torch.float64)
    y = x @ torch.randn(width, 5, generator=draw, dtype=torch.float64) / width**0.5
    return x[:30], x[30:], y[:30] + 0.3 * torch.randn(30, 5, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("width", [4, 29, 30, CHUNK + 17])
def test_it_is_ridge_on_the_raw_matrix(width):
    train, other, targets = world(width)
    predicted, fit = probe(train, other, targets, GROUPS)
    raw = fit_ridge(train, targets, GROUPS, score="r2", per_target=True)
    by_hand = other @ raw.weight.double() + raw.bias.double()
    torch.testing.assert_close(fit.penalties, raw.penalties)
    torch.testing.assert_close(fit.held_out, raw.held_out, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(predicted, by_hand, atol=1e-5, rtol=1e-6)  # weights are kept in float32


@pytest.mark.parametrize("width", [4, 30, 31, CHUNK + 17])
def test_rotation_keeps_every_inner_product(width):
    train, other, _ = world(width)
    inside, outside = rotate(train, other)
    x, y = train - train.mean(0), other - train.mean(0)
    assert inside.shape[1] == (width if width <= 30 else 29)
    torch.testing.assert_close(inside @ inside.T, x @ x.T, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(outside @ inside.T, y @ x.T, atol=1e-8, rtol=1e-8)


def test_an_isometry_and_a_scale_change_no_prediction():
    train, other, targets = world(20)
    basis, _ = torch.linalg.qr(
        torch.randn(90, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    plain, fit = probe(train, other, targets, GROUPS)
    moved, again = probe(5 * train @ basis.T - 2, 5 * other @ basis.T - 2, targets, GROUPS)
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.held_out, fit.held_out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [6, 40])
def test_a_station_without_anything_in_it_predicts_the_mean(width):
    train, other, targets = world(width)
    predicted, fit = probe(torch.ones_like(train), torch.ones_like(other), targets, GROUPS)
    torch.testing.assert_close(predicted, targets.mean(0).expand(7, -1), atol=1e-6, rtol=1e-6)
    assert fit.score < 0.01


def test_no_other_trials_are_needed():
    train, other, targets = world(6)
    predicted, fit = probe(train, other[:0], targets, GROUPS)
    assert predicted.shape == (0, 5) and fit.held_out.shape == (30, 5)

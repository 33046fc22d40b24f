"""Closed forms, symmetries and an independent implementation of the contrastive losses."""

import math

import pytest
import torch

from cadiff.contrast.losses import cross_contrast, double_contrast, info_nce, masked_error, self_contrast


def draws(count: int, shape: tuple[int, ...] = (6, 10), seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(count)]


def by_hand(anchors, positives, negatives, tau):
    """Eqs. 1 and 2 as printed: one row, one exponential at a time."""
    total = 0.0
    for i in range(len(anchors)):
        cosine = [torch.cosine_similarity(anchors[i], other, dim=0).item() for other in negatives]
        positive = math.exp(torch.cosine_similarity(anchors[i], positives[i], dim=0).item() / tau)
        rest = sum(math.exp(c / tau) for j, c in enumerate(cosine) if j != i)
        total -= math.log(positive / (positive + rest))
    return total / len(anchors)


@pytest.mark.parametrize("count", [2, 7, 64])
def test_is_log_count_when_nothing_can_be_told_apart(count):
    same = torch.ones(count, 5)
    assert info_nce(same, same, same, temperature=0.1).item() == pytest.approx(math.log(count), abs=1e-5)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9])
def test_closed_form_for_identical_views_with_one_common_cosine(cosine):
    count, tau = 5, 0.1
    gram = torch.full((count, count), cosine, dtype=torch.float64).fill_diagonal_(1.0)
    views = torch.linalg.cholesky(gram)  # unit rows whose pairwise cosine is `cosine`
    expected = math.log1p((count - 1) * math.exp((cosine - 1) / tau))
    for negatives in ("cross_view", "same_view"):
        assert cross_contrast(views, views, negatives=negatives).item() == pytest.approx(expected)
    for negatives in ("inputs", "predictions"):
        assert self_contrast(views, views, negatives=negatives).item() == pytest.approx(expected)


def test_equals_the_equations_term_by_term():
    a, p, n = draws(3)
    assert info_nce(a, p, n, temperature=0.2).item() == pytest.approx(by_hand(a, p, n, 0.2))


def test_options_name_the_right_negatives():
    first, second, inputs = draws(3)
    for option, negatives in (("cross_view", second), ("same_view", first)):
        loss = cross_contrast(first, second, negatives=option).item()
        assert loss == pytest.approx(by_hand(first, second, negatives, 0.1))
    for option, negatives in (("inputs", inputs), ("predictions", first)):
        loss = self_contrast(first, inputs, negatives=option).item()
        assert loss == pytest.approx(by_hand(first, inputs, negatives, 0.1))


def test_options_change_only_the_denominator():
    """With the denominator D = e^loss e^(positive/tau): the positive is the same, so D - e^(positive/tau) is what
    the negatives alone contribute, and moving a positive moves both options alike."""
    first, second, inputs = draws(3, shape=(2, 4))
    tau = 0.1
    positive = torch.cosine_similarity(first, second, dim=1)
    for option, others in (("cross_view", second), ("same_view", first)):
        per_row = [
            cross_contrast(first[order], second[order], negatives=option, temperature=tau)
            for order in ([0, 1], [1, 0])
        ]
        assert per_row[0].item() == pytest.approx(per_row[1].item())
        rest = torch.cosine_similarity(first, others.flip(0), dim=1)
        expected = (((positive / tau).exp() + (rest / tau).exp()).log() - positive / tau).mean()
        assert per_row[0].item() == pytest.approx(expected.item())
    own = torch.cosine_similarity(first, inputs, dim=1)
    for option, others in (("inputs", inputs), ("predictions", first)):
        rest = torch.cosine_similarity(first, others.flip(0), dim=1)
        expected = (((own / tau).exp() + (rest / tau).exp()).log() - own / tau).mean()
        assert self_contrast(first, inputs, negatives=option).item() == pytest.approx(expected.item())


def test_row_i_of_the_negatives_is_not_used():
    a, p, n = draws(3)
    changed = n.clone()
    assert info_nce(a[:1], p[:1], n[:1], temperature=0.1).item() == pytest.approx(0.0, abs=1e-12)
    changed[0] = 7.0
    rows = [info_nce(a, p, x, temperature=0.1) * len(a) for x in (n, changed)]
    others = [by_hand(a[1:], p[1:], x[1:], 0.1) for x in (n, changed)]
    assert others[0] == pytest.approx(others[1])
    assert rows[0] != pytest.approx(rows[1])  # row 0 is a negative of all the others


def test_ignores_scale_and_a_common_rotation():
    a, p, n = draws(3)
    (raw,) = draws(1, shape=(10, 10), seed=1)
    rotation, _ = torch.linalg.qr(raw)
    moved = info_nce(3.0 * a @ rotation, 0.5 * p @ rotation, 2.0 * n @ rotation, temperature=0.2)
    torch.testing.assert_close(moved, info_nce(a, p, n, temperature=0.2))


def test_total_is_the_weighted_sum_and_both_views_are_averaged():
    first, second, inputs = draws(3)
    one = double_contrast(first, second, inputs, gamma_c=0.3, gamma_s=2.0)
    assert one["loss"].item() == pytest.approx(0.3 * one["cross"].item() + 2.0 * one["self"].item())
    assert one["self"].item() == pytest.approx(self_contrast(first, inputs).item())
    both = double_contrast(first, second, inputs, self_views="both")
    mean = 0.5 * (self_contrast(first, inputs) + self_contrast(second, inputs))
    assert both["self"].item() == pytest.approx(mean.item())
    assert both["cross"].item() == pytest.approx(one["cross"].item())


def test_half_precision_changes_nothing():
    first, second, inputs = (x.bfloat16() for x in draws(3))
    exact = [x.double() for x in (first, second, inputs)]
    expected = by_hand(exact[0], exact[1], exact[1], 0.1) + by_hand(exact[0], exact[2], exact[2], 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = double_contrast(first, second, inputs)["loss"]
        error = masked_error(first[:, :, None], second[:, :, None], torch.ones(6, 10, dtype=torch.bool))
    assert found.dtype == error.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_masked_error_counts_hidden_patches_only():
    prediction, target = draws(2, shape=(3, 4, 5))
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    expected = torch.stack([(prediction - target)[0, 0], *(prediction - target)[1, :2]]).square().mean()
    assert masked_error(prediction, target, mask).item() == pytest.approx(expected.item())
    visible_changed = prediction + 100.0 * ~mask[..., None]
    assert masked_error(visible_changed, target, mask).item() == pytest.approx(expected.item())
    assert masked_error(prediction, target, torch.zeros_like(mask)).item() == 0.0

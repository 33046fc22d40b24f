"""Counts, uniformity and round trips of masking and sparsification."""

import pytest
import torch

from cadiff.contrast.masking import patchify, put_back, random_masking, sparsify, take
from cadiff.errors import ConfigError


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "kept"),
    [(291, 0.75, 72), (291, 0.5, 145), (262, 0.75, 65), (196, 0.25, 147), (8, 0, 8)],
)
def test_keeps_the_published_number_of_tokens(num_tokens, ratio, kept, generator):
    masking = random_masking(5, num_tokens, ratio, generator=generator)
    assert masking.keep.shape == (5, kept)
    assert (~masking.mask).sum(1).tolist() == [kept] * 5
    assert all(len(set(row.tolist())) == kept for row in masking.keep)
    assert not masking.mask.gather(1, masking.keep).any()


def test_every_sample_and_every_draw_has_its_own_uniform_mask(generator):
    masking = random_masking(4000, 10, 0.7, generator=generator)
    hidden = masking.mask.float()
    # 5 standard errors of a proportion of 0.7 over 4000 samples
    assert (hidden.mean(0) - 0.7).abs().max() < 5 * (0.21 / 4000) ** 0.5
    pairs = (hidden.T @ hidden / 4000).fill_diagonal_(0.7 * 6 / 9)  # without replacement: 7/10 * 6/9
    assert (pairs - 0.7 * 6 / 9).abs().max() < 5 * (0.25 / 4000) ** 0.5
    again = random_masking(4000, 10, 0.7, generator=generator)
    assert not torch.equal(masking.mask, again.mask)


def test_the_generator_alone_decides():
    masks = [random_masking(3, 20, 0.5, generator=torch.Generator().manual_seed(7)).mask for _ in range(2)]
    assert torch.equal(*masks)


def test_take_then_put_back_restores_visible_tokens_and_fills_the_rest(generator):
    tokens = torch.randn(3, 12, 4, generator=generator)
    masking = random_masking(3, 12, 0.5, generator=generator)
    filler = torch.full((1, 1, 4), -9.0)
    back = put_back(take(tokens, masking.keep), masking, filler)
    assert torch.equal(back, torch.where(masking.mask[..., None], filler, tokens))


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_refuses_an_impossible_ratio(ratio, generator):
    with pytest.raises(ValueError, match="mask_ratio must lie in"):
        random_masking(1, 4, ratio, generator=generator)


def test_says_so_when_nothing_would_stay_visible(generator):
    with pytest.raises(ConfigError, match="hides all of the 4 tokens"):
        random_masking(1, 4, 0.9, generator=generator)


@pytest.mark.parametrize(("num_voxels", "rate", "zeros"), [(4656, 0.2, 931), (31, 0.2, 6), (4, 0.2, 0)])
def test_sparsify_zeroes_exactly_the_stated_number(num_voxels, rate, zeros, generator):
    betas = torch.rand(6, num_voxels, generator=generator) + 1.0
    sparse = sparsify(betas, rate, generator=generator)
    assert (sparse == 0).sum(1).tolist() == [zeros] * 6
    assert torch.equal(sparse[sparse != 0], betas[sparse != 0])
    assert (betas != 0).all()  # the input is not changed
    if zeros:
        assert not torch.equal(sparse[0] == 0, sparse[1] == 0)


def test_patchify_puts_neighbours_together():
    betas = torch.arange(12.0).view(1, 12)
    assert patchify(betas, 4).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]]
    assert torch.equal(patchify(betas, 4).flatten(1), betas)


def test_rate_zero_is_what_the_released_code_does(generator):
    """It draws int(rate * 1) places on the axis of length 1 of a (1, V) trial, which is none at any rate below 1."""
    trial = torch.randn(1, 50, generator=generator)
    released = trial.clone()
    released[torch.randperm(trial.shape[0])[: int(trial.shape[0] * 0.2)]] = 0
    before = generator.get_state()
    assert torch.equal(sparsify(trial, 0.0, generator=generator), released)
    assert torch.equal(generator.get_state(), before)
    assert (sparsify(trial, 0.2, generator=generator) == 0).sum() == 10

"""Random masking of tokens and random sparsification of voxels, both from an explicit generator.

Sources: He et al. 2022 (MAE), section 3, for masking; Sun et al. 2023, section 4.2.1, for sparsification (20
% of the voxels of every sample set to 0).

Shapes: B batch, V voxels, L tokens of a sequence (without CLS), K = int(L * (1 - mask_ratio)) tokens that are
kept.

Every draw happens on the generator's device (the CPU in training), so that a run on a GPU and a run on a CPU
see the same masks; only the selection runs where the data are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cadiff.draws import drawn
from cadiff.errors import ConfigError
from cadiff.sharing import whole


@dataclass(frozen=True)
class Masking:
    """Which tokens of each sample stay visible.

    `keep`: int64 (B, K), indices of the visible tokens, each row without repeats, in no particular order.
    `mask`: bool (B, L), True where a token is hidden.
    """

    keep: Tensor
    mask: Tensor


def num_visible(num_tokens: int, mask_ratio: float) -> int:
    """K = int(num_tokens * (1 - mask_ratio)), as He et al. 2022 round it.

    Raises ConfigError when the ratio leaves no token visible, ValueError when it lies outside [0, 1).
    """
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(f"mask_ratio must lie in [0, 1), got {mask_ratio}.")
    num_keep = int(num_tokens * (1 - mask_ratio))
    if num_keep < 1:
        raise ConfigError(
            f"mask_ratio={mask_ratio} hides all of the {num_tokens} tokens of a sample: "
            "lower the mask ratio or make the patches smaller."
        )
    return num_keep


def random_masking(
    batch: int,
    num_tokens: int,
    mask_ratio: float,
    *,
    generator: torch.Generator,
    device: torch.device | None = None,
    views: int = 1,
) -> Masking:
    """Draw for each sample its own uniform subset of `num_visible` tokens. Raises as that does.

    `views`: the batch consists of that many views of the same samples, one after the other.
    """
    num_keep = num_visible(num_tokens, mask_ratio)
    size = (whole(batch), num_tokens)
    noise = drawn(lambda g: torch.rand(size, generator=g), generator, device or generator.device, views=views)
    # The K smallest of i.i.d. noise are a uniform subset; their order does not matter to a transformer, so a
    # selection takes the place of the two full sorts of the original code (benchmarks/bench_masking.py).
    keep = noise.topk(num_keep, dim=1, largest=False, sorted=False).indices
    mask = torch.ones_like(noise, dtype=torch.bool).scatter_(1, keep, False)
    return Masking(keep, mask)


def take(tokens: Tensor, keep: Tensor) -> Tensor:
    """Visible tokens: (B, L, D), (B, K) -> (B, K, D)."""
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def put_back(visible: Tensor, masking: Masking, mask_token: Tensor) -> Tensor:
    """Inverse of `take`, with `mask_token` (1, 1, D) in every hidden place: (B, K, D) -> (B, L, D)."""
    batch, num_tokens = masking.mask.shape
    filled = mask_token.to(visible.dtype).expand(batch, num_tokens, -1)
    return filled.scatter(1, masking.keep.unsqueeze(-1).expand_as(visible), visible)


def sparsify(betas: Tensor, rate: float, *, generator: torch.Generator) -> Tensor:
    """A copy of `betas` (B, V) with exactly int(rate * V) voxels of every sample at 0, drawn per sample.

    The published code draws the indices from the wrong axis and so never changes anything; here it does what
    the paper says. `rate` in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"The sparsification rate must lie in [0, 1), got {rate}.")
    count = int(rate * betas.shape[1])
    if count == 0:
        return betas
    size = (whole(len(betas)), betas.shape[1])
    noise = drawn(lambda g: torch.rand(size, generator=g), generator, betas.device)
    off = noise.topk(count, dim=1, largest=False, sorted=False).indices  # (B, count)
    return betas.scatter(1, off, 0.0)


def patchify(betas: Tensor, patch_size: int) -> Tensor:
    """(B, V) -> (B, L, patch_size): token k holds voxels k * patch_size onwards."""
    return betas.unflatten(1, (-1, patch_size))

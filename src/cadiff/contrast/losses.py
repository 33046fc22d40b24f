"""Objectives of phase 1 (double-contrastive masked auto-encoding), and the masked error of phase 2.

Sources, quantity by quantity (Sun et al. 2023):
    cross-contrast  L_C  eq. 1   two differently masked views of one sample are told apart from other samples
    self-contrast   L_S  eq. 2   a prediction is told apart from other samples; positive: the unmasked input
    total           L = gamma_c L_C + gamma_s L_S, eq. 3

Differs from the paper: it never names the temperature nor a normalisation; as in its released code we take
cosine similarity and temperature 0.1. The paper's negatives are predictions of the same view (`same_view`,
`predictions`), the released code's are the other view and the inputs (`cross_view`, `inputs`). Such a choice
changes the denominator only; the positive pair is the same.

Shapes: N samples, V voxels, L patches of P voxels. All losses are in nats (or squared units) and are computed
in at least float32 with autocast switched off: with bfloat16 a cosine has two digits. A batch that is divided
among processes (cadiff.sharing) has the same negatives and the same hidden patches as a whole one: the mean of the
processes' losses is the loss of the batch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.sharing import first_row, gather, processes_sharing, total

CrossNegatives = Literal["cross_view", "same_view"]
SelfNegatives = Literal["inputs", "predictions"]
SelfViews = Literal["first", "both"]


def info_nce(anchors: Tensor, positives: Tensor, negatives: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE with cosine similarity; van den Oord et al. 2018 (CPC), eq. 4.

    Row i of `positives` (N, V) is the positive of row i of `anchors` (N, V); every row j != i of `negatives`
    (N, V) is a negative of it, row i of `negatives` is not used. Result: scalar, mean over rows, >= 0; log(N)
    when nothing can be told apart, 0 for N = 1.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        a, p, n = (F.normalize(_at_least_float32(x), dim=-1) for x in (anchors, positives, negatives))
        positive = (a * p).sum(-1)  # (N,)
        first = first_row(len(a))  # N of the W N rows are here
        cosines = torch.diagonal_scatter(a @ gather(n).mT, positive, offset=first)  # (N, W N)
        rows = torch.arange(first, first + len(a), device=a.device)
        return F.cross_entropy(cosines / temperature, rows)


def cross_contrast(
    first: Tensor, second: Tensor, *, temperature: float = 0.1, negatives: CrossNegatives = "cross_view"
) -> Tensor:
    """L_C, eq. 1: predictions (N, V) from two maskings of the same samples; first against second."""
    others = {"cross_view": second, "same_view": first}[negatives]
    return info_nce(first, second, others, temperature=temperature)


def self_contrast(
    prediction: Tensor, inputs: Tensor, *, temperature: float = 0.1, negatives: SelfNegatives = "inputs"
) -> Tensor:
    """L_S, eq. 2: predictions (N, V) against the unmasked inputs (N, V)."""
    others = {"inputs": inputs, "predictions": prediction}[negatives]
    return info_nce(prediction, inputs, others, temperature=temperature)


def double_contrast(
    first: Tensor,
    second: Tensor,
    inputs: Tensor,
    *,
    gamma_c: float = 1.0,
    gamma_s: float = 1.0,
    temperature: float = 0.1,
    cross_negatives: CrossNegatives = "cross_view",
    self_negatives: SelfNegatives = "inputs",
    self_views: SelfViews = "first",
) -> dict[str, Tensor]:
    """Eq. 3. `self_views`: L_S of the first view only, or the mean over both.

    Returns scalars `loss` (weighted sum), `cross` and `self` (without their weights).
    """
    cross = cross_contrast(first, second, temperature=temperature, negatives=cross_negatives)
    own = self_contrast(first, inputs, temperature=temperature, negatives=self_negatives)
    if self_views == "both":
        own = 0.5 * (own + self_contrast(second, inputs, temperature=temperature, negatives=self_negatives))
    return {"loss": gamma_c * cross + gamma_s * own, "cross": cross, "self": own}


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of hidden patches alone; He et al. 2022 (MAE), section 3; Sun et al. 2023, eq. 7.

    `prediction`, `target`: (N, L, P). `mask`: bool (N, L), True = hidden; where nothing is hidden the result
    is 0.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        error = (_at_least_float32(prediction) - _at_least_float32(target)).square().mean(-1)  # (N, L)
        return processes_sharing() * (error * mask).sum() / total(mask.sum()).clamp(min=1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

"""How alike two pictures are, pixel by pixel. Pure numpy and scipy; definitions are frozen (version 1).

    mse    mean (x - y)^2                                             0 is perfect; lower is better
    psnr   -10 log10 mse, decibel                                     higher is better
    pcc    Pearson correlation of all pixels and channels ("PixCorr")  -1..1, higher is better
    ssim   structural similarity, Wang et al. 2004, Eq. 13             -1..1, higher is better

Every function takes two stacks of pictures, `(n, H, W)` grey or `(n, H, W, C)` colour, and gives one number a
picture, `(n,)` float64. uint8 is divided by 255; floats must lie in [0, 1] already.

`two_way_identification` turns any table of similarities into the share of wrong pictures that a
reconstruction tells from the right one.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d
from scipy.stats import rankdata

from cadiff.errors import DataError

BLOCK = 1024
"""Values of pictures that are multiplied at a time, see `pair_tables`."""
SSIM_WINDOW = 11
SSIM_SD = 1.5
SSIM_CUT = SSIM_WINDOW // 2
SSIM_K1, SSIM_K2 = 0.01, 0.03


def mse(pictures: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean squared error in units of the full range, so between 0 and 1."""
    x, y = _pair(pictures, targets)
    return ((x - y) ** 2).reshape(len(x), -1).mean(axis=1)


def psnr(pictures: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in decibel; infinite for identical pictures."""
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(mse(pictures, targets))


def pcc(pictures: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Pearson correlation over all pixels and channels of a picture.

    A constant picture has no correlation; it scores 0, as a guess that carries nothing.
    """
    x, y = _pair(pictures, targets)
    return np.einsum("nd,nd->n", standardise(x), standardise(y))


def ssim(pictures: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang, Bovik, Sheikh & Simoncelli 2004), the mean over the map and over channels.

    Gaussian window of 11 x 11 pixels with deviation 1.5, weights summing to 1 (so biased variances); data
    range 1; K1 = .01, K2 = .03; the 5 border pixels, where the window would leave the picture, are cut.
    Raises `DataError` for pictures smaller than the window.
    """
    x, y = _pair(pictures, targets)
    if min(x.shape[1:3]) < SSIM_WINDOW:
        raise DataError(
            f"SSIM needs pictures of at least {SSIM_WINDOW} pixels a side; these are {x.shape[1:3]}."
        )
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * structure).reshape(len(x), -1).mean(axis=1)


def standardise(x: np.ndarray) -> np.ndarray:
    """Rows `(n, d)` centred and scaled to length 1, so that their dot products are Pearson correlations.

    A constant row becomes 0. Leading axis kept, all others flattened.
    """
    rows = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    # Rounding leaves a constant row at about 1e-16 of its size, not at 0.
    floor = 1e-12 * np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > floor)


def correlations(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Pearson correlation of every prediction `(m, ...)` with every target `(n, ...)`: `(m, n)`."""
    return standardise(predictions) @ standardise(targets).T


def pair_tables(pictures: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`pcc` and `mse` of every picture, uint8 `(m, H, W[, C])`, with every target `(n, H, W[, C])`: both `(m, n)`.

    Products are of whole numbers from -128 to 127: sums of `BLOCK` of them stay within 2^24, so single precision holds them
    without rounding, and double precision the sums of blocks. The errors of equal pictures are exactly 0. Beside
    the tables this takes `BLOCK` values a picture, however large pictures are.
    """
    if pictures.dtype != np.uint8 or targets.dtype != np.uint8 or pictures.shape[1:] != targets.shape[1:]:
        raise DataError(
            f"Tables of pairs take uint8 pictures of one size; these are {pictures.dtype} {pictures.shape[1:]} and "
            f"{targets.dtype} {targets.shape[1:]}."
        )
    stacks = [stack.reshape(len(stack), -1) for stack in (pictures, targets)]
    size, shape = stacks[0].shape[1], (len(pictures), len(targets))
    products, part = np.zeros(shape), np.empty(shape, dtype=np.float32)
    sums, squares = ([np.zeros(n, dtype=np.int64) for n in shape] for _ in range(2))
    for start in range(0, size, BLOCK):
        block = [np.subtract(rows[:, start : start + BLOCK], 128, dtype=np.float32) for rows in stacks]
        products += np.matmul(block[0], block[1].T, out=part)
        for side, rows in enumerate(block):
            sums[side] += rows.sum(axis=1).astype(np.int64)
            squares[side] += np.einsum("nd,nd->n", rows, rows).astype(np.int64)
    error = (squares[0][:, None] + squares[1][None, :] - 2 * products) / (255.0**2 * size)
    scale = [
        np.sqrt((size * square - total**2).astype(np.float64))
        for square, total in zip(squares, sums, strict=True)
    ]
    length, covariance = np.outer(*scale), size * products - np.outer(*sums)
    return np.divide(covariance, length, out=np.zeros(shape), where=length > 0), error


def two_way_identification(similarity: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Share of the other targets that are less similar to a prediction than its own target, `(m,)`; chance is
    .5.

    Args:
        similarity: `(m, n)`, larger is more alike; row i belongs to prediction i, column j to target j.
        own: `(m,)`, the column of each prediction's own target.

    An equal similarity counts one half, so predictions that carry nothing score exactly .5.
    """
    m, n = similarity.shape
    if n < 2:
        raise DataError("Two-way identification compares with other stimuli; there is only one.")
    mine = similarity[np.arange(m), own][:, None]
    beaten = (similarity < mine).sum(axis=1)
    equal = (similarity == mine).sum(axis=1) - 1  # the own target equals itself
    return (beaten + 0.5 * equal) / (n - 1)


def two_way_table(similarity: np.ndarray) -> np.ndarray:
    """`two_way_identification` of every prediction for every target that it might belong to: `(m, n)`, arguments as there."""
    n = similarity.shape[1]
    if n < 2:
        raise DataError("Two-way identification compares with other stimuli; there is only one.")
    return (rankdata(similarity, axis=1) - 1.0) / (n - 1)


def as_unit(pictures: np.ndarray) -> np.ndarray:
    """Pictures in [0, 1] as float64."""
    if pictures.dtype == np.uint8:
        return pictures / 255.0
    return np.asarray(pictures, dtype=np.float64)


def _pair(pictures: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if pictures.shape != targets.shape or pictures.ndim not in (3, 4):
        raise DataError(
            f"Pictures {pictures.shape}, targets {targets.shape}; expected one shape, (n, H, W[, C])."
        )
    return as_unit(pictures), as_unit(targets)


def _blur(x: np.ndarray) -> np.ndarray:
    """Gaussian means over height and width, borders of half a window cut."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_CUT
    weights = np.exp(-(offsets**2) / (2 * SSIM_SD**2))
    weights /= weights.sum()
    for axis in (1, 2):
        x = correlate1d(x, weights, axis=axis, mode="nearest")  # the mode touches only what is cut
    return x[:, SSIM_CUT:-SSIM_CUT, SSIM_CUT:-SSIM_CUT]

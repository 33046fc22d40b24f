import tracemalloc

import numpy as np
import pytest

from cadiff.errors import DataError
from cadiff.evaluate import pixel


def slow_ssim(x, y):
    """Wang et al. 2004, written out window by window for one grey picture."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for i in range(5, x.shape[0] - 5):
        for j in range(5, x.shape[1] - 5):
            a, b = x[i - 5 : i + 6, j - 5 : j + 6], y[i - 5 : i + 6, j - 5 : j + 6]
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            c1, c2 = 0.01**2, 0.03**2
            found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(found)


def test_ssim_is_the_windowed_definition(rng):
    x, y = rng.random((2, 14, 17))
    assert pixel.ssim(x[None], y[None])[0] == pytest.approx(slow_ssim(x, y), abs=1e-12)


def test_ssim_of_colour_is_the_mean_over_channels(rng):
    x, y = rng.random((2, 3, 16, 16, 3))
    channels = [pixel.ssim(x[..., c], y[..., c]) for c in range(3)]
    np.testing.assert_allclose(pixel.ssim(x, y), np.mean(channels, axis=0), atol=1e-12)


def test_identical_pictures_are_perfect(rng):
    x = rng.integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    np.testing.assert_allclose(pixel.ssim(x, x), 1.0)
    np.testing.assert_allclose(pixel.pcc(x, x), 1.0)
    np.testing.assert_array_equal(pixel.mse(x, x), 0.0)
    assert np.isinf(pixel.psnr(x, x)).all()


def test_every_measure_is_symmetric(rng):
    x, y = rng.random((2, 3, 16, 16, 3))
    for measure in (pixel.mse, pixel.psnr, pixel.pcc, pixel.ssim):
        np.testing.assert_allclose(measure(x, y), measure(y, x))


def test_pcc_is_numpys_and_ignores_gain_and_offset(rng):
    x, y = rng.random((2, 3, 8, 8, 3))
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(pixel.pcc(x, y), expected)
    np.testing.assert_allclose(pixel.pcc(0.3 * x + 0.2, y), expected)
    np.testing.assert_allclose(pixel.pcc(1.0 - x, y), -np.array(expected))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0])
def test_a_constant_picture_correlates_with_nothing(rng, value):
    constant = np.full((2, 12, 12, 3), value)
    assert np.all(pixel.pcc(constant, rng.random((2, 12, 12, 3))) == 0.0)
    assert np.all(pixel.pcc(constant, constant) == 0.0)


def test_mse_and_psnr_in_closed_form():
    x, y = np.full((1, 4, 4), 51, np.uint8), np.full((1, 4, 4), 102, np.uint8)
    assert pixel.mse(x, y)[0] == pytest.approx(0.04)
    assert pixel.psnr(x, y)[0] == pytest.approx(-10 * np.log10(0.04))


def test_two_way_identification_counts_beaten_targets_and_halves_ties():
    similarity = np.array([[0.9, 0.1, 0.9, 0.95], [0.0, 0.5, 0.4, 0.3], [1.0, 1.0, 1.0, 1.0]])
    found = pixel.two_way_identification(similarity, np.array([0, 1, 2]))
    np.testing.assert_allclose(found, [(1 + 0.5) / 3, 1.0, 0.5])


def test_two_way_identification_is_half_for_random_pictures(rng):
    similarity = rng.random((400, 50))
    found = pixel.two_way_identification(similarity, rng.integers(0, 50, 400))
    assert found.mean() == pytest.approx(0.5, abs=4 * 0.29 / 20)


def test_wrong_shapes_are_refused(rng):
    with pytest.raises(DataError, match="one shape"):
        pixel.mse(rng.random((2, 8, 8)), rng.random((2, 8, 9)))
    with pytest.raises(DataError, match="at least 11"):
        pixel.ssim(rng.random((2, 10, 12)), rng.random((2, 10, 12)))
    with pytest.raises(DataError, match="only one"):
        pixel.two_way_identification(np.ones((3, 1)), np.zeros(3, int))


def test_tables_of_pairs_are_exact(rng):
    """Sums of whole numbers: equal pictures err by nothing, near ones by one value, and extremes overflow nothing."""
    size = 40  # 4,800 values: several blocks, the last one shorter
    pictures = rng.integers(0, 256, (5, size, size, 3)).astype(np.uint8)
    pictures[1], pictures[2], pictures[3] = 0, 255, 7
    targets = np.concatenate([pictures, rng.integers(0, 256, (2, size, size, 3)).astype(np.uint8)])
    targets[6] = targets[0]
    targets[6, 0, 0, 0] ^= 1
    alike, error = pixel.pair_tables(pictures, targets)
    for i, picture in enumerate(pictures):
        same = np.repeat(picture[None], len(targets), axis=0)
        np.testing.assert_allclose(alike[i], pixel.pcc(same, targets), atol=1e-12)
        whole = ((same.astype(np.int64) - targets) ** 2).reshape(len(targets), -1).sum(axis=1)
        np.testing.assert_allclose(error[i], whole / (255**2 * picture.size), rtol=1e-15)
    assert (np.diag(error) == 0).all() and error[0, 6] == 1 / (255**2 * pictures[0].size)
    assert (alike[1:4] == 0).all() and error[1, 2] == 1
    with pytest.raises(DataError, match="uint8"):
        pixel.pair_tables(pictures / 255, targets)


def test_tables_of_pairs_need_little_beside_the_pictures(rng):
    pictures, targets = (rng.integers(0, 256, (n, 128, 128, 3)).astype(np.uint8) for n in (130, 26))
    tracemalloc.start()
    pixel.pair_tables(pictures, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        peak < pictures.nbytes / 3
    )  # as floats the pictures alone would take four or eight times as much as they do

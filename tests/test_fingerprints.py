import io

import numpy as np
import pytest
from PIL import Image

from cadiff import fingerprints as fp
from cadiff.data.stimulus_sets import load_stimuli


@pytest.fixture(scope="module")
def photos():
    """300 different photos, uint8 (300, 64, 64, 3)."""
    stimuli = load_stimuli(None)
    names = sorted(stimuli.table["stimulus_id"])
    chosen = np.random.default_rng(0).permutation(names)[:300]
    return stimuli.images(list(chosen), 64)


def prints(pictures):
    return fp.fingerprints(np.stack([fp.thumbnail(np.asarray(picture)) for picture in pictures]))


def recompressed(picture, quality, size):
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR).save(
        buffer, "JPEG", quality=quality
    )
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_different_photos_are_not_called_the_same(photos):
    train, test = prints(photos[:200]), prints(photos[200:])
    usual = fp.usual_similarity(train, np.random.default_rng(0))
    assert fp.same_pictures(test, train, fp.least_similarity(usual)) == []


@pytest.mark.parametrize(("quality", "size"), [(95, 64), (30, 64), (75, 160), (60, 40), (90, 48)])
def test_copies_are_found_after_recompression_and_resizing(photos, quality, size):
    train = prints(photos[:200])
    copies = prints([recompressed(photo, quality, size) for photo in photos[:60]])
    least = fp.least_similarity(fp.usual_similarity(train, np.random.default_rng(0)))
    found = fp.same_pictures(copies, train, least)
    assert all(a == b for a, b, _ in found)
    assert len(found) >= 57


def test_grey_copies_are_found(photos):
    grey = [np.repeat(np.asarray(Image.fromarray(p).convert("L"))[..., None], 3, 2) for p in photos[:20]]
    assert len(fp.same_pictures(prints(grey), prints(photos[:20]), fp.FEW_LEAST)) == 20


def test_look_alikes_raise_the_bar(rng):
    """Bars of one kind that differ a little, as digits do, are not taken for copies; an exact copy is."""
    y, x = np.mgrid[:28, :28]

    def bar(tilt, shift):
        return (255 * np.clip(2.5 - np.abs(x - 14 - shift - tilt * (y - 14)), 0, 1)).astype(np.uint8)

    drawn = [np.repeat(bar(*rng.uniform((-0.4, -3), (0.4, 3)))[..., None], 3, 2) for _ in range(140)]
    train, test = prints(drawn[:100]), prints([*drawn[100:], drawn[7]])
    usual = fp.usual_similarity(train, rng)
    assert usual is not None and fp.least_similarity(usual) > fp.LEAST
    found = fp.same_pictures(test, train, fp.least_similarity(usual))
    assert (40, 7, pytest.approx(1.0, abs=1e-5)) in found
    assert len(found) <= 4


def test_pictures_of_one_colour_are_like_nothing():
    flat = prints([np.full((40, 40, 3), level, np.uint8) for level in (0, 128, 255)])
    assert fp.same_pictures(flat, flat, fp.LEAST) == []


def test_brightness_tells_pictures_apart(photos):
    dark = (photos[:20] * 0.6).astype(np.uint8)  # the same pattern, but nobody's recompression
    assert len(fp.same_pictures(prints(dark), prints(photos[:20]), fp.LEAST)) < 10


def test_similarity_is_symmetric_and_one_with_itself(photos):
    some = prints(photos[:30])
    among = fp.similarity(some, some)
    np.testing.assert_allclose(among, among.T, atol=1e-5)
    np.testing.assert_allclose(np.diag(among), 1.0, atol=1e-5)

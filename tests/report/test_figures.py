import base64
import io
import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from cadiff.report import charts, figures


@pytest.mark.parametrize(
    "low, high", [(0, 0.48), (0.0, 1.0), (-0.03, 0.41), (3.0, 3.0), (0, 1e-6), (-5, 12_345)]
)
def test_ticks_are_even_and_enclose_the_values(low, high):
    ticks = figures.nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_pictures_survive_the_round_trip():
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    head, _, data = figures.picture_uri(picture).partition(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), picture)


def test_large_pictures_are_shrunk():
    head, _, data = figures.picture_uri(np.zeros((400, 800, 3), np.uint8)).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (192, 96)


def test_a_dot_stands_where_its_value_is():
    scale = figures.Scale([0.0, 0.5, 1.0], margin=0.0)
    drawn = charts.interval_row(scale, 0.25, (0.1, 0.6), kind="brain", title="a < b", chance=0.02)
    root = ElementTree.fromstring(drawn)
    (dot,) = [e for e in root if e.get("class") == "dot"]
    (bar,) = [e for e in root if e.get("class") == "bar"]
    assert (dot.get("cx"), bar.get("x1"), bar.get("x2")) == ("25.00%", "10.00%", "60.00%")
    assert root.get("aria-label") == "a < b"  # escaped on the way in


@pytest.mark.parametrize("log", [False, True])
def test_curves_and_charts_are_well_formed(log):
    rng = np.random.default_rng(0)
    ElementTree.fromstring(charts.loss_curve(range(1, 90), rng.random(89) + 0.1, title="loss", log=log))
    ElementTree.fromstring(charts.loss_curve([1, 2], [0.5, 0.5], title="flat", log=log))
    series = [("brain", "Brain", [0.9, 0.2]), ("control", "Prior only", [0.1, 0.3])]
    ElementTree.fromstring(charts.per_image_chart(series, [0, 0.5, 1], ["0", "50", "100"], "scores"))


def test_ticks_of_scores_stay_within_what_scores_can_be():
    assert figures.score_ticks([0.2, 0.97], percent=True)[-1] == 1.0
    assert figures.score_ticks([-0.1, 0.3], percent=False)[0] <= -0.1
    assert figures.tick_texts([0.0, 0.5, 1.0], percent=True) == ["0", "50", "100 %"]


def test_a_line_chart_runs_logarithmically():
    points = charts.Points(
        "brain", "Brain", [1, 4, 16], [0.1, 0.2, 0.3], [0, 0.1, 0.2], [0.2, 0.3, 0.4], list("abc")
    )
    band = charts.Band("control", "Prior only", 0.1, 0.05, 0.15)
    drawn = charts.line_chart([points], [0, 0.5], ["0", "50 %"], title="t", x_name="n", bands=[band])
    dots = [e for e in ElementTree.fromstring(drawn).iter() if e.get("class") == "dot"]
    x = [float(dot.get("cx")[:-1]) for dot in dots]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)
    alone = charts.Points("brain", "Brain", [3], [0.1], [0.0], [0.2], ["a"])
    ElementTree.fromstring(charts.line_chart([alone], [0, 0.5], ["0", "50 %"], title="t", x_name="n"))


def test_bars_begin_at_zero():
    scale = figures.Scale([-0.5, 0.0, 0.5], margin=0.0)
    root = ElementTree.fromstring(
        charts.bar_row(scale, -0.25, kind="brain", title="t", interval=(-0.5, 0.0), tick=0.1)
    )
    (fill,) = [e for e in root if e.get("class") == "fill"]
    assert (fill.get("x"), fill.get("width")) == ("25.00%", "25.00%")


@pytest.mark.parametrize("high", [0.0, 1e-300, 3e-14, 2e-5, 7.0, 1e9])
def test_ticks_rise_however_small_the_scores_are(high):
    """An untrained model's exact n-way score can be 1e-14."""
    ticks = figures.score_ticks([0.0, high], percent=True)
    assert all(a < b for a, b in itertools.pairwise(ticks))
    scale = figures.Scale(ticks)
    assert scale(ticks[0]) < scale(ticks[-1])


def test_differences_that_are_all_negative_have_0_on_their_axis():
    ticks = figures.score_ticks([-0.6, -0.3], percent=False)
    assert ticks[-1] == 0 and ticks[0] <= -0.6
    assert figures.Scale(ticks)(0.0) > figures.Scale(ticks)(-0.3)
